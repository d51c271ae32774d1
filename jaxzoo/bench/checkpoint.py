"""What a checkpoint costs a run, and how long a run takes to begin.

    python -m jaxzoo.bench.checkpoint --config=configs/cfam.py

trains on noise, compiled as `jaxzoo.main` does, and saves now and then as
training does: the arrays are copied off the devices while the step waits, the
rest is written beside the steps that follow. The stall is what the call and the
step after it take beyond a step. Beside it: seconds from the start of this
process to the end of its first step, by parts, and those of reading the
checkpoint back.
"""

import os
import statistics
import sys
import tempfile
import time

import jax

from jaxzoo.bench import command
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.train_step import compile_program
from jaxzoo.train import mesh as meshes
from jaxzoo.train.checkpoint import Checkpoints


def since_start() -> float:
  """Seconds since this process was started; outside of Linux, its CPU time."""
  if not os.path.exists('/proc/uptime'):
    return time.process_time()
  with open('/proc/self/stat') as file:
    ticks = int(file.read().rpartition(')')[2].split()[19])
  with open('/proc/uptime') as file:
    uptime = float(file.read().split()[0])
  return uptime - ticks / os.sysconf('SC_CLK_TCK')


def measure(config, directory, *, steps: int, saves: int) -> dict:
  """Times in seconds; `directory` gets the checkpoints.

  Args:
    config: of a run.
    directory: an empty folder.
    steps: between two saves.
    saves: how many.

  Returns:
    `step`, the median; `save`, of the call, and `after`, of the step after it;
    `stall` = save + after - step, the median; `stall_steps`, in steps;
    `write`, from the call to the end of writing; `restore`; `gib`, of the
    state; `started`, `compiled`, `initialised` and `first_step`, since the
    process began.
  """
  told = {'started': since_start()}
  batch = synthetic_batch(config)
  program, _, mesh = compile_program(config, batch)
  told['compiled'] = since_start()
  state = jax.block_until_ready(program.init())
  told['initialised'] = since_start()
  batch = meshes.to_devices(batch, meshes.batch_sharding(mesh))

  def timed_step():
    nonlocal state
    started = time.perf_counter()
    state, metrics = program.step(state, batch)
    jax.block_until_ready((state, metrics))
    return time.perf_counter() - started

  timed_step()
  told['first_step'] = since_start()
  checkpoints = Checkpoints(directory)
  plain, calls, after, written = [], [], [], []
  for _ in range(saves):
    plain += [timed_step() for _ in range(steps)]
    started = time.perf_counter()
    checkpoints.save(state, {})
    calls.append(time.perf_counter() - started)
    after.append(timed_step())
    checkpoints.wait()
    written.append(time.perf_counter() - started)
  started = time.perf_counter()
  shardings = jax.tree.map(lambda x: x.sharding, state)
  checkpoints.restore(program.abstract, shardings)
  restored = time.perf_counter() - started
  checkpoints.close()
  step = statistics.median(plain)
  stalls = [a + b - step for a, b in zip(calls, after, strict=True)]
  stall = statistics.median(stalls)
  return {
    'step': step,
    'save': statistics.median(calls),
    'after': statistics.median(after),
    'stall': stall,
    'stall_steps': stall / step,
    'write': statistics.median(written),
    'restore': restored,
    'gib': sum(x.nbytes for x in jax.tree.leaves(state)) / 2**30,
    **told,
  }


def checkpoint(argv) -> None:
  """The command."""
  parser = command.make_parser('checkpoint', 'What a checkpoint costs.')
  add = parser.add_argument
  add('--steps', type=int, default=5, help='between saves (%(default)s)')
  add('--saves', type=int, default=5, help='(%(default)s)')
  add('--directory', help='where to write; default: a temporary folder')
  arguments, config = command.parse(parser, argv)
  command.require_positive(arguments, 'steps', 'saves')
  with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
    found = measure(
      config, folder, steps=arguments.steps, saves=arguments.saves
    )
  print(
    'state {gib:.2f} GiB: step {step:.3f} s, save {save:.3f} s, the step after '
    '{after:.3f} s: a stall of {stall:.3f} s, {stall_steps:.2f} steps; written '
    'in {write:.2f} s, read in {restore:.2f} s\n'
    'since the process began: modules {started:.1f} s, compiled {compiled:.1f}, '
    'initialised {initialised:.1f}, first step {first_step:.1f}'.format(**found)
  )
  if arguments.json:
    command.write_json(arguments.json, found)


if __name__ == '__main__':
  sys.exit(command.run(checkpoint))
