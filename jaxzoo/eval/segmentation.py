"""Semantic segmentation: how well regions of a class are covered."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxzoo.data import segmentation as data
from jaxzoo.eval import pictures
from jaxzoo.eval.evaluator import Evaluation

SHOWN = 8


class Confusion(NamedTuple):
  """Pixels by true class (rows) and predicted one; sums of pictures add up."""

  counts: Int[np.ndarray, 'k k']

  def __add__(self, other: 'Confusion') -> 'Confusion':
    return Confusion(self.counts + other.counts)


def confusion(
  predicted: Int[np.ndarray, '*n'], classes: Int[np.ndarray, '*n'], k: int
) -> Confusion:
  """Of all pixels with a class below k; others (255) are not counted."""
  kept = classes < k
  pairs = classes[kept].astype(np.int64) * k + predicted[kept]
  return Confusion(np.bincount(pairs, minlength=k * k).reshape(k, k))


def metrics(found: Confusion) -> dict[str, float]:
  """miou, the mean over the classes that occur of hits over union, and
  pixel_accuracy, both in percent; NaN without pixels."""
  iou = ious(found)
  total = found.counts.sum() or np.nan
  return {
    'miou': float(100 * np.nanmean(iou)) if np.isfinite(iou).any() else np.nan,
    'pixel_accuracy': float(100 * np.trace(found.counts) / total),
  }


def ious(found: Confusion) -> np.ndarray:
  """Hits over union of each class; NaN where it occurs nowhere."""
  counts = found.counts
  hits = np.diag(counts).astype(float)
  union = counts.sum(0) + counts.sum(1) - hits
  return np.divide(hits, union, np.full_like(hits, np.nan), where=union > 0)


def make_evaluator(config, *, split: str = 'test'):
  """predict -> Evaluation with miou and pixel_accuracy of a split."""
  source, steps = data.eval_data(config, split)

  def evaluate(predict) -> Evaluation:
    outputs, mask = predict(source, steps)
    predicted = outputs['classes']
    total, truth = None, []
    for i in np.flatnonzero(mask):
      record = _prepared(source[i], steps)
      one = confusion(predicted[i], record['classes'], config.num_classes)
      total = one if total is None else total + one
      if len(truth) < SHOWN:
        truth.append((record, predicted[i]))
    if total is None:
      total = Confusion(np.zeros(2 * (config.num_classes,), np.int64))
    rows = [('class', 'iou')]
    rows += [
      (name, round(100 * float(x), 2))
      for name, x in zip(source.names, ious(total), strict=True)
    ]
    return Evaluation(
      metrics(total),
      lambda: {'maps': sheet(truth, config.num_classes)},
      lambda: {'classes': rows},
    )

  return evaluate


def _prepared(record, steps):
  for step in steps:
    record = step(record, None)
  return record


def sheet(shown, k: int) -> np.ndarray:
  """Rows of picture, true and predicted classes."""
  palette = np.random.default_rng(3).integers(40, 256, (256, 3), np.uint8)
  palette[0], palette[k:] = 30, 0
  rows = [
    np.concatenate(
      [record['image'], palette[record['classes']], palette[predicted]], axis=1
    )
    for record, predicted in shown
  ]
  return pictures.picture_sheet(rows, [''] * len(rows), columns=2, side=360)
