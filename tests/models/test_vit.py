"""ViT: tokens, positions, stochastic depth, and the names of its checkpoints."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.patch_embed import PatchEmbed
from jaxzoo.weights import layout
from jaxzoo.weights.readers import read_state_dict
from jaxzoo.weights.vit import canonical, fit_positions

TINY = dict(width=12, depth=3, num_heads=3, patch_size=4)
IMAGE = np.random.default_rng(0).normal(size=(2, 12, 8, 3)).astype(np.float32)


def tiny(name='deit_tiny_patch16_224', **fields):
  options = dict(TINY, num_classes=5, image_size=(12, 8))
  return build_model(name, **{**options, **fields})


def distilled(**fields):
  return tiny('deit_tiny_distilled_patch16_224', **fields)


def variables_of(built, seed=0):
  shapes = jax.eval_shape(
    lambda: built.module.init(
      jax.random.key(0), *(jnp.zeros(x.shape) for x in built.inputs)
    )
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32) / 3, shapes
  )


def apply(built, variables, image=IMAGE, train=False, method=None, seed=0):
  rngs = {'dropout': jax.random.key(seed)}
  return jax.jit(
    lambda variables, image: built.module.apply(
      variables, image, train, method=method, rngs=rngs
    )
  )(variables, image)


def close(got, want, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want
  )


# What is computed.


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_scanned_blocks_compute_what_unrolled_ones_do(remat):
  unrolled = distilled(depth=2)
  scanned = distilled(depth=2, scan=True, remat=remat)
  variables = variables_of(unrolled)
  stacked = layout.to_layout(variables, variables_of(scanned))

  def value_and_grad(built, variables):
    def loss(params):
      maps, vector = built.module.apply(
        {'params': params}, IMAGE, method='features'
      )
      return sum(jnp.sum(x**2) for x in (vector, *maps.values()))

    return jax.jit(jax.value_and_grad(loss))(variables['params'])

  value, grads = value_and_grad(unrolled, variables)
  other, other_grads = value_and_grad(scanned, stacked)
  close(other, value, rtol=1e-5)
  other_grads = layout.unstack_blocks(jax.device_get(other_grads))
  close(other_grads, jax.device_get(grads), rtol=1e-3, atol=1e-3)
  logits = apply(unrolled, variables)
  close(apply(scanned, stacked), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('remat', ['none', 'full'])
@pytest.mark.parametrize('scan', [False, True])
def test_drop_path_grows_with_the_depth_and_is_off_outside_of_training(
  scan, remat
):
  built = tiny(scan=scan, remat=remat, drop_path=0.999)
  variables = variables_of(built)
  image = np.random.default_rng(1).normal(size=(32, 12, 8, 3))
  deep = apply(built, variables, image, True, 'every_block')
  plain = apply(built, variables, image, False, 'every_block')
  kept = lambda x, y: np.mean(np.all(np.isclose(x, y, 1e-4, 1e-4), (1, 2)))
  assert kept(deep[0], plain[0]) == 1  # rate 0 at the first block
  assert 0.1 < kept(deep[1], deep[0]) < 0.9  # half of it in the middle: 1/4
  assert kept(deep[2], deep[1]) > 0.9
  other = apply(built, variables, image, True, 'every_block', seed=1)
  assert kept(other[1], deep[1]) < 0.9  # another key, other examples
  without = tiny(scan=scan, remat=remat)
  close(plain, apply(without, variables, image, True, 'every_block'))


def test_without_positions_the_order_of_the_patches_does_not_matter():
  for built in (distilled(), tiny(global_pool='avg')):
    variables = variables_of(built)
    variables['params']['pos_embed'] *= 0
    patches = IMAGE.reshape(2, 3, 4, 2, 4, 3)
    turned = patches[:, ::-1, :, ::-1].reshape(IMAGE.shape)
    logits = apply(built, variables)
    close(apply(built, variables, turned), logits, rtol=1e-4, atol=1e-5)
    other = IMAGE[:, ::-1]  # the patches themselves upside down
    assert np.abs(apply(built, variables, other) - logits).max() > 1e-3


def test_distilled_network_gives_both_heads_in_training_and_their_mean_after():
  built = distilled()
  variables = variables_of(built)
  vector = apply(built, variables, method='features').vector
  assert vector.shape == (2, 2, TINY['width'])
  own, taught = apply(built, variables, train=True)
  close(apply(built, variables), (own + taught) / 2, rtol=1e-5, atol=1e-6)
  params = variables['params']
  dense = lambda x, layer: x @ layer['kernel'] + layer['bias']
  close(own, dense(vector[:, 0], params['head']), rtol=1e-4, atol=1e-5)
  close(taught, dense(vector[:, 1], params['head_dist']), rtol=1e-4, atol=1e-5)


def test_average_pool_leaves_the_class_token_out():
  built = tiny(global_pool='avg')
  variables = variables_of(built)
  tokens = apply(built, variables, method='tokens')
  pool = lambda x: built.module.apply(variables, x, method='pool')
  vector = pool(tokens)
  close(pool(tokens.at[:, 0].add(9)), vector)
  assert np.abs(pool(tokens.at[:, 1].multiply(9)) - vector).max() > 1e-2
  names = built.export(variables)
  assert 'fc_norm.weight' in names and 'norm.weight' not in names


def test_tokens_may_be_dropped_before_the_blocks():
  built = tiny()
  variables = variables_of(built)

  def masked(module, image):
    tokens = module.embed(module.patches(image))
    return module.encode(tokens[:, :4])

  got = built.module.apply(variables, IMAGE, method=masked)
  changed = IMAGE.copy()
  changed[:, 8:] += 1  # patches 4 and 5, which are dropped
  assert got.shape == (2, 4, TINY['width'])
  close(built.module.apply(variables, changed, method=masked), got)


def test_maps_are_the_patches_after_the_quarters_of_the_blocks():
  built = tiny(depth=8)
  variables = variables_of(built)
  every = apply(built, variables, method='every_block')
  maps = apply(built, variables, method='features').maps
  assert list(maps) == ['stage1', 'stage2', 'stage3', 'stage4']
  for i, x in enumerate(maps.values(), 1):
    assert x.shape == (2, 3, 2, TINY['width'])
    want = every[2 * i - 1][:, 1:]
    close(x.reshape(2, 6, -1), want, rtol=1e-4, atol=1e-5)


# Positions.


def test_positions_shrink_as_jax_image_resizes_them():
  rng = np.random.default_rng(0)
  table = rng.normal(size=(2 + 64, 5)).astype(np.float32)
  got = fit_positions(table, (5, 6), prefix=2)
  want = jax.image.resize(table[2:].reshape(8, 8, 5), (5, 6, 5), 'cubic')
  np.testing.assert_array_equal(got[:2], table[:2])
  close(got[2:].reshape(5, 6, 5), want, atol=1e-5)
  other = fit_positions(table, (5, 6), prefix=2, antialias=False)
  assert np.abs(got - other).max() > 1e-2


def test_positions_of_persons_are_twice_as_high_as_wide():
  table = np.concatenate(
    [np.zeros((1, 2)), np.indices((8, 4)).transpose(1, 2, 0).reshape(32, 2)]
  )
  got = fit_positions(table, (16, 4), prefix=1, method='bilinear')
  grid = got[1:].reshape(16, 4, 2)
  np.testing.assert_allclose(grid[..., 1], np.tile(np.arange(4), (16, 1)))
  assert np.all(np.diff(grid[1:-1, :, 0], axis=0) == 0.5)


def test_positions_of_no_known_grid_are_an_error():
  with pytest.raises(UserError, match='image_size'):
    fit_positions(np.zeros((1 + 15, 2)), (4, 4), prefix=1)
  with pytest.raises(UserError, match='bicubic'):
    fit_positions(np.zeros((1 + 16, 2)), (2, 2), prefix=1, method='area')


@pytest.mark.parametrize('make', [tiny, distilled])
def test_checkpoint_loads_for_images_of_another_size(make):
  small, large = make(image_size=16), make(image_size=(12, 8))
  state_dict = small.export(variables_of(small))
  there = large.convert(state_dict)
  want = fit_positions(
    state_dict['pos_embed'][0], (3, 2), prefix=large.module.prefix
  )
  np.testing.assert_array_equal(there['params']['pos_embed'], want)
  assert apply(large, there).shape == (2, 5)


# Other people's names.


def hugging_face(state_dict, family):
  """A state dict as transformers has it, sorted as its files are."""
  names = {
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    'attn.proj': 'attention.output.dense',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
    'cls_token': 'embeddings.cls_token',
    'dist_token': 'embeddings.distillation_token',
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.proj': 'embeddings.patch_embeddings.projection',
    'norm': 'layernorm',
    'head': 'cls_classifier' if 'dist_token' in state_dict else 'classifier',
    'head_dist': 'distillation_classifier',
  }
  found = {}
  for name, value in state_dict.items():
    block = re.fullmatch(r'blocks\.(\d+)\.(.+)', name)
    prefix = f'{family}.encoder.layer.{block[1]}.' if block else f'{family}.'
    rest = block[2] if block else name
    if rest.startswith('attn.qkv'):
      leaf = rest.rpartition('.')[2]
      for part, x in zip(
        ('query', 'key', 'value'), np.split(value, 3), strict=True
      ):
        found[f'{prefix}attention.attention.{part}.{leaf}'] = x
      continue
    layer, dot, leaf = rest.rpartition('.') if '.' in rest else (rest, '', '')
    prefix = '' if layer.startswith('head') else prefix
    found[f'{prefix}{names[layer]}{dot}{leaf}'] = value
  return dict(sorted(found.items()))


@pytest.mark.parametrize(
  ('make', 'family'), [(tiny, 'vit'), (distilled, 'deit')]
)
def test_hugging_face_names_are_those_of_the_same_network(make, family):
  built = make()
  state_dict = built.export(variables_of(built))
  theirs = hugging_face(state_dict, family)
  assert len(theirs) == len(state_dict) + 2 * 2 * TINY['depth']
  got = canonical(theirs)
  assert sorted(got) == sorted(state_dict)
  for name, value in state_dict.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)


def flax(variables, numbers, positions):
  """Our variables as the .npz files of ViT have them."""
  attention, second, mlp = numbers
  params = variables['params']
  found = {
    'cls': params['cls_token'][None, None],
    positions: params['pos_embed'][None],
    'embedding': params['patch_embed']['proj'],
    'Transformer/encoder_norm': params['norm'],
    'head': params['head'],
  }
  for i in range(TINY['depth']):
    block = params['transformer'][f'block_{i}']
    found[f'Transformer/encoderblock_{i}'] = {
      'LayerNorm_0': block['ln_1'],
      f'MultiHeadDotProductAttention_{attention}': block['attn'],
      f'LayerNorm_{second}': block['ln_2'],
      f'MlpBlock_{mlp}': {
        'Dense_0': block['mlp']['fc1'],
        'Dense_1': block['mlp']['fc2'],
      },
    }
  return layout.flatten(found)


@pytest.mark.parametrize(
  ('numbers', 'positions', 'prefix'),
  [
    ((1, 2, 3), 'Transformer/posembed_input/pos_embedding', ''),
    ((0, 1, 0), 'pos_embedding', 'params/'),
  ],
)
def test_npz_of_jax_checkpoints_is_the_same_network(
  numbers, positions, prefix, tmp_path
):
  built = tiny()
  variables = variables_of(built)
  arrays = flax(variables, numbers, positions)
  path = tmp_path / 'ViT.npz'
  np.savez(path, **{prefix + name: x for name, x in arrays.items()})
  got = layout.flatten(built.convert(read_state_dict(path)))
  want = layout.flatten(variables)
  assert sorted(got) == sorted(want)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)


# Mistakes.


def test_image_that_patches_do_not_fill_is_an_error_before_compilation():
  with pytest.raises(UserError, match='12x8'):
    tiny(image_size=(13, 8))


def test_image_of_other_patches_than_positions_is_an_error():
  built = tiny()
  with pytest.raises(UserError, match='image_size'):
    jax.eval_shape(
      built.module.apply, variables_of(built), jnp.zeros((1, 16, 8, 3))
    )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(global_pool='max'), 'avg'),
    (dict(global_pool='avg', distilled=True), 'token'),
    (dict(knn=8), '7 tokens'),
  ],
)
def test_options_that_do_not_go_are_errors(fields, message):
  with pytest.raises(UserError, match=message):
    tiny(**fields)


def test_patches_overlap_where_the_stride_is_smaller():
  built = tiny(
    stem=functools.partial(PatchEmbed, stride=3), image_size=(13, 10)
  )
  variables = variables_of(built)
  assert variables['params']['pos_embed'].shape[0] == 1 + 4 * 3
  image = np.zeros((1, 13, 10, 3), np.float32)
  assert apply(built, variables, image).shape == (1, 5)
