"""Machines by name, and their devices for the compiler without the machine."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from jaxzoo.errors import UserError, nearest
from jaxzoo.train.utilization import Chip, find_chip

# What libtpu reads while it starts; without it, it asks the cloud who it is.
# (The type is that of no machine in particular.)
TPU_ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # another plan may be compiling
}
# Shapes of slices that can be had.
FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
DEEP = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8))
DEEP += ((4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16))
TPUS = {'v4': DEEP, 'v5e': FLAT, 'v5p': DEEP, 'v6e': FLAT}
GPUS_OF_A_HOST = 8


class Gpu(NamedTuple):
  """What XLA wants to know of a GPU: sizes in bytes, bandwidth a second."""

  name: str
  memory: int
  bandwidth: float


GPUS = {
  'h100': Gpu('NVIDIA H100 80GB HBM3', 84_978_434_048, 3.35e12),
  'h200': Gpu('NVIDIA H200', 150_754_820_096, 4.8e12),
}


class Target(NamedTuple):
  """A machine.

  Attributes:
    kind: of its devices, a key of `TPUS` or `GPUS`.
    sides: of the torus of one slice; of GPUs (hosts, those of a host).
    slices: that the data-centre network connects; of GPUs 1.
  """

  kind: str
  sides: tuple[int, ...]
  slices: int = 1

  @property
  def name(self) -> str:
    sides = self.sides
    if self.kind in GPUS and sides[0] == 1:
      sides = sides[1:]
    prefix = f'{self.slices}x' if self.slices > 1 else ''
    return f'{prefix}{self.kind}:{"x".join(map(str, sides))}'

  @property
  def devices(self) -> int:
    return self.slices * math.prod(self.sides)

  @property
  def wraps(self) -> tuple[bool, ...]:
    """Which sides of the torus are closed to rings."""
    if self.kind in GPUS:
      return ()
    if len(self.sides) == 2:
      return tuple(side == 16 for side in self.sides)
    # Of v4 and v5p cubes of 4x4x4 are closed; what is less than one is open.
    return (all(side % 4 == 0 for side in self.sides),) * len(self.sides)


class Topology(NamedTuple):
  """The devices of a machine that need not be there, and what they can do."""

  target: Target
  devices: Sequence[Any]
  chip: Chip


def parse(name: str) -> Target:
  """The machine of a name.

  >>> parse('2xv5e:16x16')
  Target(kind='v5e', sides=(16, 16), slices=2)
  >>> parse('h100:8')
  Target(kind='h100', sides=(1, 8), slices=1)

  Raises:
    UserError: there is no such machine, with the nearest that there is.
  """
  match = re.fullmatch(r'(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)', name)
  if not match:
    raise UserError(
      f'topology {name!r}: write KIND:SHAPE, such as v5e:4x4, v5p:4x4x4, '
      '2xv5e:16x16 (two slices), h100:8 or h200:4x8 (four hosts)'
    )
  slices, kind, shape = match.groups()
  sides = tuple(map(int, shape.split('x')))
  if kind in GPUS:
    return _gpus(name, kind, sides, slices)
  if kind not in TPUS:
    known = [*TPUS, *GPUS]
    raise UserError(f'topology {name!r}: no {kind!r}; ' + nearest(kind, known))
  if not _possible(kind, sides) or slices == '0':
    near = min(TPUS[kind], key=lambda s: abs(math.prod(s) - math.prod(sides)))
    raise UserError(
      f'topology {name!r}: no slice of {kind} has this shape; the nearest is '
      f'{kind}:{"x".join(map(str, near))}, others are '
      + ', '.join('x'.join(map(str, s)) for s in TPUS[kind])
    )
  return Target(kind, sides, int(slices or 1))


def _possible(kind: str, sides: tuple[int, ...]) -> bool:
  if TPUS[kind] is FLAT:
    return tuple(sorted(sides)) in FLAT
  cubes = len(sides) == 3 and all(side and side % 4 == 0 for side in sides)
  return cubes or sides in DEEP


def _gpus(name, kind, sides, slices) -> Target:
  sides = sides if len(sides) == 2 else (1, *sides)
  if (
    slices
    or len(sides) != 2
    or not 1 <= sides[1] <= GPUS_OF_A_HOST
    or sides[0] < 1
  ):
    raise UserError(
      f'topology {name!r}: write {kind}:GPUS or {kind}:HOSTSxGPUS with at most '
      f'{GPUS_OF_A_HOST} GPUs in a host, such as {kind}:8 or {kind}:4x8'
    )
  return Target(kind, sides)


def open_topology(target: Target) -> Topology:
  """The devices of a machine, as its compiler describes them.

  Raises:
    UserError: the compiler is not installed, or does not know the machine.
  """
  # Whatever compilers are installed, arrays of this process lie on the host.
  jax.config.update('jax_platforms', 'cpu')
  gpu = target.kind in GPUS
  if not (_has_cuda() if gpu else importlib.util.find_spec('libtpu')):
    extra = 'plan-gpu' if gpu else 'tpu'
    raise UserError(
      f'{target.name} needs the compiler of its devices, which runs on any '
      f"machine: pip install 'jaxzoo[{extra}]'"
    )
  try:
    devices = (_gpu_devices if gpu else _tpu_devices)(target)
  except (RuntimeError, NotImplementedError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'{target.name}: the compiler does not open this topology ({reason})'
    ) from error
  return Topology(target, devices, find_chip(devices[0].device_kind))


def _has_cuda() -> bool:
  try:
    return importlib.util.find_spec('jax_plugins.xla_cuda12') is not None
  except ModuleNotFoundError:
    return False


def _tpu_devices(target: Target):
  options = {}
  if target.slices > 1:
    options['num_slices'] = target.slices
  if target.kind == 'v4':
    options['chip_config_name'] = 'megacore'  # a device a chip, not a core
  if math.prod(target.sides) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  name = f'{target.kind}:{"x".join(map(str, target.sides))}'
  with environment(TPU_ENVIRONMENT):
    return topologies.get_topology_desc(name, 'tpu', **options).devices


def _gpu_devices(target: Target):
  hosts, gpus = target.sides
  return topologies.get_topology_desc(
    'any',
    'cuda',
    target_config=gpu_config(GPUS[target.kind]),
    topology=f'1x{hosts}x{gpus}',
  ).devices


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
  """Sets variables that are not set, for as long as the block runs."""
  added = {k: v for k, v in variables.items() if k not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for name in added:
      del os.environ[name]


def gpu_config(gpu: Gpu) -> str:
  """XLA's `GpuTargetConfig` of a Hopper GPU (SXM), as text."""
  fields = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 49152,
    'shared_memory_per_core': 233472,
    'threads_per_core_limit': 2048,
    'core_count': 132,
    'fpus_per_core': 128,
    'block_dim_limit_x': 2**31 - 1,
    'block_dim_limit_y': 65535,
    'block_dim_limit_z': 65535,
    'memory_bandwidth': int(gpu.bandwidth),
    'l2_cache_size': 50 * 2**20,
    'clock_rate_ghz': 1.98,
    'device_memory_size': gpu.memory,
    'shared_memory_per_block_optin': 232448,
    'cuda_compute_capability': '{ major: 9 }',
    'registers_per_core_limit': 65536,
    'registers_per_block_limit': 65536,
  }
  lines = '\n'.join(f'  {name}: {value}' for name, value in fields.items())
  return (
    f'gpu_device_info {{\n{lines}\n}}\nplatform_name: "CUDA"\n'
    'dnn_version_info { major: 9 minor: 10 }\n'
    f'device_description_str: "{gpu.name}"\n'
  )
