"""The training step of a config, compiled for a machine without it."""

import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxzoo import catalog, configuration
from jaxzoo.assembly import create_system
from jaxzoo.errors import UserError
from jaxzoo.plan import collectives, costs, estimate, hlo
from jaxzoo.plan.report import GIB, Report, memory_of, memory_of_refusal
from jaxzoo.plan.topology import GPUS, Topology
from jaxzoo.train import compiler, loop
from jaxzoo.train import mesh as meshes
from jaxzoo.train.flops import training_flops

# Without a GPU to try them on, XLA finds no tiles for some products.
GPU_OPTIONS = {'xla_gpu_enable_triton_gemm': False}
# The length of the run changes the table of the rates alone.
STEPS = 1000

Attempt = Callable[..., Report | None]


class Lowered(NamedTuple):
  """A step on its way to the compiler.

  Attributes:
    system: whose step it is.
    program: see `loop.lower_system`.
    settings: see `Report`.
    seconds: that tracing took.
    options: of the compiler.
  """

  system: object
  program: loop.Program
  settings: dict
  seconds: float
  options: dict


def make_attempt(topology: Topology) -> Attempt:
  """config -> its report; None where an earlier one gave the same program.

  A field that a system does not look at, `remat` of a network without blocks,
  changes no program: no need to compile it again.
  """
  seen, flops = set(), {}

  def attempt(config) -> Report | None:
    lowered = lower_step(config, topology)
    text = lowered.program.step.as_text()
    digest = hashlib.sha256(text.encode()).digest()
    if digest in seen:
      return None
    seen.add(digest)
    # Neither mesh nor rematerialisation changes what the model needs.
    size = lowered.settings['batch_size']
    if size not in flops:
      program = lowered.program
      flops[size] = training_flops(
        lowered.system, program.abstract, program.batch
      )
    return compile_step(lowered, topology, flops[size])

  return attempt


def lower_step(config, topology: Topology) -> Lowered:
  """Traces the step that `jaxzoo.main` runs, for the devices of a topology.

  No data is read: batches are as the data's `example_batch` says.

  Raises:
    UserError: fields, mesh or batch size that cannot be.
  """
  configuration.check(config)
  mesh = meshes.make_mesh(config.mesh, topology.devices)
  meshes.check_batch(config.batch_size, mesh, config.microbatches)
  started = time.perf_counter()
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  system = create_system(config, STEPS, STEPS // 10)
  batch = jax.eval_shape(lambda: data.example_batch(config))
  program = loop.lower_system(
    system,
    jax.random.key(config.seed),
    meshes.abstract_batch(batch, mesh),
    mesh,
    catalog.sharding(config),
  )
  settings = {
    'system': config.system,
    'topology': topology.target.name,
    'chip': topology.devices[0].device_kind,
    'chips': topology.target.devices,
    'mesh': dict(mesh.shape),
    'batch_size': config.batch_size,
    'dtype': config.dtype,
    'remat': config.remat,
    'compiler': config.compiler,
    'microbatches': parts(config),
    'unit': config.data.unit,
    'jax': jax.__version__,
  }
  return Lowered(
    system,
    program,
    settings,
    time.perf_counter() - started,
    compiler.options(config.compiler, topology.devices),
  )


def compile_step(
  lowered: Lowered, topology: Topology, model_flops: int
) -> Report:
  """Compiles, and reads off what the compiler says.

  Raises:
    UserError: the compiler refuses the step for another reason than memory.
  """
  program = lowered.program
  gpu = topology.target.kind in GPUS
  limit = topology.chip.usable * GIB
  started = time.perf_counter()
  memory, fits, compiled, rows, times = None, False, {}, [], None
  try:
    options = lowered.options | (GPU_OPTIONS if gpu else {})
    step = program.step.compile(options or None)
  except jax.errors.JaxRuntimeError as error:
    memory = memory_of_refusal(str(error))
    if memory is None:
      reason = str(error).splitlines()[0]
      raise UserError(
        f'{topology.target.name}: the compiler refuses the step of '
        f'{lowered.settings["system"]}: {reason}'
      ) from error
  seconds = time.perf_counter() - started
  if memory is None:
    memory = memory_of(step.memory_analysis(), limit)
    if not gpu:  # fitted in by the compiler, which the sum does not see
      memory = memory._replace(needed=min(memory.needed, limit))
    fits = memory.needed <= limit
    compiled, rows, times = _read(
      step.as_text(), program.mesh, topology, model_flops
    )
  return Report(
    lowered.settings,
    fits,
    memory,
    {'trace': lowered.seconds, 'compile': seconds},
    sum(x.size for x in jax.tree.leaves(program.abstract.params)),
    model_flops,
    compiled,
    rows,
    times,
  )


def _read(text: str, mesh, topology: Topology, model_flops: int):
  """(compiled, collectives, times) of a `Report`, from a program's text."""
  program = hlo.parse(text)
  axes = dict(mesh.shape)
  slices = topology.target.slices
  if slices > 1:  # each runs a program of its own
    axes['data'] //= slices
  counted = costs.count(program, topology.chip)
  found = collectives.find(program, axes)
  times = estimate.predict(
    counted, found, estimate.make_network(topology, mesh), model_flops
  )
  compiled = {
    'flops': counted.flops,
    'bytes': counted.bytes,
    'cycles': counted.cycles,
    'kernels': counted.unknown,
    'kernel_seconds': counted.kernels,
  }
  return compiled, collectives.totals(found), times


def parts(config) -> int:
  """Parts of a batch whose activations are in memory one after the other."""
  return config.microbatches * config.get('loss', {}).get(
    'tower_microbatches', 1
  )


def parts_field(config) -> str:
  """The field that cuts a batch without changing what is learned, if any.

  A loss that compares all examples with each other has one of its own.
  """
  if 'tower_microbatches' in config.get('loss', {}):
    return 'loss.tower_microbatches'
  return 'microbatches'
