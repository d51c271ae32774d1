"""What networks over words and regions are trained for, and on what.

Masked words and tags that match the picture (pre-training, as in Oscar, arXiv
2004.06165), answers to questions, captions.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.distillation.region_transformer import (
  PAD,
  Encoded,
  RegionTransformer,
)
from jaxzoo.models.retrieval.irra import masked_positions

# Modules that belong to some heads only.
HEADS = {
  'word_head': {'words'},
  'pooler': {'match', 'answers'},
  'match_head': {'match'},
  'answer_head': {'answers'},
}


class Head(NamedTuple):
  """What a head says of the rows that count.

  Attributes:
    logits: float32.
    weight: 1 for rows that count, 0 for others.
    truth: a class a row; or a share for each class.
  """

  logits: Float[Array, '*b k']
  weight: Float[Array, '*b']
  truth: Array


def mean_over(values, weight) -> Float[Array, '']:
  """The mean over the rows that count; 0 where none does."""
  return jnp.sum(values * weight) / jnp.maximum(weight.sum(), 1)


def class_loss(head: Head) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Cross-entropy, and the share that is right."""
  values = optax.softmax_cross_entropy_with_integer_labels(
    head.logits, head.truth
  )
  right = head.logits.argmax(-1) == head.truth
  return mean_over(values, head.weight), mean_over(right, head.weight)


def answer_loss(head: Head) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Binary cross-entropy with soft targets, and the score of the answers.

  Summed over the answers, the mean over the questions; the score is the soft
  target of the answer that is given (arXiv 2111.08896).
  """
  values = optax.sigmoid_binary_cross_entropy(head.logits, head.truth).sum(-1)
  best = head.logits.argmax(-1)[..., None]
  score = jnp.take_along_axis(head.truth, best, axis=-1)[..., 0]
  return mean_over(values, head.weight), mean_over(score, head.weight)


class Task(NamedTuple):
  """What the network is trained for.

  Attributes:
    heads: of `RegionTransformer`.
    losses: head -> its loss.
    causal: whether words see only those before them.
  """

  heads: tuple[str, ...]
  losses: Mapping[str, Callable]
  causal: bool = False


TASKS = {
  'pretrain': Task(
    ('words', 'match'), {'words': class_loss, 'match': class_loss}
  ),
  'vqa': Task(('answers',), {'answers': answer_loss}),
  'caption': Task(('words',), {'words': class_loss}, causal=True),
}


def look(
  module: RegionTransformer, regions, batch, budget: int, train: bool = False
) -> tuple[Encoded, dict[str, Head]]:
  """The tokens of a batch and what the heads say of it.

  Args:
    module: teacher or student, bound.
    regions: its features of the regions.
    batch: see `build`.
    budget: masked words of an example that count.
    train: whether there is dropout.
  """
  causal = 'answers' not in module.heads and 'match' not in module.heads
  encoded = module.encode(
    batch['words'], regions, batch['region_count'], train, causal
  )
  heads, hidden = {}, encoded.hidden
  if 'words' in module.heads:
    places, labels = masked_positions(batch['labels'], budget)
    chosen = jnp.take_along_axis(hidden, places[..., None], axis=1)
    weight = (labels != PAD).astype(jnp.float32)
    heads['words'] = Head(module.word_logits(chosen), weight, labels)
  every = jnp.ones(len(hidden))
  if 'match' in module.heads:
    heads['match'] = Head(module.match_logits(hidden), every, batch['match'])
  if 'answers' in module.heads:
    logits = module.answer_logits(hidden)
    heads['answers'] = Head(logits, every, batch['answers'])
  return encoded, heads


def task_of(config) -> Task:
  """The task of a config.

  Raises:
    UserError: there is no such task.
  """
  if config.task not in TASKS:
    raise UserError(f'task: no {config.task!r}; ' + nearest(config.task, TASKS))
  return TASKS[config.task]
