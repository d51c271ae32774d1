"""Metrics of classification and of frozen vectors, against scikit-learn and
against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import linear_model, neighbors
from sklearn import metrics as theirs

from jaxzoo import catalog
from jaxzoo.data import classification as data
from jaxzoo.errors import UserError
from jaxzoo.eval import classification, knn, linear_probe, pictures
from jaxzoo.eval.evaluator import Predictions


def scores(n=200, k=8, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, k, n)
  logits = rng.normal(size=(n, k)).astype(np.float32)
  logits[np.arange(n), labels] += 1
  return logits, labels


def softmax(logits):
  p = np.exp(logits - logits.max(1, keepdims=True))
  return p / p.sum(1, keepdims=True)


# Sums and metrics.


def test_accuracies_and_likelihood_are_those_of_scikit_learn():
  logits, labels = scores()
  got = classification.metrics(classification.sums(logits, labels))
  p = softmax(logits.astype(np.float64))
  top = lambda k: 100 * theirs.top_k_accuracy_score(labels, p, k=k)
  np.testing.assert_allclose(got['top1'], top(1), rtol=1e-12)
  np.testing.assert_allclose(got['top5'], top(5), rtol=1e-12)
  np.testing.assert_allclose(got['nll'], theirs.log_loss(labels, p), rtol=1e-9)


def test_calibration_error_is_that_of_a_loop():
  logits, labels = scores()
  p = softmax(logits.astype(np.float64))
  confidence, right = p.max(1), p.argmax(1) == labels
  want = 0.0
  for j in range(15):
    inside = (confidence > j / 15) & (confidence <= (j + 1) / 15)
    if inside.any():
      gap = right[inside].mean() - confidence[inside].mean()
      want += inside.mean() * abs(gap)
  got = classification.metrics(classification.sums(logits, labels))['ece']
  np.testing.assert_allclose(got, 100 * want, rtol=1e-9)


def test_who_is_always_sure_and_right_is_calibrated():
  logits = 1e4 * np.eye(5)
  got = classification.metrics(classification.sums(logits, np.arange(5)))
  assert got == dict(top1=100.0, top5=100.0, nll=0.0, ece=0.0)


def test_sums_of_parts_add_up_and_masked_rows_do_not_count():
  logits, labels = scores()
  whole = classification.sums(logits, labels)
  parts = classification.sums(logits[:70], labels[:70]) + classification.sums(
    logits[70:], labels[70:]
  )
  mask = np.arange(200) < 70
  padded = np.where(mask[:, None], logits, np.nan)
  masked = classification.sums(padded, labels, mask)
  for got, want in (
    (parts, whole),
    (masked, classification.sums(logits[:70], labels[:70])),
  ):
    for a, b in zip(got, want, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12)


def test_rows_are_taken_in_parts(monkeypatch):
  logits, labels = scores()
  want = classification.sums(logits, labels)
  monkeypatch.setattr(classification, 'ROWS', 7)
  got = classification.sums(logits, labels)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_nothing_to_count_gives_no_number():
  total = classification.sums(
    np.zeros((3, 4)), np.zeros(3, int), np.zeros(3, bool)
  )
  assert total.count == 0
  assert all(np.isnan(x) for x in classification.metrics(total).values())


def test_of_equal_scores_the_lower_class_comes_first():
  equal = np.zeros((3, 3))
  got = classification.ranks(equal, np.arange(3))
  assert got.tolist() == [0, 1, 2]
  logits, labels = scores()
  right = classification.ranks(logits, labels) == 0
  np.testing.assert_array_equal(right, logits.argmax(1) == labels)


def test_confusions_are_those_of_scikit_learn():
  logits, labels = scores()
  predicted = logits.argmax(1)
  np.testing.assert_array_equal(
    classification.confusion(predicted, labels, 8),
    theirs.confusion_matrix(labels, predicted, labels=range(8)),
  )


# Neighbours.


def vectors(n, d=6, seed=0):
  return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.mark.parametrize('tile', [4, 16, 64])
def test_neighbours_are_those_of_all_comparisons(tile):
  query, bank = vectors(21), vectors(50, seed=1)
  mask = np.random.default_rng(2).random(50) < 0.8
  cosine, places = knn.neighbours(query, bank, 7, mask, tile=tile)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  every = np.where(mask, unit(query) @ unit(bank).T, -np.inf)
  want = np.argsort(-every, axis=1)[:, :7]
  np.testing.assert_array_equal(places, want)
  np.testing.assert_allclose(
    cosine, np.take_along_axis(every, want, 1), atol=1e-6
  )


def test_of_equal_neighbours_the_earlier_comes_first():
  bank = np.repeat(vectors(3), 4, axis=0)
  _, places = knn.neighbours(vectors(3), bank, 5, tile=2)
  assert places[:, :4].tolist() == np.arange(12).reshape(3, 4).tolist()


def test_votes_are_those_of_scikit_learn():
  bank, query = vectors(60), vectors(25, seed=1)
  labels = np.random.default_rng(0).integers(0, 4, 60)
  cosine, places = knn.neighbours(query, bank, 9, tile=16)
  got = knn.votes(cosine, labels[places], 4, 0.07)
  model = neighbors.KNeighborsClassifier(
    9, metric='cosine', weights=lambda distance: np.exp((1 - distance) / 0.07)
  )
  want = model.fit(bank, labels).predict_proba(query)
  np.testing.assert_allclose(
    got / got.sum(1, keepdims=True), want, rtol=1e-4, atol=1e-5
  )


def test_votes_survive_a_small_temperature():
  cosine = np.array([[1.0, 0.9]])
  got = knn.votes(cosine, np.array([[2, 0]]), 3, 1e-4)
  assert np.isfinite(got).all() and got.argmax() == 2


# The linear probe.


def separable(n, seed=0, d=5, k=3):
  rng = np.random.default_rng(seed)
  centres = np.random.default_rng(99).normal(size=(k, d))
  labels = rng.integers(0, k, n)
  x = centres[labels] + 0.8 * rng.normal(size=(n, d))
  return (3 * x + 7).astype(np.float32), labels


@pytest.mark.parametrize('strength', [1e-3, 0.1])
def test_probe_is_the_regression_of_scikit_learn(strength):
  x, labels = separable(120)
  probe = linear_probe.fit(x, labels, 3, strength, tolerance=1e-6)
  standard = (x - x.mean(0)) / x.std(0)
  # Their penalty is per sum of losses, ours per mean.
  model = linear_model.LogisticRegression(
    C=1 / (strength * len(x)), tol=1e-8, max_iter=2000
  ).fit(standard, labels)
  got = softmax(probe.logits(x))
  np.testing.assert_allclose(got, model.predict_proba(standard), atol=2e-3)
  grad = jax.grad(linear_probe.objective)(
    {'kernel': probe.kernel, 'bias': probe.bias},
    jnp.asarray(standard),
    jnp.asarray(labels),
    strength,
  )
  assert all(np.abs(x).max() < 1e-4 for x in jax.tree.leaves(grad))


def test_probe_does_not_depend_on_where_it_starts_or_on_units():
  x, labels = separable(120)
  first = linear_probe.fit(x, labels, 3, 0.01)
  far = linear_probe.fit(x, labels, 3, 10.0)
  again = linear_probe.fit(x, labels, 3, 0.01, start=far)
  np.testing.assert_allclose(first.logits(x), again.logits(x), atol=5e-3)
  scaled = linear_probe.fit(100 * x - 5, labels, 3, 0.01)
  np.testing.assert_allclose(
    first.logits(x), scaled.logits(100 * x - 5), atol=5e-3
  )


def test_dimension_without_information_is_ignored():
  x, labels = separable(60)
  flat = np.concatenate([x, np.full((60, 1), 3.0, np.float32)], 1)
  probe = linear_probe.fit(flat, labels, 3, 0.01)
  assert np.isfinite(probe.logits(flat)).all() and probe.scale[-1] == 0


def test_held_out_examples_are_a_fifth_of_every_class():
  labels = np.repeat([0, 1, 2], [10, 25, 4])
  out = linear_probe.held_out(labels)
  assert np.bincount(labels[out], minlength=3).tolist() == [2, 5, 0]


def test_strength_is_chosen_on_examples_that_were_not_seen():
  # Few examples in many dimensions: the weakest penalty overfits.
  rng = np.random.default_rng(0)
  labels = np.arange(60) % 3
  x = rng.normal(size=(60, 40)).astype(np.float32)
  x[:, 0] += 1.5 * labels
  strengths = (1e-4, 1e-1, 1e3)
  assert linear_probe.choose_strength(x, labels, 3, strengths) == 1e-1


# Evaluators.


@pytest.fixture
def config():
  return catalog.get_config('classification:tiny').unlock()


def predicting(outputs_of, missing=()):
  """predict of a system whose outputs are known for each label."""

  def predict(source, transforms):
    assert transforms
    mask = ~np.isin(np.arange(len(source)), missing)
    outputs = outputs_of(source.labels, np.random.default_rng(len(source)))
    outputs = {k: np.where(mask[:, None], v, 0) for k, v in outputs.items()}
    return Predictions(outputs, mask)

  return predict


def knowing(labels, rng):
  """Logits that are right but for label 3, vectors around ten corners."""
  logits = 5.0 * np.eye(10)[np.where(labels == 3, 8, labels)]
  vector = np.eye(10)[labels] + 0.05 * rng.normal(size=(len(labels), 10))
  return {'logits': logits, 'vector': vector.astype(np.float32)}


def test_evaluator_of_classification_tells_and_shows(config):
  evaluate = classification.make_evaluator(config, split='test')
  got = evaluate(predicting(knowing, missing=[3, 7]))
  # 40 pictures, of which 38 are there; of label 3, four, one is missing.
  np.testing.assert_allclose(got.metrics['top1'], 100 * 35 / 38)
  assert set(got.metrics) == {'top1', 'top5', 'nll', 'ece'}
  drawn = got.pictures()
  assert set(drawn) == {'confusion', 'wrong'}
  for picture in drawn.values():
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_evaluator_takes_the_output_that_it_is_told(config):
  both = lambda labels, rng: {
    'logits': np.zeros((len(labels), 10), np.float32),
    'second': knowing(labels, rng)['logits'],
  }
  make = lambda **fields: classification.make_evaluator(config, **fields)
  first, second = (
    make(**fields)(predicting(both)).metrics
    for fields in ({}, {'output': 'second'})
  )
  assert first['top1'] == 10.0 and second['top1'] > 80
  with pytest.raises(UserError, match="no 'secnd'; did you mean second"):
    make(output='secnd')(predicting(both))


@pytest.mark.parametrize('module', [knn, linear_probe])
def test_evaluators_of_vectors_find_what_is_there(config, module):
  evaluate = module.make_evaluator(config, split='test')
  got = evaluate(predicting(knowing, missing=[0, 5]))
  assert got.metrics['top1'] == got.metrics['top5'] == 100.0
  chance = lambda labels, rng: {
    'vector': rng.normal(size=(len(labels), 10)).astype(np.float32)
  }
  assert evaluate(predicting(chance)).metrics['top1'] < 50


def test_limit_spreads_over_the_training_split(config):
  source = data.read_source(config, 'train')
  some = knn.subset(source, 10)
  assert len(some) == 10 and some.names == source.names
  assert some.labels.tolist() == [int(some[i]['label']) for i in range(10)]
  assert some.labels[-1] == source.labels[-1]
  assert knn.subset(source, 0) is source is knn.subset(source, 1000)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda c: classification.make_evaluator(c, split='dev'), "split 'dev'"),
    (lambda c: knn.make_evaluator(c, k=0), 'k=0'),
    (lambda c: knn.make_evaluator(c, temperature=0.0), 'temperature=0.0'),
    (lambda c: linear_probe.make_evaluator(c, strengths=()), 'strengths'),
  ],
)
def test_mistakes_are_told_at_once(config, make, words):
  with pytest.raises(UserError, match=words):
    make(config)


# Pictures.


def test_sheet_has_a_place_for_every_picture():
  images = [np.full((8, 16, 3), (200, 0, 0), np.uint8)] * 5
  sheet = pictures.picture_sheet(images, ['a'] * 5, columns=2, side=40)
  red = (sheet == (200, 0, 0)).all(-1).sum()
  assert red == 5 * 40 * 20
  assert pictures.picture_sheet([], []).ndim == 3
  long = pictures.picture_sheet(images[:1], ['w' * 99], columns=1, side=40)
  assert (long[:, -6:] == 255).all(), 'a label must not run over'


@pytest.mark.parametrize('classes', [3, 30, 100])
def test_confusion_is_drawn_for_any_number_of_classes(classes):
  names = [f'class {i}' for i in range(classes)]
  picture = pictures.confusion_matrix(np.eye(classes, dtype=int), names)
  assert picture.dtype == np.uint8 and len(np.unique(picture)) > 2
