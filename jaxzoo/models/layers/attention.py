"""Scaled dot-product attention: the one function every network calls."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def dot_product_attention(
  query: Float[Array, 'b q h d'],
  key: Float[Array, 'b k h d'],
  value: Float[Array, 'b k h d'],
  mask: Bool[Array, '#b #h #q #k'] | None = None,
) -> Float[Array, 'b q h d']:
  """softmax(q kᵀ / sqrt(d)) v, with the softmax in float32.

  Args:
    query: [batch, queries, heads, head width].
    key: [batch, keys, heads, head width].
    value: as `key`.
    mask: True where a query may see a key; broadcasts to
      [batch, heads, queries, keys]. A query that sees no key averages all
      values rather than giving NaN.

  Returns:
    [batch, queries, heads, head width] in the dtype of `value`.
  """
  scale = query.shape[-1] ** -0.5
  logits = jnp.einsum(
    'bqhd,bkhd->bhqk',
    query * scale,
    key,
    preferred_element_type=jnp.float32,
  )
  if mask is not None:
    # The lowest finite number, not -inf: a row without keys stays finite.
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  return jnp.einsum('bhqk,bkhd->bqhd', weights, value)


def causal_mask(length: int) -> Bool[Array, '1 1 t t']:
  """True where position i may see j <= i."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]
