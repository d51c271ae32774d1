"""RPG's rank loss: against an SVD and finite differences; GaP's phases."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.compress import constant, gap, rpg, rpg_schedule, sparsify
from jaxzoo.compress.methods.gap import divide, prune_by_percentile
from jaxzoo.compress.methods.gap_parallel import (
  grow_in_parallel,
  merge_copies,
)
from jaxzoo.compress.methods.rank import (
  kernel_rank_loss,
  rank_gradients,
  relative_ranks,
)
from jaxzoo.system import from_loss

loss_of = jax.jit(kernel_rank_loss, static_argnums=1)


def by_svd(kernel, delta):
  """(loss, k) of the definition, in float64."""
  matrix = np.float64(kernel).reshape(-1, kernel.shape[-1])
  energy = np.linalg.svd(matrix / np.linalg.norm(matrix))[1][::-1] ** 2
  tails = np.cumsum(energy)
  last = np.argmin(np.abs(tails - delta))
  return -tails[last], len(tails) - 1 - last


def draw(*shape, keep=1.0, seed=0):
  rng = np.random.default_rng(seed)
  kernel = rng.standard_normal(shape) * (rng.random(shape) < keep)
  return kernel.astype(np.float32)


@pytest.mark.parametrize('shape', [(3, 3, 4, 6), (1, 1, 5, 12)], ids=str)
def test_loss_is_that_of_the_singular_values(shape):
  kernel = draw(*shape, keep=0.4)
  found = loss_of(kernel, 0.2)
  loss, rank = by_svd(kernel, 0.2)
  assert found.rank == rank
  np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


@pytest.mark.parametrize('shape', [(3, 3, 4, 6), (1, 1, 5, 12)], ids=str)
def test_gradient_is_that_of_finite_differences(shape):
  kernel = draw(*shape, keep=0.4)
  grad = np.asarray(loss_of(kernel, 0.2).grad)
  direction = draw(*shape, seed=1)
  step = 1e-5
  ends = [by_svd(np.float64(kernel) + s * direction, 0.2)[0]
          for s in (step, -step)]  # fmt: skip
  numeric = (ends[0] - ends[1]) / (2 * step)
  np.testing.assert_allclose(np.sum(grad * direction), numeric, rtol=1e-3)
  assert np.any(grad[kernel == 0] != 0), 'dense: that is what it is for'


def test_mean_is_over_kernels_that_are_not_empty():
  kernels = [draw(3, 3, 4, 6), np.zeros((3, 3, 4, 6), np.float32),
             draw(1, 1, 5, 12)]  # fmt: skip
  loss, grads = jax.jit(lambda k: rank_gradients(k, 0.2))(kernels)
  each = [loss_of(kernels[i], 0.2) for i in (0, 2)]
  np.testing.assert_allclose(loss, (each[0].loss + each[1].loss) / 2, rtol=1e-5)
  np.testing.assert_allclose(grads[2], each[1].grad / 2, atol=1e-6)
  assert not np.any(grads[1]) and np.all(np.isfinite(grads[1]))


def test_relative_rank_counts_independent_rows():
  kernel = draw(1, 1, 4, 8)
  kernel[..., 1, :] = kernel[..., 0, :]
  assert relative_ranks({'a': kernel}) == {'a': 0.75}


# The schedule of RPG.


def test_published_schedule_reaches_its_density_before_it_stops():
  schedule = rpg_schedule(ramp=90, stop=121, every=10)
  assert (schedule.begin, schedule.end, schedule.last) == (10, 100, 120)
  with pytest.raises(ValueError, match='every'):
    rpg_schedule(ramp=90, stop=100, every=10)


def test_regrowth_goes_where_the_rank_loss_would_change_most():
  # The loss has no gradient: without the rank term the first places would be
  # taken.
  kernel = draw(1, 1, 16, 8, keep=0.5)
  params = {'kernel': jnp.asarray(kernel)}
  method = rpg(0.5, constant(1, last=2), strength=2.0, delta=0.1, alpha=0.5)
  tx = sparsify(optax.sgd(0.0), method)
  state = tx.init(params)._replace(
    step=jnp.int32(1), masks={'kernel': jnp.asarray(kernel != 0)}
  )
  _, state = jax.jit(tx.update)({'kernel': jnp.zeros((1, 1, 16, 8))}, state,
                                params)  # fmt: skip
  count = np.count_nonzero(kernel)
  grown = int(count * 0.25 * (1 + np.cos(np.pi * 2 / 3)))
  stay = np.argsort(-np.abs(kernel.ravel()), kind='stable')[: count - grown]
  score = np.abs(np.asarray(loss_of(kernel, 0.1).grad)).ravel()
  score[stay] = -1
  want = np.zeros(kernel.size, bool)
  want[stay] = want[np.argsort(-score)[:grown]] = True
  np.testing.assert_array_equal(state.masks['kernel'].ravel(), want)


# GaP.


def test_partitions_are_consecutive_and_about_as_large():
  sizes = [1, 1, 1, 1, 4, 4, 4]
  assert divide(4, list('abcdefg'), sizes) == [0, 0, 0, 0, 1, 2, 3]
  assert divide(['a|b', 'c'], ['xa', 'xc', 'xb'], [1, 1, 1]) == [0, 1, 0]
  with pytest.raises(ValueError, match='none of the partitions'):
    divide(['a'], ['b'], [1])


def test_one_partition_at_a_time_is_dense_and_all_are_sparse_in_the_end():
  params = [{'kernel': draw(6, 10, seed=i)} for i in range(3)]
  method = gap(0.8, constant(1, 2, 9), partition=3)  # 4 phases of 2
  tx = sparsify(optax.adam(1e-2), method)
  state, update = tx.init(params), jax.jit(tx.update)
  dense, counts = [], []
  for _ in range(10):
    updates, state = update(params, state, params)
    params = optax.apply_updates(params, updates)
    dense.append([bool(np.all(m['kernel'])) for m in state.masks])
    counts.append(int(state.inner[0].count))
  one = lambda i: [j == i for j in range(3)]
  assert dense == [one(0), one(0), one(1), one(1), one(2), one(2),
                   one(0), one(0), [False] * 3, [False] * 3]  # fmt: skip
  assert [int(m['kernel'].sum()) for m in state.masks] == [12] * 3
  assert counts == [1, 2] * 5, 'the optimizer starts afresh with a phase'


def test_percentile_pruning_again_changes_nothing():
  weight = draw(101)
  mask = prune_by_percentile(weight, 0.9)
  assert mask.sum() == 100 - 90
  again = prune_by_percentile(np.where(mask, weight, 0), 0.9)
  np.testing.assert_array_equal(again, mask)


def test_parallel_copies_grow_one_partition_each_and_are_merged_sparse():
  targets = np.float32(draw(12, 10, seed=9))
  inputs = np.float32(draw(12, 8, seed=8))

  def loss(params, extra, batch, rng):
    del rng
    hidden = jnp.tanh(batch['x'] @ params['a']['kernel'])
    value = jnp.mean((hidden @ params['b']['kernel'] - batch['y']) ** 2)
    return value, (extra, {})

  names = ('^a', '^b')
  tx = sparsify(
    optax.adam(1e-2), gap(0.75, constant(1, 2, 5), partition=names,
                          parallel=True)
  )  # fmt: skip
  params = {'a': {'kernel': draw(8, 16)}, 'b': {'kernel': draw(16, 10, seed=1)}}
  one = from_loss(
    lambda rng, batch: (jax.tree.map(jnp.asarray, params), {}),
    loss,
    lambda params, extra, batch: params,
    tx,
  )
  merge = merge_copies(0.75, names)
  system = grow_in_parallel(one, 2, every=2, merge=merge)
  batch = {'x': jnp.asarray(inputs), 'y': jnp.asarray(targets)}
  state, step = system.init(jax.random.key(0), batch), jax.jit(system.step)
  count = lambda tree, layer, copy: int(
    np.count_nonzero(tree[layer]['kernel'][copy])
  )
  for t in (1, 2, 3, 4, 5):
    before = state
    state, _ = step(state, batch)
    masks = state.opt.masks
    dense = t < 5  # two phases of two steps
    assert count(masks, 'b', 1) == (160 if dense else 40)
    assert count(masks, 'a', 0) == (128 if dense else 32)
    assert count(masks, 'b', 0) == 40 and count(masks, 'a', 1) == 32
    if t in (2, 4):  # merged: all copies are the same sparse model
      for layer, size in (('a', 32), ('b', 40)):
        assert count(state.params, layer, 0) == size
        np.testing.assert_array_equal(*state.params[layer]['kernel'])
  sparse = system.predict(before, batch)
  assert np.count_nonzero(sparse['a']['kernel']) == 32
