"""LightViT: what its windows, its global tokens and its dense form promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import lightvit, lightvit_block
from jaxzoo.models.backbones.lightvit_block import Tokens
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.weights import layout
from jaxzoo.weights.merge import merge

# Windows of 2: whole in every stage from 64 pixels.
TINY = dict(
  dims=(8, 16, 16),
  depths=(1, 2, 2),
  heads=(1, 2, 2),
  num_tokens=3,
  window=2,
  neck_dim=12,
)


def tiny(**fields):
  return build_model(
    'lightvit_tiny', image_size=64, num_classes=5, **{**TINY, **fields}
  )


def normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(built, seed=0):
  shapes = jax.eval_shape(
    lambda: built.module.init(
      jax.random.key(0), *(jnp.zeros(x.shape) for x in built.inputs)
    )
  )
  # Variances are positive.
  return jax.tree.map(lambda x: np.abs(normal(x.shape, seed)) / 2 + 0.1, shapes)


def attention(glob, image, seed=0, **zeroed):
  """The attention of a block with random weights, those in `zeroed` 0."""
  module = lightvit_block.Attention(2, 2)
  x = Tokens(glob, image)
  shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
  params = jax.tree.map(lambda x: normal(x.shape, seed), shapes)
  for name in zeroed:
    params['params'][name] = jax.tree.map(np.zeros_like, params['params'][name])
  return jax.jit(module.apply)(params, x)


def test_windows_meet_only_through_the_global_tokens():
  glob, image = normal((1, 3, 8)), normal((1, 4, 4, 8), 1)
  other = image.copy()
  other[0, :2, :2] += 1
  parted = [attention(glob, x, global_value=True).image for x in (image, other)]
  same = np.isclose(*parted, atol=1e-6).all((0, 3))
  np.testing.assert_array_equal(same[:2, :2], False)
  np.testing.assert_array_equal(same[2:], True)
  np.testing.assert_array_equal(same[:2, 2:], True)
  joined = [attention(glob, x).image for x in (image, other)]
  assert not np.isclose(*joined, atol=1e-6).all((0, 3))[3, 3]


def test_global_tokens_do_not_see_what_fills_up_the_windows():
  glob, image = normal((1, 3, 8)), normal((1, 3, 5, 8), 1)
  module = lightvit_block.Attention(2, 2)
  filled = jnp.pad(image, ((0, 0), (0, 1), (0, 1), (0, 0)))
  got, seeing = (attention(glob, x) for x in (image, filled))
  assert got.image.shape == image.shape
  assert np.abs(got.glob - seeing.glob).max() > 1e-3
  # Order is nothing to them: the gathering over the map without its windows.
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), Tokens(glob, image))
  )
  params = jax.tree.map(lambda x: normal(x.shape), shapes)['params']
  project = lambda name, x: (
    jnp.einsum('bnc,chd->bnhd', x, params[name]['kernel'])
    + params[name]['bias']
  )
  flat = image.reshape(1, 15, 8)
  logits = jnp.einsum(
    'bqhd,bkhd->bhqk', project('query', glob), project('key', flat)
  )
  weights = jax.nn.softmax(logits / np.sqrt(4))
  gathered = jnp.einsum('bhqk,bkhd->bqhd', weights, project('value', flat))
  want = jnp.einsum('bqhd,hdc->bqc', gathered, params['out']['kernel'])
  np.testing.assert_allclose(
    got.glob, want + params['out']['bias'], rtol=1e-4, atol=1e-4
  )


def test_order_of_the_global_tokens_is_their_own_affair():
  glob, image = normal((2, 3, 8)), normal((2, 4, 4, 8), 1)
  order = np.array([2, 0, 1])
  straight, turned = attention(glob, image), attention(glob[:, order], image)
  np.testing.assert_allclose(
    turned.glob, straight.glob[:, order], rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(turned.image, straight.image, rtol=1e-5, atol=1e-5)


def test_gate_is_that_of_one_sequence_of_both_kinds():
  y = Tokens(normal((2, 3, 8)), normal((2, 4, 4, 8), 1))
  gate = lightvit_block.Gate()
  params = jax.tree.map(
    lambda x: normal(x.shape), gate.init(jax.random.key(0), y)
  )
  got = jax.jit(gate.apply)(params, y)
  # All tokens as a map of one column, none global.
  one = np.concatenate([y.glob, y.image.reshape(2, 16, 8)], 1)[:, :, None]
  want = jax.jit(gate.apply)(params, Tokens(None, one)).image[:, :, 0]
  np.testing.assert_allclose(got.glob, want[:, :3], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    got.image.reshape(2, 16, 8), want[:, 3:], rtol=1e-5, atol=1e-6
  )


def test_merging_takes_rows_before_columns():
  merging = lightvit.Merging(8)
  x = Tokens(np.zeros((1, 1, 2), np.float32), normal((1, 3, 3, 2)))
  params = merging.init(jax.random.key(0), x)
  params = jax.tree.map(np.zeros_like, params)
  params['params']['norm']['scale'] = np.ones(8, np.float32)
  params['params']['reduction']['kernel'] = np.eye(8, dtype=np.float32)
  got = merging.apply(params, x).image
  assert got.shape == (1, 2, 2, 8)
  four = [x.image[0, r, c] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
  want = np.concatenate(four)
  want = (want - want.mean()) / np.sqrt(want.var() + 1e-5)
  np.testing.assert_allclose(got[0, 0, 0], want, rtol=1e-5, atol=1e-5)
  # The zeros that fill up an odd side are part of the maximum.
  params['params']['norm']['scale'] = np.zeros(8, np.float32)
  params['params']['pool_proj']['kernel'] = np.eye(2, 8, dtype=np.float32)
  got = merging.apply(params, x).image
  want = np.maximum(x.image[0, 2, 2], 0)
  np.testing.assert_allclose(got[0, 1, 1, :2], want)


def test_drop_path_drops_both_kinds_of_an_example_or_none():
  ones = Tokens(jnp.ones((64, 3, 2)), jnp.ones((64, 2, 2, 2)))
  glob, image = DropPath(0.5).apply({}, ones, True, rngs={'dropout': key(1)})
  by_example = np.asarray(glob)[:, 0, 0]
  assert set(by_example) == {0.0, 2.0}
  np.testing.assert_array_equal(glob, by_example[:, None, None] * ones.glob)
  np.testing.assert_array_equal(
    image, by_example[:, None, None, None] * ones.image
  )


def key(seed):
  return jax.random.key(seed)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'full'])
def test_scanned_and_rematerialised_blocks_give_the_same(remat):
  built, scanned = (
    tiny(drop_path=0.2),
    tiny(drop_path=0.2, scan=True, remat=remat),
  )
  variables, image = variables_of(built), normal((2, 64, 64, 3))
  like = jax.eval_shape(lambda: scanned.module.init(key(0), image))
  stacked = layout.to_layout(variables, like)
  got = jax.jit(scanned.module.apply)(stacked, image)
  want = jax.jit(built.module.apply)(variables, image)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
  train = lambda module, variables: module.apply(
    variables, image, True, rngs={'dropout': key(0)}, mutable=['batch_stats']
  )
  logits, _ = jax.jit(lambda v: train(scanned.module, v))(stacked)
  assert np.isfinite(logits).all()


def test_dense_form_takes_any_size():
  built = tiny(dense=True, features_only=True)
  maps = jax.jit(built.module.apply)(
    variables_of(built), normal((1, 72, 101, 3))
  )
  assert [x.shape for x in maps.values()] == [
    (1, 9, 13, 8),
    (1, 5, 7, 16),
    (1, 3, 4, 16),
  ]
  assert all(np.isfinite(x).all() for x in maps.values())


def test_dense_form_goes_both_ways_under_its_names():
  built = tiny(dense=True, features_only=True)
  variables = variables_of(built)
  state_dict = built.export(variables)
  assert {f'norm{i}.weight' for i in range(3)} < set(state_dict)
  assert not [k for k in state_dict if k.startswith(('norm.', 'neck', 'head'))]
  jax.tree.map(
    np.testing.assert_array_equal, built.convert(state_dict), variables
  )


def test_weights_of_a_classifier_fit_the_dense_form_but_for_its_norms():
  built, dense = tiny(), tiny(dense=True, features_only=True)
  loaded = dense.convert(built.export(variables_of(built)))
  _, report = merge(variables_of(dense), loaded, fresh=['stage._norm/'])
  assert {path.split('/')[1] for path in report.fresh} == {
    'stage1_norm',
    'stage2_norm',
    'stage3_norm',
  }


def test_number_of_parameters_of_the_dense_form_is_the_published_one():
  built = build_model('lightvit_tiny', dense=True, features_only=True)
  shapes = jax.eval_shape(
    lambda: built.module.init(key(0), jnp.zeros((1, 64, 64, 3)))
  )
  assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == 7765562


def test_size_that_makes_no_whole_windows_is_an_error():
  built = tiny()
  with pytest.raises(UserError, match='multiples of 64.*resize to 128 x 64'):
    jax.eval_shape(lambda: built.module.init(key(0), jnp.zeros((1, 72, 64, 3))))


def test_dense_form_with_a_classifier_is_an_error():
  with pytest.raises(UserError, match='features_only=True'):
    tiny(dense=True)
