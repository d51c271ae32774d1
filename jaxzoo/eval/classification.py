"""Classification: how often right, how sure, and whether that goes together."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxzoo.data import classification as data
from jaxzoo.errors import CorruptRecord, UserError, nearest
from jaxzoo.eval import pictures
from jaxzoo.eval.evaluator import Evaluation

BINS = 15
ROWS = 4096  # of logits at a time: their float64 copies need memory


class Sums(NamedTuple):
  """What the metrics are made of; those of disjoint examples add up.

  Attributes:
    count: examples.
    top1: of them right.
    top5: with the label among the five largest logits.
    nll: sum of -log p(label).
    bin_count: examples by confidence, BINS equal parts of (0, 1].
    bin_confidence: sum of their confidences.
    bin_right: of them right.
  """

  count: int
  top1: int
  top5: int
  nll: float
  bin_count: Int[np.ndarray, ' m']
  bin_confidence: Float[np.ndarray, ' m']
  bin_right: Int[np.ndarray, ' m']

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def ranks(
  scores: Float[np.ndarray, 'n k'], labels: Int[np.ndarray, ' n']
) -> Int[np.ndarray, ' n']:
  """How many classes come before the label: 0 where it is the first.

  Of equal scores the lower class comes first, as in argmax.
  """
  own = np.take_along_axis(scores, labels[:, None], axis=1)
  earlier = np.arange(scores.shape[1]) < labels[:, None]
  return ((scores > own) | ((scores == own) & earlier)).sum(1)


def sums(
  logits: Float[np.ndarray, 'n k'],
  labels: Int[np.ndarray, ' n'],
  mask: Bool[np.ndarray, ' n'] | None = None,
  bins: int = BINS,
) -> Sums:
  """The sums over the rows of `mask`, default all."""
  total = None
  keep = np.ones(len(logits), bool) if mask is None else mask
  for start in range(0, max(1, len(logits)), ROWS):
    rows = slice(start, start + ROWS)
    part = _sums(logits[rows][keep[rows]], labels[rows][keep[rows]], bins)
    total = part if total is None else total + part
  return total


def _sums(logits, labels, bins):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max(1, keepdims=True, initial=-np.inf)
  log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
  confidence = np.exp(log_p.max(1, initial=-np.inf))
  place = ranks(logits, labels)
  # Bin j is (j / bins, (j + 1) / bins].
  which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  add_up = lambda weights: np.bincount(which, weights, bins)
  return Sums(
    count=len(labels),
    top1=int((place < 1).sum()),
    top5=int((place < 5).sum()),
    nll=float(-np.take_along_axis(log_p, labels[:, None], 1).sum()),
    bin_count=np.bincount(which, minlength=bins),
    bin_confidence=add_up(confidence),
    bin_right=add_up(place < 1).astype(int),
  )


def metrics(total: Sums) -> dict[str, float]:
  """The metrics of sums.

  Returns:
    top1 and top5 in percent; nll in nats; ece, the expected calibration error
    sum_j |B_j| / n |accuracy(B_j) - confidence(B_j)| in percent (Guo et al.,
    arXiv 1706.04599). NaN where there are no examples.
  """
  n = total.count or np.nan
  gaps = np.abs(total.bin_right - total.bin_confidence).sum()
  return {
    'top1': float(100 * total.top1 / n),
    'top5': float(100 * total.top5 / n),
    'nll': float(total.nll / n),
    'ece': float(100 * gaps / n),
  }


def confusion(
  predicted: Int[np.ndarray, ' n'], labels: Int[np.ndarray, ' n'], classes: int
) -> Int[np.ndarray, 'k k']:
  """How often label i (row) was taken for class j (column)."""
  places = labels * classes + predicted
  return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def make_evaluator(
  config, *, split: str = 'test', sheet: int = 24, output: str = 'logits'
):
  """An evaluator of a split of the config's data set.

  Args:
    config: of the run.
    split: its files are found at once, so that a wrong path fails before
      anything is compiled.
    sheet: wrong predictions on the sheet.
    output: which of the system's, where it has several classifiers.

  Returns:
    predict -> Evaluation with `metrics` (without top5 where there are no more
    than five classes), and the pictures `confusion` and `wrong`.
  """
  source, steps = data.eval_data(config, split)

  def evaluate(predict) -> Evaluation:
    found = predict(source, steps)
    if output not in found.outputs:
      raise UserError(
        f'output: no {output!r}; ' + nearest(output, found.outputs)
      )
    logits, labels = found.outputs[output], source.labels
    values = metrics(sums(logits, labels, found.mask))
    if logits.shape[1] <= 5:
      del values['top5']

    def draw():
      predicted = logits.argmax(1)
      wrong = np.flatnonzero(found.mask & (predicted != labels))
      # Those that it was most sure of.
      surest = wrong[np.argsort(-_confidence(logits[wrong]), kind='stable')]
      return {
        'confusion': pictures.confusion_matrix(
          confusion(predicted[found.mask], labels[found.mask], logits.shape[1]),
          source.names,
        ),
        'wrong': pictures.picture_sheet(
          [_picture(source, i) for i in surest[:sheet]],
          [
            f'{source.names[labels[i]]} > {source.names[predicted[i]]}'
            for i in surest[:sheet]
          ],
        ),
      }

    return Evaluation(values, draw)

  return evaluate


def _confidence(logits):
  shifted = logits - logits.max(1, keepdims=True, initial=-np.inf)
  return 1 / np.exp(shifted).sum(1)


def _picture(source, i) -> np.ndarray:
  try:
    record: Mapping = source[int(i)]
  except CorruptRecord:
    return np.zeros((8, 8, 3), np.uint8)
  return record['image']
