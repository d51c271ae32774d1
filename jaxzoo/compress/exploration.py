"""Channel exploration: which filters of a layer matter, and how many to keep.

The parts of CHEX (arXiv 2203.15794, CVPR 2022) as pure functions of one layer
or of all: leverage scores, regrowing by the distance from the span of the kept
filters, allocation by the scales of batch norms. `methods/chex.py` is made of
them.

A layer is its filters as the columns of X [f, c]: f inputs of a filter, c
channels. All sizes are static; numbers of channels may be traced.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.compress.channels import LayerCost, macs
from jaxzoo.compress.turns import after

RANK_TOLERANCE = 1e-6  # of singular values, over the largest


def regrow_share(initial: float, epoch: float, end: float) -> float:
  """d_e = d_0 (1 + cos(pi e / T)) / 2, and 0 after T."""
  return initial * (1 + math.cos(math.pi * min(1.0, epoch / end))) / 2


class Allocation(NamedTuple):
  """How many channels every layer keeps, and how many come back.

  Attributes:
    prune_ratio: share of channels that a layer drops, float32 [l].
    keep: int32 [l].
    regrow: int32 [l].
  """

  prune_ratio: Float[Array, ' l']
  keep: Int[Array, ' l']
  regrow: Int[Array, ' l']


def dropped_by_threshold(
  scales: Sequence[Float[Array, ' c']], index: Int[Array, '']
) -> Int[Array, ' l']:
  """Channels a layer with |scale| <= the `index`-th smallest of all.

  The published rule: the channel at the threshold goes too, so that index + 1
  are dropped (more where several are equal). A negative index drops none.
  """
  ascending = jnp.sort(jnp.concatenate([jnp.abs(s) for s in scales]))
  threshold = ascending[jnp.maximum(index, 0)]
  counts = [jnp.sum(jnp.abs(s) <= threshold) for s in scales]
  return jnp.where(index < 0, 0, jnp.stack(counts)).astype(jnp.int32)


def dropped_exactly(
  scales: Sequence[Float[Array, ' c']], number: Int[Array, '']
) -> Int[Array, ' l']:
  """Channels a layer among the `number` of smallest |scale|, earlier first."""
  ranks = _ranks(jnp.concatenate([jnp.abs(s) for s in scales]))
  ends = np.cumsum([s.size for s in scales])[:-1]
  return jnp.stack([jnp.sum(r < number) for r in jnp.split(ranks, ends)])


def _ranks(values: Float[Array, ' n']) -> Int[Array, ' n']:
  """Place of each in ascending order; of equal ones the earlier first."""
  order = jnp.argsort(values, stable=True)
  return (
    jnp.zeros(values.size, jnp.int32)
    .at[order]
    .set(jnp.arange(values.size, dtype=jnp.int32))
  )


def allocate(
  scales: Sequence[Float[Array, ' c']],
  prune_index: Int[Array, ''],
  regrow_index: Int[Array, ''],
) -> Allocation:
  """Published allocation by the norms' scales, under a budget of channels.

  Args:
    scales: of the batch norm behind each layer; pruned channels have 0.
    prune_index: int(n S) of n channels in all at sparsity S.
    regrow_index: int(n (S - d)) with the share d that comes back.
  """
  down = dropped_by_threshold(scales, prune_index)
  up = dropped_by_threshold(scales, regrow_index)
  sizes = jnp.array([s.size for s in scales])
  keep = sizes - down
  return Allocation(down / sizes, keep, jnp.maximum(sizes - up - keep, 0))


def channel_indices(
  total: int, sparsity: float, shares: Sequence[float]
) -> np.ndarray:
  """int(n (S - d)) for each share d, of `dropped_by_threshold`.

  In float64, as published: with exact arithmetic some would be one more.
  """
  return np.array(
    [max(0, int(total * (sparsity - d))) for d in shares], np.int32
  )


def uniform_counts(
  sizes: Sequence[int],
  ratio: float | Fraction,
  table: Sequence[LayerCost] = (),
  names: Sequence[str] = (),
) -> list[int]:
  """Channels a layer keeps where all keep the same share.

  int(c (1 - ratio)) of c channels; with a table of costs, the largest share
  under which the multiply-adds are at most 1 - ratio of the whole network's.
  At least one.
  """
  keep = lambda share: [max(1, int(c * share)) for c in sizes]
  left = 1 - Fraction(str(ratio))
  if not table:
    return keep(left)
  budget, grid = left * macs(table), 4096
  fits = lambda i: (
    macs(table, dict(zip(names, keep(Fraction(i, grid)), strict=True)))
    <= budget
  )
  shares = [i for i in range(grid + 1) if fits(i)]
  return keep(Fraction(max(shares, default=0), grid))


def within_macs(
  scales: Sequence[Float[Array, ' c']],
  table: Sequence[LayerCost],
  names: Sequence[str],
  budget: Float[Array, ''],
) -> Int[Array, ' l']:
  """Channels a layer to drop, lowest |scale| first, to cost at most `budget`.

  By bisection: the cost falls with every channel.

  Args:
    scales: a vector a layer.
    table: costs of the network.
    names: group of each layer.
    budget: multiply-adds over those of the whole network.
  """
  total = sum(s.size for s in scales)
  cost = lambda number: relative_macs(
    table, names, [s.size for s in scales], dropped_exactly(scales, number)
  )

  def halve(bounds, _):
    low, high = bounds  # `high` is enough, `low` - 1 is not
    middle = (low + high) // 2
    enough = cost(middle) <= budget
    return (
      jnp.where(enough, low, middle + 1),
      jnp.where(enough, middle, high),
    ), None

  bounds = (jnp.int32(0), jnp.int32(total))
  rounds = total.bit_length() + 1
  (low, _), _ = jax.lax.scan(halve, bounds, None, length=rounds)
  return dropped_exactly(scales, low)


def relative_macs(
  table: Sequence[LayerCost],
  names: Sequence[str],
  sizes: Sequence[int],
  dropped: Int[Array, ' l'],
) -> Float[Array, '']:
  """Multiply-adds without the dropped channels, over those of the whole."""
  left = {
    name: 1 - dropped[i] / size
    for i, (name, size) in enumerate(zip(names, sizes, strict=True))
  }
  whole = sum(layer.macs for layer in table)
  parts = []
  for layer in table:
    share = jnp.float32(layer.macs / whole)
    for name, _ in layer.groups:
      share = share * left.get(name, 1)
    parts.append(share)
  return jnp.sum(jnp.stack(parts))


# One layer.


def filter_scores(
  x: Float[Array, 'f c'],
  alive: Bool[Array, ' c'],
  keep: Int[Array, ''],
  kind: str = 'leverage',
) -> Float[Array, ' c']:
  """How much every filter matters; 0 for the dead.

  With the right singular vectors V of X, ||V[c, :keep]||: the square root of
  the filter's leverage on the span of the `keep` largest directions. Where
  f < c the vectors do not tell filters apart, and ||x_c||_1 is taken.

  Args:
    x: filters as columns.
    alive: dead filters get 0 explicitly: null vectors may point at them.
    keep: how many filters stay.
    kind: 'leverage' or 'l1'.
  """
  if kind == 'l1' or x.shape[0] < x.shape[1]:
    scores = jnp.sum(jnp.abs(x), axis=0)
  else:
    # R of X = QR has the same right vectors, and is small.
    _, _, vectors = jnp.linalg.svd(jnp.linalg.qr(x, mode='r'))
    leading = jnp.arange(vectors.shape[0])[:, None] < keep
    scores = jnp.sqrt(jnp.sum(jnp.where(leading, vectors, 0) ** 2, axis=0))
  return jnp.where(alive, scores, 0)


def kept_filters(
  scores: Float[Array, ' c'], keep: Int[Array, '']
) -> Bool[Array, ' c']:
  """The `keep` highest; of equal ones the earlier."""
  return _ranks(-scores) < keep


def span_distances(
  x: Float[Array, 'f c'], kept: Bool[Array, ' c']
) -> Float[Array, ' c']:
  """||x_c - P x_c||, P onto the span of the kept columns.

  By an orthonormal basis with a cut at their rank: kept columns are often
  dependent (then all distances are 0), and an inverse Gram matrix would lose
  half of the digits.
  """
  # Distances are the same in the coordinates of an orthonormal basis of all.
  x = jnp.linalg.qr(x, mode='r')
  basis, sizes, _ = jnp.linalg.svd(x * kept, full_matrices=False)
  real = sizes > RANK_TOLERANCE * jnp.max(sizes)
  basis = jnp.where(real, basis, 0)
  rest = x - basis @ (basis.T @ x)
  return jnp.linalg.norm(rest, axis=0)


def regrow_probabilities(
  distances: Float[Array, ' c'], candidates: Bool[Array, ' c']
) -> Float[Array, ' c']:
  """softmax of the distances over the candidates, 0 elsewhere."""
  logits = jnp.where(candidates, distances, -jnp.inf)
  return jnp.where(candidates, jax.nn.softmax(logits), 0)


def draw_without_replacement(
  key: jax.Array, probabilities: Float[Array, ' c'], number: Int[Array, '']
) -> Bool[Array, ' c']:
  """`number` channels, one after the other by what is left of probabilities.

  The largest of log p + Gumbel noise are such a draw (Vieira 2014). Of fewer
  candidates than `number`, all.
  """
  noise = jax.random.gumbel(key, probabilities.shape)
  order = jnp.log(probabilities) + noise
  return (_ranks(-order) < number) & (probabilities > 0)


def explore_layer(
  x: Float[Array, 'f c'],
  restored: Float[Array, 'f c'],
  alive: Bool[Array, ' c'],
  keep: Int[Array, ''],
  regrow: Int[Array, ''],
  key: jax.Array,
  kind: str = 'leverage',
) -> Bool[Array, ' c']:
  """One layer's channels after pruning and regrowing.

  Args:
    x: filters now, 0 where dead.
    restored: filters with the dead ones as they were last used.
    alive: channels now.
    keep: how many stay by their scores.
    regrow: how many others are drawn.
    key: of the draw, the same on every device.
    kind: of `filter_scores`.
  """
  scores = filter_scores(x, alive, keep, kind)
  kept = kept_filters(scores, keep)
  distances = span_distances(after(restored, scores), kept)
  p = regrow_probabilities(distances, ~kept)
  return kept | draw_without_replacement(key, p, regrow)
