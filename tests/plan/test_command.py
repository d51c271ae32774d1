"""A plan from the command line, compiled by libtpu without a TPU."""

import json

import jax
import pytest

from jaxzoo import catalog, main
from jaxzoo.errors import UserError
from jaxzoo.plan import step, topology
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes

# AdamW has no loops of matrix products as Muon has: half as much to compile.
TINY = ['--config=configs/clip.py:tiny', '--config.optim.name=adamw']


def test_unknown_topology_is_one_line_and_exit_code_2(capsys, tmp_path):
  code = main.main([*TINY, '--plan=v5e:3x5', f'--workdir={tmp_path}'])
  assert code == 2
  assert 'the nearest is v5e:4x4' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_step_that_is_planned_is_the_one_that_runs():
  config = catalog.get_config('card:tiny')
  config.mesh.data = 2
  devices = jax.devices()[:2]
  target = topology.Target('v5e', (1, 2))
  lowered = step.lower_step(config, topology.Topology(target, devices, None))
  mesh = meshes.make_mesh(config.mesh, devices)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  program = loop.lower_system(
    main.create_system(config, step.STEPS, step.STEPS // 10),
    jax.random.key(config.seed),
    meshes.abstract_batch(data.example_batch(config), mesh),
    mesh,
    catalog.sharding(config),
  )
  assert lowered.program.step.as_text() == program.step.as_text()


@pytest.fixture
def libtpu():
  return pytest.importorskip(
    'libtpu', reason="the TPU compiler: pip install 'jaxzoo[tpu]'"
  )


@pytest.mark.parametrize('fsdp', [1, 4])
def test_outer_part_of_data_spans_slices(libtpu, fsdp):
  opened = topology.open_topology(topology.parse('2xv5e:4x4'))
  mesh = meshes.make_mesh(dict(data=-1, fsdp=fsdp), opened.devices)
  assert dict(mesh.shape) == {'data': 32 // fsdp, 'fsdp': fsdp, 'tensor': 1}
  slices = [device.slice_index for device in mesh.devices.flat]
  assert slices == [0] * 16 + [1] * 16


def test_shape_that_the_compiler_does_not_know_is_an_error(libtpu):
  with pytest.raises(UserError, match='does not open this topology'):
    topology.open_topology(topology.Target('v5e', (3, 5)))


@pytest.mark.slow
def test_plan_of_a_small_topology(libtpu, capsys, tmp_path):
  code = main.main(
    [
      *TINY,
      '--config.batch_size=64',
      '--config.mesh.data=4',
      '--config.mesh.fsdp=4',
      '--config.towers.text_depth=3',
      '--config.scan=True',
      '--plan=v5e:4x4',
      f'--workdir={tmp_path}',
    ]
  )
  assert code == 0
  assert 'images/s, MFU' in capsys.readouterr().out
  plan = json.loads((tmp_path / 'plan.json').read_text())
  assert plan['fits'] and plan['memory']['limit'] == 15.75 * 2**30
  assert plan['chips'] == 16 and plan['chip'] == 'TPU v5 lite'
  # Nothing is computed twice; gradients with respect to pictures are not needed.
  compiled = 16 * plan['compiled']['flops']
  assert 0.8 < compiled / plan['model_flops'] < 1.1
  axes = {axis for row in plan['collectives'] for axis in row['axes']}
  assert axes <= {'data', 'fsdp'} and 'data' in axes
  # The gradients of all parameters, once, over some axis; float32.
  sent = sum(
    row['bytes'] for row in plan['collectives'] if row['kind'] != 'all-gather'
  )
  assert sent > plan['parameters'] * 4 / 16
  times = plan['seconds']
  assert times['step'] >= max(times['compute'], times['hbm']) > 0
  assert 0 < plan['mfu'] < 1
