"""Names of machines, and what is said of those that there are not."""

import dataclasses
import os
import types

import pytest

from jaxzoo.errors import UserError
from jaxzoo.plan import topology
from jaxzoo.plan.topology import Target, parse
from jaxzoo.train import mesh as meshes
from jaxzoo.train.utilization import find_chip


@pytest.mark.parametrize(
  'name, want, devices',
  [
    ('v5e:4x4', Target('v5e', (4, 4)), 16),
    ('v5e:1x1', Target('v5e', (1, 1)), 1),
    ('2xv5e:16x16', Target('v5e', (16, 16), 2), 512),
    ('v5p:4x4x4', Target('v5p', (4, 4, 4)), 64),
    ('v4:2x2x1', Target('v4', (2, 2, 1)), 4),
    ('v5p:12x4x8', Target('v5p', (12, 4, 8)), 384),
    ('h100:8', Target('h100', (1, 8)), 8),
    ('h200:4x8', Target('h200', (4, 8)), 32),
  ],
)
def test_name_says_the_machine(name, want, devices):
  got = parse(name)
  assert got == want and got.devices == devices and got.name == name


@pytest.mark.parametrize(
  'name, message',
  [
    ('v5:4x4', 'did you mean'),
    ('v5litepod-16', 'write KIND:SHAPE'),
    ('v5e:3x5', 'the nearest is v5e:4x4'),
    ('v5e:300x300', 'the nearest is v5e:16x16'),
    ('v5p:4x4', 'the nearest is v5p:2x2x4'),
    ('v6e:4x4x4', 'the nearest is v6e:8x8'),
    ('h100:16', 'HOSTSxGPUS'),
    ('2xh100:8', 'HOSTSxGPUS'),
    ('0xv5e:4x4', 'the nearest'),
  ],
)
def test_machine_that_there_is_not_is_an_error_with_the_nearest(name, message):
  with pytest.raises(UserError, match=message):
    parse(name)


def test_rings_close_where_the_torus_does():
  assert parse('v5e:16x16').wraps == (True, True)
  assert parse('v5e:8x16').wraps == (False, True)
  assert parse('v5p:4x4x8').wraps == (True, True, True)
  assert parse('v5p:2x2x4').wraps == (False, False, False)
  assert parse('h100:8').wraps == ()


@pytest.mark.parametrize(
  'name, extra', [('v5e:4x4', r'\[tpu\]'), ('h100:8', r'\[plan-gpu\]')]
)
def test_missing_compiler_is_an_error_that_says_what_to_install(
  name, extra, monkeypatch
):
  missing = types.SimpleNamespace(util=types.SimpleNamespace(
    find_spec=lambda name: None))  # fmt: skip
  monkeypatch.setattr(topology, 'importlib', missing)
  with pytest.raises(UserError, match=extra):
    topology.open_topology(parse(name))


def test_variables_are_set_for_the_block_alone(monkeypatch):
  monkeypatch.setenv('PLAN_KEPT', 'mine')
  with topology.environment({'PLAN_KEPT': 'other', 'PLAN_NEW': '1'}):
    assert os.environ['PLAN_KEPT'] == 'mine'
    assert os.environ['PLAN_NEW'] == '1'
  assert 'PLAN_NEW' not in os.environ


@pytest.mark.parametrize('gpu', topology.GPUS.values(), ids=lambda g: g.name)
def test_gpus_are_those_whose_peak_is_known(gpu):
  chip = find_chip(gpu.name)
  assert chip.usable <= 0.9 * gpu.memory / 2**30
  assert chip.bandwidth == gpu.bandwidth
  assert f'device_memory_size: {gpu.memory}' in topology.gpu_config(gpu)


@pytest.mark.parametrize('kind', ['v5 lite', 'v5', 'v6 lite', 'v4'])
def test_chips_of_topologies_have_all_that_a_plan_needs(kind):
  assert all(find_chip(f'TPU {kind}'))


def test_only_data_spans_slices():
  devices = [
    types.SimpleNamespace(slice_index=i // 4, platform='tpu', device_kind='x')
    for i in range(8)
  ]
  with pytest.raises(UserError, match='multiple of 2'):
    meshes.make_mesh(dict(data=1, fsdp=8), devices)


@dataclasses.dataclass(frozen=True)
class Chip:
  """Of a v6e, as far as a mesh wants to know it."""

  id: int
  coords: tuple[int, int, int]
  process_index: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v6 lite'
  core_on_chip: int = 0


def test_an_axis_may_have_a_part_of_a_side():
  """Of the 4x4 chips of v6e, 8 and 2; of v5e JAX itself allows it."""
  devices = [Chip(x + 4 * y, (x, y, 0)) for y in range(4) for x in range(4)]
  mesh = meshes.make_mesh(dict(data=2, fsdp=8), devices)
  assert mesh.devices.shape == (2, 8, 1)
  for group in mesh.devices[:, :, 0]:
    coords = {device.coords[:2] for device in group}
    sides = [len({c[i] for c in coords}) for i in range(2)]
    assert sorted(sides) == [2, 4]  # eight neighbours
