"""DIST: distillation from a stronger teacher by correlation (NeurIPS 2022).

Huang et al., arXiv 2205.10536. The student's class probabilities have to
correlate with the teacher's, image by image and class by class, not to equal
them: what remains possible where the teacher is far stronger.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.norm import at_least_float32

ACTIVATIONS = ('softmax', 'sigmoid')


class Relations(NamedTuple):
  """The two terms of the loss, each in [0, 2 tau²].

  Attributes:
    inter: between the classes of an image.
    intra: between the images of a class.
  """

  inter: Float[Array, '']
  intra: Float[Array, '']


def relations(
  logits: Float[Array, '*b k'],
  teacher_logits: Float[Array, '*b k'],
  *,
  temperature: float = 1.0,
  group_size: int | None = None,
  activation: str = 'softmax',
) -> Relations:
  """tau² (1 - mean rho) over rows and over columns of the probabilities.

  rho(a, b) = sum (a - mean a)(b - mean b) / (|a - mean a| |b - mean b| + 1e-8),
  Pearson's correlation, of p = softmax(z / tau) with q = softmax(t / tau).

  Args:
    logits: of the student; of dense ones every position is a row.
    teacher_logits: of the same rows; no gradient goes to them.
    temperature: tau; 1 on ImageNet, 4 on CIFAR-100.
    group_size: rows that a column is correlated over; they are cut off one
      after the other. The released code has one group a device, 32 images on
      ImageNet, and the loss depends on it. None: all rows that are given,
      under `jit` those of the global batch.
    activation: 'softmax' over classes, or 'sigmoid' for heads with a
      probability for each class.

  Raises:
    ValueError: rows that do not divide into groups, or no such activation.
  """
  if activation not in ACTIVATIONS:
    raise ValueError(f'activation {activation!r}: not in {ACTIVATIONS}')
  count = logits.shape[-1]
  rows = logits.size // count
  size = group_size or rows
  if rows % size:
    raise ValueError(f'{rows} rows do not divide into groups of {size}')

  def probabilities(z):
    z = z.astype(at_least_float32(z)) / temperature
    p = jax.nn.sigmoid(z) if activation == 'sigmoid' else jax.nn.softmax(z)
    return p.reshape(-1, size, count)

  p = probabilities(logits)
  q = probabilities(jax.lax.stop_gradient(teacher_logits))
  distance = lambda axis: (
    temperature**2 * (1 - correlation(p, q, axis=axis).mean())
  )
  return Relations(distance(-1), distance(-2))


def correlation(
  a: Float[Array, '...'], b: Float[Array, '...'], axis: int
) -> Float[Array, '...']:
  """Pearson's correlation along an axis; 0 where either is constant.

  The 1e-8 is added to the product of the norms, as in the released code: it
  bounds the gradient of classes that no row tells apart, which are many among
  a thousand.
  """
  a = a - a.mean(axis, keepdims=True)
  b = b - b.mean(axis, keepdims=True)
  norms = _norm(a, axis) * _norm(b, axis)
  return jnp.sum(a * b, axis) / (norms + 1e-8)


def _norm(x, axis):
  # The root of 0 has no derivative: a constant row shall have 0, not NaN.
  squared = jnp.sum(x * x, axis)
  positive = squared > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def dist_loss(
  logits: Float[Array, '*b k'],
  teacher_logits: Float[Array, '*b k'],
  *,
  beta: float = 1.0,
  gamma: float = 1.0,
  temperature: float = 1.0,
  group_size: int | None = None,
  activation: str = 'softmax',
) -> tuple[Float[Array, ''], Relations]:
  """beta inter + gamma intra, and both terms, see `relations`."""
  terms = relations(
    logits,
    teacher_logits,
    temperature=temperature,
    group_size=group_size,
    activation=activation,
  )
  return beta * terms.inter + gamma * terms.intra, terms
