"""Text to text as a system: what counts, what is answered."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.models.backbones import t5
from jaxzoo.models.supervised import text_to_text

KEY = jax.random.key(0)


def config_of(**overrides):
  config = catalog.get_config('text_to_text:tiny').unlock()
  config.vocab_size = 20
  config.label_tokens = (5, 9)
  config.model_options.update(width=8, hidden=8)
  config.update_from_flattened_dict(overrides)
  return config


def batch_of():
  return {
    'prefix': np.array([[0, 4], [0, 4]], np.int32),
    'sentence': np.array([[6, 7, 8, 1, 0], [6, 1, 0, 0, 0]], np.int32),
    'target': np.array([[5, 1], [9, 1]], np.int32),
    'label': np.array([0, 1], np.int32),
  }


@functools.cache
def started():
  """(system, state)."""
  system = text_to_text.build(config_of(), optax.sgd(0.1))
  return system, jax.jit(system.init)(KEY, batch_of())


@functools.cache
def predict():
  return jax.jit(started()[0].predict)


def test_padding_says_nothing():
  _, state = started()
  batch = batch_of()
  want = predict()(state, batch)['logits']
  shorter = dict(batch, sentence=batch['sentence'][:, :4])
  np.testing.assert_allclose(
    predict()(state, shorter)['logits'], want, atol=1e-5
  )
  wider = dict(batch, prefix=np.pad(batch['prefix'], ((0, 0), (2, 0))))
  np.testing.assert_allclose(predict()(state, wider)['logits'], want, atol=1e-5)


def test_logits_are_of_what_the_decoder_begins_with():
  _, state = started()
  batch = batch_of()
  module = text_to_text.make_network(config_of())
  # The shorter sentence, without anything to mask.
  source = np.array([[4, 6, 1]], np.int32)
  first = np.zeros((1, 1), np.int32)
  logits = module.apply({'params': state.params}, source, first)
  np.testing.assert_allclose(
    predict()(state, batch)['logits'][1], logits[0, 0, [5, 9]], atol=1e-5
  )


def test_tokens_behind_the_end_are_not_counted():
  logits = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
  target = np.array([[3, 1, 0, 0], [2, 4, 5, 1]], np.int32)
  value, right = text_to_text.token_loss(logits, target)
  other = np.where((target == 0)[..., None], 7 * logits, logits)
  np.testing.assert_allclose(text_to_text.token_loss(other, target)[0], value)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  own = np.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
  valid = target != t5.PAD
  np.testing.assert_allclose(value, -own[valid].mean(), rtol=1e-5)
  np.testing.assert_allclose(
    right, (logits.argmax(-1) == target)[valid].mean(), rtol=1e-6
  )


def test_answers_that_are_texts_are_written_word_for_word():
  config = config_of(labels=(), label_tokens=(), target_length=3)
  system = text_to_text.build(config, optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, batch_of())
  outputs = jax.eval_shape(system.predict, state, batch_of())
  assert set(outputs) == {'answer'}
  assert outputs['answer'].shape == (2, 3)


def test_labels_need_an_id_each():
  with pytest.raises(UserError, match='one id for each'):
    text_to_text.build(config_of(label_tokens=(5,)), optax.sgd(0.1))
