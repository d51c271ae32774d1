"""DistillVLM: attention and hidden states of a vision-language teacher.

Fang et al., arXiv 2104.02096, ICCV 2021. The teacher is adapted to the regions
that the student's detector proposes, so that the two see the same tokens; then
maps of attention and hidden states can be compared token by token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.models.losses.contrastive import l2_normalize


def attention_loss(
  attention: Float[Array, 'b heads n n'],
  teacher_attention: Float[Array, 'b heads n n'],
  valid: Bool[Array, 'b n'],
) -> Float[Array, '']:
  """Mean squared error of the attention over heads and valid pairs.

  Args:
    attention: probabilities of the student's last layer.
    teacher_attention: of the teacher's; no gradient goes to them.
    valid: tokens that are not padding.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  error = wide(attention) - jax.lax.stop_gradient(wide(teacher_attention))
  pairs = valid[:, None, :, None] & valid[:, None, None, :]
  total = jnp.sum(jnp.where(pairs, error * error, 0))
  return total / jnp.maximum(pairs.sum() * attention.shape[1], 1)


def hidden_loss(
  hidden: Float[Array, 'b n d'],
  teacher_hidden: Float[Array, 'b n d'],
  valid: Bool[Array, 'b n'],
  queue: Float[Array, 'k d'],
  temperature: float = 0.07,
) -> Float[Array, '']:
  """-log exp(z.k / tau) / (exp(z.k / tau) + sum_q exp(z.q / tau)) a token.

  The mean over valid tokens. z is the student's token, k the teacher's at the
  same place, both normalised here, q the queue.

  Args:
    hidden: of the student, projected to the teacher's width.
    teacher_hidden: no gradient goes to it.
    valid: tokens that are not padding.
    queue: the teacher's tokens of earlier batches, unit vectors.
    temperature: tau.
  """
  z = l2_normalize(hidden)
  k = jax.lax.stop_gradient(l2_normalize(teacher_hidden))
  positive = jnp.sum(z * k, axis=-1, keepdims=True)
  negative = jnp.einsum(
    'bnd,kd->bnk',
    z,
    jax.lax.stop_gradient(queue),
    precision=jax.lax.Precision.HIGHEST,
  )
  logits = jnp.concatenate([positive, negative], axis=-1) / temperature
  values = -jax.nn.log_softmax(logits, axis=-1)[..., 0]
  return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(valid.sum(), 1)


def enqueue_tokens(
  queue: Float[Array, 'k d'],
  tokens: Float[Array, 'b n d'],
  valid: Bool[Array, 'b n'],
) -> Float[Array, 'k d']:
  """The valid tokens, normalised, before the old queue, cut to its length.

  Shapes are static: a token's place is the number of valid ones before it.
  """
  size, flat = len(queue), valid.reshape(-1)
  count = flat.sum()
  place = jnp.where(flat, jnp.cumsum(flat) - 1, size)  # size: dropped
  moved = jnp.roll(queue, count, axis=0)
  # A roll brings what falls off the end back to the front: where the batch
  # has fewer tokens than the queue, they are overwritten next, and where it
  # has more, all of it is.
  return moved.at[place].set(
    l2_normalize(tokens.reshape(-1, tokens.shape[-1])).astype(queue.dtype),
    mode='drop',
  )
