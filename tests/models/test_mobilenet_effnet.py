"""Inverted residuals and shuffle units: what their blocks promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.backbones import efficientnet, mobile, shufflenetv2
from jaxzoo.models.backbones.mobile import Block
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.models.layers.squeeze_excite import SqueezeExcite
from jaxzoo.weights import layout

# An expansion, a halving, squeeze-and-excitation, a shortcut, no expansion.
BLOCKS = (Block(3, 8, 8), Block(5, 16, 12, 2, 4), Block(3, 24, 12, 1, 4))
SIZES = dict(blocks=BLOCKS, stem_width=8, last_width=16)


def normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tiny(name='mobilenet_v2', **fields):
  return build_model(
    name, image_size=16, num_classes=5, **{**SIZES, 'dropout': 0.0, **fields}
  )


def shapes(built):
  return jax.eval_shape(
    built.module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )


def positive(built):
  """Random variables; variances are positive."""
  return jax.tree.map(
    lambda x: np.abs(normal(x.shape)) / 2 + 0.1, shapes(built)
  )


def test_block_without_expansion_or_with_a_new_shape_lacks_that_part():
  params = shapes(tiny())['params']
  assert 'expand' not in params['stage1_block0']
  parts = {'expand', 'depthwise', 'se', 'project'}
  assert set(params['stage2_block0']) == parts
  # A projection of zeros leaves the input of a block that keeps its shape.
  x = normal((2, 4, 4, 12))
  for plan, silent in ((BLOCKS[2], x), (BLOCKS[2]._replace(stride=2), 0)):
    block = mobile.InvertedResidual(plan)
    variables = jax.jit(block.init)(jax.random.key(0), x)
    scale = variables['params']['project']['bn']['scale']
    variables['params']['project']['bn']['scale'] = jnp.zeros_like(scale)
    got = jax.jit(block.apply)(variables, x)
    np.testing.assert_array_equal(got, np.broadcast_to(silent, got.shape))


def test_drop_path_grows_from_zero_by_the_number_of_the_block():
  blocks = (Block(3, 8, 8),) * 4
  built = tiny(blocks=blocks, drop_path_rate=0.2)
  rates = []

  def note(module, _):
    if isinstance(module, DropPath):
      rates.append(module.rate)
    return False

  jax.eval_shape(
    lambda variables: built.module.apply(
      variables, jnp.zeros((1, 16, 16, 3)), capture_intermediates=note
    ),
    shapes(built),
  )
  np.testing.assert_allclose(rates, [0.0, 0.05, 0.1, 0.15])
  # The published rate is that of EfficientNet alone.
  assert build_model('efficientnet_b0').module.drop_path_rate == 0.2
  assert build_model('mobilenet_v2').module.drop_path_rate == 0


def test_squeeze_excite_sees_all_positions_alike():
  x = normal((2, 3, 4, 6))
  module = SqueezeExcite(3)
  variables = module.init(jax.random.key(0), x)
  order = np.random.default_rng(0).permutation(12)
  moved = x.reshape(2, 12, 6)[:, order].reshape(x.shape)
  want = np.asarray(module.apply(variables, x)).reshape(2, 12, 6)[:, order]
  got = module.apply(variables, moved).reshape(2, 12, 6)
  np.testing.assert_allclose(got, want, atol=1e-6)
  # One weight a channel.
  weight = want / moved.reshape(2, 12, 6)
  np.testing.assert_allclose(weight, weight[:, :1].repeat(12, 1), rtol=1e-4)


def test_mobilenet_v3_moves_its_statistics_by_a_hundredth():
  moved = {}
  for name in ('mobilenet_v3_small', 'mobilenet_v2'):
    built = tiny(name, blocks=BLOCKS[:1], hidden_width=0)
    module, variables = built.module, shapes(built)
    variables = {  # ours to set: means start at 0
      'params': positive(built)['params'],
      'batch_stats': jax.tree.map(
        lambda x: jnp.zeros(x.shape), variables['batch_stats']
      ),
    }
    image = normal((2, 16, 16, 3))
    _, updated = jax.jit(
      lambda v, x, module=module: module.apply(
        v, x, True, mutable=['batch_stats']
      )
    )(variables, image)
    moved[name] = updated['batch_stats']['stem']['bn']['mean']
  np.testing.assert_allclose(
    moved['mobilenet_v3_small'] * 10, moved['mobilenet_v2'], rtol=1e-5
  )


def test_remat_changes_nothing():
  losses = []
  for remat in ('none', 'full'):
    built = tiny(blocks=BLOCKS[:2], remat=remat)
    module, variables = built.module, positive(built)

    def loss(params, module=module, variables=variables):
      logits, _ = module.apply(
        {**variables, 'params': params},
        normal((2, 16, 16, 3)),
        True,
        mutable=['batch_stats'],
      )
      return (logits**2).sum()

    losses.append(jax.jit(jax.value_and_grad(loss))(variables['params']))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *losses
  )


@pytest.mark.parametrize(
  'name', ['mobilenet_v2', 'mobilenet_v3_small', 'efficientnet_b0']
)
def test_other_blocks_have_the_published_names(name):
  fields = {} if name != 'mobilenet_v3_small' else {'hidden_width': 6}
  built = tiny(name, **fields)
  variables = positive(built)
  state_dict = built.export(variables)
  back = built.convert(state_dict)
  got, want = layout.flatten(back), layout.flatten(variables)
  assert set(got) == set(want)
  for path in want:
    np.testing.assert_array_equal(got[path], want[path], err_msg=path)
  part = {'mobilenet_v2': 'features.2.conv.1.0.weight'}.get(
    name, 'features.2.block.1.0.weight'
  )
  if name == 'efficientnet_b0':  # stages of equal width
    assert efficientnet.stages(built.module) == [1, 2]
    part = 'features.2.1.block.1.0.weight'
  assert state_dict[part].shape[1] == 1  # depth-wise


def test_shuffle_takes_channels_of_the_halves_in_turn():
  a, b = np.arange(3), np.arange(3, 6)
  got = shufflenetv2.interleave(jnp.asarray(a), jnp.asarray(b))
  np.testing.assert_array_equal(got, [0, 3, 1, 4, 2, 5])


def test_shuffle_unit_leaves_the_first_half_of_its_input():
  x = normal((2, 4, 4, 8))
  unit = shufflenetv2.ShuffleUnit(8)
  got = unit.apply(unit.init(jax.random.key(0), x), x)
  np.testing.assert_array_equal(got[..., ::2], x[..., :4])
