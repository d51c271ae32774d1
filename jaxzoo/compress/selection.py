"""The largest k of many scores: exact, sharded, the same on every mesh.

The k-th largest score is found bit by bit: of 32-bit keys that order like the
scores, each step fixes one bit by one comparison and one sum. Nothing is
sorted and nothing gathered, so that sharded scores stay where they are and only
counts cross devices; and counts are integers, so that no order of summation
matters. Equal scores are told apart by their place: the leaf, then the
row-major index within it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

Scores = Sequence[Array]
_LOW = 0xFFFF  # of a count in two limbs of 16 bits and more


class Count(NamedTuple):
  """An integer below 2^47 in two int32: high * 2^16 + low."""

  high: Int[Array, '...']
  low: Int[Array, '...']


def count_of(k) -> Count:
  """Two limbs of Python or NumPy integers, or of an int32 array."""
  if isinstance(k, Count):
    return k
  if isinstance(k, jax.Array):
    return Count(k >> 16, k & _LOW)
  k = np.asarray(k, np.int64)
  return Count(jnp.int32(k >> 16), jnp.int32(k & _LOW))


def take_count(table: np.ndarray, index) -> Count:
  """Row `index` (traced) of a table of integers (static)."""
  return Count(*(x[index] for x in count_of(table)))


def _add(count: Count, axis: int) -> Count:
  """The sum over `axis`, with the carry."""
  low = count.low.sum(axis)
  return Count(count.high.sum(axis) + (low >> 16), low & _LOW)


def _minus(a: Count, b: Count) -> Count:
  low = a.low - b.low
  return Count(a.high - b.high + (low >> 16), low & _LOW)


def _at_least(a: Count, b: Count):
  return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))


def sort_key(score: Float[Array, '...']) -> UInt32[Array, '...']:
  """Integers that order as float32 scores do; -0 is 0, NaN the least of all."""
  score = jnp.where(score == 0, 0, score).astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(score, jnp.uint32)
  negative = bits >> 31 == 1
  key = jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))
  return jnp.where(jnp.isnan(score), jnp.uint32(0), key)


def _score_of(key: UInt32[Array, '...']) -> Float[Array, '...']:
  """The inverse of `sort_key`."""
  negative = key >> 31 == 0
  bits = jnp.where(negative, ~key, key & jnp.uint32((1 << 31) - 1))
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _counts(hits: Sequence[Array], together: bool) -> Count:
  """How many are True, of each leaf, or [1] of all."""
  each = jnp.stack([hit.sum(dtype=jnp.int32) for hit in hits])
  each = Count(each >> 16, each & _LOW)
  return Count(*(x[None] for x in _add(each, 0))) if together else each


def _threshold(keys, k: Count, together: bool) -> UInt32[Array, ' g']:
  """The largest t with count(key >= t) >= k, of all leaves or of each."""

  def fix_bit(i, t):
    trial = t | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    hits = [
      key >= trial[0 if together else leaf] for leaf, key in enumerate(keys)
    ]
    return jnp.where(_at_least(_counts(hits, together), k), trial, t)

  groups = 1 if together else len(keys)
  return jax.lax.fori_loop(0, 32, fix_bit, jnp.zeros(groups, jnp.uint32))


def _linear_index(shape) -> UInt32[Array, '...']:
  """The row-major index of every entry."""
  index, stride = jnp.zeros((), jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    index, stride = index + place * jnp.uint32(stride), stride * shape[axis]
  return index


def _shares(left: Count, ties, together: bool) -> Int[Array, ' l']:
  """How many of each leaf's ties are taken, the first leaves' first."""
  if not together:
    return _at_most(left, ties)
  left, taken = Count(left.high[0], left.low[0]), []
  for i in range(ties.shape[0]):
    taken.append(_at_most(left, ties[i]))
    left = _minus(left, count_of(taken[-1]))
  return jnp.stack(taken)


def _at_most(left: Count, ties):
  """min(left, ties), where left may not fit in an int32."""
  small = (left.high << 16) | left.low
  return jnp.where(left.high >= 1 << 15, ties, jnp.minimum(small, ties))


def _first(ties: Sequence[Array], taken, totals) -> list[Array]:
  """The first `taken` True entries of each leaf, in row-major order."""
  bits = max(tie.size for tie in ties).bit_length()
  indices = [_linear_index(tie.shape) for tie in ties]

  def fix_bit(i, bound):
    trial = bound | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
    below = [
      (tie & (index < trial[leaf])).sum(dtype=jnp.int32)
      for leaf, (tie, index) in enumerate(zip(ties, indices, strict=True))
    ]
    return jnp.where(jnp.stack(below) <= taken, trial, bound)

  # Scores are seldom equal: without a leaf that takes some of its ties and not
  # others there is nothing to search for.
  split = jnp.any((taken > 0) & (taken < totals))
  bound = jax.lax.fori_loop(
    0, jnp.where(split, bits, 0), fix_bit, jnp.zeros(len(ties), jnp.uint32)
  )
  return [
    tie & ((taken[leaf] == totals[leaf]) | (index < bound[leaf]))
    for leaf, (tie, index) in enumerate(zip(ties, indices, strict=True))
  ]


def _check(scores: Scores, k, together: bool) -> None:
  """Raises ValueError for what can be seen before or without tracing."""
  sizes = [score.size for score in scores]
  if max(sizes) >= 2**31:
    raise ValueError('a leaf has 2^31 elements or more: split it')
  if not isinstance(k, (jax.Array, Count)):
    limits = np.asarray([sum(sizes)] if together else sizes)
    if np.any(np.asarray(k) < 0) or np.any(np.asarray(k) > limits):
      raise ValueError(f'cannot keep {k} of {limits} entries')
  for score in scores:
    if not isinstance(score, jax.core.Tracer) and bool(jnp.isnan(score).any()):
      raise ValueError('a score is NaN: the network has diverged')


def _select(scores: Scores, k, together: bool) -> list[Bool[Array, '...']]:
  scores = [jnp.asarray(score) for score in scores]
  _check(scores, k, together)
  k = count_of(k)
  k = Count(*(jnp.atleast_1d(x) for x in k))
  keys = [sort_key(score) for score in scores]
  t = _threshold(keys, k, together)
  own = [t[0 if together else leaf] for leaf in range(len(keys))]
  above = [key > each for key, each in zip(keys, own, strict=True)]
  ties = [key == each for key, each in zip(keys, own, strict=True)]
  left = _minus(k, _counts(above, together))
  totals = jnp.stack([tie.sum(dtype=jnp.int32) for tie in ties])
  firsts = _first(ties, _shares(left, totals, together), totals)
  return [a | b for a, b in zip(above, firsts, strict=True)]


def select_top(scores: Scores, k) -> list[Bool[Array, '...']]:
  """Masks of the k largest of all leaves together; exactly k ones.

  Larger first, then the smaller (leaf, row-major index). NaN raises outside
  of jit and comes last inside.

  >>> [m.tolist() for m in select_top([jnp.array([1.0, 3.0]),
  ...                                  jnp.array([3.0, 2.0])], 2)]
  [[False, True], [True, False]]

  Args:
    scores: arrays of any shapes, compared as float32.
    k: a Python integer, an int32 [], or a `Count` for more than 2^31.

  Returns:
    One mask for each leaf, sharded as its scores are.
  """
  return _select(scores, k, together=True)


def select_top_per_leaf(scores: Scores, counts) -> list[Bool[Array, '...']]:
  """Masks of the counts[i] largest of leaf i; exactly that many ones.

  Args:
    scores: arrays of any shapes, compared as float32.
    counts: integers, an int32 [leaves], or a `Count` of such.
  """
  return _select(scores, counts, together=False)


def kth_largest(scores: Scores, k) -> Float[Array, '']:
  """The k-th largest score of all leaves, k from 1."""
  scores = [jnp.asarray(score) for score in scores]
  _check(scores, k, True)
  k = Count(*(jnp.atleast_1d(x) for x in count_of(k)))
  keys = [sort_key(score) for score in scores]
  return _score_of(_threshold(keys, k, together=True)[0])


def select_n_m(
  scores: Float[Array, '...'], n: int, m: int, axis: int = -2
) -> Bool[Array, '...']:
  """The n largest of every m neighbours along an axis.

  Hardware wants the axis that the product sums over: the second last of a
  dense kernel [in, out] and of a convolution's [h, w, in, out]. Of a last
  group with fewer than m entries n stay as well. Equal scores: the first.

  Args:
    scores: of any shape.
    n: in 0..m; may be traced.
    m: at most 16.
    axis: along which groups lie.
  """
  if m > 16 or not (isinstance(n, jax.Array) or 0 <= n <= m):
    raise ValueError(f'{n}:{m} sparsity: it needs 0 <= n <= m <= 16')
  scores = jnp.moveaxis(scores, axis, -1)
  size = scores.shape[-1]
  padding = [(0, 0)] * (scores.ndim - 1) + [(0, -size % m)]
  groups = jnp.pad(scores, padding, constant_values=-jnp.inf)
  groups = groups.reshape(*scores.shape[:-1], -1, m)
  place = jnp.arange(m)
  rank = jnp.zeros(groups.shape, jnp.int32)
  for j in range(m):
    other = groups[..., j : j + 1]
    rank += (other > groups) | ((other == groups) & (j < place))
  mask = (rank < n).reshape(*scores.shape[:-1], -1)[..., :size]
  return jnp.moveaxis(mask, -1, axis)


def select_blocks(
  scores: Float[Array, '... a b'], k, block: tuple[int, int]
) -> Bool[Array, '... a b']:
  """The k blocks of the last two axes whose sum of scores is the largest.

  Args:
    scores: the last two sizes divide by the block's.
    k: number of blocks to keep, of all those of the leaf.
    block: its two sizes.
  """
  *lead, a, b = scores.shape
  rows, columns = block
  if a % rows or b % columns:
    raise ValueError(f'{a} x {b} does not divide into blocks of {block}')
  cut = scores.reshape(*lead, a // rows, rows, b // columns, columns)
  (mask,) = select_top([cut.astype(jnp.float32).sum((-3, -1))], k)
  return jnp.repeat(jnp.repeat(mask, rows, -2), columns, -1)
