"""Zero-shot classification: a picture's class is the sentence nearest to it.

CLIP, arXiv 2103.00020, section 3.1: the name of a class in one or several
sentences, whose vectors are averaged; nothing is trained.
"""

import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np
from jaxtyping import Float

from jaxzoo.data import classification as images
from jaxzoo.data import person_retrieval as texts
from jaxzoo.errors import UserError
from jaxzoo.eval.classification import ranks
from jaxzoo.eval.evaluator import Evaluation

TEMPLATES = ('a photo of a {}.',)


class Sentences:
  """A record for every class and template: {'caption'}, class by class."""

  def __init__(self, names: Sequence[str], templates: Sequence[str]):
    self._captions = [t.format(name) for name in names for t in templates]

  def __len__(self) -> int:
    return len(self._captions)

  def __getitem__(self, i) -> dict:
    return {'caption': self._captions[i]}

  def __repr__(self) -> str:
    return f'Sentences({len(self)})'


def make_evaluator(
  config,
  *,
  dataset: str,
  split: str = 'test',
  root: str = '',
  name: str = '',
  names: str = '',
  templates: Sequence[str] = TEMPLATES,
  crop: float = 1.0,
  embedded=(),
):
  """An evaluator of a system whose predictions are `image` and `text`.

  Args:
    config: of the run: image size, text length, tokenizer.
    dataset: of `data.classification.DATASETS`.
    split: of it.
    root: its folder (of TFDS its `data_dir`).
    name: what TFDS calls it.
    names: a file with a class in words on each line, where the data set has
      numbers or codes for names. '': those of the data set.
    templates: sentences with {} in the place of the class.
    crop: the shorter side is resized to the image size over this, then the
      middle is cut out; 0: whole pictures, whatever their proportions.
    embedded: settings of `shapes`.

  Returns:
    predict -> Evaluation with top1 and, of more than five classes, top5.

  Raises:
    UserError: anything wrong with the files, or a template without {}.
  """
  for template in templates:
    if '{}' not in template:
      raise UserError(f'templates: {template!r} has no {{}} for the class')
  if not templates:
    raise UserError('templates is empty: give one sentence with {} at least')
  source, steps = _pictures(config, dataset, split, root, name, crop, embedded)
  classes = _read_names(names, source.names)
  asked = Sentences(classes, templates)
  text_steps = texts.text_transforms(config)

  def evaluate(predict) -> Evaluation:
    sentences = predict(asked, text_steps).outputs
    shown = predict(source, steps)
    for output, found in (('text', sentences), ('image', shown.outputs)):
      if output not in found:
        raise UserError(
          f'evals.*.kind=zero_shot needs predictions {output!r}; the system '
          f'gives {", ".join(sorted(found))}'
        )
    weights = class_vectors(sentences['text'], len(classes))
    scores = unit(shown.outputs['image']) @ weights.T
    place = ranks(scores[shown.mask], source.labels[shown.mask])
    share = lambda right: float(100 * right.mean()) if len(right) else np.nan
    metrics = {'top1': share(place < 1)}
    if len(classes) > 5:
      metrics['top5'] = share(place < 5)
    return Evaluation(metrics)

  return evaluate


def unit(vectors: Float[np.ndarray, 'n d']) -> Float[np.ndarray, 'n d']:
  """Rows of length 1, float32."""
  vectors = np.asarray(vectors, np.float32)
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)


def class_vectors(
  sentences: Float[np.ndarray, 'n d'], classes: int
) -> Float[np.ndarray, 'c d']:
  """Of each class the mean of its sentences' unit vectors, of length 1."""
  return unit(unit(sentences).reshape(classes, -1, sentences.shape[-1]).mean(1))


def _pictures(config, dataset, split, root, name, crop, embedded):
  fields = ml_collections.ConfigDict(
    dict(
      image_size=tuple(config.image_size),
      in_chans=3,
      data=dict(
        dataset=dataset,
        root=root,
        name=name,
        train_split='train',
        cache_images=False,
        embedded=dict(embedded),
        eval_crop=crop,
        eval_interpolation='bicubic',
      ),
    )
  )
  return images.open_source(fields, split), images.eval_transforms(fields)


def _read_names(path: str, known: Sequence[str]) -> list[str]:
  """Of the file, or those of the data set with spaces for underscores."""
  if not path:
    return [name.replace('_', ' ') for name in known]
  try:
    text = pathlib.Path(path).expanduser().read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'names={path}: cannot be read ({error})') from error
  names = [line.strip() for line in text.splitlines() if line.strip()]
  if len(names) != len(known):
    raise UserError(
      f'names={path}: {len(names)} lines, but the data set has {len(known)} '
      'classes: one line for each, in its order'
    )
  return names
