"""Speed of a config beside its baseline, in one process and in turn.

    python -m jaxzoo.bench.configs --config=configs/stvit.py \\
        --against=configs/stvit.py:baseline

trains and predicts on noise, a batch after the other, in alternating rounds: a
machine that becomes slower or faster does so for both. Prints images a second,
millions of multiply-adds of an image's prediction (MMACs), and how many times
slower the other is, the median over the rounds.

`by cpu` counts the seconds of all cores of the process instead of those of the
clock, which other work on the machine does not lengthen; on an accelerator it
tells of the host alone.
"""

import sys

import jax
from rich.console import Console
from rich.table import Table

from jaxzoo import catalog, configuration, main
from jaxzoo.bench import command
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.torch_process import Timing, clock, since
from jaxzoo.bench.train_step import (
  Rounds,
  Run,
  alternate,
  compile_step,
  speedup,
  summarize,
)
from jaxzoo.train import mesh as meshes
from jaxzoo.train.flops import count_flops


def compile_predict(config, batch: dict) -> tuple[Run, float]:
  """Times `predict`; and its multiply-adds an image, in millions."""
  mesh = meshes.make_mesh(config.mesh)
  system = main.create_system(config)
  state = jax.jit(
    system.init,
    out_shardings=meshes.infer_shardings(
      jax.eval_shape(system.init, jax.random.key(0), batch),
      mesh,
      catalog.sharding(config),
    ),
  )(jax.random.key(0), batch)
  placed = meshes.to_devices(batch, meshes.batch_sharding(mesh))
  predict = jax.jit(system.predict).lower(state, placed).compile()
  flops = count_flops(system.predict, state, placed)

  def run(steps):
    timings = []
    for _ in range(steps):
      started = clock()
      jax.block_until_ready(predict(state, placed))
      timings.append(since(started))
    return timings

  return run, flops / config.batch_size / 2e6


def measure(configs: dict, *, steps: int, rounds: int, warmup: int) -> dict:
  """Measures configs against the first of them.

  Args:
    configs: label -> config.
    steps: timed in every round, of training and of prediction.
    rounds: of all that is measured.
    warmup: steps before those of a turn.

  Returns:
    label -> `mmacs`, and for 'training' and 'prediction' `images_per_second`;
    but for the first also `speedup`, how many times as fast the first is by the
    clock, and `speedup_cpu`: median, min and max of the rounds.
  """
  result, runs = {}, {'training': {}, 'prediction': {}}
  for label, config in configs.items():
    batch = synthetic_batch(config)
    runs['training'][label] = compile_step(config, batch).run
    runs['prediction'][label], mmacs = compile_predict(config, batch)
    result[label] = {'mmacs': mmacs}
  for mode, each in runs.items():
    timings = alternate(each, rounds=rounds, steps=steps, warmup=warmup)
    first = next(iter(timings.values()))
    for label, times in timings.items():
      rates = summarize(times, configs[label].batch_size)
      found = {'images_per_second': rates['images_per_second']}
      if times is not first:
        found['speedup'] = speedup(first, times)
        found['speedup_cpu'] = speedup(_cpu(first), _cpu(times))
      result[label][mode] = found
  return result


def _cpu(rounds: Rounds) -> Rounds:
  """The seconds of the cores in the place of the clock's."""
  return [[Timing(x.cpu, x.cpu) for x in each] for each in rounds]


def make_table(result: dict) -> Table:
  """A row for each config and mode."""
  ratio = lambda x: '{median:.2f} ({min:.2f} to {max:.2f})'.format(**x)
  table = Table('config', 'MMACs', 'of', 'images/s', 'times slower', 'by cpu')
  for label, found in result.items():
    for mode in ('training', 'prediction'):
      row = found[mode]
      ratios = [ratio(row[x]) for x in ('speedup', 'speedup_cpu') if x in row]
      table.add_row(
        label.removeprefix('configs/').replace('.py', ''),
        f'{found["mmacs"]:.2f}',
        mode,
        f'{row["images_per_second"]:.0f}',
        *ratios,
      )
  return table


def compare(argv) -> None:
  """The command."""
  parser = command.make_parser(
    'configs', 'Speed of a config beside another, in one process and in turn.'
  )
  add = parser.add_argument
  add('--against', required=True, metavar='FILE[:VARIANT]')
  add('--steps', type=int, default=20, help='timed in a round (%(default)s)')
  add('--rounds', type=int, default=5, help='(%(default)s)')
  add('--warmup', type=int, default=2, help='steps before a turn (%(default)s)')
  arguments, config = command.parse(parser, argv)
  command.require_positive(arguments, 'steps', 'rounds', 'warmup')
  other, _ = configuration.parse([f'--config={arguments.against}'])
  other = other.copy_and_resolve_references().unlock()
  other.batch_size, other.dtype = config.batch_size, config.dtype
  configuration.check(other)
  result = measure(
    {arguments.config: config, arguments.against: other},
    steps=arguments.steps,
    rounds=arguments.rounds,
    warmup=arguments.warmup,
  )
  Console().print(make_table(result))
  if arguments.json:
    command.write_json(arguments.json, result)


if __name__ == '__main__':
  sys.exit(command.run(compare))
