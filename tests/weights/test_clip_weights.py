"""CLIP checkpoints in every naming and layout give the same parameters."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import clip
from jaxzoo.weights import layout
from jaxzoo.weights.clip import (
  convert_batch_stats,
  convert_clip,
  export_clip,
  token_grid,
  towers_of,
)
from jaxzoo.weights.merge import merge

VIT = clip.Towers('vit', 128, 3, 2, 16, 64, 2, 1, 50, 32)
RESNET = clip.Towers('resnet', 8, (1, 2, 1, 1), 4, 32, 64, 2, 1, 50, 32)
SIZES = dict(image_size=(64, 64), text_length=9)


def variables(towers, scan=False, seed=0):
  """Random everywhere, also where initialisation is constant."""
  model = clip.Clip(towers, scan=scan)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jnp.zeros((1, *SIZES['image_size'], 3)),
    jnp.zeros((1, SIZES['text_length']), jnp.int32),
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), dict(shapes)
  )


def assert_same(got, want):
  got, want = layout.flatten(got), layout.flatten(want)
  assert sorted(got) == sorted(want)
  for path, value in want.items():
    assert got[path].dtype == np.float32
    assert got[path].shape == value.shape, path
    np.testing.assert_array_equal(got[path], value, err_msg=path)


@pytest.mark.parametrize('towers', [VIT, RESNET], ids=['vit', 'resnet'])
@pytest.mark.parametrize('scan', [False, True])
def test_export_and_conversion_are_inverse(towers, scan):
  tree = variables(towers, scan)
  state_dict = export_clip(tree['params'], tree.get('batch_stats'))
  assert_same(convert_clip(state_dict, **SIZES, scan=scan), tree['params'])
  assert_same(convert_batch_stats(state_dict), tree.get('batch_stats', {}))
  again = export_clip(
    convert_clip(state_dict, **SIZES, scan=not scan),
    convert_batch_stats(state_dict),
  )
  assert_same(again, state_dict)


def hugging_face_names(state_dict):
  """OpenAI's names -> those of transformers, by its model's attributes."""
  result = {'text_model.embeddings.position_ids': np.arange(9)[None]}
  towers = {'visual.': 'vision_model.', '': 'text_model.'}
  for name, x in state_dict.items():
    ours = 'visual.' if name.startswith('visual.') else ''
    rest, theirs = name.removeprefix(ours), towers[ours]
    if rest == 'proj' or rest == 'text_projection':
      kind = 'visual' if ours else 'text'
      result[f'{kind}_projection.weight'] = x.T
    elif rest == 'logit_scale':
      result[rest] = x
    elif 'resblocks' in rest:
      _, _, i, part = rest.split('.', 3)
      part = part.replace('mlp.c_fc', 'mlp.fc1').replace('c_proj', 'fc2')
      part = part.replace('ln_', 'layer_norm').replace('attn.', 'self_attn.')
      layer = f'{theirs}encoder.layers.{i}.'
      if 'in_proj' in part:
        leaf = part.rsplit('_', 1)[1]
        for letter, third in zip('qkv', np.split(x, 3), strict=True):
          result[f'{layer}self_attn.{letter}_proj.{leaf}'] = third
      else:
        result[layer + part] = x
    else:
      for old, new in (
        ('conv1', 'embeddings.patch_embedding'),
        ('class_embedding', 'embeddings.class_embedding'),
        ('positional_embedding', 'embeddings.position_embedding.weight'),
        ('token_embedding', 'embeddings.token_embedding'),
        ('ln_pre', 'pre_layrnorm'),
        ('ln_post', 'post_layernorm'),
        ('ln_final', 'final_layer_norm'),
      ):
        rest = rest.replace(old, new)
      result[theirs + rest] = x
  return result


@pytest.mark.parametrize('scan', [False, True])
def test_hugging_face_names_give_the_same_parameters(scan):
  tree = variables(VIT, scan)
  state_dict = hugging_face_names(export_clip(tree['params']))
  assert len(state_dict) > 90
  assert_same(convert_clip(state_dict, **SIZES, scan=scan), tree['params'])
  assert clip.Towers(**towers_of(state_dict)) == VIT


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_cast(dtype):
  params = jax.tree.map(
    lambda x: x.astype(dtype).astype(np.float32), variables(VIT)['params']
  )
  half = {k: x.astype(dtype) for k, x in export_clip(params).items()}
  assert_same(convert_clip(half, **SIZES, scan=False), params)


def test_prefix_selects_and_scalars_are_skipped():
  params = variables(VIT)['params']
  state_dict = {f'base.{k}': x for k, x in export_clip(params).items()}
  state_dict |= {
    'base.input_resolution': np.array(64),
    'base.context_length': np.array(9),
    'base.vocab_size': np.array(50),
    'classifier.weight': np.zeros((3, 32)),
  }
  got = convert_clip(state_dict, **SIZES, scan=False, prefix='base.')
  assert_same(got, params)


@pytest.mark.parametrize('name', list(clip.PUBLISHED))
def test_shapes_tell_the_published_towers(name):
  towers = clip.PUBLISHED[name]
  shapes = {
    'token_embedding.weight': (towers.vocab_size, towers.text_width),
    'positional_embedding': (77, towers.text_width),
    'text_projection': (towers.text_width, towers.output_dim),
    'visual.bn1.num_batches_tracked': (),
  }
  for i in range(towers.text_depth):
    shapes[f'transformer.resblocks.{i}.ln_1.bias'] = (towers.text_width,)
  width = towers.image_width
  if towers.image == 'vit':
    patch = (towers.patch_size, towers.patch_size)
    shapes['visual.conv1.weight'] = (width, 3, *patch)
    shapes['visual.proj'] = (width, towers.output_dim)
    for i in range(towers.image_depth):
      shapes[f'visual.transformer.resblocks.{i}.ln_1.bias'] = (width,)
  else:
    shapes['visual.conv1.weight'] = (width // 2, 3, 3, 3)
    for stage, depth in enumerate(towers.image_depth, 1):
      for i in range(depth):
        shapes[f'visual.layer{stage}.{i}.bn1.bias'] = (width,)
  state_dict = {k: np.broadcast_to(0.0, s) for k, s in shapes.items()}
  assert clip.Towers(**towers_of(state_dict)) == towers


def test_other_sizes_resize_both_tables_and_nothing_else():
  params = variables(VIT)['params']
  state_dict = export_clip(params)
  size = dict(image_size=(96, 48), text_length=14)
  got = layout.flatten(convert_clip(state_dict, **size, scan=False))
  want = layout.flatten(params)
  model = clip.Clip(VIT)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jnp.zeros((1, 96, 48, 3)),
    jnp.zeros((1, 14), jnp.int32),
  )
  for path, leaf in layout.flatten(shapes['params']).items():
    assert got[path].shape == leaf.shape, path
    if not path.endswith('position_embedding'):
      np.testing.assert_array_equal(got[path], want[path])
  np.testing.assert_array_equal(
    got['image/position_embedding'],
    layout.resize_positions(want['image/position_embedding'], (4, 4), (6, 3)),
  )


def test_shorter_text_keeps_the_first_positions():
  params = variables(VIT)['params']
  got = convert_clip(
    export_clip(params), image_size=64, text_length=5, scan=False
  )
  np.testing.assert_array_equal(
    got['text']['position_embedding'], params['text']['position_embedding'][:5]
  )


def test_positions_of_an_oblong_image_come_back_as_they_are():
  params = variables(VIT)['params']
  table = np.random.default_rng(1).normal(size=(1 + 6 * 3, 128))
  params['image']['position_embedding'] = table.astype(np.float32)
  state_dict = export_clip(params)
  size = dict(image_size=(96, 48), text_length=9, scan=False)
  assert_same(convert_clip(state_dict, **size), params)
  with pytest.raises(UserError, match='18 patches'):
    convert_clip(state_dict, **{**size, 'image_size': (96, 64)})
  wide = convert_clip(state_dict, **{**size, 'image_size': 64}, grid=(6, 3))
  assert wide['image']['position_embedding'].shape == (17, 128)


@pytest.mark.parametrize('towers', [VIT, RESNET], ids=['vit', 'resnet'])
@pytest.mark.parametrize('size', [(64, 64), (95, 70), (129, 33)])
def test_token_grid_is_that_of_the_network(towers, size):
  stride = 10 if towers.image == 'vit' else None
  model = clip.Clip(towers, stride=stride)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    jnp.zeros((1, *size, 3)),
    jnp.zeros((1, 4), jnp.int32),
  )
  flat = layout.flatten(shapes['params']['image'])
  (table,) = [x for path, x in flat.items() if 'position' in path]
  rows, columns = token_grid(size, towers.image, towers.patch_size, stride)
  assert table.shape[0] == 1 + rows * columns


def test_what_is_not_clip_is_refused_with_names():
  state_dict = export_clip(variables(VIT)['params'])
  convert = lambda x, **k: convert_clip(x, **SIZES, scan=True, **k)
  with pytest.raises(UserError, match='head.weight'):
    convert({**state_dict, 'head.weight': np.zeros(3)})
  with pytest.raises(UserError, match="prefix 'other.'"):
    convert(state_dict, prefix='other.')
  with pytest.raises(UserError, match='positions of the image'):
    convert(
      {
        k: x
        for k, x in state_dict.items()
        if k != 'visual.positional_embedding'
      }
    )
  with pytest.raises(UserError, match='incomplete.*block_1'):
    gone = 'visual.transformer.resblocks.1.ln_1.bias'
    convert({k: x for k, x in state_dict.items() if k != gone})
  with pytest.raises(UserError, match='heads of 48'):
    convert(state_dict, head_width=48)


def test_stacking_refuses_gaps_and_unequal_blocks():
  with pytest.raises(ValueError, match=r'\[0, 2\]'):
    layout.stack_blocks({'block_0': {'w': 1.0}, 'block_2': {'w': 1.0}})
  with pytest.raises(ValueError, match='block_1 differs'):
    layout.stack_blocks(
      {'block_0': {'w': np.ones(2)}, 'block_1': {'w': np.ones(3)}}
    )


def test_to_layout_follows_each_part_of_the_target():
  block = lambda i: {'w': np.full(2, i)}
  numbered = {f'block_{i}': block(i) for i in range(12)}
  stacked = {'blocks': {'w': np.arange(12)[:, None].repeat(2, 1)}}
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  like = {'a': stacked, 'b': numbered, 'c': 0}
  target = {'a': stacked, 'b': numbered, 'd': numbered}
  for a in (stacked, numbered):
    for b in (stacked, numbered):
      tree = {'a': a, 'b': b, 'd': numbered}
      same(layout.to_layout(tree, like), target)


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('new', [(3, 9), (7, 2), (5, 4)])
def test_bilinear_resize_is_that_of_jax(antialias, new):
  table = np.random.default_rng(0).normal(size=(1 + 5 * 4, 6))
  got = layout.resize_positions(table, (5, 4), new, 'bilinear', antialias)
  want = jax.image.resize(
    table[1:].reshape(5, 4, 6), (*new, 6), 'bilinear', antialias=antialias
  )
  np.testing.assert_array_equal(got[0], table[0])
  np.testing.assert_allclose(got[1:], want.reshape(-1, 6), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
  st.tuples(*[st.integers(1, 7)] * 4),
  st.sampled_from(['bilinear', 'bicubic']),
  st.booleans(),
)
def test_resize_keeps_constants_and_mirrors(sides, method, antialias):
  old, new = sides[:2], sides[2:]
  grid = np.random.default_rng(0).normal(size=(*old, 2))
  resize = lambda x: layout.resize_positions(
    np.concatenate([np.zeros((1, 2)), x.reshape(-1, 2)]),
    old,
    new,
    method,
    antialias,
  )[1:].reshape(*new, 2)
  np.testing.assert_allclose(resize(np.ones_like(grid)), 1, atol=1e-5)
  np.testing.assert_allclose(
    resize(grid[::-1, ::-1]), resize(grid)[::-1, ::-1], atol=1e-5
  )


def test_bicubic_passes_through_a_parabola_only_with_a_of_one_half():
  # Keys: exact for parabolas with a = -0.5, and not with -0.75.
  x = np.arange(12.0)
  table = np.concatenate([[0.0], x**2])[:, None]
  inner = slice(7, -6)
  exact = ((np.arange(36) + 0.5) / 3 - 0.5)[inner] ** 2
  at = lambda antialias: layout.resize_positions(
    table, (1, 12), (1, 36), 'bicubic', antialias
  )[1:, 0][inner]
  np.testing.assert_allclose(at(True), exact, rtol=1e-5)
  assert np.abs(at(False) - exact).max() > 0.01


@pytest.mark.parametrize('length', [3, 9, 20])
def test_text_positions_are_interpolated_along_positions(length):
  table = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
  where = (np.arange(length) + 0.5) * 9 / length - 0.5
  want = [np.interp(where, np.arange(9), column) for column in table.T]
  np.testing.assert_allclose(
    layout.resize_text_positions(table, length), np.stack(want, 1), rtol=1e-5
  )


def abstract(tree, dtype=jnp.float32):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), tree)


def test_merge_puts_values_with_dtype_and_sharding_of_the_target():
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('x',))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  rows = 4 * len(jax.devices())
  values = np.arange(rows * 3.0).reshape(rows, 3)
  params = {
    'a': {
      'w': jax.ShapeDtypeStruct((rows, 3), jnp.bfloat16, sharding=sharding)
    },
    'b': jnp.zeros(2),
    'empty': {},
  }
  merged, report = merge(params, {'a': {'w': values}, 'b': np.ones(2)})
  assert merged['a']['w'].sharding == sharding
  assert merged['a']['w'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(
    merged['a']['w'], values.astype(ml_dtypes.bfloat16)
  )
  assert jax.tree.structure(merged) == jax.tree.structure(params)
  assert report.loaded == ('a/w', 'b')


def test_merge_lists_everything_that_does_not_fit():
  params = abstract(
    {'a': np.zeros(2), 'b': {'c': np.zeros(3)}, 'd': np.ones(1)}
  )
  loaded = {'a': np.zeros(4), 'e': np.zeros(1), 'd': np.full(1, 5.0)}
  with pytest.raises(UserError) as error:
    merge(params, loaded)
  for line in (
    r'a: (4,) in the checkpoint, (2,) in the model',
    'b/c: not in the checkpoint',
    'e: not in the model',
  ):
    assert line in str(error.value)
  merged, report = merge(params, loaded, strict=False)
  assert report == (('d',), (), ('b/c',), ('e',), ('a',))
  assert merged['d'].tolist() == [5] and merged['a'] is params['a']


def test_merge_leaves_fresh_parameters_alone():
  params = {'a': jnp.zeros(2), 'head': {'w': jnp.zeros(3), 'b': jnp.zeros(1)}}
  loaded = {'a': np.ones(2), 'head': {'w': np.ones(5), 'b': np.ones(1)}}
  merged, report = merge(params, loaded, fresh=['^head/'])
  assert report == (('a', 'head/b'), ('head/w',), (), (), ())
  assert merged['head']['w'] is params['head']['w']
  with pytest.raises(UserError, match='head/w'):
    merge(params, loaded, fresh=['^ahead/'])
