"""Metrics of answers against brute force, and sums that add up."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from jaxzoo.eval import answers

RNG = np.random.default_rng(0)


def test_matthews_correlation_is_the_one_of_scikit_learn():
  labels = RNG.integers(0, 2, 200)
  predicted = np.where(RNG.random(200) < 0.3, 1 - labels, labels)
  total = answers.confusion(predicted, labels)
  np.testing.assert_allclose(
    answers.matthews(total), matthews_corrcoef(labels, predicted), rtol=1e-12
  )
  parts = [
    answers.confusion(predicted[rows], labels[rows])
    for rows in (slice(0, 70), slice(70, None))
  ]
  assert parts[0] + parts[1] == total


@pytest.mark.parametrize('predicted, labels', [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_matthews_correlation_is_zero_where_a_factor_is(predicted, labels):
  mixed = np.array([0, 1, 1, 0])
  for a, b in ((predicted, mixed), (mixed, labels), (predicted, labels)):
    a, b = np.broadcast_to(a, 4), np.broadcast_to(b, 4)
    assert answers.matthews(answers.confusion(a, b)) == 0


def test_large_counts_do_not_overflow():
  total = answers.Confusion(*4 * [2**40])
  assert answers.matthews(total) == 0
  sure = answers.Confusion(2**40, 2**40, 0, 0)
  assert answers.matthews(sure) == 1


def test_entities_are_kind_and_span():
  found = answers.parse_entities('person : anna ; place : new  york ;x; : y ;')
  assert found == [('person', 'anna'), ('place', 'new york')]
  assert answers.parse_entities('') == []


def test_f1_is_over_all_sentences_and_counts_repeats_once_each():
  asked = ['person : anna ; place : rome', 'place : oslo', '']
  said = ['person : anna ; person : anna', 'place : oslo ; person : oslo', '']
  metrics = answers.answer_metrics(said, asked, entities=True)
  # Right: anna once, oslo as a place; of four said and three asked for.
  assert metrics['precision'] == pytest.approx(100 * 2 / 4)
  assert metrics['recall'] == pytest.approx(100 * 2 / 3)
  assert metrics['f1'] == pytest.approx(100 * 4 / 7)
  assert metrics['accuracy'] == pytest.approx(100 / 3)


def test_f1_of_nothing_is_zero():
  assert answers.f1(answers.Counts(0, 0, 0))['f1'] == 0


def test_labels_are_the_largest_logits():
  logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
  metrics = answers.label_metrics(logits, np.array([1, 0, 0]))
  assert metrics['accuracy'] == pytest.approx(200 / 3)
  assert metrics['matthews'] == pytest.approx(0.5)
