"""Pre-training on words and regions: what is guessed right."""

import numpy as np

from jaxzoo.data import vision_language as data
from jaxzoo.eval.evaluator import Evaluation


def make_evaluator(config, *, split: str = 'test'):
  """predict -> Evaluation: share of masked words that are filled in right, and
  of tags that are told to match or not, in percent."""
  source, steps = data.eval_data(config, split)

  def evaluate(predict) -> Evaluation:
    outputs, mask = predict(source, steps)
    rows = {name: x[mask] for name, x in outputs.items()}
    words = rows['words'].sum() or np.nan
    return Evaluation(
      {
        'word_accuracy': float(100 * rows['words_right'].sum() / words),
        'match_accuracy': float(100 * np.mean(rows['match_right'])),
      }
    )

  return evaluate
