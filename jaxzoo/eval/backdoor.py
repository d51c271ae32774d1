"""How good a network is, and how well its backdoor still works."""

import numpy as np
from jaxtyping import Bool, Int

from jaxzoo.data import backdoor as data
from jaxzoo.eval import pictures
from jaxzoo.eval.evaluator import Evaluation

SHOWN = 12  # pictures on the sheet


def success(
  predicted: Int[np.ndarray, ' n'],
  labels: Int[np.ndarray, ' n'],
  wanted: Int[np.ndarray, ' n'],
  mask: Bool[np.ndarray, ' n'],
) -> dict[str, float]:
  """Attack success rates in percent.

  Returns:
    asr: share of all triggered pictures that are taken for what the attacker
    wants, as published; asr_others: of those whose label that is not.
  """
  hit = predicted == wanted
  others = mask & (labels != wanted)
  share = lambda rows: float(100 * hit[rows].mean()) if rows.any() else np.nan
  return {'asr': share(mask), 'asr_others': share(others)}


def make_evaluator(config, *, split: str = 'test'):
  """An evaluator of a split, clean and with the trigger in every picture.

  Args:
    config: with `attack`, see `data/backdoor.py`.
    split: of the data set.

  Returns:
    predict -> Evaluation with `acc` (top-1 on clean pictures, percent) and the
    rates of `success`, and the picture `triggers`: clean above triggered.
  """
  source, steps = data.eval_data(config, split)
  _, triggered = data.eval_data(config, split, triggered=True)
  labels = source.labels
  wanted = np.array(
    [data.target_label(y, config.attack, config.num_classes) for y in labels]
  )

  def evaluate(predict) -> Evaluation:
    clean, attacked = predict(source, steps), predict(source, triggered)
    right = clean.outputs['logits'].argmax(1) == labels
    predicted = attacked.outputs['logits'].argmax(1)
    values = {'acc': float(100 * right[clean.mask].mean())}
    values |= success(predicted, labels, wanted, attacked.mask)

    def draw():
      rng = np.random.default_rng(0)
      shown = [
        _apply(source[i], each, rng)
        for each in (steps, triggered)
        for i in range(min(SHOWN, len(source)))
      ]
      names = [source.names[y] for y in labels[:SHOWN]]
      taken = [source.names[y] for y in predicted[:SHOWN]]
      return {'triggers': pictures.picture_sheet(shown, names + taken)}

    return Evaluation(values, draw)

  return evaluate


def _apply(record, steps, rng) -> np.ndarray:
  for step in steps:
    record = step(record, rng)
  image = record['image']
  return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image
