"""Throughput of the whole training step of any system, on noise.

    python -m jaxzoo.bench.train_step --config=configs/irra.py:cuhk_pedes \\
        --batch_size=8 --dtype=float32

measures forward pass, losses, backward pass and optimizer as the training loop
runs them, and needs no data set. With `--torch` it measures IRRA, CLIP or CFAM,
with a vit as image tower, against the same step in PyTorch
(`pip install "jaxzoo[torch]"`) on the same device in the same run: each in a
process of its own, in alternating rounds, so that a machine that becomes slower
or faster does so for both. `irra_torch.py`, `clip_torch.py` and `cfam_torch.py`
say what is equal and what is not.

IRRA's step in PyTorch does what the released code does; `--torch=lean` lets it
skip the work that ours skips. The steps of CLIP and CFAM do none of that kind,
so they have no such variant and `lean` is refused.

Model FLOPs are three times those of the matrix products and convolutions of the
loss; MFU is what part of the chips' bfloat16 peak they reach.
"""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jaxzoo import catalog, main
from jaxzoo.bench import command, torch_process
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.torch_process import Timing, clock, since
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes
from jaxzoo.train.flops import training_flops
from jaxzoo.train.utilization import find_chip

Run = Callable[[int], list[Timing]]  # number of steps -> the time of each
Rounds = list[list[Timing]]  # by round and step


def peak_tflops(device_kind: str) -> float | None:
  """Of one device; None where it is not known, such as a CPU's."""
  chip = find_chip(device_kind)
  return chip and chip.flops / 1e12


class Compiled(NamedTuple):
  """The training step of a config, ready to be timed.

  Attributes:
    run: times steps.
    seconds: to trace and compile the step.
    flops: of the model, one step.
    parameters: that are trained.
    mesh: what it runs on.
  """

  run: Run
  seconds: float
  flops: int
  parameters: int
  mesh: jax.sharding.Mesh


def compile_program(config, batch: dict):
  """(program, system, mesh): the step as `jaxzoo.main` compiles it."""
  mesh = meshes.make_mesh(config.mesh)
  meshes.check_batch(config.batch_size, mesh, config.microbatches)
  # The length of the run changes the table of the rates alone.
  system = main.create_system(config, total_steps=1000, steps_per_epoch=100)
  program = loop.compile_system(
    system,
    jax.random.key(config.seed),
    meshes.abstract_batch(batch, mesh),
    mesh,
    catalog.sharding(config),
  )
  return program, system, mesh


def compile_step(config, batch: dict) -> Compiled:
  """The compiled step, with a state to run it on."""
  started = time.perf_counter()
  program, system, mesh = compile_program(config, batch)
  seconds = time.perf_counter() - started
  state = program.init()
  return Compiled(
    make_run(
      program.step,
      state,
      meshes.to_devices(batch, meshes.batch_sharding(mesh)),
    ),
    seconds,
    training_flops(system, program.abstract, batch),
    main.count_parameters(state.params),
    mesh,
  )


def make_run(step, state, batch) -> Run:
  """Times steps one after the other, on one batch.

  As in training, one step waits in the devices' queue while another runs: a
  step's time is from the end of the one before it to its own.
  """

  def run(steps):
    nonlocal state
    timings, running = [], None
    started = clock()
    for remaining in reversed(range(steps + 1)):
      queued = None
      if remaining:
        state, queued = step(state, batch)
      if running is not None:
        jax.block_until_ready(running)
        timings.append(since(started))
        started = clock()
      running = queued
    return timings

  return run


def alternate(
  runs: dict[str, Run], *, rounds: int, steps: int, warmup: int
) -> dict[str, Rounds]:
  """Times of each runner; in every round each has its turn.

  A turn begins with `warmup` steps that do not count: caches and free memory
  are what the other one has left.
  """
  timings = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      timings[name].append(run(warmup + steps)[warmup:])
  return timings


def summarize(rounds: Rounds, batch_size: int) -> dict[str, float]:
  """Times of a step, and images a second at the median."""
  timings = [timing for each in rounds for timing in each]
  seconds = [timing.wall for timing in timings]
  median = statistics.median(seconds)
  return {
    'step_ms': 1e3 * median,
    'step_ms_min': 1e3 * min(seconds),
    'step_ms_max': 1e3 * max(seconds),
    'host_cpu_seconds': statistics.median(x.cpu for x in timings),
    'images_per_second': batch_size / median,
  }


def speedup(ours: Rounds, theirs: Rounds) -> dict[str, float]:
  """How many times as fast ours is, round by round."""
  median = lambda timings: statistics.median(x.wall for x in timings)
  ratios = [median(b) / median(a) for a, b in zip(ours, theirs, strict=True)]
  return {
    'median': statistics.median(ratios),
    'min': min(ratios),
    'max': max(ratios),
  }


def peak_memory(devices) -> int:
  """Bytes: the most that one device has held; on CPUs, this process."""
  stats = [device.memory_stats() or {} for device in devices]
  most = max(each.get('peak_bytes_in_use', 0) for each in stats)
  return most or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def efficiency(ours: Compiled, step_ms: float, peak: float | None) -> dict:
  """What our step costs and reaches, from its time and its FLOPs."""
  devices = list(ours.mesh.devices.flat)
  peak = peak or peak_tflops(devices[0].device_kind)
  tflops = ours.flops / step_ms / 1e9
  return {
    'compile_seconds': ours.seconds,
    'parameters': ours.parameters,
    'memory_gib': peak_memory(devices) / 2**30,
    'model_tflop': ours.flops / 1e12,
    'tflops': tflops,
    'mfu': tflops / (peak * len(devices)) if peak else None,
  }


def measure(
  config,
  *,
  steps: int = 5,
  rounds: int = 1,
  warmup: int = 2,
  torch: str = '',
  peak: float | None = None,
) -> dict:
  """Measures the training step of a config.

  Args:
    config: of any system.
    steps: timed in every round.
    rounds: of all that is measured.
    warmup: steps before them.
    torch: '' for none, 'published', or IRRA's 'lean', see the module.
    peak: TFLOP/s of one device; default what `utilization.CHIPS` has.

  Returns:
    What was measured on what; under `jaxzoo` and `torch` the numbers of each:
    those of `summarize`, `parameters`, `memory_gib` at the most; ours also
    `compile_seconds`, `model_tflop` a step, `tflops` a second, and `mfu` in
    0..1 or None without a peak. `speedup` is images a second, ours by theirs:
    median, min and max of the rounds.

  Raises:
    UserError: a batch that does not fit the devices; nothing to compare with.
  """
  if torch:
    torch_process.require(config, torch)
  batch = synthetic_batch(config)
  ours = compile_step(config, batch)
  runs = {'jaxzoo': ours.run}
  with contextlib.ExitStack() as stack:
    if torch:
      theirs = torch_process.start(config, torch, batch)
      stack.enter_context(contextlib.closing(theirs))
      runs['torch'] = theirs.run
    timings = alternate(runs, rounds=rounds, steps=steps, warmup=warmup)
  rates = summarize(timings['jaxzoo'], config.batch_size)
  result = {
    'system': config.system,
    'batch_size': config.batch_size,
    'dtype': config.dtype,
    'devices': main.describe(ours.mesh),
    'jaxzoo': {**rates, **efficiency(ours, rates['step_ms'], peak)},
  }
  if torch:
    result['torch'] = {
      **summarize(timings['torch'], config.batch_size),
      **theirs.told,
      'variant': torch,
    }
    result['speedup'] = speedup(timings['jaxzoo'], timings['torch'])
  return result


ROWS = {
  'compile_seconds': ('compile, s', '.1f'),
  'step_ms': ('step, ms (median)', '.1f'),
  'step_ms_min': ('step, ms (min)', '.1f'),
  'step_ms_max': ('step, ms (max)', '.1f'),
  'host_cpu_seconds': ("step, s of the host's cores", '.2f'),
  'images_per_second': ('images/s', '.2f'),
  'parameters': ('parameters', ',d'),
  'memory_gib': ('memory at the most, GiB', '.2f'),
  'model_tflop': ('model TFLOP a step', '.4g'),
  'tflops': ('model TFLOP/s', '.4g'),
  'mfu': ('MFU', '.1%'),
}


def make_table(result: dict) -> Table:
  """The numbers of `measure`, a row each."""
  columns = {'jaxzoo': result['jaxzoo']}
  if 'torch' in result:
    torch = result['torch']
    columns[f'torch {torch["version"]}, {torch["variant"]}'] = torch
  table = Table(
    '{system}, batch {batch_size}, {dtype}, {devices}'.format(**result),
    *columns,
  )
  for key, (label, form) in ROWS.items():
    values = [column.get(key) for column in columns.values()]
    if any(value is not None for value in values):
      table.add_row(
        label, *('' if x is None else format(x, form) for x in values)
      )
  return table


def train_step(argv) -> None:
  """The command."""
  parser = command.make_parser(
    'train_step', 'Throughput of the whole training step of any system.'
  )
  add = parser.add_argument
  add('--steps', type=int, default=5, help='timed in a round (%(default)s)')
  add('--rounds', type=int, default=1, help='(%(default)s)')
  add('--warmup', type=int, default=2, help='steps before (%(default)s)')
  add(
    '--torch',
    nargs='?',
    const='published',
    default='',
    choices=('published', 'lean'),
    help='compare with the same step in PyTorch; lean: of irra alone',
  )
  add(
    '--peak_tflops',
    type=float,
    help='of one device, for the MFU (default: of the known accelerators)',
  )
  arguments, config = command.parse(parser, argv)
  command.require_positive(arguments, 'steps', 'rounds', 'warmup')
  result = measure(
    config,
    steps=arguments.steps,
    rounds=arguments.rounds,
    warmup=arguments.warmup,
    torch=arguments.torch,
    peak=arguments.peak_tflops,
  )
  console = Console()
  console.print(make_table(result))
  if 'speedup' in result:
    console.print(
      'images/s, ours by theirs: {median:.2f} (rounds: {min:.2f} to '
      '{max:.2f})'.format(**result['speedup'])
    )
  if arguments.json:
    command.write_json(arguments.json, result)


if __name__ == '__main__':
  sys.exit(command.run(train_step))
