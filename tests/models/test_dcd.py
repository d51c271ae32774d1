"""Dynamic convolutions: against kernels made for each example, sizes, names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.backbones import dcd
from jaxzoo.models.create import build_model
from jaxzoo.models.layers import dynamic_convolution as layers
from jaxzoo.models.losses import classification as losses
from jaxzoo.weights import layout

KEY = jax.random.key(0)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(variables, seed=0):
  """Random parameters, and norms that change nothing."""
  flat = layout.flatten(variables)
  for i, (path, x) in enumerate(flat.items()):
    if path.endswith('kernel'):
      flat[path] = normal(*x.shape, seed=seed + i)
    elif path.endswith('/var'):
      flat[path] = np.full(x.shape, 1 - 1e-5, np.float32)
  return layout.unflatten(flat)


# The layer.


@pytest.mark.parametrize('side', [1, 2, 5, 7, 8])
def test_quadrants_are_those_of_adaptive_pooling(side):
  x = normal(2, side, side + 1, 3)
  want = []
  for c in range(3):
    for row in range(2):
      for column in range(2):
        rows = slice(row * side // 2, -(-(row + 1) * side // 2))
        width = side + 1
        columns = slice(column * width // 2, -(-(column + 1) * width // 2))
        want.append(x[:, rows, columns, c].mean((1, 2)))
  np.testing.assert_allclose(
    layers.quadrant_means(jnp.asarray(x)), np.stack(want, 1), atol=1e-6
  )


def test_gate_goes_from_zero_to_two():
  x = jnp.array([-9.0, -3.0, 0.0, 3.0, 9.0])
  np.testing.assert_array_equal(
    layers.double_hard_sigmoid(x), [0.0, 0.0, 1.0, 2.0, 2.0]
  )


@pytest.mark.parametrize('quadrants', [False, True])
def test_layer_equals_a_kernel_made_for_each_example(quadrants):
  x = normal(3, 5, 4, 6)
  layer = layers.DynamicConv(8, latent=3, squeeze=4, quadrants=quadrants)
  variables = randomized(layer.init(KEY, x))
  p = jax.tree.map(np.asarray, variables['params'])
  hard = lambda z: np.clip(z + 3, 0, 6) / 3
  summary = layers.quadrant_means(x) if quadrants else x.mean((1, 2))
  y = np.asarray(summary) @ p['context']['squeeze']['kernel']
  y = y * hard(y @ p['context']['gate']['kernel'])
  scale = hard(y @ p['scale']['kernel'])
  phi = (y @ p['phi']['kernel']).reshape(-1, 3, 3)
  static, q, into = (p[name]['kernel'][0, 0] for name in ('conv', 'q', 'p'))
  for i in range(len(x)):
    kernel = static * scale[i] + q @ (np.eye(3) + phi[i]).T @ into
    got = layer.apply(variables, x[i : i + 1])[0]
    np.testing.assert_allclose(got, x[i] @ kernel, rtol=1e-3, atol=1e-3)


def test_example_is_not_changed_by_its_batch():
  x = normal(4, 6, 6, 5)
  layer = layers.DynamicConv(7, 3, 2, latent=4)
  variables = randomized(layer.init(KEY, x))
  apply = jax.jit(layer.apply)
  whole, part = apply(variables, x), apply(variables, x[2:3])
  np.testing.assert_allclose(whole[2:3], part, rtol=1e-4, atol=1e-4)


def test_stride_is_that_of_both_paths():
  layer = layers.DynamicConv(7, 3, 2, latent=4)
  y, _ = jax.eval_shape(
    lambda: layer.init_with_output(KEY, jnp.zeros((1, 9, 8, 5)))
  )
  assert y.shape == (1, 5, 4, 7)


# Sizes.


@pytest.mark.parametrize('width', [0.1, 0.35, 0.5, 0.75, 1.0, 1.4])
def test_latent_width_of_mobile_layers_is_bounded(width):
  module = dcd.DcdMobileNetV2(width=width)
  channels = module.channels(32)
  for expansion, features, _ in module.plan():
    for before, after in (
      (channels, expansion * channels),
      (expansion * channels, features),
    ):
      sizes = dcd.mobile_sizes(before, after, 16)
      seen = before * (4 if sizes['quadrants'] else 1)
      assert sizes['quadrants'] == (before < after)
      assert sizes['latent'] == 4 or sizes['latent'] ** 2 <= 2 * seen
      assert sizes['squeeze'] >= 4
    channels = features


def test_maps_of_mobilenet_are_a_resolution_each():
  maps = jax.eval_shape(
    lambda: dcd.DcdMobileNetV2(features_only=True).init_with_output(
      KEY, jnp.zeros((1, 64, 64, 3))
    )[0]
  )
  assert [x.shape[1:] for x in maps.values()] == [
    (32, 32, 16),
    (16, 16, 24),
    (8, 8, 32),
    (4, 4, 96),
    (2, 2, 320),
  ]


# The networks, small.


@functools.cache
def small(**options):
  built = build_model(
    'resnet18_dcd', num_classes=5, image_size=32, depths=(1, 1), width=16,
    **options,
  )  # fmt: skip
  variables = jax.jit(built.module.init)(KEY, jnp.zeros((1, 32, 32, 3)))
  return built, variables


def test_classifier_is_read_from_either_place_of_the_sequence():
  built, variables = small()
  state_dict = built.export(variables)
  moved = {
    name.replace('classifier.0.', 'classifier.1.'): x
    for name, x in state_dict.items()
  }
  assert moved.keys() != state_dict.keys()
  want = layout.flatten(built.convert(state_dict))
  for path, x in layout.flatten(built.convert(moved)).items():
    np.testing.assert_array_equal(x, want.pop(path), err_msg=path)
  assert not want
  after_dropout = build_model(
    'resnet18_dcd', num_classes=5, depths=(1, 1), width=16, dropout=0.1
  )
  assert after_dropout.export(variables).keys() == moved.keys()


def test_networks_without_classes_leave_the_classifier_unread():
  built, variables = small()
  bare = build_model(
    'resnet18_dcd', num_classes=0, image_size=32, depths=(1, 1), width=16
  )
  paths = layout.flatten(bare.convert(built.export(variables)))
  assert paths and not [p for p in paths if '/head/' in p or '/latent/' in p]


def test_dropout_is_of_training_alone():
  built, variables = small()
  module = built.module.clone(dropout=0.5)
  vector = normal(2, 32)
  classify = lambda seed, train: module.apply(
    variables,
    vector,
    train,
    method='classify',
    mutable=['batch_stats'],
    rngs={'dropout': jax.random.key(seed)},
  )[0]
  assert np.ptp(np.stack([classify(0, True), classify(1, True)]), 0).max() > 0
  np.testing.assert_array_equal(classify(0, False), classify(1, False))


def test_rematerialised_blocks_compute_the_same():
  built, variables = small()
  image = normal(2, 32, 32, 3)

  def value(module):
    loss = lambda params: jnp.sum(
      module.apply({**variables, 'params': params}, image) ** 2
    )
    return jax.jit(jax.value_and_grad(loss))(variables['params'])

  want, grads = value(built.module)
  got, again = value(built.module.clone(remat='full'))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (grads, again)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(a).max())


# Its recipe.


def test_smoothing_spreads_over_the_other_classes():
  targets = losses.spread_targets(jnp.array([2, 0]), 5, 0.1)
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(targets[0], [0.025] * 2 + [0.9] + [0.025] * 2)


def test_mixup_comes_in_over_the_epochs():
  alphas = losses.ramped_alpha(jnp.array([0.0, 25.0, 100.0, 300.0]))
  np.testing.assert_allclose(alphas, [0.0, 0.05, 0.2, 0.2], rtol=1e-6)
  share = jax.jit(losses.mixup_share)
  assert share(KEY, 0.0) == 1
  keys = jax.random.split(KEY, 200)
  shares = jax.vmap(share, (0, None))(keys, 0.2)
  assert jnp.isfinite(shares).all() and shares.min() < 0.1 < 0.9 < shares.max()


def test_small_stem_keeps_the_size_of_small_images():
  options = dict(depths=(1, 1), width=8, small_stem=True, features_only=True)
  module = build_model(
    'resnet18_dcd', num_classes=3, image_size=16, **options
  ).module
  image = jax.ShapeDtypeStruct((2, 16, 16, 3), jnp.float32)
  maps, variables = jax.eval_shape(
    lambda x: module.init_with_output(KEY, x), image
  )
  assert [maps[name].shape[1] for name in ('stage1', 'stage2')] == [16, 8]
  assert variables['params']['stem_conv']['kernel'].shape == (3, 3, 3, 8)
