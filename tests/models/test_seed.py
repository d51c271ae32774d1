"""SEED and MoCo as systems: queues, teachers, weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.data import views
from jaxzoo.errors import UserError
from jaxzoo.models.distillation import seed
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.models.supervised import classification

RNG = np.random.default_rng(0)


def batch_of(config):
  return {
    name: RNG.integers(0, 256, x.shape).astype(x.dtype)
    if name != 'label'
    else x
    for name, x in views.example_batch(config).items()
  }


@pytest.fixture(scope='module')
def frozen():
  """(config, batch, first state, next state) of SEED with small crops."""
  config = catalog.get_config('seed:tiny')
  system, batch = seed.build(config, optax.sgd(0.1)), batch_of(config)
  first = jax.jit(system.init)(jax.random.key(0), batch)
  return config, batch, first, jax.jit(system.step)(first, batch)[0]


def test_queue_gets_the_teachers_vectors_and_the_teacher_stays(frozen):
  config, batch, first, after = frozen
  jax.tree.map(
    np.testing.assert_array_equal,
    first.extra['teacher'],
    after.extra['teacher'],
  )
  encoder = seed.make_encoder(config, config.teacher.head)
  image = (batch['image'] / 255.0 - np.array(config.mean)) / config.std
  want, _ = encoder.apply(first.extra['teacher'], image.astype(np.float32))
  got = after.extra['queue'].vectors[: config.batch_size]
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_first_small_crop_of_each_image_is_remembered(frozen):
  config, batch, first, after = frozen
  encoder = seed.make_encoder(config, config.teacher.head)
  small = (batch['small'][:, 0] / 255.0 - np.array(config.mean)) / config.std
  want, _ = encoder.apply(first.extra['teacher'], small.astype(np.float32))
  got = after.extra['small_queue'].vectors[: config.batch_size]
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_momentum_teacher_follows_the_updated_student():
  config = catalog.get_config('seed:tiny').unlock()
  config.teacher.kind, config.data.views = 'momentum', 2
  config.data.small_crops = 0
  system, batch = seed.build(config, optax.sgd(0.1)), batch_of(config)
  first = jax.jit(system.init)(jax.random.key(0), batch)
  after, metrics = jax.jit(system.step)(first, batch)
  m = config.teacher.momentum
  want = jax.tree.map(
    lambda t, s: m * t + (1 - m) * s,
    first.extra['teacher']['params'],
    after.params,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    after.extra['teacher']['params'],
    want,
  )
  # -log softmax at the own vector: near log of all that there is to choose.
  assert 0 < metrics['loss'] < 3 * np.log(1 + config.queue_size)


def test_contrastive_loss_is_low_for_the_own_vector_alone():
  z, queue = l2_normalize(RNG.standard_normal((3, 8))), jnp.zeros((5, 8))
  found = seed.similarities(z, z, queue, student_temperature=0.05)
  assert seed.contrastive_loss(found) < 1e-6
  found = seed.similarities(z, -z, queue, student_temperature=0.05)
  assert seed.contrastive_loss(found) > 10


def test_queue_that_batches_do_not_fill_evenly_is_refused():
  config = catalog.get_config('seed:tiny').unlock()
  config.queue_size = 24
  with pytest.raises(UserError, match='no multiple'):
    seed.build(config, optax.sgd(0.1))


def test_names_of_a_published_moco_checkpoint_are_understood():
  config = catalog.get_config('seed:tiny')
  built = classification.make_backbone(config)
  blank = jnp.zeros((1, 16, 16, 3))
  variables = built.module.init(jax.random.key(3), blank)
  backbone = built.export(jax.device_get(variables))
  encoder = seed.make_encoder(config, config.head)
  own = encoder.init(jax.random.key(4), blank)['params']
  published = {
    f'module.encoder_q.{name}': x
    for name, x in backbone.items()
    if not name.startswith('fc.')
  }
  for theirs, ours in (('fc.0', 'head_fc1'), ('fc.2', 'head_fc2')):
    published[f'module.encoder_q.{theirs}.weight'] = np.asarray(
      own[ours]['kernel']
    ).T
    published[f'module.encoder_q.{theirs}.bias'] = np.asarray(own[ours]['bias'])
  got = seed.convert_encoder(published, config, config.head)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(got['params']['head_fc1'], dict(own['head_fc1']))
  body = {k: v for k, v in variables['params'].items() if k != 'head'}
  same(got['params']['backbone'], body)
  same(got['batch_stats']['backbone'], dict(variables['batch_stats']))


def test_two_views_of_a_record_differ_and_come_again():
  config = catalog.get_config('seed:tiny').unlock()
  config.data.views = 2
  source, (transform,) = views.train_data(config)
  one = transform(source[0], np.random.default_rng(0))
  two = transform(source[0], np.random.default_rng(0))
  assert (one['image'] != one['view2']).any()
  assert one['small'].shape == (2, 12, 12, 3)
  for name in ('image', 'view2', 'small'):
    np.testing.assert_array_equal(one[name], two[name])
