"""Selection by bits equals a stable sort; counts and allocations are exact."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.compress import (
  constant,
  cubic,
  exponential,
  select_blocks,
  select_n_m,
  select_top,
  select_top_per_leaf,
)
from jaxzoo.compress.allocation import leaf_densities
from jaxzoo.compress.methods.rpg import _limbs, floor_share
from jaxzoo.compress.schedules import (
  count_table,
  density_at,
  is_update,
  update_index,
  update_steps,
)
from jaxzoo.compress.selection import (
  Count,
  _add,
  _at_least,
  _minus,
  count_of,
  kth_largest,
)

SHAPES = [(5, 7), (1,), (3, 2, 4)]
# k is traced: one program for all cases.
top = jax.jit(select_top)
top_each = jax.jit(select_top_per_leaf)


def sorted_masks(scores, k):
  """The same by a stable sort: larger first, then the smaller place."""
  flat = np.concatenate([np.ravel(x) for x in scores])
  mask = np.zeros(flat.size, bool)
  mask[np.argsort(-flat, kind='stable')[:k]] = True
  parts = np.split(mask, np.cumsum([np.size(x) for x in scores])[:-1])
  return [m.reshape(np.shape(x)) for m, x in zip(parts, scores, strict=True)]


def draws(kind):
  rng = np.random.default_rng(0)
  for _ in range(20):
    if kind == 'ties':
      scores = [rng.integers(-2, 3, shape) for shape in SHAPES]
    elif kind == 'equal':
      scores = [np.full(shape, rng.integers(-1, 2)) for shape in SHAPES]
    else:
      scores = [rng.standard_normal(shape) for shape in SHAPES]
      scores[0][0, :3] = np.inf, -np.inf, -0.0
    yield [np.float32(x) for x in scores], rng


@pytest.mark.parametrize('kind', ['normal', 'ties', 'equal'])
def test_selection_is_the_stable_sort_to_the_element(kind):
  size = sum(np.prod(shape) for shape in SHAPES)
  for scores, rng in draws(kind):
    for k in (0, 1, int(rng.integers(size + 1)), int(size)):
      for got, want in zip(
        top(scores, jnp.int32(k)), sorted_masks(scores, k), strict=True
      ):
        np.testing.assert_array_equal(got, want)
    counts = [int(rng.integers(x.size + 1)) for x in scores]
    for got, score, k in zip(
      top_each(scores, jnp.asarray(counts)), scores, counts, strict=True
    ):
      np.testing.assert_array_equal(got, sorted_masks([score], k)[0])


def test_kth_largest_is_the_sorted_one():
  ((scores, _), *_) = draws('normal')
  flat = np.sort(np.concatenate([np.ravel(x) for x in scores]))[::-1]
  kth = jax.jit(kth_largest)
  for k in (1, 2, 30, flat.size):
    assert kth(scores, jnp.int32(k)) == flat[k - 1]


def test_not_a_number_is_an_error_outside_and_the_last_inside_of_jit():
  bad = [jnp.asarray([1.0, jnp.nan, -jnp.inf])]
  with pytest.raises(ValueError, match='NaN'):
    select_top(bad, 1)
  assert jax.jit(lambda x: select_top(x, 2))(bad)[0].tolist() == [
    True,
    False,
    True,
  ]


@pytest.mark.parametrize('k', [-1, 61])
def test_more_than_there_is_cannot_be_kept(k):
  with pytest.raises(ValueError, match='cannot keep'):
    select_top([np.zeros(shape, np.float32) for shape in SHAPES], k)


def test_counts_beyond_int32_are_exact():
  numbers = [0, 1, 65535, 65536, 2**31 - 1, 2**31, 3 * 10**9, 2**46]
  value = lambda count: (int(count.high) << 16) + int(count.low)
  for a in numbers:
    assert value(count_of(a)) == a
    for b in numbers:
      assert bool(_at_least(count_of(a), count_of(b))) == (a >= b)
      if a >= b:
        assert value(_minus(count_of(a), count_of(b))) == a - b
  parts = count_of(np.asarray([2**31 - 1] * 5))
  assert value(_add(Count(*parts), 0)) == 5 * (2**31 - 1)


@pytest.mark.parametrize('axis', [0, 1])
@pytest.mark.parametrize('n,m', [(1, 4), (2, 4), (4, 4), (3, 5)])
def test_n_of_m_keeps_the_largest_of_every_group(n, m, axis):
  scores = np.random.default_rng(1).integers(0, 4, (9, 10)).astype(np.float32)
  mask = np.asarray(select_n_m(scores, n, m, axis))
  rows = np.moveaxis(scores, axis, -1)
  for row, kept in zip(rows, np.moveaxis(mask, axis, -1), strict=True):
    for start in range(0, len(row), m):
      want = sorted_masks([row[start : start + m]], n)[0]
      np.testing.assert_array_equal(kept[start : start + m], want)


def test_blocks_are_kept_whole():
  scores = np.arange(48.0).reshape(2, 4, 6)
  mask = np.asarray(select_blocks(scores, 3, (2, 3)))
  assert mask.sum() == 3 * 6
  assert mask[1, 2:].all(), 'the largest block of all'
  with pytest.raises(ValueError, match='does not divide'):
    select_blocks(scores, 1, (3, 3))


# Schedules.


def test_density_is_final_from_end_on_and_lands_where_every_does_not():
  schedule = cubic(2, 11, every=4)
  assert update_steps(schedule) == [2, 6, 10, 11]
  assert [s for s in range(20) if is_update(schedule, s)] == [2, 6, 10, 11]
  assert [int(update_index(schedule, s)) for s in (0, 2, 9, 10, 11, 99)] == [
    0,
    0,
    1,
    2,
    3,
    3,
  ]
  final = Fraction(1, 10)
  densities = [density_at(schedule, final, s) for s in range(13)]
  assert densities[0] == densities[1] == 1 and densities[11] == final
  assert densities == sorted(densities, reverse=True)


@pytest.mark.parametrize(
  'size,sparsity,count',
  [
    # Where round(size * (1 - sparsity)) in float32 is one off.
    (20_000_003, 0.9, 2_000_000),
    (50_000_001, 0.98, 1_000_000),
    (5_000_000_000, 0.9, 500_000_000),
  ],
)
def test_counts_are_those_of_the_decimal_that_was_written(
  size, sparsity, count
):
  (density,) = leaf_densities('uniform', ['w'], [(size,)], sparsity)
  table = count_table(cubic(0, 10, 5), (density,), (size,))
  assert table[-1, 0] == count
  assert table[0, 0] == size


def test_exponential_ramp_removes_the_same_share_at_every_update():
  table = count_table(exponential(0, 40, 10), (Fraction(1, 16),), (160_000,))
  assert table[:, 0].tolist() == [160_000, 80_000, 40_000, 20_000, 10_000]


@pytest.mark.parametrize('bad', [(5, 4, 1), (0, 4, 0), (-1, 3, 1)])
def test_schedules_that_go_backwards_are_errors(bad):
  begin, end, every = bad
  with pytest.raises(ValueError, match='begin'):
    cubic(begin, end, every)


def test_constant_schedule_prunes_at_initialisation():
  assert update_steps(constant()) == [0]


# Allocation.


@pytest.mark.parametrize('sparsity', [0.5, 0.9, 0.98])
def test_erk_meets_the_total_exactly_and_favours_small_layers(sparsity):
  shapes = [(3, 3, 3, 64), (3, 3, 64, 128), (1, 1, 128, 128), (128, 10)]
  sizes = [int(np.prod(shape)) for shape in shapes]
  names = list('abcd')
  densities = leaf_densities('erk', names, shapes, sparsity)
  counts = [d * size for d, size in zip(densities, sizes, strict=True)]
  assert all(count.denominator == 1 for count in counts)
  assert sum(counts) == round((1 - Fraction(str(sparsity))) * sum(sizes))
  assert all(0 < d <= 1 for d in densities)
  assert densities[3] >= densities[1], 'the large layer is the sparser'


def test_patterns_give_sparsities_by_path_and_the_last_one_holds():
  allocation = {'block': 0.5, 'block2/': 0.75}
  names = ['block1/w', 'block2/w', 'head/w']
  found = leaf_densities(allocation, names, [(4,)] * 3, 0.9)
  assert found == [Fraction(1, 2), Fraction(1, 4), Fraction(1, 10)]


def test_unknown_allocation_is_an_error():
  with pytest.raises(ValueError, match='knows uniform, erk'):
    leaf_densities('uniformly', ['w'], [(4,)], 0.9)


# Shares of counts.


def test_share_of_a_count_is_the_floor_where_float32_is_not():
  rng = np.random.default_rng(2)
  counts = rng.integers(0, 2**31 - 1, 200)
  share = jax.jit(floor_share)
  for fraction in (0.0, 1e-7, 0.15, 0.3, 1 / 3, 0.999999):
    got = share(jnp.asarray(counts, jnp.int32), jnp.asarray(_limbs(fraction)))
    # Of what was written: 0.3 of 10 is 3, though the float is less.
    written = Fraction(fraction).limit_denominator(10**7)
    exact = [int(int(n) * written) for n in counts]
    np.testing.assert_array_equal(got, exact)
