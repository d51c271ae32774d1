"""The convolutional stem: its variants, names, norms, and the study's metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import conv_stem
from jaxzoo.models.backbones.conv_stem import ConvStem, InstanceBatchNorm
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.token_metrics import (
  similarity_to_mean,
  token_similarity,
)
from jaxzoo.weights import layout

TINY = dict(
  width=12,
  depth=2,
  num_heads=3,
  patch_size=8,
  num_classes=5,
  image_size=16,
  hidden=6,
)
IMAGE = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
KEY = jax.random.key(0)


def tiny(**fields):
  return build_model('conv_stem_deit_tiny_patch16_224', **{**TINY, **fields})


def init(built):
  """Random variables, without compiling what would make them."""
  shapes = jax.eval_shape(built.module.init, KEY, IMAGE)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32) / 4
  return {
    name: jax.tree.map(draw if name == 'params' else abs_of(draw), tree)
    for name, tree in shapes.items()
  }


def abs_of(draw):
  return lambda x: np.abs(draw(x)) + 0.1


def stem_names(built):
  names = built.export(init(built))
  return {
    name.removeprefix('patch_embed.')
    for name in names
    if name.startswith('patch_embed.')
  }


CONVOLUTIONS = {'conv.0.weight', 'conv.3.weight', 'conv.6.weight'}
PROJECTION = {'proj.weight', 'proj.bias'}
LEAVES = ('weight', 'bias', 'running_mean', 'running_var')


def batch_norms(*names):
  return {f'conv.{name}.{leaf}' for name in names for leaf in LEAVES}


@pytest.mark.parametrize(
  ('fields', 'norms'),
  [
    (dict(stem='V1'), set()),
    (dict(stem='V2'), batch_norms(1, 4, 7)),
    (dict(stem='V3'), set()),
    (dict(stem='V4'), batch_norms(1, 4, 7)),
    (
      dict(norm='layer', activation='gelu'),
      {f'conv.{i}.{leaf}' for i in (1, 4, 7) for leaf in LEAVES[:2]},
    ),
    (
      dict(norm='instance_batch'),
      batch_norms('1.BN', '4.BN', 7)
      | {f'conv.{i}.IN.{leaf}' for i in (1, 4) for leaf in LEAVES[:2]},
    ),
  ],
)
def test_names_of_absent_layers_are_left_out_and_the_others_keep_theirs(
  fields, norms
):
  assert stem_names(tiny(**fields)) == CONVOLUTIONS | PROJECTION | norms


def test_variant_without_convolutions_is_the_host():
  built = tiny(stem='V0')
  fields = {name: x for name, x in TINY.items() if name != 'hidden'}
  host = build_model('deit_tiny_patch16_224', **fields)
  variables = init(host)
  got = built.export(built.convert(host.export(variables)))
  assert sorted(got) == sorted(host.export(variables))
  assert type(built.module) is type(host.module)
  assert built.module.stem is host.module.stem


@pytest.mark.parametrize(
  ('width', 'count'), [(192, 870_144), (384, 1_656_768), (768, 3_230_016)]
)
def test_stem_has_the_published_number_of_parameters(width, count):
  params = jax.eval_shape(
    lambda: ConvStem(width).init(KEY, jnp.zeros((1, 32, 32, 3)))
  )['params']
  assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) == count


def test_convolutions_alone_are_linear_and_activations_are_not():
  image = IMAGE

  def bend(stem):
    built = tiny(stem=stem)
    variables = init(built)
    patches = jax.jit(
      lambda x: built.module.apply(variables, x, method='patches')
    )
    zero = patches(0 * image)
    change = patches(-image) + patches(image) - 2 * zero
    return np.abs(change).max() / np.abs(zero - patches(image)).max()

  assert bend('V1') < 1e-4 and bend('V2') < 1e-4
  assert bend('V3') > 1e-2 and bend('V4') > 1e-2


def test_only_the_batch_half_of_an_image_depends_on_the_other_images():
  x = np.random.default_rng(0).normal(2, 3, (3, 4, 5, 6)).astype(np.float32)
  module = InstanceBatchNorm()
  variables = module.init(KEY, x)
  run = lambda x: module.apply(variables, x, True, mutable=['batch_stats'])
  got, updated = run(x)
  alone, _ = run(x[:1])
  np.testing.assert_allclose(alone[0, ..., :3], got[0, ..., :3], atol=1e-5)
  assert np.abs(alone[0, ..., 3:] - got[0, ..., 3:]).max() > 0.1
  half = np.asarray(got[..., :3])
  np.testing.assert_allclose(half.mean((1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(half.var((1, 2)), 1, atol=1e-3)
  np.testing.assert_allclose(got[..., 3:].mean((0, 1, 2)), 0, atol=1e-5)
  assert updated['batch_stats']['batch']['mean'].shape == (3,)
  # After training the instance half still has the statistics of the image.
  calm = module.apply(variables, x)
  np.testing.assert_allclose(calm[..., :3], half, atol=1e-5)
  np.testing.assert_allclose(calm[..., 3:], x[..., 3:], rtol=1e-4)


def test_training_updates_the_statistics_of_the_stem():
  built = tiny()
  variables = init(built)
  _, updated = built.module.apply(
    variables, IMAGE, True, method='patches', mutable=['batch_stats']
  )
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    updated['batch_stats'],
    variables['batch_stats'],
  )
  assert all(x > 0 for x in jax.tree.leaves(moved))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(stem='V5'), 'V4'),
    (dict(norm='bach'), 'batch'),
    (dict(activation='rely'), 'relu'),
    (dict(stem='V0', norm='batch'), 'V0'),
    (dict(image_size=(16, 12)), '16x8|16x16'),
  ],
)
def test_stems_that_there_are_not_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    tiny(**fields)


# The study's metrics.


def test_token_similarity_is_the_mean_over_all_pairs():
  tokens = np.random.default_rng(0).normal(1, 1, (3, 5, 4)).astype(np.float32)
  unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
  cosines = unit @ unit.swapaxes(1, 2)
  pairs = cosines[:, ~np.eye(5, dtype=bool)]
  np.testing.assert_allclose(token_similarity(tokens), pairs.mean(), rtol=1e-5)
  mean = tokens.mean(1, keepdims=True)
  cosine = (unit * mean / np.linalg.norm(mean, axis=-1, keepdims=True)).sum(-1)
  np.testing.assert_allclose(
    similarity_to_mean(tokens), cosine.mean(), rtol=1e-5
  )


def test_tokens_that_are_one_are_alike_and_opposite_ones_are_not():
  same = np.ones((2, 6, 3)) * np.arange(1, 7)[:, None]
  np.testing.assert_allclose(token_similarity(same), 1, rtol=1e-6)
  np.testing.assert_allclose(similarity_to_mean(same), 1, rtol=1e-6)
  np.testing.assert_allclose(
    token_similarity(np.array([[1.0, 0], [-1, 0]])), -1, rtol=1e-6
  )


@pytest.mark.parametrize('scan', [False, True])
def test_similarities_are_those_of_the_patches_after_each_block(scan):
  built = tiny(scan=scan)
  variables = init(built)
  got = conv_stem.token_similarities(built.module, variables, IMAGE)
  every = built.module.apply(variables, IMAGE, method='every_block')
  want = [token_similarity(tokens[:, 1:]) for tokens in every]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  assert got.shape == (2,)


def test_gradient_norm_is_that_of_the_stem_alone():
  # Any tree of the parameters' shape will do for gradients.
  grads = init(tiny())['params']
  leaves = layout.flatten(grads['patch_embed']).values()
  want = np.sqrt(sum(np.sum(np.square(x)) for x in leaves))
  got = conv_stem.stem_gradient_norm(grads)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  whole = conv_stem.stem_gradient_norm({'student': grads})
  np.testing.assert_allclose(whole, want, rtol=1e-5)
  with pytest.raises(ValueError, match='other'):
    conv_stem.stem_gradient_norm(grads, 'other')
