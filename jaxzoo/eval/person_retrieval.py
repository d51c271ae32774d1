"""Evaluates text-to-image person retrieval on a split of a data set."""

import numpy as np

from jaxzoo.data import person_retrieval as data
from jaxzoo.data.sources.images import read_image
from jaxzoo.errors import CorruptRecord, UserError
from jaxzoo.eval import pictures
from jaxzoo.eval.evaluator import Evaluation
from jaxzoo.eval.retrieval import rank, retrieval_metrics

SHOWN = ('R@1', 'R@5', 'R@10', 'mAP', 'mINP', 'mSD')


def make_evaluator(
  config,
  *,
  dataset: str,
  split: str = 'test',
  vectors: str = 'global',
  sheet: int = 6,
):
  """An evaluator: every caption asks, every picture of the split answers.

  Args:
    config: of the run: image size, text length, data root.
    dataset: as in `readers.DATASETS`; its annotations are read at once, so
      that a wrong path fails before anything is compiled.
    split: of the data set.
    vectors: what is compared: 'global', the outputs `image` and `text`; or
      another pair that the system gives, as 'granules' for `image_granules`
      and `text_granules`.
    sheet: queries on the retrieval sheet.

  Returns:
    predict -> Evaluation with R@1, R@5, R@10, mAP, mINP and mSD in percent, and
    the picture `retrieval`.
  """
  records = data.read_split(config, dataset, split)
  suffix = '' if vectors == 'global' else f'_{vectors}'

  def evaluate(predict) -> Evaluation:
    shown = data.gallery_data(config, records)
    asked = data.query_data(config, records)
    gallery = predict(shown.source, shown.transforms)
    query = predict(asked.source, asked.transforms)
    images = _output(gallery.outputs, f'image{suffix}', vectors)
    texts = _output(query.outputs, f'text{suffix}', vectors)
    metrics = retrieval_metrics(
      texts,
      images,
      records.caption_pids,
      records.image_pids,
      query_mask=query.mask,
      gallery_mask=gallery.mask,
    )

    def draw():
      # Evenly spread over the file, the same ones after every evaluation.
      count = min(sheet, len(records.captions))
      picked = np.linspace(0, len(records.captions) - 1, count).astype(int)
      _, best = rank(
        texts[picked],
        images,
        k=10,
        gallery_mask=gallery.mask,
      )
      return {
        'retrieval': pictures.retrieval_sheet(
          [
            pictures.Ranking(
              records.captions[q],
              [_picture(records.image_paths[g]) for g in row],
              [records.image_pids[g] == records.caption_pids[q] for g in row],
            )
            for q, row in zip(picked, best, strict=True)
          ]
        )
      }

    return Evaluation({name: metrics[name] for name in SHOWN}, draw)

  return evaluate


def _output(outputs, name, vectors):
  if name not in outputs:
    raise UserError(
      f"evals.*.vectors='{vectors}' needs predictions {name!r}; the system "
      f'gives {", ".join(sorted(outputs))}'
    )
  return outputs[name]


def _picture(path):
  try:
    return read_image(path)
  except CorruptRecord:
    return np.zeros((3, 1, 3), np.uint8)
