"""DFKD-T3: data-free distillation of language models by text-to-text transfer.

arXiv 2311.01689. A generator rewrites sentences of a general corpus into texts
that the teacher is sure of, whose answers are spread over the labels, and on
which student and teacher disagree; the student is distilled on these texts.
Only the abstract of the paper is at hand: the equations are this project's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.norm import at_least_float32


def gumbel(uniform: Float[Array, '*n']) -> Float[Array, '*n']:
  """-log(-log u), u kept within [1e-6, 1 - 1e-6]."""
  return -jnp.log(-jnp.log(jnp.clip(uniform, 1e-6, 1 - 1e-6)))


def straight_through(
  logits: Float[Array, '*b v'],
  noise: Float[Array, '*b v'],
  temperature: float | Float[Array, ''] = 1.0,
) -> Float[Array, '*b v']:
  """A sample as a one-hot vector with the gradient of a soft one.

  onehot(argmax y) + y - stop_gradient(y), y = softmax((z + g) / tau): the
  product with a table of embeddings is the sampled token's row, and the
  gradient reaches every token's logit.

  Args:
    logits: z.
    noise: g, from `gumbel`.
    temperature: tau.
  """
  soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
  hard = jax.nn.one_hot(soft.argmax(-1), soft.shape[-1], dtype=soft.dtype)
  return hard + soft - jax.lax.stop_gradient(soft)


class GeneratorTerms(NamedTuple):
  """What the generator lowers.

  Attributes:
    specificity: cross entropy of the teacher with its own answer.
    diversity: sum_c p_c log p_c + log C of the teacher's mean distribution, in
      [0, log C]; 0 where answers are spread evenly.
    adversarial: -KL(teacher || student).
  """

  specificity: Float[Array, '']
  diversity: Float[Array, '']
  adversarial: Float[Array, '']


def generator_terms(
  teacher_logits: Float[Array, 'b c'], student_logits: Float[Array, 'b c']
) -> GeneratorTerms:
  """The three terms of generated texts, with gradients through both models."""
  wide = lambda x: x.astype(at_least_float32(x))
  log_t = jax.nn.log_softmax(wide(teacher_logits), axis=-1)
  log_s = jax.nn.log_softmax(wide(student_logits), axis=-1)
  t = jnp.exp(log_t)
  mean = t.mean(0)
  entropy = jax.scipy.special.entr(mean).sum()
  return GeneratorTerms(
    specificity=-log_t.max(-1).mean(),
    diversity=jnp.log(mean.shape[-1]) - entropy,
    adversarial=-jnp.sum(t * (log_t - log_s), axis=-1).mean(),
  )


def generator_loss(
  terms: GeneratorTerms,
  *,
  specificity: float = 1.0,
  diversity: float = 5.0,
  adversarial: float = 1.0,
) -> Float[Array, '']:
  """The weighted sum of the terms."""
  return (
    specificity * terms.specificity
    + diversity * terms.diversity
    + adversarial * terms.adversarial
  )
