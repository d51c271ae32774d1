"""Batch normalisation with the statistics of several recent batches.

Memorized batch normalisation, arXiv 2010.04947 (AAAI 2018). The paper says that
several recent batches count and that training and inference have one rule; no
code is public, and the weights below are chosen (spec mbn).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.norm import affine, batch_moments


class MemorizedNorm(nn.Module):
  """y = scale (x - mu) / sqrt(var + epsilon) + bias, channels last.

  mu and var are those of the mixture of the `memory_size` newest batches, see
  `mixture_moments`. In training the batch itself is the newest, with gradient
  through its statistics; those before it are constants. Inference takes the
  memory as it is; of an empty one, mean 0 and variance 1. There is no running
  average, and a memory of 1 is batch normalisation by the latest batch.

  Training pushes the statistics of the batch into the memory. What the second
  forward pass of a training step has to do, replace the newest entry by the
  statistics under the updated parameters, is a push into the memory as it was
  before the step: that needs no mode of its own.

  The memory is in `batch_stats`, float32: `memory_mean` and `memory_var`
  [memory_size, c], newest first, and `count`, how many entries there are (a
  float, so that statistics can be averaged, as `with_ema` does). Statistics are over all axes but the last, so that under `jit` with a sharded
  batch they are those of the global batch.

  Attributes:
    memory_size: most batches that count, with the current one.
    decay: weight of a batch relative to the next; 1: all count the same.
    epsilon: added to the variance.
    scale_init: of the scale.
    dtype: of the result; default that of the input.
  """

  memory_size: int = 8
  decay: float = 0.9
  epsilon: float = 1e-5
  scale_init: Any = nn.initializers.ones
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, '... c'], train: bool = False
  ) -> Float[Array, '... c']:
    """Normalises; `train` counts the batch in and remembers it."""
    channels = x.shape[-1]
    shape = (self.memory_size, channels)
    stored = lambda name, *args: self.variable('batch_stats', name, *args)
    means = stored('memory_mean', jnp.zeros, shape, jnp.float32)
    variances = stored('memory_var', jnp.ones, shape, jnp.float32)
    count = stored('count', jnp.zeros, (), jnp.float32)
    scale = self.param('scale', self.scale_init, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    entries = means.value, variances.value, count.value
    if train:
      entries = push(*entries, *batch_moments(x))
      if not self.is_initializing():
        means.value, variances.value, count.value = jax.tree.map(
          jax.lax.stop_gradient, entries
        )
    mean, var = mixture_moments(*entries, self.decay)
    return affine(x, mean, var, scale, bias, self.epsilon, self.dtype)


def push(
  means: Float[Array, 'k c'],
  variances: Float[Array, 'k c'],
  count: Float[Array, ''],
  mean: Float[Array, ' c'],
  var: Float[Array, ' c'],
) -> tuple[Float[Array, 'k c'], Float[Array, 'k c'], Float[Array, '']]:
  """The memory with a new first entry, its oldest dropped beyond k."""
  shifted = lambda new, old: jnp.concatenate([new[None], old[:-1]])
  return (
    shifted(mean, means),
    shifted(var, variances),
    jnp.minimum(count + 1, len(means)),
  )


def mixture_moments(
  means: Float[Array, 'k c'],
  variances: Float[Array, 'k c'],
  count: Float[Array, ''],
  decay: float,
) -> tuple[Float[Array, ' c'], Float[Array, ' c']]:
  """Mean and variance of a mixture of the first `count` entries.

  mu = sum_i w_i m_i, var = sum_i w_i (v_i + (m_i - mu)²), w_i = decay^i / sum:
  the spread of the means belongs to it. (The same as sum_i w_i (v_i + m_i²)
  - mu², without its cancellation.) Without entries: 0 and 1.
  """
  place = jnp.arange(len(means))
  weights = jnp.where(place < count, jnp.float32(decay) ** place, 0)
  weights = (weights / jnp.maximum(weights.sum(), 1e-12))[:, None]
  mean = jnp.sum(weights * means, axis=0)
  var = jnp.sum(weights * (variances + (means - mean) ** 2), axis=0)
  return mean, jnp.where(count > 0, var, 1)
