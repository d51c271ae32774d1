"""MasKD as a term, and the run that learns its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.data import classification as pictures
from jaxzoo.data import segmentation as scenes
from jaxzoo.errors import UserError
from jaxzoo.models.distillation import distillation, maskd_tokens

RNG = np.random.default_rng(0)


def filled(batch, classes):
  return {
    name: RNG.integers(0, 256 if name == 'image' else classes, x.shape).astype(
      x.dtype
    )
    for name, x in batch.items()
  }


@pytest.fixture(scope='module')
def learned():
  """(config, batch, first state, state after five steps, metrics)."""
  config = catalog.get_config('maskd_tokens:tiny')
  batch = filled(scenes.example_batch(config), config.num_classes)
  system = maskd_tokens.build(config, optax.adam(0.1))
  state = first = jax.jit(system.init)(jax.random.key(0), batch)
  step, metrics = jax.jit(system.step), []
  for _ in range(5):
    state, found = step(state, batch)
    metrics.append(found)
  return config, batch, first, state, metrics


def test_tokens_come_apart_while_the_teacher_stays(learned):
  _, _, first, state, metrics = learned
  jax.tree.map(
    np.testing.assert_array_equal,
    first.extra['teacher'],
    state.extra['teacher'],
  )
  # At first masks are about one half everywhere: two levels, all overlapping.
  assert metrics[0]['dice'] == pytest.approx(2, rel=0.05)
  assert metrics[-1]['dice'] < 0.9 * metrics[0]['dice']


def test_loss_is_that_of_the_task_and_the_overlap(learned):
  metrics = learned[-1][0]
  np.testing.assert_allclose(
    metrics['loss'], metrics['base'] + metrics['dice'], rtol=1e-6
  )


def test_tokens_of_a_stage_reach_the_student_and_stay_as_they_are(learned):
  tokens = learned[3]
  config = catalog.get_config('maskd:tiny')
  system = distillation.build(config, optax.adam(1e-2))
  batch = learned[1]
  state = jax.jit(system.init)(jax.random.key(1), batch)
  _, extra = distillation.from_stages({'tokens': (config, tokens)}, config)
  assert jax.tree.structure(extra['frozen']) == jax.tree.structure(
    state.extra['frozen']
  )
  state = state._replace(extra={**state.extra, **extra})
  after, metrics = jax.jit(system.step)(state, batch)
  jax.tree.map(
    np.testing.assert_array_equal, after.extra['frozen']['maskd'], tokens.params
  )
  assert metrics['maskd'] > 0


def test_classifiers_learn_tokens_on_their_last_map():
  config = catalog.get_config('classification:tiny').unlock()
  base = catalog.get_config('maskd_tokens:tiny')
  config.task, config.tokens = 'classification', base.tokens
  config.teacher = dict(
    model=config.model,
    model_options=config.model_options,
    mean=config.mean,
    std=config.std,
    dtype='float32',
  )
  batch = filled(pictures.example_batch(config), 10)
  system = maskd_tokens.build(config, optax.adam(0.1))
  state = jax.jit(system.init)(jax.random.key(0), batch)
  assert [*state.params] == ['stage2']
  _, metrics = jax.jit(system.step)(state, batch)
  assert np.isfinite(metrics['loss'])


def test_classifier_whose_vector_is_no_mean_is_refused():
  config = catalog.get_config('classification:tiny').unlock()
  config.task = 'classification'
  config.tokens = catalog.get_config('maskd_tokens:tiny').tokens
  config.image_size = (32, 32)
  config.teacher = dict(
    model='mobilenet_v3_small',
    model_options={},
    mean=config.mean,
    std=config.std,
    dtype='float32',
  )
  system = maskd_tokens.build(config, optax.adam(0.1))
  batch = pictures.example_batch(config)
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  with pytest.raises(UserError, match='mean of its last map'):
    jax.eval_shape(system.step, state, batch)


def test_classifiers_take_the_masks_of_their_last_map():
  config = catalog.get_config('distillation:tiny').unlock()
  config.distill = dict(maskd=dict(weight=1.0, on='last', warmup=0))
  system = distillation.build(config, optax.sgd(0.1))
  batch = filled(pictures.example_batch(config), 10)
  state = jax.jit(system.init)(jax.random.key(0), batch)
  assert [*state.extra['frozen']['maskd']] == ['stage2']
  _, metrics = jax.jit(system.step)(state, batch)
  assert metrics['maskd'] > 0


def test_masks_of_logits_have_no_part_in_the_students_parameters():
  config = catalog.get_config('maskd:tiny').unlock()
  config.distill.maskd = dict(
    weight=1.0, num_tokens=8, weighted=False, custom=False, on='logits'
  )
  system = distillation.build(config, optax.sgd(0.1))
  batch = filled(scenes.example_batch(config), config.num_classes)
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  assert state.params['aux']['maskd'] == {}
  tokens = state.extra['frozen']['maskd']['logits']['tokens']
  assert tokens.shape == (8, config.num_classes)
  assert tokens.dtype == jnp.float32
