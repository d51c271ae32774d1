"""What every way to prune must do: a new row of METHODS is tested by this file.

The parameters are no dict, two of their leaves are not eligible, and one
kernel is bfloat16.
"""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxzoo import compress
from jaxzoo.compress import (
  assert_sparsity,
  constant,
  cubic,
  full_masks,
  one_shot,
  sparsify,
)
from jaxzoo.compress.masks import eligible_tree
from jaxzoo.compress.transform import is_parameter_like

STEPS, MIDDLE = 12, 5  # the middle of every ramp
METHODS = {
  'magnitude': compress.magnitude(0.9, cubic(1, 9, 3)),
  'global': compress.magnitude(
    0.9, cubic(1, 9, 3), allocation='global', min_per_leaf=4
  ),
  'random': compress.random(0.8, allocation='erk'),
  'saliency': compress.saliency(0.9),
  'snip': compress.saliency(0.9, batches=3),
  'n_m': compress.n_m(2, 4, cubic(1, 9, 4), decay=1e-3),
  'set': compress.set(0.8, constant(every=3, last=9)),
  'rigl': compress.rigl(0.9, constant(every=3, last=9)),
  'rpg': compress.rpg(
    0.9, compress.rpg_schedule(6, 10, 2), strength=0.5, delta=0.1
  ),
  'gap': compress.gap(0.8, constant(1, 3, 10), partition=3),
}
# Compiled for eight devices in the first stage of CI; the others in the second.
SHARDED = ('magnitude', 'rigl')
# Gram matrices gather weights, never scores, of one kernel at a time.
GATHERED = {'rpg': 3 * 3 * 8 * 16 + 1}


class Net(NamedTuple):
  stem: dict
  layers: tuple[dict, ...]
  scale: Any


def make_params():
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  return Net(
    {'kernel': draw(0, 3, 3, 8, 16)},
    (
      {'kernel': draw(1, 16, 32).astype(jnp.bfloat16), 'bias': draw(2, 32)},
      {'kernel': draw(3, 32, 16)},
    ),
    draw(4, 16),
  )


SPECS = Net(
  {'kernel': PartitionSpec(None, None, 'x', 'y')},
  (
    {'kernel': PartitionSpec('y', 'x'), 'bias': PartitionSpec()},
    {'kernel': PartitionSpec('x', None)},
  ),
  PartitionSpec(),
)


class Point(NamedTuple):
  """A run after a step, on the host."""

  params: Net
  state: Any


def noise(step):
  """Gradients of a step, beside what the parameters add to them."""
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), make_params()
  )


@functools.cache
def program(name):
  """(init, step) of a method around AdamW; step is compiled once."""
  tx = sparsify(optax.adamw(1e-2), METHODS[name])

  @jax.jit
  def step(params, state, noise):
    grads = jax.tree.map(lambda g, p: g + 0.1 * p, noise, params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return tx.init, step


def run(step, params, state, first=0):
  """The points of the steps after `first`."""
  points = []
  for i in range(first, STEPS):
    params, state = step(params, state, noise(i))
    points.append(Point(*jax.device_get((params, state))))
  return points


@functools.cache
def history(name):
  init, step = program(name)
  params = make_params()
  return run(step, params, init(params))


@pytest.fixture(params=METHODS)
def name(request):
  return request.param


def masks_of(point):
  return point.state.masks


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_parameters_are_exactly_zero_off_the_mask_after_every_step(name):
  for point in history(name):
    assert_sparsity(point.params, masks_of(point))
  # And the optimizer does train what is kept.
  first = jax.device_get(make_params())
  assert np.any(point.params.stem['kernel'] != first.stem['kernel'])
  assert point.params.layers[0]['kernel'].dtype == jnp.bfloat16


def test_final_counts_are_exactly_those_that_were_asked_for(name):
  point = history(name)[-1]
  counts = METHODS[name].counts(point.params, eligible_tree(point.params))
  assert_sparsity(point.params, masks_of(point), counts)
  kept = counts if isinstance(counts, int) else sum(counts.values())
  assert 0 < kept < 2176  # entries of all kernels


def test_moments_are_zero_off_the_mask_after_every_step(name):
  tx = optax.adamw(1e-2)
  for point in history(name):
    full = full_masks(point.params, masks_of(point))
    like = is_parameter_like(tx, point.state.inner, point.params)
    moments = [
      leaf
      for own, leaf in zip(
        jax.tree.leaves(like), jax.tree.leaves(point.state.inner), strict=True
      )
      if own
    ]
    assert len(moments) == 2 * len(jax.tree.leaves(full))
    for moment, mask in zip(moments, 2 * jax.tree.leaves(full), strict=True):
      assert not np.any(moment[~np.broadcast_to(mask, moment.shape)])


def test_one_program_serves_all_steps(name):
  history(name)
  assert program(name)[1]._cache_size() == 1


def test_run_cut_in_the_middle_of_the_ramp_ends_with_the_same_masks(name):
  whole, middle = history(name), history(name)[MIDDLE - 1]
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(middle.state))
  rest = run(program(name)[1], *middle, MIDDLE)
  assert_same(rest[-1], whole[-1])


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=[] if n in SHARDED else pytest.mark.slow)
    for n in METHODS
  ],
)
def test_masks_are_the_same_on_eight_devices_and_scores_stay_where_they_are(
  name,
):
  init, step = program(name)
  mesh = jax.make_mesh((4, 2), ('x', 'y'), (AxisType.Auto,) * 2)
  shard = lambda spec: NamedSharding(mesh, spec)
  params = make_params()
  shardings = jax.tree.map(shard, SPECS)
  by_shape = {
    leaf.shape: sharding
    for leaf, sharding in zip(
      jax.tree.leaves(params), jax.tree.leaves(shardings), strict=True
    )
  }
  # Masks and moments lie where their parameter lies.
  state = init(params)
  places = jax.tree.map(
    lambda x: by_shape.get(x.shape, shard(PartitionSpec())), state
  )
  compiled = (
    jax.jit(
      step,
      in_shardings=(shardings, places, shardings),
      out_shardings=(shardings, places),
    )
    .lower(params, state, params)
    .compile()
  )
  many = lambda params, state, noise: compiled(
    params, state, jax.device_put(noise, shardings)
  )
  points = run(
    many, jax.device_put(params, shardings), jax.device_put(state, places)
  )
  for mine, theirs in zip(points, history(name), strict=True):
    assert_same(masks_of(mine), masks_of(theirs))
  smallest = GATHERED.get(name, 512)
  for line in compiled.as_text().splitlines():
    found = re.search(r'= \w+\[([\d,]*)\]\S* (all-gather|sort)\(', line)
    if found:
      size = np.prod([int(n) for n in found[1].split(',') if n] or [1])
      assert size < smallest, line


def test_pruning_at_once_gives_the_final_counts(name):
  params = make_params()
  pruned, masks = one_shot(params, METHODS[name], params)
  counts = METHODS[name].counts(params, eligible_tree(params))
  assert_sparsity(pruned, masks, counts)


def test_a_schedule_can_be_given_to_sparsify_instead(name):
  tx = sparsify(optax.sgd(0.1), METHODS[name], schedule=constant(begin=2))
  state = jax.eval_shape(tx.init, make_params())
  assert state.step.shape == ()
