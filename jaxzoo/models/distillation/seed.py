"""SEED: distillation of similarities, without labels (ICLR 2021).

Fang et al., arXiv 2101.04731. A small encoder reproduces how similar a frozen
self-supervised teacher finds an image to a long queue of earlier ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.norm import at_least_float32


class Similarities(NamedTuple):
  """Of every image to itself, position 0, and to the queue.

  Attributes:
    logits: of the student, over its temperature.
    targets: the teacher's distribution, without a gradient.
  """

  logits: Float[Array, 'b n']
  targets: Float[Array, 'b n']


def similarities(
  student: Float[Array, 'b d'],
  teacher: Float[Array, 'b d'],
  queue: Float[Array, 'k d'],
  *,
  student_temperature: float = 0.2,
  teacher_temperature: float = 0.01,
) -> Similarities:
  """Both distributions over the image's own teacher vector and the queue.

  Position 0 is z_s . z_t for the student and z_t . z_t for the teacher.

  Args:
    student: unit vectors.
    teacher: unit vectors of the same views.
    queue: unit vectors of earlier batches, the teacher's.
    student_temperature: 0.2.
    teacher_temperature: 0.01 in the paper; the released code's default, 1e-4,
      makes the target the image itself.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  student, queue = wide(student), wide(queue)
  teacher = jax.lax.stop_gradient(wide(teacher))

  def against(vectors):
    own = jnp.sum(vectors * teacher, axis=1, keepdims=True)
    others = jnp.matmul(vectors, queue.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([own, others], axis=1)

  return Similarities(
    against(student) / student_temperature,
    jax.nn.softmax(against(teacher) / teacher_temperature, axis=1),
  )


def similarity_loss(found: Similarities) -> Float[Array, '']:
  """- sum_k p_k log softmax(l)_k, the mean over the batch."""
  log_p = jax.nn.log_softmax(found.logits, axis=1)
  return -jnp.mean(jnp.sum(found.targets * log_p, axis=1))
