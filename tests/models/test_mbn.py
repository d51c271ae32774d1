"""Memorized batch normalisation: the norm, the two passes, weights."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxzoo.errors import UserError
from jaxzoo.models.create import build_model
from jaxzoo.models.layers import memorized_norm as layer
from jaxzoo.models.layers.memorized_norm import MemorizedNorm
from jaxzoo.models.supervised import mbn
from jaxzoo.system import with_ema
from jaxzoo.weights import layout

KEY = jax.random.key(0)
SIZE = 8


def config_of(**overrides):
  config = ml_collections.ConfigDict(
    dict(
      model='resnet18',
      model_options=dict(depths=(1, 1), width=4, small_stem=True),
      num_classes=3,
      image_size=(SIZE, SIZE),
      in_chans=3,
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      mean=(0.5, 0.5, 0.5),
      std=(0.25, 0.25, 0.25),
      norm=dict(kind='memorized', memory_size=3, decay=0.9),
      loss=dict(
        double_forward=True,
        label_smoothing=0.0,
        log_layers=False,
        batch_logits=True,
      ),
    )
  )
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed, rows=6):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8),
    'label': rng.integers(0, 3, rows).astype(np.int32),
  }


@functools.cache
def run(steps=2, lr=0.1, **overrides):
  """(system, states: the first and that after each step, metrics)."""
  config = config_of(**overrides)
  system = mbn.build(config, optax.sgd(lr))
  states, history = [jax.jit(system.init)(KEY, batch_of(0))], []
  step = jax.jit(system.step)
  for i in range(steps):
    state, metrics = step(states[-1], batch_of(i))
    states.append(state)
    history.append(metrics)
  return system, states, history


# The norm.


def remember(batches, **options):
  norm = MemorizedNorm(**options)
  variables = norm.init(KEY, batches[0])
  for x in batches:
    y, updated = norm.apply(variables, x, True, mutable=['batch_stats'])
    variables = {**variables, **updated}
  return norm, variables, y


def batches_of(number, rows=5, channels=4):
  rng = np.random.default_rng(0)
  shift = rng.normal(size=(number, 1, 1, channels))
  x = shift + rng.normal(size=(number, rows, 3, channels))
  return x.astype(np.float32)


def test_equal_weights_are_the_moments_of_all_batches_together():
  x = batches_of(3)
  norm, variables, y = remember(x, memory_size=4, decay=1.0)
  together = x.reshape(-1, 4)
  want = (x[-1] - together.mean(0)) / np.sqrt(together.var(0) + 1e-5)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
  # Inference has the same rule.
  np.testing.assert_allclose(norm.apply(variables, x[-1]), y, atol=1e-6)


def test_memory_of_one_is_batch_normalisation():
  x = batches_of(3)
  _, _, y = remember(x, memory_size=1)
  last = x[-1].reshape(-1, 4)
  want = (x[-1] - last.mean(0)) / np.sqrt(last.var(0) + 1e-5)
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_memory_is_newest_first_and_drops_the_oldest():
  x = batches_of(5)
  _, variables, _ = remember(x, memory_size=3)
  stats = variables['batch_stats']
  np.testing.assert_allclose(
    stats['memory_mean'], x[:1:-1].mean((1, 2)), atol=1e-6
  )
  np.testing.assert_allclose(
    stats['memory_var'], x[:1:-1].var((1, 2)), rtol=1e-4, atol=1e-5
  )
  assert stats['count'] == 3


def test_empty_memory_is_mean_zero_and_variance_one():
  x = batches_of(1)[0]
  norm = MemorizedNorm()
  np.testing.assert_allclose(
    norm.apply(norm.init(KEY, x), x), x / np.sqrt(1 + 1e-5), rtol=1e-6
  )


def test_weights_fall_by_the_decay_over_the_entries_that_there_are():
  means = jnp.array([[1.0], [10.0], [100.0]])
  mean, var = layer.mixture_moments(
    means, jnp.full((3, 1), 2.0), jnp.float32(2), 0.5
  )
  np.testing.assert_allclose(mean, [(2 * 1 + 10) / 3], rtol=1e-6)
  np.testing.assert_allclose(
    var, [2 + 2 / 3 * (1 - 4) ** 2 + 1 / 3 * (10 - 4) ** 2], rtol=1e-6
  )


def test_gradient_flows_through_the_current_batch_alone():
  x = batches_of(3)
  norm, variables, _ = remember(x[:2], memory_size=3)

  def value(x):
    y, _ = norm.apply(variables, x, True, mutable=['batch_stats'])
    return jnp.sum(y**3)

  check_grads(value, (x[2],), 1, modes=['rev'], rtol=1e-2, atol=1e-2)
  of_memory = jax.grad(
    lambda stats: jnp.sum(
      norm.apply({**variables, 'batch_stats': stats}, x[2], True,
                 mutable=['batch_stats'])[1]['batch_stats']['memory_mean']
    )
  )(variables['batch_stats'])  # fmt: skip
  assert not any(jnp.any(x) for x in jax.tree.leaves(of_memory))


# The step.


def test_second_pass_replaces_the_newest_entry():
  system, (_, before, after), _ = run()
  del system
  config = config_of()
  module = mbn.make_network(config).module
  image = (batch_of(1)['image'] / 255 - 0.5) / 0.25
  _, want = jax.jit(
    lambda params, stats: module.apply(
      {'params': params, 'batch_stats': stats},
      image.astype(np.float32),
      True,
      mutable=['batch_stats'],
    )
  )(after.params, before.extra['batch_stats'])
  want = layout.flatten(want['batch_stats'])
  for path, x in layout.flatten(after.extra['batch_stats']).items():
    np.testing.assert_allclose(
      x, want[path], rtol=1e-4, atol=1e-5, err_msg=path
    )
    if path.endswith('count'):
      assert x == 2


def test_two_passes_leave_no_gap_between_training_and_inference():
  system, (_, before, after), _ = run()
  batch = batch_of(1)
  # As if the updated parameters saw the batch, on the memory of before.
  seen = system.predict(after._replace(extra=before.extra), batch)
  stored = system.predict(after, batch)['logits']
  np.testing.assert_allclose(seen['batch_logits'], stored, rtol=1e-3, atol=1e-4)
  _, (_, before, after), _ = run(**{'loss.double_forward': False})
  seen = system.predict(after._replace(extra=before.extra), batch)
  stored = system.predict(after, batch)['logits']
  assert np.abs(seen['batch_logits'] - stored).max() > 1e-3


def test_first_pass_is_that_of_a_single_one():
  _, (_, two, _), history = run()
  _, (_, one, _), single = run(**{'loss.double_forward': False})
  for a, b in zip(*map(jax.tree.leaves, (two.params, one.params)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(history[0]['loss'], single[0]['loss'], rtol=1e-5)
  assert history[1]['loss'] != single[1]['loss']


def test_shift_of_the_statistics_is_finite_where_nothing_moves():
  _, _, moving = run(steps=1, **{'loss.log_layers': True})
  _, _, still = run(steps=1, lr=0.0)
  layers = [x for name, x in moving[0].items() if name.startswith('log_shift/')]
  assert len(layers) == 6  # stem, two blocks of two, a shortcut
  np.testing.assert_allclose(np.mean(layers), moving[0]['log_shift'], rtol=1e-5)
  assert np.isfinite(still[0]['log_shift'])
  assert still[0]['log_shift'] < moving[0]['log_shift'] - 5


def test_each_microbatch_is_remembered():
  _, (start, after), _ = run(steps=1, microbatches=2)
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(start) == shapes(after)
  assert after.extra['batch_stats']['stem_bn']['count'] == 2


def test_averaged_parameters_keep_the_kinds_of_the_statistics():
  system = with_ema(mbn.build(config_of(), optax.sgd(0.1)), 0.9)
  state = jax.eval_shape(system.init, KEY, batch_of(0))
  after, _ = jax.eval_shape(system.step, state, batch_of(0))
  kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert kinds(after) == kinds(state)


def test_batch_norm_is_the_baseline():
  _, (_, after), (metrics,) = run(
    steps=1, **{'norm.kind': 'batch', 'loss.double_forward': False}
  )
  assert set(after.extra['batch_stats']['stem_bn']) == {'mean', 'var'}
  assert np.isfinite(metrics['loss'])


def test_gap_is_that_of_the_accuracies():
  labels = jnp.array([0, 1, 1, 0])
  stored = jax.nn.one_hot(jnp.array([0, 1, 1, 1]), 2)
  seen = jax.nn.one_hot(jnp.array([1, 1, 0, 1]), 2)
  assert mbn.train_test_gap(stored, seen, labels) == 0.5


# Networks and weights.


@pytest.mark.parametrize('blocks, parameters', [(3, 272474), (9, 855770)])
def test_residual_networks_of_cifar_have_their_published_depth(
  blocks, parameters
):
  config = config_of(num_classes=10)
  config.model_options.update(depths=(blocks,) * 3, width=16)
  module = mbn.make_network(config).module
  variables = jax.eval_shape(
    lambda: module.init(KEY, jnp.zeros((1, 32, 32, 3)))
  )
  paths = layout.flatten(variables['params'])
  assert sum(int(np.prod(x.shape)) for x in paths.values()) == parameters
  deep = [p for p in paths if 'conv' in p and 'shortcut' not in p]
  assert len(deep) + 1 == 6 * blocks + 2


def test_running_averages_are_a_memory_of_one_entry():
  config = config_of()
  plain = build_model(
    'resnet18', num_classes=3, image_size=SIZE, depths=(1, 1), width=4,
    small_stem=True,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32),
    jax.eval_shape(
      lambda: plain.module.init(KEY, jnp.zeros((1, SIZE, SIZE, 3)))
    ),
  )
  state_dict = plain.export(variables)
  image = rng.normal(size=(2, SIZE, SIZE, 3)).astype(np.float32)
  memorized = {
    'params': mbn.convert(state_dict, config),
    **mbn.convert_extra(state_dict, config),
  }
  np.testing.assert_allclose(
    jax.jit(mbn.make_network(config).module.apply)(memorized, image),
    jax.jit(plain.module.apply)(variables, image),
    rtol=1e-4,
  )


def test_norm_that_is_not_there_is_an_error_with_the_nearest():
  with pytest.raises(UserError, match='memorized'):
    mbn.build(config_of(**{'norm.kind': 'memorised'}), optax.sgd(0.1))


def test_empty_memory_and_two_passes_of_batch_norm_are_errors():
  with pytest.raises(UserError, match='at least 1'):
    mbn.build(config_of(**{'norm.memory_size': 0}), optax.sgd(0.1))
  with pytest.raises(UserError, match='double_forward'):
    mbn.build(config_of(**{'norm.kind': 'batch'}), optax.sgd(0.1))
