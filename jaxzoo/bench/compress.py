"""What pruning costs: a step with masks, a change of masks, a selection.

    python -m jaxzoo.bench.compress
    python -m jaxzoo.bench.compress --parts rpg --batch_size=16

measures, each against what it replaces:

  step       the training step of the demo's network between two changes of
             masks, with masks and dense, in alternating rounds
  selection  the largest tenth of many scores, by bits and by sorting
  rpg        RPG's change of masks on ResNet-50 (rank losses of all kernels,
             global pruning, regrowing), as a share of the training between two
             of them in the published recipe: 100 steps of 1,024 images
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from jaxzoo import catalog, configuration, main
from jaxzoo.bench import command
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.train_step import alternate, compile_step, speedup, summarize
from jaxzoo.compress import make_refresh, options, select_top, sparsify

PARTS = ('step', 'selection', 'rpg')
INTERVAL, BATCH = 100, 1024  # of RPG's published recipe
HOT = 900  # steps before the first change of masks


def with_method(config, method: str):
  """The config pruned by a method whose masks rest for `HOT` steps."""
  config = config.copy_and_resolve_references()
  config.compress.method = method
  config.compress.begin, config.compress.every = 0.9, HOT
  return config


def measure_step(config, method: str, *, rounds: int, steps: int) -> dict:
  """Times of a step with masks and without, and their ratio by round."""
  batch = synthetic_batch(config)
  runs = {
    name: compile_step(with_method(config, kind), batch).run
    for name, kind in (('dense', ''), ('masks', method))
  }
  times = alternate(runs, rounds=rounds, steps=steps, warmup=2)
  ratio = speedup(times['dense'], times['masks'])
  return {
    'method': method,
    'dense_ms': summarize(times['dense'], config.batch_size)['step_ms'],
    'masks_ms': summarize(times['masks'], config.batch_size)['step_ms'],
    'overhead': ratio['median'] - 1,
    'overhead_min': ratio['min'] - 1,
    'overhead_max': ratio['max'] - 1,
  }


def seconds(function: Callable, *arguments, repeats: int = 3) -> float:
  """Median time of a compiled function, without its compilation."""
  jax.block_until_ready(function(*arguments))
  times = []
  for _ in range(repeats):
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    times.append(time.perf_counter() - started)
  return statistics.median(times)


def by_sorting(scores: jax.Array, k: int) -> jax.Array:
  """The mask of the k largest by a stable sort."""
  order = jnp.argsort(-scores, stable=True)
  return jnp.zeros(scores.shape, bool).at[order[:k]].set(True)


def measure_selection(size: int) -> dict:
  """Times of both selections, and whether their masks agree."""
  scores = jax.random.normal(jax.random.key(0), (size,))
  k = size // 10
  bits = jax.jit(lambda x: select_top([x], k)[0])
  sort = jax.jit(lambda x: by_sorting(x, k))
  return {
    'scores': size,
    'bits_s': seconds(bits, scores),
    'sort_s': seconds(sort, scores),
    'agree': bool(jnp.array_equal(bits(scores), sort(scores))),
  }


def random_like(abstract, seed: int = 0):
  """Normal arrays in place of abstract ones, of one seed."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.05 * rng.standard_normal(x.shape), x.dtype),
    abstract,
  )


def measure_rpg(batch_size: int) -> dict:
  """RPG's change of masks on ResNet-50 beside the training around it.

  The step is measured with `batch_size` images and without pruning.
  """
  config = catalog.get_config('rpg:paper').unlock()
  config.batch_size, config.dtype = batch_size, 'float32'
  method = options.make_method(config.compress, 100 * INTERVAL)
  chosen = options.eligible(config.compress)
  config.compress.method = ''
  batch = synthetic_batch(config)
  system = main.create_system(config, 1000, 100)
  shapes = jax.eval_shape(system.init, jax.random.key(0), batch).params
  params, grads = random_like(shapes), random_like(shapes, 1)
  tx = sparsify(optax.identity(), method, eligible=chosen)
  # In the middle of the ramp: all layers are pruned and regrown.
  state = tx.init(params)._replace(step=jnp.int32(50 * INTERVAL - 1))
  refresh = jax.jit(make_refresh(method, chosen))
  update = seconds(refresh, state, params, grads, repeats=2)
  run = compile_step(config, batch).run
  run(1)
  step = statistics.median(timing.wall for timing in run(3))
  return {
    'update_s': update,
    'step_s': step,
    'batch_size': batch_size,
    'share': update / (INTERVAL * step * BATCH / batch_size),
  }


def make_table(result: dict) -> Table:
  """The numbers, a row each."""
  table = Table('what', 'measured')
  if 'step' in result:
    table.add_row(
      'step with masks over dense ({method}; {dense_ms:.1f} ms dense)'.format(
        **result['step']
      ),
      '{overhead:+.1%} (rounds: {overhead_min:+.1%} to {overhead_max:+.1%})'.format(
        **result['step']
      ),
    )
  if 'selection' in result:
    table.add_row(
      'a tenth of {scores:,} scores'.format(**result['selection']),
      '{bits_s:.2f} s by bits, {sort_s:.2f} s by sorting'.format(
        **result['selection']
      ),
    )
  if 'rpg' in result:
    table.add_row(
      "RPG's change of masks on ResNet-50",
      '{update_s:.1f} s; {share:.2%} of {steps} steps of {batch} images, at '
      '{step_s:.2f} s for {batch_size}'.format(
        steps=INTERVAL, batch=BATCH, **result['rpg']
      ),
    )
  return table


def compress(argv) -> None:
  """The command."""
  parser = command.bare_parser(
    'compress', 'What pruning costs: steps, selections, changes of masks.'
  )
  add = parser.add_argument
  add('--config', default='rpg', help='of the step (%(default)s)')
  add('--parts', nargs='+', default=PARTS, choices=PARTS)
  add('--rounds', type=int, default=20, help='of the step (%(default)s)')
  add('--steps', type=int, default=30, help='in a round (%(default)s)')
  add('--scores', type=int, default=25_502_912, help='(%(default)s)')
  add('--batch_size', type=int, default=8, help='for rpg (%(default)s)')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  command.require_positive(arguments, 'rounds', 'steps', 'scores', 'batch_size')
  result = {'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}'}
  if 'step' in arguments.parts:
    config, _ = configuration.parse([f'--config={arguments.config}'])
    method = config.compress.method or 'magnitude'
    result['step'] = measure_step(
      config, method, rounds=arguments.rounds, steps=arguments.steps
    )
  if 'selection' in arguments.parts:
    result['selection'] = measure_selection(arguments.scores)
  if 'rpg' in arguments.parts:
    result['rpg'] = measure_rpg(arguments.batch_size)
  Console().print(make_table(result))
  if arguments.json:
    command.write_json(arguments.json, result)


if __name__ == '__main__':
  sys.exit(command.run(compress))
