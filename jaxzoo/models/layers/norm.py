"""Normalisation with statistics of the batch."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
  """y = scale (x - mean) / sqrt(var + epsilon) + bias, channels last.

  As PyTorch's: a batch is normalised with its biased variance, n in the
  denominator, and the running one takes in the unbiased, n - 1. (linen's own
  stores the biased one: published statistics of small maps differ by
  n / (n - 1).) Mean and variance are over all axes but the last, so that under
  `jit` with a sharded batch they are those of the global batch, and float32
  whatever `dtype` is.

  Attributes:
    momentum: share of the new batch in the running statistics: 0.1 is linen's
      0.9.
    epsilon: added to the variance.
    scale_init: of the scale; zeros make a residual branch start silent.
    dtype: of the result; default that of the input.
  """

  momentum: float = 0.1
  epsilon: float = 1e-5
  scale_init: Any = nn.initializers.ones
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, '... c'], train: bool = False
  ) -> Float[Array, '... c']:
    """Normalises; `train` uses and takes in the statistics of the batch."""
    channels = x.shape[-1:]
    mean_so_far = self.variable(
      'batch_stats', 'mean', jnp.zeros, channels, jnp.float32
    )
    var_so_far = self.variable(
      'batch_stats', 'var', jnp.ones, channels, jnp.float32
    )
    scale = self.param('scale', self.scale_init, channels)
    bias = self.param('bias', nn.initializers.zeros, channels)
    if train:
      mean, var = batch_moments(x)
      if not self.is_initializing():
        count = x.size // x.shape[-1]
        unbiased = var * (count / max(count - 1, 1))
        for stored, new in ((mean_so_far, mean), (var_so_far, unbiased)):
          stored.value += self.momentum * (new - stored.value)
    else:
      mean, var = mean_so_far.value, var_so_far.value
    return affine(x, mean, var, scale, bias, self.epsilon, self.dtype)


def at_least_float32(x: jax.Array):
  """float32, or the dtype of `x` where that is wider (float64, in checks)."""
  return jnp.promote_types(x.dtype, jnp.float32)


def batch_moments(
  x: Float[Array, '... c'],
) -> tuple[Float[Array, ' c'], Float[Array, ' c']]:
  """Mean and biased variance over all axes but the last, in float32 or wider.

  E[x²] - E[x]² rather than E[(x - E[x])²]: both sums come from one reading of
  x, which is what a batch norm spends its time on.
  """
  axes = tuple(range(x.ndim - 1))
  x = x.astype(at_least_float32(x))
  mean, square = x.mean(axes), jnp.mean(x * x, axes)
  return mean, jnp.maximum(square - mean * mean, 0)


def affine(x, mean, var, scale, bias, epsilon, dtype=None) -> jax.Array:
  """scale (x - mean) / sqrt(var + epsilon) + bias as one product and one sum.

  The two factors, a number a channel, are made in float32.
  """
  dtype = dtype or x.dtype
  factor = scale * jax.lax.rsqrt(var + epsilon)
  return (x * factor + (bias - mean * factor)).astype(dtype)
