"""Classification by sentences, with vectors that are known."""

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.eval import zero_shot
from jaxzoo.eval.evaluator import Predictions

SETTINGS = dict(train=40, test=30, size=8)


@pytest.fixture(scope='module')
def config():
  return catalog.get_config('clip:tiny')


def make(config, **fields):
  return zero_shot.make_evaluator(
    config, dataset='shapes', embedded=SETTINGS.items(), crop=0, **fields
  )


def predictor(labels, confused=()):
  """Sentences of class c at place c of the circle, pictures at their label's.

  Vectors are of any length: cosines count.
  """

  def at(places):
    angle = 2 * np.pi * np.asarray(places) / 10
    return 3 * np.stack([np.cos(angle), np.sin(angle)], -1)

  def predict(source, transforms):
    if isinstance(source, zero_shot.Sentences):
      each = len(source) // 10
      vectors = at(np.arange(len(source)) // each)
      return Predictions({'text': vectors}, np.ones(len(source), bool))
    seen = np.array(labels)
    seen[list(confused)] += 5  # the opposite class: the last of all
    return Predictions({'image': at(seen)}, np.ones(len(seen), bool))

  return predict


def labels_of(config):
  source, _ = zero_shot._pictures(
    config, 'shapes', 'test', '', '', 0, SETTINGS.items()
  )
  return source.labels


def test_nearest_sentence_is_the_class(config):
  labels = labels_of(config)
  evaluate = make(config, templates=('a {}.', 'the {} of two.'))
  assert evaluate(predictor(labels)).metrics == {'top1': 100, 'top5': 100}
  found = evaluate(predictor(labels, confused=range(6))).metrics
  assert found['top1'] == found['top5'] == pytest.approx(100 * 24 / 30)


def test_pictures_that_could_not_be_read_do_not_count(config):
  labels = labels_of(config)
  right = predictor(labels, confused=range(6))

  def predict(source, transforms):
    found = right(source, transforms)
    if 'image' in found.outputs:
      found.mask[:6] = False
    return found

  assert make(config)(predict).metrics['top1'] == 100


def test_sentences_of_a_class_count_alike():
  sentences = np.array([[10.0, 0], [0, 1], [0, 2], [0, 3]])
  got = zero_shot.class_vectors(sentences, 2)
  np.testing.assert_allclose(got, [[0.5**0.5, 0.5**0.5], [0, 1]], rtol=1e-6)


def test_names_come_from_a_file(config, tmp_path):
  path = tmp_path / 'names.txt'
  path.write_text('\n'.join(f'kind {i}' for i in range(10)) + '\n')
  asked = []

  def predict(source, transforms):
    if isinstance(source, zero_shot.Sentences):
      asked.extend(source[i]['caption'] for i in range(len(source)))
    return predictor(labels_of(config))(source, transforms)

  make(config, names=str(path))(predict)
  assert asked[3] == 'a photo of a kind 3.'
  path.write_text('one\n')
  with pytest.raises(UserError, match='1 lines, but the data set has 10'):
    make(config, names=str(path))


def test_mistakes_are_said_before_anything_is_predicted(config):
  with pytest.raises(UserError, match='no {} for the class'):
    make(config, templates=('a photo',))
  with pytest.raises(UserError, match='templates is empty'):
    make(config, templates=())
  with pytest.raises(UserError, match="no 'shape'"):
    zero_shot.make_evaluator(config, dataset='shape', crop=0)
  with pytest.raises(UserError, match='cannot be read'):
    make(config, names='nowhere.txt')
