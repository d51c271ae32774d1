"""Losses of distillation without data, on texts that a generator writes.

DFKD-T3, arXiv 2311.01689. Only the abstract of the paper is at hand: the
equations are this project's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.models.losses.distillation import (
  hard_distillation,
  knowledge_distillation,
)


def gumbel(uniform: Float[Array, '*n']) -> Float[Array, '*n']:
  """-log(-log u), u kept within [1e-6, 1 - 1e-6]."""
  return -jnp.log(-jnp.log(jnp.clip(uniform, 1e-6, 1 - 1e-6)))


def straight_through(
  logits: Float[Array, '*b v'],
  noise: Float[Array, '*b v'],
  temperature: float | Float[Array, ''] = 1.0,
  tokens: Int[Array, '*b'] | None = None,
) -> Float[Array, '*b v']:
  """A sample as a one-hot vector with the gradient of a soft one.

  onehot(argmax y) + y - stop_gradient(y), y = softmax((z + g) / tau): the
  product with a table of embeddings is the sampled token's row, and the
  gradient reaches every token's logit.

  Args:
    logits: z.
    noise: g, from `gumbel`.
    temperature: tau.
    tokens: what was sampled, where that is known; default the argmax.
  """
  soft = jax.nn.softmax((logits + noise) / temperature, axis=-1)
  tokens = soft.argmax(-1) if tokens is None else tokens
  hard = jax.nn.one_hot(tokens, soft.shape[-1], dtype=soft.dtype)
  return hard + soft - jax.lax.stop_gradient(soft)


def masked_mean(
  rows: Float[Array, 'n ...'], mask: Bool[Array, ' n'] | None
) -> Float[Array, '...']:
  """The mean over the rows of the mask; 0 where there are none."""
  if mask is None:
    return rows.mean(0)
  kept = mask.reshape(-1, *(1,) * (rows.ndim - 1))
  return jnp.where(kept, rows, 0).sum(0) / jnp.maximum(mask.sum(), 1)


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
  teacher_logits: Float[Array, 'b c'],
  student_logits: Float[Array, 'b c'],
  mask: Bool[Array, ' b'] | None = None,
) -> GeneratorTerms:
  """The three terms of generated texts, with gradients through both models.

  Args:
    teacher_logits: a row for each text, or for each token of its answer.
    student_logits: likewise.
    mask: rows that count; default all.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  log_t = jax.nn.log_softmax(wide(teacher_logits), axis=-1)
  log_s = jax.nn.log_softmax(wide(student_logits), axis=-1)
  t = jnp.exp(log_t)
  over_rows = lambda x: masked_mean(x, mask)
  mean = over_rows(t)
  entropy = jax.scipy.special.entr(mean).sum()
  return GeneratorTerms(
    specificity=-over_rows(log_t.max(-1)),
    diversity=jnp.log(mean.shape[-1]) - entropy,
    adversarial=-over_rows(jnp.sum(t * (log_t - log_s), axis=-1)),
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


def student_loss(
  logits: Float[Array, 'b c'],
  teacher_logits: Float[Array, 'b c'],
  mask: Bool[Array, ' b'] | None = None,
  *,
  temperature: float = 2.0,
  hard: float = 0.5,
) -> Float[Array, '']:
  """tau² KL(softmax(t / tau) || softmax(s / tau)) + hard CE(s, argmax t).

  Args:
    logits: s, a row for each text, or for each token of its answer.
    teacher_logits: t.
    mask: rows that count; default all.
    temperature: tau.
    hard: weight of the second term.
  """

  def one(s, t):
    soft = knowledge_distillation(s, t, temperature)
    return soft + hard * hard_distillation(s[None], t[None])

  return masked_mean(jax.vmap(one)(logits, teacher_logits), mask)
