"""k-NN attention: every query sees only its k most similar keys.

Wang et al., arXiv 2106.00515 (KVT). Keys are chosen for each row of each head
anew, before the softmax, so that the weights of those that are kept sum to one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.errors import UserError

_LOWEST = jnp.finfo(jnp.float32).min


def knn_mask(scores: Float[Array, '*b q n'], k: int) -> Bool[Array, '*b q n']:
  """True for the k largest scores of every row, exactly k.

  Of equal scores those of lower index come first; it is not differentiated.

  The k-th largest score of a row is found bit by bit, from the highest: a bit
  belongs to it if at least k scores reach the number with that bit set. Ties
  are settled by the same search over their indices. That is 32 comparisons and
  counts of a row and a few more, one fused loop on every backend, and no sort:
  `lax.top_k` sorts whole rows with their indices (3.8 times as long on a CPU, see
  docs/performance.md: `python -m jaxzoo.bench.formulations knn_mask`; GPU and
  TPU have not been measured), and
  where heads are sharded XLA gathers them for it; this shards over batch and
  heads without a collective. A mask by one-hot rows of the k indices would cost
  k n².

  Args:
    scores: float32, or what becomes it.
    k: how many, in 1..n.

  Raises:
    UserError: k is not in 1..n.
  """
  count = scores.shape[-1]
  if not 1 <= k <= count:
    raise UserError(
      f'k-NN attention is to keep {k} keys of {count}: set knn to at most '
      f'{count}; about half of them is what the paper found robust'
    )
  if k == count:
    return jnp.ones(scores.shape, bool)
  keys = _ordered(jax.lax.stop_gradient(scores.astype(jnp.float32)))
  least = _kth_largest(keys, k, 32)
  above, tied = keys > least, keys == least
  room = k - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
  # The lower the index of a tie, the larger its key.
  keys = jnp.where(tied, count - jnp.arange(count, dtype=jnp.uint32), 0)
  return above | (keys >= _kth_largest(keys, room, count.bit_length()))


def _ordered(x):
  """float32 -> uint32 in the same order; NaN is the largest of all."""
  x = jnp.where(x == 0, 0.0, x)  # -0 and 0 are one value
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  # Of negative numbers a larger pattern is a smaller number.
  bits ^= (bits >> 31) & jnp.int32(0x7FFFFFFF)
  return jax.lax.bitcast_convert_type(bits, jnp.uint32) ^ jnp.uint32(1 << 31)


def _kth_largest(keys, k, bits):
  """The k-th largest of every row of uint32 below 2^bits; k may differ."""

  def set_bit(i, found):
    bit = jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32)
    reached = jnp.sum(
      keys >= found | bit, axis=-1, keepdims=True, dtype=jnp.int32
    )
    return jnp.where(reached >= k, found | bit, found)

  start = jnp.zeros_like(keys[..., :1])
  return jax.lax.fori_loop(0, bits, set_bit, start)


def knn_attention(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b n h d'],
  value: Float[Array, '*b n h d'],
  mask: Bool[Array, '#*b #h #q #n'] | None = None,
  bias: Float[Array, '#*b #h #q #n'] | None = None,
  *,
  k: int,
) -> Float[Array, '*b q h d']:
  """softmax over the k largest of S, times v; S = q kᵀ / sqrt(d) + bias.

  In place of `dot_product_attention`, with its arguments. The scores are dense
  and float32; what is not kept has weight and gradient exactly 0.

  Args:
    query: [*batch, queries, heads, head width].
    key: [*batch, keys, heads, head width].
    value: as `key`.
    mask: True where a query may see a key; of those it keeps k, or all where
      there are fewer.
    bias: added to the scores before k are chosen.
    k: keys that a query keeps, in 1..keys.

  Raises:
    UserError: k is out of its range.
  """
  scores = _scores(query, key, mask, bias)
  kept = knn_mask(scores, k)
  kept = kept if mask is None else kept & mask
  scores = jnp.where(kept, scores, _LOWEST)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum('...hqk,...khd->...qhd', weights, value)


def kept_mass(
  query: Float[Array, '*b q h d'], key: Float[Array, '*b n h d'], k: int
) -> Float[Array, '']:
  """How much of the dense attention the k kept keys have: mean over rows.

  In k / n..1; what a dense softmax gives to the keys that k-NN attention would
  keep. (arXiv 2106.00515.)
  """
  scores = _scores(query, key)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.mean(jnp.sum(weights * knn_mask(scores, k), axis=-1))


def _scores(query, key, mask=None, bias=None):
  """Scaled products [*b, h, q, k], float32; the lowest number where masked."""
  scale = query.shape[-1] ** -0.5
  scores = jnp.einsum(
    '...qhd,...khd->...hqk',
    query * scale,
    key,
    preferred_element_type=jnp.float32,
  )
  scores = scores if bias is None else scores + bias
  return scores if mask is None else jnp.where(mask, scores, _LOWEST)
