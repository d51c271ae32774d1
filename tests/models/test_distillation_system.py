"""A student, a frozen teacher, and what passes between them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog, initial
from jaxzoo.errors import UserError
from jaxzoo.models.distillation import distillation
from jaxzoo.models.layers.image import resized
from jaxzoo.models.supervised import classification
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes
from jaxzoo.train.stored import to_stored
from jaxzoo.weights import layout

BATCH = {
  'image': np.random.default_rng(0)
  .integers(0, 256, (6, 16, 16, 3))
  .astype(np.uint8),
  'label': np.arange(6, dtype=np.int32),
}


def config_of(**distill):
  config = catalog.get_config('distillation:tiny').unlock()
  config.distill = distill
  config.loss.base_weight = 0.9
  return config


def start(config, tx=None):
  system = distillation.build(config, tx or optax.sgd(0.1))
  return system, jax.jit(system.init)(jax.random.key(0), BATCH)


@pytest.fixture(scope='module')
def taught():
  """(system, first state, state and metrics after a step) with all terms."""
  system, first = start(
    config_of(
      kd=dict(weight=1.0),
      dist=dict(weight=2.0, group_size=3),
      features=dict(weight=0.5, stage='stage1'),
      diffkd=dict(weight=1.0, code_channels=8, steps=2),
    )
  )
  after, metrics = jax.jit(system.step)(first, BATCH)
  return system, first, after, metrics


def test_loss_is_the_weighted_sum_of_its_terms(taught):
  *_, metrics = taught
  total = (
    0.9 * metrics['base']
    + metrics['kd']
    + 2 * metrics['dist']
    + 0.5 * metrics['features']
    + metrics['diffkd']
  )
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)


def test_student_and_terms_move_and_the_teacher_does_not(taught):
  _, first, after, _ = taught
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(first.extra['teacher'], after.extra['teacher'])
  assert after.extra['calls'] == 1
  for part in ('student', 'aux'):
    for tree in (lambda s: s.params, lambda s: s.extra['batch_stats']):
      old, new = (layout.flatten(tree(s)[part]) for s in (first, after))
      assert old.keys() == new.keys()
      assert any(np.abs(old[path] - new[path]).max() > 0 for path in old)


def test_cached_logits_stand_for_the_teachers():
  config = config_of(kd=dict(weight=1.0))
  config.loss.update(mixup=0.0, cutmix=0.0)
  system, state = start(config)
  image = BATCH['image'].astype(np.float32)
  logits = distillation.make_teacher(config).apply(
    state.extra['teacher'],
    (image / 255 - np.array(config.mean)) / np.array(config.std),
  )
  step = jax.jit(system.step)
  _, plain = step(state, BATCH)
  _, cached = step(state, {**BATCH, 'teacher_logits': np.asarray(logits)})
  _, other = step(state, {**BATCH, 'teacher_logits': np.asarray(2 * logits)})
  np.testing.assert_allclose(plain['kd'], cached['kd'], rtol=1e-4)
  assert abs(plain['kd'] - other['kd']) > 1e-4


def test_without_terms_there_is_no_teacher_and_the_loss_is_that_of_labels():
  config = config_of()
  config.loss.base_weight = 1.0
  system, state = start(config)
  assert 'teacher' not in state.extra
  _, metrics = jax.jit(system.step)(state, BATCH)
  np.testing.assert_allclose(metrics['loss'], metrics['base'], rtol=1e-6)


def test_teacher_may_be_kept_in_half_precision():
  config = config_of(kd=dict(weight=1.0))
  config.teacher.param_dtype = 'bfloat16'
  system = distillation.build(config, optax.sgd(0.1))
  state = jax.eval_shape(system.init, jax.random.key(0), BATCH)
  kinds = {x.dtype for x in jax.tree.leaves(state.extra['teacher'])}
  assert kinds == {jnp.dtype('bfloat16')}
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {
    jnp.dtype('float32')
  }


def test_published_weights_go_to_the_student_and_to_the_teacher(tmp_path):
  config = config_of(kd=dict(weight=1.0))
  _, state = start(config)
  for own, name in ((config, 'student'), (config, 'teacher')):
    make = {
      'student': classification.make_backbone,
      'teacher': lambda config: classification.make_backbone(
        distillation.teacher_config(config)
      ),
    }[name]
    built = make(own)
    variables = jax.jit(built.module.init)(
      jax.random.key(7), jnp.zeros((1, 16, 16, 3))
    )
    np.savez(
      tmp_path / f'{name}.npz', **built.export(jax.device_get(variables))
    )
    if name == 'student':
      student = variables
    else:
      teacher = variables
  config.init.weights = str(tmp_path / 'student.npz')
  config.teacher.weights = str(tmp_path / 'teacher.npz')
  got, _ = initial.put_weights(state, initial.load_weights(config), config)
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(got.params['student'], student['params'])
  same(got.extra['batch_stats']['student'], student['batch_stats'])
  same(got.extra['teacher'], dict(teacher))


@pytest.mark.parametrize(
  ('distill', 'message'),
  [
    (dict(dits=dict(weight=1.0)), 'dist'),
    (dict(kd=dict(weight=1.0, temprature=2.0)), 'temperature'),
  ],
)
def test_unknown_terms_and_options_are_named(distill, message):
  with pytest.raises(UserError, match=message):
    distillation.build(config_of(**distill), optax.sgd(0.1))


def test_unknown_stage_is_named_before_compilation():
  system = distillation.build(
    config_of(features=dict(weight=1.0, stage='stage9')), optax.sgd(0.1)
  )
  with pytest.raises(UserError, match='stage1'):
    jax.eval_shape(system.init, jax.random.key(0), BATCH)


def test_features_of_another_size_are_resized_to_the_teachers():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  assert resized(x, (4, 4)) is x
  np.testing.assert_allclose(resized(x, (2, 2)).mean(), x.mean(), rtol=1e-6)


@pytest.mark.slow
def test_teacher_of_four_times_the_size_is_cut_over_eight_devices():
  config = config_of(kd=dict(weight=1.0), dist=dict(weight=2.0))
  config.loss.update(mixup=0.0, cutmix=0.0)
  config.model_options.width = 64
  config.teacher.model_options.width = 128
  system = distillation.build(config, optax.sgd(0.1, momentum=0.9))
  batch = {k: np.resize(v, (8, *v.shape[1:])) for k, v in BATCH.items()}

  def run(devices):
    mesh = meshes.make_mesh(dict(fsdp=devices), jax.devices()[:devices])
    program = loop.compile_system(
      system,
      jax.random.key(0),
      meshes.abstract_batch(batch, mesh),
      mesh,
      distillation.sharding(config),
    )
    given = meshes.to_devices(batch, meshes.batch_sharding(mesh))
    state, history = program.init(), []
    for _ in range(3):
      state, metrics = program.step(state, given)
      history.append([float(metrics[name]) for name in ('loss', 'kd', 'dist')])
    return program, history

  alone, expected = run(1)
  program, history = run(8)
  np.testing.assert_allclose(history, expected, rtol=2e-4)
  size = lambda tree: sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
  teacher = size(program.abstract.extra['teacher'])
  assert teacher > 3.5 * size(program.abstract.params['student'])
  whole = alone.step.memory_analysis().argument_size_in_bytes
  held = program.step.memory_analysis().argument_size_in_bytes
  planned = sum(
    math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x, sharding in zip(
      jax.tree.leaves(jax.eval_shape(to_stored, program.abstract)),
      jax.tree.leaves(program.shardings),
      strict=True,
    )
  )
  # Between two steps a device holds its part of everything, and of the batch.
  assert held == pytest.approx(planned, rel=0.02)
  assert planned < whole / 6
