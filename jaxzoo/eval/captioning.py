"""Captions of pictures against those that people wrote."""

import numpy as np

from jaxzoo.data import vision_language as data
from jaxzoo.errors import UserError, nearest
from jaxzoo.eval import caption_metrics
from jaxzoo.eval.evaluator import Evaluation

METRICS = ('BLEU-1', 'BLEU-2', 'BLEU-3', 'BLEU-4', 'CIDEr')


def make_evaluator(
  config, *, split: str = 'test', metrics: tuple[str, ...] = ('CIDEr',)
):
  """predict -> Evaluation with a caption of every picture of a split.

  Args:
    config: of the run.
    split: of the data set.
    metrics: of 'CIDEr' (CIDEr-D times 100), 'BLEU-1' to 'BLEU-4' (percent,
      the extra `captions`).

  Raises:
    UserError: the config is not for captions, no such metric, or its package
      is missing.
  """
  if config.task != 'caption':
    raise UserError(
      f"evals: kind 'captioning' needs task='caption', not {config.task!r}"
    )
  for name in metrics:
    if name not in METRICS:
      raise UserError(f'metrics: no {name!r}; ' + nearest(name, METRICS))
  if any(name.startswith('BLEU') for name in metrics):
    caption_metrics.require_bleu()
  (source, steps), references = data.picture_data(config, split)
  tokenizer = data.make_tokenizer(config)

  def evaluate(predict) -> Evaluation:
    outputs, mask = predict(source, steps)
    places = np.flatnonzero(mask)
    written = [tokenizer.decode(outputs['caption'][i]) for i in places]
    wanted = [references[i] for i in places]
    found = {}
    for name in metrics:
      if name == 'CIDEr':
        scores = caption_metrics.cider_d(written, wanted)
        found[name] = float(100 * np.mean(scores)) if scores else np.nan
      else:
        found[name] = caption_metrics.bleu(written, wanted, int(name[-1]))
    rows = [('picture', 'caption', 'one of the references')]
    rows += [
      (int(i), text, known[0])
      for i, text, known in zip(places, written, wanted, strict=True)
    ]
    return Evaluation(found, tables=lambda: {'captions': rows})

  return evaluate
