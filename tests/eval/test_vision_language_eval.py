"""Scores of answers and captions against values by hand."""

import sys

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import vision_language as data
from jaxzoo.errors import UserError
from jaxzoo.eval import caption_metrics, captioning, masked_words, vqa
from jaxzoo.eval.evaluator import Predictions


def test_an_answer_scores_by_how_many_people_gave_it():
  given = [['red'] * 2 + ['blue'] * 8, ['2'] * 10, ['yes'] + ['no'] * 9]
  scores = vqa.accuracy(['Red', 'two', 'maybe'], given)
  np.testing.assert_allclose(scores, [0.6, 1.0, 0.0])


def test_cider_of_a_reference_is_ten_and_of_other_words_nothing():
  references = [['a b c d'], ['e f g h']]
  np.testing.assert_allclose(
    caption_metrics.cider_d(['A b, c d.', 'a b c d'], references), [10, 0]
  )


def test_cider_of_a_part_is_as_by_hand():
  # n = 1: 2 / (sqrt(2) 2); n = 2: 1 / sqrt(3); else 0; two words are missing.
  want = 10 * np.exp(-4 / 72) * (2**-0.5 + 3**-0.5) / 4
  found = caption_metrics.cider_d(['a b'], [['a b c d']] + [])
  assert found[0] == 0  # one image: no word tells it from others
  found = caption_metrics.cider_d(['a b', 'e'], [['a b c d'], ['e']])
  assert found[0] == pytest.approx(want)


def test_cider_counts_a_word_no_more_often_than_the_reference():
  found = caption_metrics.cider_d(['a a', 'c d'], [['a b'], ['c d']])
  assert found[0] == pytest.approx(10 * (1 / (2 * 2**0.5)) / 4)


def test_cider_is_the_mean_over_references_and_common_words_weigh_nothing():
  both = caption_metrics.cider_d(
    ['x a b', 'x c'], [['x a b', 'x q r'], ['x c']]
  )
  one = caption_metrics.cider_d(['x a b', 'x c'], [['x a b'], ['x c']])
  assert 0 < both[0] < one[0]
  only = caption_metrics.cider_d(['x', 'x c'], [['x a b'], ['x c']])
  assert only[0] == 0


def test_bleu_is_that_of_the_package():
  pytest.importorskip('sacrebleu')
  captions = ['the cat sat on the mat', 'a dog']
  references = [['the cat sat on the mat', 'cat'], ['a dog']]
  assert caption_metrics.bleu(captions, references, 1) == pytest.approx(100)
  # 5 of 6 words, as many as the reference has.
  found = caption_metrics.bleu(
    ['the cat sat on a mat'], [['the cat sat on the mat']], 1
  )
  assert found == pytest.approx(100 * 5 / 6)


def test_a_missing_package_is_told_before_anything_runs(monkeypatch):
  monkeypatch.setitem(sys.modules, 'sacrebleu', None)
  with pytest.raises(UserError, match=r'jaxzoo\[captions\]'):
    captioning.make_evaluator(config_of('caption'), metrics=('BLEU-4',))


def config_of(task):
  config = catalog.get_config('distillvlm:tiny').unlock()
  config.task = task
  return config


def test_right_answers_score_what_people_agree_on():
  config = config_of('vqa')
  evaluate = vqa.make_evaluator(config)
  vocabulary = data.answer_vocabulary(config)
  questions = data.read_pictures(config, 'test').questions

  def predict(source, steps):
    assert len(source) == len(questions)
    best = [max(each.answers, key=each.answers.count) for each in questions]
    places = [vocabulary.index(x) if x in vocabulary else 0 for x in best]
    return Predictions(
      {'answer': np.array(places)}, np.ones(len(questions), bool)
    )

  found = evaluate(predict)
  assert found.metrics['accuracy'] > 85
  assert {'accuracy_yes_no', 'accuracy_number'} <= found.metrics.keys()
  rows = found.tables()['answers']
  assert len(rows) == 1 + len(questions)


def test_references_as_captions_score_high_and_each_picture_counts_once():
  config = config_of('caption')
  evaluate = captioning.make_evaluator(config)
  tokenizer = data.make_tokenizer(config)
  _, references = data.picture_data(config, 'test')

  def predict(source, steps):
    assert len(source) == len(references)
    rows = np.zeros((len(references), config.text_length), np.int32)
    for row, known in zip(rows, references, strict=True):
      ids = [2, *tokenizer.encode(known[0]), 3]
      row[: len(ids)] = ids
    mask = np.ones(len(references), bool)
    mask[0] = False
    return Predictions({'caption': rows}, mask)

  found = evaluate(predict)
  assert found.metrics['CIDEr'] > 300
  assert len(found.tables()['captions']) == len(references)


def test_evaluators_refuse_another_task_and_unknown_metrics():
  with pytest.raises(UserError, match="task='vqa'"):
    vqa.make_evaluator(config_of('caption'))
  with pytest.raises(UserError, match="task='caption'"):
    captioning.make_evaluator(config_of('vqa'))
  with pytest.raises(UserError, match='CIDEr'):
    captioning.make_evaluator(config_of('caption'), metrics=('CIDER',))


def test_masked_words_count_by_word():
  evaluate = masked_words.make_evaluator(config_of('pretrain'))
  outputs = {
    'words_right': np.array([1.0, 2.0, 9.0]),
    'words': np.array([2.0, 2.0, 9.0]),
    'match_right': np.array([1.0, 0.0, 1.0]),
  }
  found = evaluate(
    lambda *_: Predictions(outputs, np.array([True, True, False]))
  )
  assert found.metrics == {'word_accuracy': 75.0, 'match_accuracy': 50.0}
