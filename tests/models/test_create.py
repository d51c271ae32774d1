"""Backbones by name: their cards, their sizes, their published weights."""

import importlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxzoo
from jaxzoo.errors import UserError
from jaxzoo.models.backbones import clip
from jaxzoo.models.cards import MODELS, list_models, model_card
from jaxzoo.models.create import build_model, create_model, load_weights
from jaxzoo.models.layers import image
from jaxzoo.weights import layout
from jaxzoo.weights.clip import export_clip
from jaxzoo.weights.writers import write_safetensors

# Towers of a published form, as small as they get.
TINY = dict(
  image_width=64,
  image_depth=1,
  image_heads=1,
  text_width=64,
  text_depth=2,
  text_heads=1,
  vocab_size=50,
  output_dim=8,
)
SIZES = dict(image_size=64, text_length=9)


@pytest.fixture(scope='module')
def tiny():
  return create_model('clip_vit_b32', **SIZES, **TINY)


@pytest.fixture
def checkpoint(tiny, tmp_path):
  path = tmp_path / 'clip.safetensors'
  write_safetensors(path, export_clip(tiny[1]['params']))
  return path


def assert_same(got, want):
  got, want = layout.flatten(got), layout.flatten(want)
  assert sorted(got) == sorted(want)
  for path, value in want.items():
    np.testing.assert_array_equal(got[path], value, err_msg=path)


# Those of image models are tested in test_backbones.py.
@pytest.mark.parametrize('name', list_models(family='clip'))
def test_a_card_gives_the_number_of_parameters(name):
  built = build_model(name, scan=True)
  shapes = jax.eval_shape(built.module.init, jax.random.key(0), *built.inputs)
  total = sum(x.size for x in jax.tree.leaves(shapes['params']))
  assert total == model_card(name).parameters


def test_clip_s_cards_agree_with_the_towers():
  cards = [MODELS[name] for name in list_models(family='clip')]
  assert {card.variant for card in cards} == set(clip.PUBLISHED)
  for card in cards:
    assert card.image_size == (clip.RESOLUTION[card.variant],) * 2
    assert (card.mean, card.std) == (image.IMAGE_MEAN, image.IMAGE_STD)
    assert card.text_length == 77
    assert re.search(r'/[0-9a-f]{64}/(RN|ViT-)[^/]+\.pt$', card.weights)
    assert 50 < card.results['ImageNet zero-shot top-1'] < 80
  assert len({card.weights for card in cards}) == len(cards)


def test_models_are_listed_by_pattern_and_family():
  assert len(list_models()) == len(set(list_models())) == len(MODELS)
  assert list_models('*l14*') == ['clip_vit_l14', 'clip_vit_l14_336']
  assert list_models('clip_rn*', family='clip') == [
    'clip_rn50', 'clip_rn101', 'clip_rn50x4', 'clip_rn50x16', 'clip_rn50x64',
  ]  # fmt: skip
  assert list_models('nothing') == []
  with pytest.raises(UserError, match='did you mean clip'):
    list_models(family='clop')


def test_a_model_maps_images_and_texts_to_one_space(tiny):
  module, variables = tiny
  pictures = np.zeros((2, 64, 64, 3), np.float32)
  text = np.array([[48, 1, 2, 49, 0, 0, 0, 0, 0]] * 3)
  vectors = module.apply(variables, pictures, text)
  assert [vector.shape for vector in vectors] == [(2, 8), (3, 8)]


def test_the_key_decides_the_random_variables(tiny):
  again = create_model('clip_vit_b32', **SIZES, **TINY)[1]
  assert_same(again, tiny[1])
  other = create_model('clip_vit_b32', **SIZES, **TINY, rng=jax.random.key(1))[
    1
  ]
  name = 'token_embedding'
  first, second = (
    x['params']['text'][name]['embedding'] for x in (again, other)
  )
  assert not np.array_equal(first, second)


@pytest.mark.parametrize('scan', [False, True])
def test_published_weights_load_into_either_layout(tiny, checkpoint, scan):
  variables = load_weights(
    'clip_vit_b32', checkpoint, **SIZES, **TINY, scan=scan
  )
  assert ('blocks' in variables['params']['text']['transformer']) == scan
  params = layout.to_layout(variables['params'], tiny[1]['params'])
  assert_same(params, tiny[1]['params'])


def test_batch_statistics_are_loaded_as_well(tmp_path):
  options = dict(
    TINY, image_width=8, image_depth=(1, 1, 1, 1), image_heads=4, **SIZES
  )
  variables = create_model('clip_rn50', **options)[1]
  stats = jax.tree.map(lambda x: x + 0.5, variables['batch_stats'])
  path = tmp_path / 'clip.safetensors'
  write_safetensors(path, export_clip(variables['params'], stats))
  loaded = load_weights('clip_rn50', path, **options)
  assert_same(loaded['batch_stats'], stats)


def test_positions_follow_the_sizes_of_the_inputs(tiny, checkpoint):
  options = dict(TINY, image_size=(96, 32), text_length=5, weights=checkpoint)
  module, variables = create_model('clip_vit_b32', **options)
  params, published = variables['params'], tiny[1]['params']
  assert params['image']['position_embedding'].shape == (1 + 3, 64)
  np.testing.assert_array_equal(
    params['text']['position_embedding'],
    published['text']['position_embedding'][:5],
  )
  pictures, text = np.zeros((1, 96, 32, 3)), np.zeros((1, 5), int)
  assert module.apply(variables, pictures, text)[0].shape == (1, 8)


def test_what_is_fresh_may_have_another_shape(tiny, checkpoint):
  options = dict(
    SIZES, **TINY | {'output_dim': 4}, fresh=['projection/kernel$']
  )
  loaded = load_weights('clip_vit_b32', checkpoint, **options)['params']
  for tower in ('image', 'text'):
    assert loaded[tower].pop('projection')['kernel'].shape == (64, 4)
    rest = dict(tiny[1]['params'][tower])
    del rest['projection']
    assert_same(loaded[tower], rest)
  with pytest.raises(UserError, match='projection/kernel'):
    load_weights('clip_vit_b32', checkpoint, **dict(options, fresh=()))


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('clip_vit_b64', {}, 'did you mean clip_vit_b16, clip_vit_l14 or'),
    ('clip_vit_b32', dict(num_classes=10), 'has no classifier'),
    ('clip_vit_b32', dict(text_dept=2), 'did you mean text_depth'),
    ('clip_vit_b32', dict(dtype='float23'), "expected 'float32'"),
    ('clip_vit_b32', dict(weights='nowhere.pt'), 'no such file'),
  ],
)
def test_a_mistake_is_explained(name, options, message):
  with pytest.raises(UserError, match=message):
    create_model(name, **options)


def test_weights_of_another_model_are_refused(checkpoint):
  with pytest.raises(UserError, match='does not fit the model'):
    create_model('clip_vit_b16', weights=checkpoint)


def test_importing_and_listing_starts_no_jax():
  lines = (
    'import sys, jaxzoo',
    'jaxzoo.list_models(); jaxzoo.list_systems()',
    'jaxzoo.model_card("clip_rn50")',
    'heavy = "jax flax optax orbax grain tensorflow torch numpy".split()',
    'assert not sys.modules.keys() & set(heavy)',
    'assert not any(m.startswith("jaxzoo.models.b") for m in sys.modules)',
  )
  subprocess.run([sys.executable, '-c', '\n'.join(lines)], check=True)


def test_what_the_package_offers_by_name_exists():
  for name, place in jaxzoo._LAZY.items():
    assert callable(getattr(importlib.import_module(place), name))
