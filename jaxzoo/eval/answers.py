"""Answers of language models: right ones, correlation, entities."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxzoo.data import text as data
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import Evaluation


class Confusion(NamedTuple):
  """Of two classes; those of disjoint examples add up."""

  tp: int
  tn: int
  fp: int
  fn: int

  def __add__(self, other: 'Confusion') -> 'Confusion':
    return Confusion(*(a + b for a, b in zip(self, other, strict=True)))


def confusion(
  predicted: Int[np.ndarray, ' n'], labels: Int[np.ndarray, ' n']
) -> Confusion:
  """Of classes 0 and 1, the latter being the positive one."""
  count = lambda a, b: int(((predicted == a) & (labels == b)).sum())
  return Confusion(count(1, 1), count(0, 0), count(1, 0), count(0, 1))


def matthews(total: Confusion) -> float:
  """Matthews correlation, in [-1, 1].

  (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)); 0 where a
  factor is 0.
  """
  tp, tn, fp, fn = total
  square = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
  return (tp * tn - fp * fn) / square**0.5 if square else 0.0


def parse_entities(answer: str) -> list[tuple[str, str]]:
  """(kind, span) of each 'kind : span' between semicolons; others are lost.

  >>> parse_entities('person : anna ; place : new york ; ?')
  [('person', 'anna'), ('place', 'new york')]
  """
  found = []
  for part in answer.split(';'):
    kind, colon, span = (x.strip() for x in part.partition(':'))
    if colon and kind and span:
      found.append((kind, ' '.join(span.split())))
  return found


class Counts(NamedTuple):
  """Entities; those of disjoint examples add up."""

  right: int
  predicted: int
  true: int

  def __add__(self, other: 'Counts') -> 'Counts':
    return Counts(*(a + b for a, b in zip(self, other, strict=True)))


def count_entities(
  predicted: Iterable[tuple[str, str]], true: Iterable[tuple[str, str]]
) -> Counts:
  """Of one sentence: an entity is right where kind and span are, once each."""
  own, other = collections.Counter(predicted), collections.Counter(true)
  right = sum((own & other).values())
  return Counts(right, sum(own.values()), sum(other.values()))


def f1(total: Counts) -> dict[str, float]:
  """`precision`, `recall` and `f1` over all sentences, percent; 0 for 0 / 0."""
  ratio = lambda a, b: 100 * a / b if b else 0.0
  return {
    'precision': ratio(total.right, total.predicted),
    'recall': ratio(total.right, total.true),
    'f1': ratio(2 * total.right, total.predicted + total.true),
  }


def make_evaluator(config, *, split: str = 'test'):
  """An evaluator of a split of the task.

  Args:
    config: of the run.
    split: its file is read at once.

  Returns:
    predict -> Evaluation. Where there are labels, the system's `logits` give
    `accuracy` in percent and of two labels `matthews`; otherwise its `answer`,
    ids, gives `accuracy`, the share of answers that are right as a whole, and
    of entities `precision`, `recall` and `f1`.
  """
  source, steps = data.eval_data(config, split)
  tokenizer = data.make_tokenizer(config)
  denoise = config.data.records == 'denoise'

  def evaluate(predict) -> Evaluation:
    found = predict(source, steps)
    keep = np.flatnonzero(found.mask)
    if not len(keep):
      raise UserError(f'{source!r}: no sentence can be read')
    if config.labels:
      labels = np.asarray([source.texts[i].label for i in keep])
      return Evaluation(label_metrics(found.outputs['logits'][keep], labels))
    answers = [tokenizer.decode(found.outputs['answer'][i]) for i in keep]
    asked = [
      source.texts[i].sentence if denoise else source.texts[i].answer
      for i in keep
    ]
    # As far as they fit, and as the vocabulary has them.
    asked = [
      tokenizer.decode(
        data.padded(tokenizer.encode(text), config.target_length)
      )
      for text in asked
    ]
    return Evaluation(answer_metrics(answers, asked, entities=not denoise))

  return evaluate


def label_metrics(logits, labels: Int[np.ndarray, ' n']) -> dict[str, float]:
  """`accuracy` in percent; of two labels `matthews`."""
  predicted = logits.argmax(1)
  metrics = {'accuracy': float(100 * np.mean(predicted == labels))}
  if logits.shape[1] == 2:
    metrics['matthews'] = matthews(confusion(predicted, labels))
  return metrics


def answer_metrics(
  answers: Sequence[str], asked: Sequence[str], *, entities: bool
) -> dict[str, float]:
  """`accuracy`, of whole answers in percent; of entities `f1` with its parts."""
  right: Bool[np.ndarray, ' n'] = np.asarray(
    [a == b for a, b in zip(answers, asked, strict=True)]
  )
  metrics = {'accuracy': float(100 * right.mean())}
  if not entities:
    return metrics
  total = Counts(0, 0, 0)
  for answer, true in zip(answers, asked, strict=True):
    total += count_entities(parse_entities(answer), parse_entities(true))
  return metrics | f1(total)
