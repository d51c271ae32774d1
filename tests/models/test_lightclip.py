"""LightCLIP as a system: three losses in training, a dual encoder after it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.models.backbones.clip import END_TOKEN, START_TOKEN
from jaxzoo.models.distillation import lightclip


def captions(*words):
  """Token ids [b, 8]: start, words, end, padding."""
  rows = [[START_TOKEN, *own, END_TOKEN] for own in words]
  return np.array([row + [0] * (8 - len(row)) for row in rows], np.int32)


@pytest.fixture(scope='module')
def small():
  config = catalog.get_config('lightclip:tiny').unlock()
  config.text.vocab_size, config.text.width = 49409, 8
  config.text_length = 8
  return config


@pytest.fixture(scope='module')
def started(small):
  """(config, system, batch, state)."""
  rng = np.random.default_rng(0)
  text = captions([5, 6, 7], [8], [9, 10], [11, 12, 13, 14])
  masked = text.copy()
  masked[:, 1] = 49405
  batch = {
    'image': rng.integers(0, 256, (4, *small.image_size, 3)).astype(np.uint8),
    'text': text,
    'mlm_text': masked,
    'mlm_labels': np.where(np.arange(8) == 1, text, 0).astype(np.int32),
  }
  system = lightclip.build(small, optax.sgd(0.1))
  return small, system, batch, jax.jit(system.init)(jax.random.key(0), batch)


def test_words_are_what_lies_between_start_and_end():
  order, lengths = lightclip.words_of(captions([5, 6, 7], [8], []))
  np.testing.assert_array_equal(lengths, [3, 1, 1])
  np.testing.assert_array_equal(order, [1, 2, 3, 4, 5, 6, 7, 7])


def test_image_does_not_speak_before_fusion_has_learned(started):
  config, _, batch, state = started
  image, text = lightclip.make_towers(config)
  variables = {'params': state.params['text']}
  patches = jnp.ones((4, 6, 16))
  plain, _ = text.apply(variables, batch['text'])
  fused, _ = text.apply(variables, batch['text'], patches)
  np.testing.assert_allclose(plain, fused, rtol=1e-6)


def test_only_masked_words_teach_the_fusion(started):
  config, system, batch, state = started
  after, metrics = jax.jit(system.step)(state, batch)
  moved = lambda part: any(
    np.abs(a - b).max() > 0
    for a, b in zip(
      jax.tree.leaves(state.params['text'][part]['cross_attn']),
      jax.tree.leaves(after.params['text'][part]['cross_attn']),
      strict=True,
    )
  )
  fusions = [name for name in state.params['text'] if 'fusion' in name]
  assert len(fusions) == config.text.depth // 2
  assert all(map(moved, fusions))
  total = sum(
    config.loss[name] * metrics[f'loss_{name}']
    for name in ('instance', 'token', 'mlm')
  )
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)
  assert metrics['softness'] == 0  # of the first step


def test_deployed_model_is_a_plain_dual_encoder(started):
  _, system, batch, state = started
  outputs = jax.jit(system.predict)(state, batch)
  for name in ('image', 'text'):
    np.testing.assert_allclose(
      jnp.linalg.norm(outputs[name], axis=1), 1, rtol=1e-5
    )
  padded = dict(batch, text=np.where(batch['text'] == 0, 3, batch['text']))
  padded['text'][:, -1] = 0
  again = jax.jit(system.predict)(state, padded)
  np.testing.assert_allclose(outputs['text'], again['text'], atol=1e-6)


@pytest.mark.parametrize('ramp', lightclip.RAMPS)
def test_softness_ends_at_the_largest(ramp):
  at = lambda step: float(lightclip.softness_at(step, 10, 0.2, ramp))
  assert at(10) == at(20) == pytest.approx(0.2)
  assert at(0) == pytest.approx(0.2 if ramp == 'constant' else 0)
  assert 0 < at(5) < 0.2001


def test_baseline_has_neither_fusion_nor_word_head():
  config = catalog.get_config('lightclip:baseline')
  system = lightclip.build(config, optax.sgd(0.1))
  batch = {
    'image': np.zeros((2, *config.image_size, 3), np.uint8),
    'text': np.zeros((2, config.text_length), np.int32),
  }
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  assert set(state.params) == {'image', 'text', 'logit_scale'}
  assert not [name for name in state.params['text'] if 'fusion' in name]


def test_unknown_ramp_is_named(small):
  config = small.copy_and_resolve_references().unlock()
  config.loss.ramp = 'linaer'
  with pytest.raises(UserError, match='linear'):
    lightclip.build(config, optax.sgd(0.1))
