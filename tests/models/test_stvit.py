"""STViT: pooling, neighbourhoods and masks against their definitions, and what
the two forms and the plain network promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import stvit_block as block
from jaxzoo.models.backbones.stvit import SemanticStage
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.weights import layout

TINY = dict(width=8, depths=(2, 2, 6, 2), num_heads=(1, 1, 2, 2))
DEIT = dict(width=8, num_heads=2, depth=5, base_blocks=2)
# Rates of the stochastic depth of two units.
UNITS = ((0.5,) * 6, (0.9,) * 6)
OPTIONS = dict(use_global=True, relative_pos=True, shortcut=True)
# Both sides of the map short of whole windows, either, none, and one window.
SIZES = [(12, 17), (14, 10), (9, 14), (14, 14), (5, 6)]
each_size = pytest.mark.parametrize('size', SIZES)
each_mask = pytest.mark.parametrize('mask', block.MASKS)


def key(seed):
  return jax.random.key(seed)


def normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tiny(**fields):
  fields = {'image_size': 224, 'num_classes': 5, **TINY, **fields}
  return build_model('stvit_r_swin_tiny', **fields)


def deit(**fields):
  fields = {'image_size': 112, 'num_classes': 5, **DEIT, **fields}
  return build_model('stvit_deit_tiny', **fields)


def shapes_of(built):
  return jax.eval_shape(
    lambda: built.module.init(
      key(0), *(jnp.zeros(x.shape) for x in built.inputs)
    )
  )


def variables_of(built, seed=0):
  # Variances are positive.
  return jax.tree.map(
    lambda x: np.abs(normal(x.shape, seed)) / 2 + 0.1, shapes_of(built)
  )


@pytest.mark.parametrize(('side', 'count'), [(7, 3), (14, 4), (9, 4), (6, 3)])
def test_adaptive_pool_takes_maxima_of_overlapping_parts(side, count):
  x = normal((2, side, side, 3))
  got = block.adaptive_max_pool(x, count)
  ends = [
    (int(np.floor(i * side / count)), int(np.ceil((i + 1) * side / count)))
    for i in range(count)
  ]
  for i, (a, b) in enumerate(ends):
    for j, (c, d) in enumerate(ends):
      np.testing.assert_array_equal(got[:, i, j], x[:, a:b, c:d].max((1, 2)))


def test_neighbourhoods_are_cut_row_by_row():
  x = normal((2, 14, 10, 3))
  got = block.neighbourhoods(jnp.asarray(x), 6, 4)
  want = [
    x[:, i : i + 6, j : j + 6].reshape(2, 36, 3)
    for i in (0, 4, 8)
    for j in (0, 4)
  ]
  np.testing.assert_array_equal(got, np.stack(want, 1))
  np.testing.assert_array_equal(block.neighbourhoods(x, 6, 4), got)


def hidden(size, shape, mask, margin, real):
  """What is added to the logits of a grid of keys with its margins."""
  filled = [-side % block.WINDOW for side in size]
  if mask == 'none':
    return np.zeros([side + sum(margin) for side in shape])
  if mask == 'published':
    inner = np.zeros(shape)
    inner[-filled[0] :, -filled[1] :] = -1000
  else:
    inner = np.where(real, 0, -1000)
  return np.pad(inner, (margin, margin), constant_values=-1000)


def attended(q, k, v, logits_added):
  logits = np.einsum('qhd,khd->hqk', q, k) / np.sqrt(q.shape[-1])
  logits = logits.astype(np.float64) + logits_added
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum('hqk,khd->qhd', weights, v)


def filled_to_windows(size):
  return tuple(side + -side % block.WINDOW for side in size)


@each_size
@each_mask
@pytest.mark.parametrize('plan', [block.NEAR, block.FAR])
def test_tokens_see_the_surroundings_of_their_window(size, mask, plan):
  side, before, after = plan
  rows, columns = filled_to_windows(size)
  around = (rows + before + after, columns + before + after)
  count = rows * columns // block.WINDOW**2
  q = normal((1, 9 * count, 2, 4))
  k, v = (normal((1, around[0] * around[1], 2, 4), i) for i in (1, 2))
  grid, outside = block.seen_places(size, mask)
  margins = ((before, after), (before, after))
  seen = block.seen_around(grid, outside, margins, side, block.WINDOW)
  attend = functools.partial(
    block.around_windows, size=around, side=side, step=block.WINDOW, seen=seen
  )
  got = np.asarray(jax.jit(attend)(q, k, v))
  real = (np.arange(rows) < size[0])[:, None] & (np.arange(columns) < size[1])
  added = hidden(size, (rows, columns), mask, (before, after), real)
  k, v = (x.reshape(*around, 2, 4) for x in (k, v))
  window = 0
  for i in range(0, rows, block.WINDOW):
    for j in range(0, columns, block.WINDOW):
      place = np.s_[i : i + side, j : j + side]
      flat = lambda x, place=place: x[place].reshape(-1, 2, 4)
      own = np.s_[9 * window : 9 * window + 9]
      want = attended(q[0, own], flat(k), flat(v), added[place].reshape(-1))
      np.testing.assert_allclose(got[0, own], want, rtol=1e-3, atol=1e-4)
      window += 1


@each_size
@each_mask
def test_places_recover_from_the_tokens_of_windows_around(size, mask):
  rows, columns = (3 * side // 7 for side in filled_to_windows(size))
  tokens, margin, side = rows * columns, (12, 12), 27
  q = normal((1, size[0] * size[1], 2, 4))
  # The keys and values that zeros have come after those of all tokens.
  k, v = (normal((1, tokens + 1, 2, 4), i) for i in (1, 2))
  seen, bias = block.recovery_mask(size, mask)
  n = tokens if bias is None else tokens + 1
  attend = lambda *qkv: dot_product_attention(*qkv, seen, bias)
  got = np.asarray(jax.jit(attend)(q, k[:, :n], v[:, :n]))[0].reshape(
    *size, 2, 4
  )

  order = block.by_windows(np.arange(tokens).reshape(rows, columns))
  position = np.argsort(order).reshape(rows, columns)
  position = np.pad(position, (margin, margin), constant_values=tokens)
  # A token is real where its part of the window begins within the map.
  starts = lambda n: np.array([7 * (i // 3) + 2 * (i % 3) for i in range(n)])
  real = (starts(rows) < size[0])[:, None] & (starts(columns) < size[1])
  added = hidden(size, (rows, columns), mask, margin, real)
  for i in range(0, rows, 3):
    for j in range(0, columns, 3):
      place = np.s_[i : i + side, j : j + side]
      at = position[place].reshape(-1)
      own = np.s_[7 * i // 3 : 7 * i // 3 + 7, 7 * j // 3 : 7 * j // 3 + 7]
      queries = q[0].reshape(*size, 2, 4)[own]
      want = attended(
        queries.reshape(-1, 2, 4), k[0, at], v[0, at], added[place].reshape(-1)
      )
      np.testing.assert_allclose(
        got[own], want.reshape(queries.shape), rtol=1e-3, atol=1e-4
      )


def test_place_does_not_recover_from_windows_that_are_too_far():
  seen, bias = block.recovery_mask((7, 49), 'clean')
  assert bias is None
  # Of seven windows in a row the first one sees those up to the fifth.
  by_window = np.asarray(seen).reshape(7, 49, 7, 9).any((0, 3))
  np.testing.assert_array_equal(by_window[0], [True] * 5 + [False] * 2)
  np.testing.assert_array_equal(by_window[24], True)


def test_everything_in_reach_needs_no_mask():
  assert block.recovery_mask((28, 35), 'clean') == (None, None)


@pytest.mark.parametrize(('dense', 'size'), [(False, (14, 14)), (True, (5, 9))])
def test_scanned_and_rematerialised_units_give_the_same(dense, size):
  x = normal((2, *size, 8))
  plain = SemanticStage(2, dense)
  scanned = SemanticStage(2, dense, scan=True, remat='full')
  like = jax.eval_shape(lambda: scanned.init(key(0), x, UNITS))
  assert list(like['params']) == ['blocks']
  stacked = jax.tree.map(lambda x: normal(x.shape), like)
  want = jax.jit(plain.apply)(layout.unstack_blocks(stacked), x, UNITS)
  apply = jax.jit(scanned.apply, static_argnums=(2, 3))
  np.testing.assert_allclose(
    apply(stacked, x, UNITS, False), want, rtol=1e-4, atol=1e-4
  )
  one, two = (
    apply(stacked, x, UNITS, True, rngs={'dropout': key(i)}) for i in (0, 1)
  )
  assert np.isfinite(one).all()
  assert np.abs(one - two).max() > 1e-3


def test_dense_form_takes_any_size():
  built = tiny(dense=True, features_only=True, image_size=(90, 131))
  maps = jax.eval_shape(
    built.module.apply, shapes_of(built), jnp.zeros((1, 90, 131, 3))
  )
  assert [x.shape for x in maps.values()] == [
    (1, 23, 33, 8),
    (1, 12, 17, 16),
    (1, 6, 9, 32),
    (1, 3, 5, 64),
  ]


def test_number_of_parameters_of_the_dense_form_is_the_published_one():
  built = build_model(
    'stvit_r_swin_tiny', dense=True, features_only=True, image_size=64
  )
  params = jax.tree.leaves(shapes_of(built)['params'])
  assert sum(x.size for x in params) == 27552558


def test_weights_of_a_classifier_fit_the_dense_form_but_for_norms_of_maps():
  classifier, dense = tiny(), tiny(dense=True, image_size=64)
  variables = variables_of(classifier)
  loaded = layout.flatten(dense.convert(classifier.export(variables)))
  lacking = set(layout.flatten(shapes_of(dense))) - set(loaded)
  assert {path.split('/')[1] for path in lacking} == {'norm1', 'norm2', 'norm3'}
  # And back: as a detector keeps them, beside its heads.
  theirs = {
    f'backbone.{name}': x
    for name, x in dense.export(variables_of(dense)).items()
  }
  loaded = classifier.convert({**theirs, 'rpn_head.weight': np.zeros(3)})
  assert set(layout.flatten(loaded)) == set(layout.flatten(variables))


def test_weights_of_the_options_go_both_ways():
  built = tiny(**OPTIONS)
  variables = variables_of(built)
  state_dict = built.export(variables)
  assert state_dict['layers.2.semantic_token2'].shape == (1, 36, 32)
  tables = [k for k in state_dict if 'blocks.4.attn.relative' in k]
  assert state_dict[tables[0]].shape == (121, 2)
  jax.tree.map(
    np.testing.assert_array_equal, built.convert(state_dict), variables
  )


def test_learned_token_belongs_to_a_place_of_the_grid():
  # By windows: the fourth place of the first row is the second window's first.
  order = block.by_windows(np.arange(36).reshape(6, 6))
  np.testing.assert_array_equal(order[:4], [0, 1, 2, 6])
  np.testing.assert_array_equal(order[9:12], [3, 4, 5])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(image_size=256), 'images of 224 x 224, got 256 x 256.*dense=True'),
    (dict(mask='claen'), "mask='claen'.*clean"),
    (dict(depths=(2, 2, 8, 2)), 'stage 3 must be a multiple of 6'),
    (dict(depths=(2, 3, 6, 2)), 'stage 2 must be a multiple of 2'),
    (dict(window=8), 'windows of 7'),
    (dict(dense=True, use_global=True), 'use_global=True'),
    (dict(dense=True, relative_pos=True), 'relative_pos=True'),
  ],
)
def test_fields_that_do_not_go_together_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    tiny(**fields)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_scanned_blocks_of_the_plain_network_give_the_same(remat):
  built, scanned = deit(depth=8), deit(depth=8, scan=True, remat=remat)
  variables, image = variables_of(built), normal((2, 112, 112, 3))
  stacked = layout.to_layout(variables, shapes_of(scanned))
  want = jax.jit(built.module.apply)(variables, image)
  got = jax.jit(scanned.module.apply)(stacked, image)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_plain_network_goes_on_with_the_tokens_alone():
  maps = jax.eval_shape(
    deit(features_only=True).module.apply,
    shapes_of(deit(features_only=True)),
    jnp.zeros((2, 112, 112, 3)),
  )
  assert [x.shape for x in maps.values()] == [(2, 7, 7, 8), (2, 4, 4, 8)]


def test_positions_are_resized_to_the_images():
  state_dict = deit().export(variables_of(deit()))
  wide = deit(image_size=(96, 160)).convert(state_dict)
  assert wide['params']['positions'].shape == (60, 8)
  same = deit().convert(state_dict)
  np.testing.assert_array_equal(
    same['params']['positions'], state_dict['pos_embed'][0]
  )


def test_images_of_other_patches_are_errors():
  with pytest.raises(UserError, match='multiples of 16'):
    deit(image_size=100)
  with pytest.raises(UserError, match='made for 112 x 112'):
    jax.eval_shape(
      deit().module.apply, shapes_of(deit()), jnp.zeros((1, 128, 128, 3))
    )
  with pytest.raises(UserError, match='no room'):
    deit(depth=3)
