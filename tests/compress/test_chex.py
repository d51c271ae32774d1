"""CHEX: draws, distances, budgets, and the method within `sparsify`."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.compress import channels, exploration
from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.compress.methods.chex import chex
from jaxzoo.compress.schedules import Schedule
from jaxzoo.compress.transform import sparsify
from jaxzoo.errors import UserError

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


# One layer.


def test_distances_are_those_of_least_squares():
  x = normal(12, 7)
  x[:, 5] = x[:, 0] - 2 * x[:, 1]  # in the span
  kept = np.array([1, 1, 1, 0, 0, 0, 0], bool)
  rest = x - x[:, kept] @ np.linalg.lstsq(x[:, kept], x, rcond=None)[0]
  got = exploration.span_distances(jnp.asarray(x), jnp.asarray(kept))
  np.testing.assert_allclose(got, np.linalg.norm(rest, axis=0), atol=1e-5)
  assert got[5] < 1e-5
  everything = exploration.span_distances(x, jnp.ones(7, bool))
  nothing = exploration.span_distances(x, jnp.zeros(7, bool))
  np.testing.assert_allclose(everything, 0, atol=1e-5)
  np.testing.assert_allclose(nothing, np.linalg.norm(x, axis=0), rtol=1e-5)


def test_dependent_columns_leave_the_distances_finite():
  x = normal(4, 10)  # more columns than the rank
  got = exploration.span_distances(x, jnp.arange(10) < 6)
  np.testing.assert_allclose(got, 0, atol=1e-5)


def test_scores_of_all_directions_are_equal_and_dead_filters_have_none():
  x, alive = normal(20, 6), np.array([1, 1, 0, 1, 1, 1], bool)
  x = np.where(alive, x, 0)
  scores = exploration.filter_scores(jnp.asarray(x), jnp.asarray(alive), 5)
  np.testing.assert_allclose(scores, alive, atol=1e-5)
  few = exploration.filter_scores(jnp.asarray(x), jnp.asarray(alive), 2)
  np.testing.assert_allclose(jnp.sum(few**2), 2, rtol=1e-5)
  wide = normal(3, 6)
  np.testing.assert_allclose(
    exploration.filter_scores(wide, jnp.ones(6, bool), 2),
    np.abs(wide).sum(0),
    rtol=1e-6,
  )


def test_draws_are_sequential_without_replacement():
  p = np.array([0.5, 0.3, 0.2, 0.0])
  want = dict.fromkeys(itertools.combinations(range(3), 2), 0.0)
  for a, b in itertools.permutations(range(3), 2):
    want[tuple(sorted((a, b)))] += p[a] * p[b] / (1 - p[a])
  draws = jax.vmap(
    lambda key: exploration.draw_without_replacement(key, jnp.asarray(p), 2)
  )(jax.random.split(KEY, 20000))
  assert not draws[:, 3].any()
  assert (draws.sum(1) == 2).all()
  for pair, probability in want.items():
    rate = draws[:, list(pair)].all(1).mean()
    assert abs(rate - probability) < 0.015, pair


# All layers.


def test_thresholds_drop_one_more_and_exact_numbers_do_not():
  scales = [normal(5), normal(8)]
  every = np.sort(np.abs(np.concatenate(scales)))
  for index in (0, 4, 12):
    down = exploration.dropped_by_threshold(scales, index)
    want = [(np.abs(s) <= every[index]).sum() for s in scales]
    np.testing.assert_array_equal(down, want)
    assert down.sum() == index + 1
    assert exploration.dropped_exactly(scales, index).sum() == index
  assert exploration.dropped_by_threshold(scales, -1).sum() == 0


def test_equal_scales_are_dropped_in_their_order():
  scales = [np.zeros(3, np.float32), np.zeros(3, np.float32)]
  np.testing.assert_array_equal(exploration.dropped_exactly(scales, 4), [3, 1])


# A network of three layers, two of which may lose channels.

GROUPS = (
  ChannelGroup('a', 8, (('a/kernel', 3),), ('na',), (('b/kernel', 2, 1),)),
  ChannelGroup('b', 10, (('b/kernel', 3),), ('nb',), (('c/kernel', 0, 1),)),
)
POSITIONS = {'a/kernel': 16, 'b/kernel': 4, 'c/kernel': 1}


def params_of():
  scale = lambda n: {
    'scale': np.abs(normal(n)) + 0.1,
    'bias': normal(n),
  }
  return {
    'a': {'kernel': normal(3, 3, 2, 8)},
    'na': scale(8),
    'b': {'kernel': normal(3, 3, 8, 10)},
    'nb': scale(10),
    'c': {'kernel': normal(10, 4)},
  }


PARAMS = jax.tree.map(jnp.asarray, params_of())
SCHEDULE = Schedule(2, 6, 2, lambda d, p: d, 6)


def method_of(**options):
  options = dict(sparsity=0.5, regrow=0.3) | options
  sparsity = options.pop('sparsity')
  return chex(GROUPS, sparsity, SCHEDULE, positions=POSITIONS, **options)


def grads_of(step):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS
  )


def run(update, params, state, first=0):
  """(parameters, state) after each of the steps from `first` on, of eight."""
  history = []
  for i in range(first, 8):
    updates, state = update(grads_of(i), state, params)
    params = optax.apply_updates(params, updates)
    history.append((params, state))
  return history


@functools.cache
def program(**options):
  tx = sparsify(optax.sgd(0.05, momentum=0.9), method_of(**options))
  return tx.init, jax.jit(tx.update)


@functools.cache
def trained(**options):
  init, update = program(**options)
  before = update._cache_size()  # other placements of the parameters
  history = run(update, PARAMS, init(PARAMS))
  assert update._cache_size() == before + 1
  return history


def count(masks):
  return {name: int(mask.sum()) for name, mask in masks.items()}


def test_dead_channels_are_exactly_zero_after_every_step():
  for params, state in trained():
    by_leaf = channels.expand_masks(params, GROUPS, state.masks)
    assert by_leaf['na']['bias'] is not None
    jax.tree.map(
      lambda p, m: np.testing.assert_array_equal(p[~m], 0), params, by_leaf
    )


def test_kept_channels_are_the_exact_number_at_the_end():
  sizes = [sum(count(state.masks).values()) for _, state in trained()]
  assert sizes[5:] == [9, 9, 9]  # 18 channels, half of them
  assert max(sizes[1:4]) > 9, 'some are regrown before'
  published = trained(as_published=True)[-1][1]
  assert sum(count(published.masks).values()) == 18 - 9 - 1


def test_masks_change_at_updates_alone_and_a_channel_comes_back():
  history = trained(regrow=0.5)
  masks = [jax.device_get(state.masks) for _, state in history]
  changes = [
    any((old[n] != new[n]).any() for n in old)
    for old, new in itertools.pairwise(masks)
  ]
  assert not any(c for t, c in enumerate(changes, 2) if t not in (2, 4, 6))
  assert changes[0] or changes[2]


def test_regrown_channels_have_the_values_of_their_last_use():
  method = method_of(regrow=0.5)
  eligible = jax.tree.map(lambda p: p.ndim > 1, PARAMS)
  masks = {'a': jnp.arange(8) < 4, 'b': jnp.arange(10) < 5}
  by_leaf = channels.expand_masks(PARAMS, GROUPS, masks)
  zeroed = jax.tree.map(
    lambda p, m: p if m is None else jnp.where(m, p * 2, 0),
    PARAMS, by_leaf, is_leaf=lambda x: x is None,
  )  # fmt: skip
  state = method.init(PARAMS, eligible, KEY)
  _, override, after = jax.jit(
    lambda p: method.update_masks(2, None, p, masks, state, KEY, eligible)
  )(zeroed)
  np.testing.assert_array_equal(
    override['a']['kernel'],
    np.where(masks['a'], 2 * PARAMS['a']['kernel'], PARAMS['a']['kernel']),
  )
  np.testing.assert_array_equal(after.recent['na']['bias'][4:],
                                PARAMS['na']['bias'][4:])  # fmt: skip
  assert override['c']['kernel'][7, 0] == PARAMS['c']['kernel'][7, 0]


def test_moments_of_dead_channels_are_zero():
  for params, state in trained():
    by_leaf = channels.expand_masks(params, GROUPS, state.masks)
    jax.tree.map(
      lambda m, mask: np.testing.assert_array_equal(m[~mask], 0),
      state.inner[0].trace,
      by_leaf,
    )


def test_resumed_run_has_the_same_masks():
  history = trained()
  stored = jax.device_get(history[2])  # between two updates
  resumed = run(program()[1], *jax.tree.map(jnp.asarray, stored), first=3)
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(history[3:]),
                  strict=True):  # fmt: skip
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_masks_are_the_same_on_eight_devices():
  mesh = jax.make_mesh(
    (2, 4), ('x', 'y'), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def place(leaf):
    spec = [None] * leaf.ndim
    if leaf.ndim > 1:
      spec[-2], spec[-1] = 'x', 'y' if leaf.shape[-1] % 4 == 0 else None
    spec = jax.sharding.PartitionSpec(*spec)
    return jax.device_put(leaf, jax.sharding.NamedSharding(mesh, spec))

  init, update = program()
  params = jax.tree.map(place, PARAMS)
  many = run(update, params, jax.jit(init)(params))
  for (_, got), (_, want) in zip(many, trained(), strict=True):
    jax.tree.map(np.testing.assert_array_equal, got.masks, want.masks)


@pytest.mark.parametrize('allocation', ['scale', 'uniform'])
def test_multiply_adds_stay_within_the_budget(allocation):
  history = trained(budget='macs', allocation=allocation, sparsity=0.6)
  table = channels.cost_table(PARAMS, POSITIONS, GROUPS)
  counts = count(history[-1][1].masks)
  assert channels.macs(table, counts) <= 0.4 * channels.macs(table)
  # And one channel more of every layer would not.
  more = {name: n + 1 for name, n in counts.items()}
  assert channels.macs(table, more) > 0.4 * channels.macs(table)


def test_uniform_pruning_keeps_the_same_share_and_the_largest_filters():
  history = trained(allocation='uniform', regrow=0.0, score='l1')
  first = history[0][1].masks
  assert count(first) == {'a': 4, 'b': 5}
  norms = np.abs(PARAMS['a']['kernel']).sum((0, 1, 2))
  np.testing.assert_array_equal(
    np.flatnonzero(first['a']), np.sort(np.argsort(-norms)[:4])
  )
  for _, state in history[1:]:  # what is pruned stays pruned
    jax.tree.map(np.testing.assert_array_equal, state.masks, first)


def test_pruning_may_begin_with_the_trained_network():
  history = trained(
    allocation='uniform', regrow=0.0, score='l1', at_start=False
  )
  assert count(history[0][1].masks) == {'a': 8, 'b': 10}
  assert count(history[1][1].masks) == {'a': 4, 'b': 5}


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(allocation='scales'), 'scale'),
    (dict(regrow=0.6), '0 <= regrow <= sparsity'),
    (dict(budget='flops'), 'macs'),
  ],
)
def test_mistakes_are_told(options, message):
  with pytest.raises(UserError, match=message):
    method_of(**options)


def test_groups_without_a_norm_need_the_uniform_allocation():
  bare = [group._replace(norms=()) for group in GROUPS]
  with pytest.raises(UserError, match='uniform'):
    chex(bare, 0.5, SCHEDULE)
