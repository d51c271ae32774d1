"""Scaled dot-product attention: the one function every network calls."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers import cudnn_attention, fused_attention
from jaxzoo.models.layers.norm import at_least_float32


def dot_product_attention(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  value: Float[Array, '*b k h d'],
  mask: Bool[Array, '#*b #h #q #k'] | None = None,
  bias: Float[Array, '#*b #h #q #k'] | None = None,
  scale: float | None = None,
) -> Float[Array, '*b q h d']:
  """softmax(q kᵀ / sqrt(d) + bias) v, with the softmax in float32.

  By a kernel where `fused_attention` (TPUs) or `cudnn_attention` (GPUs) can,
  elsewhere by products and a softmax that XLA compiles.

  Args:
    query: [*batch, queries, heads, head width].
    key: [*batch, keys, heads, head width].
    value: as `key`.
    mask: True where a query may see a key; broadcasts to
      [*batch, heads, queries, keys]. A query that sees no key averages all
      values rather than giving NaN.
    bias: added to the logits; broadcasts as `mask` does.
    scale: in place of 1 / sqrt(d).

  Returns:
    [*batch, queries, heads, head width] in the dtype of `value`.
  """
  if _alike(query, key, value):
    for kernel in (fused_attention, cudnn_attention):
      attended = kernel.attend(query, key, value, mask, bias, scale)
      if attended is not None:
        return attended
  return xla_attention(query, key, value, mask, bias, scale)


def _alike(query, key, value) -> bool:
  """What every kernel asks for: one dtype, one batch, equal heads."""
  return (
    query.dtype == key.dtype == value.dtype
    and key.shape == value.shape
    and query.ndim > 3
    and query.shape[:-3] == key.shape[:-3]
    and query.shape[-2:] == key.shape[-2:]
  )


def xla_attention(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  value: Float[Array, '*b k h d'],
  mask: Bool[Array, '#*b #h #q #k'] | None = None,
  bias: Float[Array, '#*b #h #q #k'] | None = None,
  scale: float | None = None,
) -> Float[Array, '*b q h d']:
  """`dot_product_attention` by products and a softmax, on any device.

  The weights are normalised where they are narrow: the attended values are
  divided by the sums, and so is their gradient. (Reverse mode only; no
  `jax.jvp`.)
  """
  # Heads before positions. The results are the same, but XLA's CPU compiler
  # multiplies batches of matrices whose batch comes first about three times
  # faster; for TPU and GPU it chooses the layout itself.
  query, key, value = (x.swapaxes(-3, -2) for x in (query, key, value))
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  return _attend(query, key, value, mask, bias, scale).swapaxes(-3, -2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(query, key, value, mask, bias, scale):
  """All [*b, heads, positions, d]."""
  return _attend_forward(query, key, value, mask, bias, scale)[0]


def _attend_forward(query, key, value, mask, bias, scale):
  logits = _logits(query, key, mask, bias, scale)
  weights = jnp.exp(logits - logits.max(-1, keepdims=True))
  sums = weights.sum(-1, keepdims=True)
  attended = _product('...qk,...kd->...qd', weights, value) / sums
  attended = attended.astype(value.dtype)
  return attended, (query, key, value, mask, bias, weights, sums, attended)


def _attend_backward(scale, kept, grad):
  query, key, value, mask, bias, weights, sums, attended = kept
  grad = grad.astype(jnp.float32) / sums
  by_weights = _product('...qd,...kd->...qk', grad, value)
  mean = (grad * attended).sum(-1, keepdims=True)
  by_logits = weights * (by_weights - mean)
  if mask is not None:  # a row that sees nothing has weights all the same
    by_logits = jnp.where(mask, by_logits, 0)
  by_bias = None
  if bias is not None:
    by_bias = _sum_to(by_logits, bias.shape).astype(bias.dtype)
  by_query = scale * _product('...qk,...kd->...qd', by_logits, key)
  by_key = _product('...qk,...qd->...kd', by_logits, query * scale)
  by_value = _product('...qk,...qd->...kd', weights, grad.astype(value.dtype))
  return (
    by_query.astype(query.dtype),
    by_key.astype(key.dtype),
    by_value.astype(value.dtype),
    None,
    by_bias,
  )


_attend.defvjp(_attend_forward, _attend_backward)


def _product(subscripts, x, y):
  """In the dtype of `y`, summed up and given in float32 at least."""
  return jnp.einsum(
    subscripts,
    x.astype(y.dtype),
    y,
    preferred_element_type=at_least_float32(y),
  )


def _sum_to(x, shape):
  """The sum over the axes along which `shape` was broadcast."""
  x = x.sum(range(x.ndim - len(shape)))
  narrow = [i for i, n in enumerate(shape) if n == 1 != x.shape[i]]
  return x.sum(narrow, keepdims=True)


def _logits(query, key, mask, bias, scale):
  """[*b, heads, queries, keys] of [*b, heads, positions, d], in float32."""
  logits = _product('...qd,...kd->...qk', query * scale, key)
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    # The lowest finite number, not -inf: a row without keys stays finite.
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return logits


def attention_weights(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  mask: Bool[Array, '#*b #h #q #k'] | None = None,
  bias: Float[Array, '#*b #h #q #k'] | None = None,
  scale: float | None = None,
) -> Float[Array, '*b h q k']:
  """The softmax of `dot_product_attention`, float32."""
  query, key = (x.swapaxes(-3, -2) for x in (query, key))
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  return jax.nn.softmax(_logits(query, key, mask, bias, scale), axis=-1)


def weighted_values(
  weights: Float[Array, '*b h q k'], value: Float[Array, '*b k h d']
) -> Float[Array, '*b q h d']:
  """The values of each query by its weights, in the dtype of `value`."""
  attended = jnp.einsum(
    '...hqk,...hkd->...hqd',
    weights.astype(value.dtype),
    value.swapaxes(-3, -2),
  )
  return attended.swapaxes(-3, -2)


def chunked_attention(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  value: Float[Array, '*b k h d'],
  mask: Bool[Array, '#*b #h #q #k'] | None = None,
  bias: Float[Array, '#*b #h #q #k'] | None = None,
  *,
  most: int = 1024,
) -> Float[Array, '*b q h d']:
  """`dot_product_attention`, `most` queries at a time or as near as divides.

  The memory grows with `most` times the keys, also in the backward pass, which
  computes the weights again. With a mask or a bias all queries come at once.
  """
  count = query.shape[-3]
  if count <= most or mask is not None or bias is not None:
    return dot_product_attention(query, key, value, mask, bias)
  chunks = next(
    n for n in range(-(-count // most), count + 1) if count % n == 0
  )
  parts = query.reshape(
    *query.shape[:-3], chunks, count // chunks, *query.shape[-2:]
  )
  attend = jax.checkpoint(lambda part: dot_product_attention(part, key, value))
  attended = jax.lax.map(attend, jnp.moveaxis(parts, -4, 0))
  return jnp.moveaxis(attended, 0, -4).reshape(query.shape)


def causal_mask(length: int) -> Bool[Array, '1 1 t t']:
  """True where position i may see j <= i."""
  return jnp.tril(jnp.ones((length, length), bool))[None, None]
