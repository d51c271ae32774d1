"""Windows and their constants; Swin's blocks, spellings and tables."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_retrieval import filled

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import swin, swin_names
from jaxzoo.models.create import build_model
from jaxzoo.models.layers import windows
from jaxzoo.weights import layout
from jaxzoo.weights.merge import merge

TINY = dict(
  width=8,
  depths=(4, 2),
  num_heads=(1, 2),
  window=4,
  num_classes=3,
  drop_path=0.0,
)
STAGE = dict(depths=(4,), num_heads=(1,))


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def tiny(image_size=32, **options):
  return build_model('swin_tiny', image_size=image_size, **{**TINY, **options})


@functools.cache
def variables(**options):
  built = tiny(**options)
  return filled(
    jax.eval_shape(
      lambda: built.module.init(
        jax.random.key(0), jnp.zeros(built.inputs[0].shape)
      )
    )
  )


def apply(options, tree, image, *args, **kwargs):
  module = tiny(**options).module
  return jax.jit(lambda tree: module.apply(tree, image, *args, **kwargs))(tree)


# Windows.


@pytest.mark.parametrize('size', [(8, 12), (5, 9), (3, 2)])
@pytest.mark.parametrize('shift', [0, 1, 2])
def test_reverse_undoes_partition(size, shift):
  x = normal(2, *size, 3)
  cut = windows.partition(x, 4, shift)
  assert cut.shape[1:] == (np.prod(windows.padded(size, 4)) // 16, 16, 3)
  np.testing.assert_array_equal(windows.reverse(cut, 4, size, shift), x)


def test_windows_and_their_tokens_are_row_by_row():
  x = np.arange(6 * 4).reshape(1, 6, 4, 1)
  cut = np.asarray(windows.partition(x, 2))[0, :, :, 0]
  for n, (top, left) in enumerate(itertools.product((0, 2, 4), (0, 2))):
    want = x[0, top : top + 2, left : left + 2, 0].reshape(-1)
    np.testing.assert_array_equal(cut[n], want)


def test_index_is_query_minus_key():
  places = list(itertools.product(range(3), repeat=2))
  index = windows.relative_position_index(3)
  for (i, (yi, xi)), (j, (yj, xj)) in itertools.product(
    enumerate(places), repeat=2
  ):
    assert index[i, j] == (yi - yj + 2) * 5 + (xi - xj + 2)


def test_index_of_the_other_sign_counts_from_the_end():
  index = windows.relative_position_index(3)
  other = windows.relative_position_index(3, key_minus_query=True)
  np.testing.assert_array_equal(other, 24 - index)
  np.testing.assert_array_equal(other, index.T)


@pytest.mark.parametrize('size', [(8, 12), (7, 4)])
def test_mask_parts_what_a_roll_has_brought_together(size):
  window, shift = 4, 1
  rows, columns = windows.padded(size, window)
  mask = windows.shift_mask(size, window, shift)
  # Windows that are cut off at the border instead of rolled around it.
  y, x = np.mgrid[:rows, :columns]
  band = lambda place: (place + window - shift) // window
  ids = (band(y) * 100 + band(x))[None, :, :, None]
  ids = np.asarray(windows.partition(ids, window, shift))[0, :, :, 0]
  want = np.where(ids[:, :, None] == ids[:, None, :], 0, windows.MASKED)
  np.testing.assert_array_equal(mask, want)


def test_without_shift_there_is_no_mask():
  assert windows.shift_mask((8, 8), 4, 0) is None


# Blocks.


@pytest.mark.parametrize('shift', [0, 2])
def test_a_token_is_seen_in_its_window_alone(shift):
  block = swin.SwinBlock(2, window=4, shift=shift)
  x = jnp.asarray(normal(1, 8, 8, 4))
  params = filled(jax.eval_shape(block.init, jax.random.key(0), x))
  run = jax.jit(lambda x: block.apply(params, x))
  changed = np.abs(run(x.at[0, 1, 5, 0].add(1.0)) - run(x)).max((0, 3)) > 0
  y, x = np.mgrid[:8, :8]
  band = lambda place: (place + 4 - shift) // 4
  want = (band(y) == band(1)) & (band(x) == band(5))
  np.testing.assert_array_equal(changed, want)


def test_merging_takes_rows_before_columns():
  x = normal(1, 3, 4, 2)
  merging = swin.PatchMerging(5)
  params = filled(jax.eval_shape(merging.init, jax.random.key(0), x))
  whole = np.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0)))
  parts = [whole[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
  leaves = params['params']
  y = nn.LayerNorm(epsilon=1e-5).apply(
    {'params': leaves['norm']}, np.concatenate(parts, -1)
  )
  np.testing.assert_allclose(
    merging.apply(params, x), y @ leaves['reduction']['kernel'], atol=1e-5
  )


@pytest.mark.parametrize(
  'size, fixed, want',
  [
    ((14, 14), False, (7, 3)),
    ((7, 7), False, (7, 0)),
    ((8, 4), False, (4, 0)),
    ((8, 4), True, (7, 3)),
  ],
)
def test_small_maps_are_one_window_unless_windows_are_fixed(size, fixed, want):
  assert swin.fit_window(size, 7, fixed=fixed) == want


# The network.


IMAGE = normal(2, 32, 32, 3)


@functools.cache
def gradient():
  """Of one stage, with its blocks unrolled."""
  return squared(tiny(**STAGE).module, variables(**STAGE))


def squared(module, tree, **rngs):
  """Gradient of sum(logits²) while training, in the tree's own layout."""
  like = jax.eval_shape(module.init, jax.random.key(0), IMAGE)
  loss = lambda tree: jnp.sum(module.apply(tree, IMAGE, True, rngs=rngs) ** 2)
  return jax.jit(jax.grad(loss))(layout.to_layout(tree, like))


@pytest.mark.parametrize('options', [{'scan': True}, {'remat': 'full'}])
def test_layouts_of_the_stack_give_the_same(options):
  got = squared(tiny(**STAGE, **options).module, variables(**STAGE))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3),
    layout.unstack_blocks(got),
    gradient(),
  )


@pytest.mark.parametrize('options', [{}, {'scan': True, 'remat': 'dots'}])
def test_paths_drop_while_training(options):
  module = tiny(**{**STAGE, 'drop_path': 0.9}, **options).module
  got = squared(module, variables(**STAGE), dropout=jax.random.key(1))
  got, still = layout.unstack_blocks(got), gradient()
  differences = [
    np.abs(a - b).max()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(still), strict=True)
  ]
  assert np.isfinite(differences).all()
  assert max(differences) > 1e-2


@pytest.mark.parametrize('fixed', [False, True])
def test_images_of_any_size(fixed):
  module = tiny(fixed_windows=fixed, features_only=True).module
  shapes = jax.eval_shape(
    lambda: module.init_with_output(
      jax.random.key(0), jnp.zeros((1, 37, 50, 3))
    )[0]
  )
  assert shapes['stage1'].shape == (1, 10, 13, 8)
  assert shapes['stage2'].shape == (1, 5, 7, 16)


def test_norms_of_maps_leave_the_last_one_the_classifier_s():
  image, options = normal(1, 32, 32, 3), {'norm_maps': True}
  tree = variables(**options)
  maps, vector = apply(options, tree, image, method='features')
  np.testing.assert_allclose(maps['stage2'].mean((1, 2)), vector, atol=1e-5)
  norm = tree['params']['norm1']
  mean = maps['stage1'] - norm['bias']
  np.testing.assert_allclose(
    (mean / norm['scale']).mean(-1), np.zeros((1, 8, 8)), atol=1e-3
  )
  assert {'norm0.weight', 'norm.weight'} < set(tiny(**options).export(tree))


def test_odd_depths_are_an_error():
  with pytest.raises(UserError, match='even'):
    tiny(depths=(3, 2))


# Names.


def from_places(value):
  """Columns of [.., place c] as [.., c place], 2 row + column as the place."""
  channels = value.shape[-1] // 4
  result = np.empty_like(value)
  for n, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
    for c in range(channels):
      result[..., 4 * c + 2 * row + column] = value[..., n * channels + c]
  return result


def timm(tensors):
  rename = lambda name: name.replace(
    'layers.0.downsample', 'layers.1.downsample'
  ).replace('head.', 'head.fc.')
  return {rename(name): x for name, x in tensors.items()}


def toolbox(tensors):
  renamed = {}
  for name, x in tensors.items():
    if 'downsample' in name:
      x = from_places(x)
    for ours, theirs in (
      ('layers.', 'backbone.stages.'),
      ('attn.', 'attn.w_msa.'),
      ('mlp.fc1', 'ffn.layers.0.0'),
      ('mlp.fc2', 'ffn.layers.1'),
      ('patch_embed.proj', 'backbone.patch_embed.projection'),
      ('patch_embed.norm', 'backbone.patch_embed.norm'),
      ('head.', 'head.fc.'),
    ):
      name = name.replace(ours, theirs)
    if name.startswith('norm.'):
      name = name.replace('norm.', 'backbone.norm1.')
    renamed[name] = x
  return renamed


def encoder(tensors):
  return {f'encoder.{name}': x for name, x in tensors.items()} | {
    'decoder_norm.weight': np.ones(3)
  }


def buffers(tensors):
  return tensors | {
    'layers.0.blocks.0.attn.relative_position_index': np.zeros((16, 16)),
    'layers.0.blocks.1.attn_mask': np.zeros((4, 16, 16)),
  }


@pytest.mark.parametrize('spelling', [timm, toolbox, encoder, buffers])
def test_other_spellings_load_the_same(spelling):
  built, tree = tiny(), variables()
  got = built.convert(spelling(built.export(tree)))
  if spelling is encoder:
    assert got['params'].pop('head')  # what an encoder would not have
    tree = {'params': {k: v for k, v in tree['params'].items() if k != 'head'}}
  merge(tree, got)
  jax.tree.map(np.testing.assert_array_equal, got, tree)


# Tables.


def test_tables_grow_with_the_windows_head_by_head():
  tensors = tiny().export(variables())
  got = tiny(image_size=48, window=6).convert(tensors)
  shapes = jax.tree.map(np.shape, variables(image_size=48, window=6))
  assert jax.tree.map(np.shape, got) == shapes
  name = 'layers.1.blocks.0.attn.relative_position_bias_table'
  tensors[name] = tensors[name] * [1, 0] + [0, 2]
  table = tiny(image_size=48, window=6).convert(tensors)
  table = table['params']['stage2']['block_0']['regular']['position_bias']
  np.testing.assert_allclose(table['table'][:, 1], 2, rtol=1e-6)
  # The middle of the table, no offset at all, stays what it was.
  np.testing.assert_allclose(table['table'][60, 0], tensors[name][24, 0])


def test_table_of_windows_that_are_not_square_is_an_error():
  path = 'params/stage1/block_0/regular/position_bias/table'
  with pytest.raises(UserError, match='no table of square windows'):
    swin_names.resize_tables({path: np.zeros((50, 2))}, [4])
