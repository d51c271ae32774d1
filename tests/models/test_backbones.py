"""What every image backbone must do, for every card: sizes, maps, heads,
published names both ways. A new card is tested here without a line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.cards import MODELS
from jaxzoo.models.create import build_model
from jaxzoo.train.optim import layer_decay_tree
from jaxzoo.weights import layout
from jaxzoo.weights.merge import merge

IMAGE_MODELS = [card.name for card in MODELS.values() if not card.text_length]
# One of each family: families share their code.
FIRST = list(
  {
    MODELS[name].family: name for name in reversed(IMAGE_MODELS)
  }.values()
)  # fmt: skip
each_card = pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in FIRST else [pytest.mark.slow])
    for name in IMAGE_MODELS
  ],
)
each_family = pytest.mark.parametrize('name', FIRST)


@functools.cache
def built(name, **options):
  return build_model(name, **options)


@functools.cache
def shapes(name, **options):
  """Abstract variables: nothing is computed."""
  model = built(name, **options)
  return jax.eval_shape(
    lambda: model.module.init(
      jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in model.inputs)
    )
  )


def apply(name, batch=2, method=None, train=False, **options):
  """Abstract outputs for a batch of images."""
  model, variables = built(name, **options), shapes(name, **options)
  (image,) = model.inputs

  def forward(variables):
    x = jnp.zeros((batch, *image.shape[1:]), image.dtype)
    if not train:
      return model.module.apply(variables, x, method=method)
    return model.module.apply(
      variables,
      x,
      True,
      method=method,
      mutable=['batch_stats'],
      rngs={'dropout': jax.random.key(0)},
    )

  return jax.eval_shape(forward, variables)


def numbers(tree):
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def random_like(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), tree
  )


@each_card
def test_number_of_parameters_is_the_published_one(name):
  assert numbers(shapes(name)['params']) == MODELS[name].parameters


@each_card
def test_logits_are_float32_with_a_row_an_image(name):
  logits = apply(name)
  logits = logits if isinstance(logits, tuple) else (logits,)
  for x in logits:
    assert x.shape == (2, MODELS[name].num_classes)
    assert x.dtype == jnp.float32


@pytest.mark.parametrize(
  'name',
  [
    # Large ones are slow to fill with numbers; their code is that of small ones.
    pytest.param(
      name, marks=[pytest.mark.slow] if MODELS[name].parameters > 3e7 else []
    )
    for name in IMAGE_MODELS
  ],
)
def test_names_of_the_published_state_dict_go_both_ways(name):
  model = built(name)
  variables = random_like(shapes(name))
  state_dict = model.export(variables)
  assert not any('/' in key for key in state_dict)
  back = layout.to_layout(model.convert(state_dict), variables)
  merge(variables, back)  # every array is there, in its shape
  got, want = layout.flatten(back), layout.flatten(variables)
  for path, value in want.items():
    np.testing.assert_array_equal(got[path], value, err_msg=path)


@each_family
def test_maps_go_from_fine_to_coarse(name):
  maps = apply(name, features_only=True)
  assert list(maps) == [f'stage{i}' for i in range(1, len(maps) + 1)]
  sides = [x.shape[1] for x in maps.values()]
  assert sides == sorted(sides, reverse=True)
  assert all(x.ndim == 4 and x.shape[0] == 2 for x in maps.values())


@each_family
def test_features_only_makes_no_classifier(name):
  whole = layout.flatten(shapes(name)['params'])
  bare = layout.flatten(shapes(name, features_only=True)['params'])
  assert set(bare) < set(whole)
  assert not [path for path in bare if path.startswith('head')]


@each_family
def test_without_classes_the_vector_comes(name):
  vector = apply(name, num_classes=0)
  features = apply(name, method='features')
  assert jax.tree.map(lambda x: x.shape, vector) == jax.tree.map(
    lambda x: x.shape, features.vector
  )


@each_family
def test_published_weights_fit_other_classes_and_channels(name):
  published = built(name)
  state_dict = published.export(random_like(shapes(name)))
  other = built(name, num_classes=7, in_chans=1)
  variables = random_like(shapes(name, num_classes=7, in_chans=1))
  loaded = layout.to_layout(other.convert(state_dict), variables)
  _, report = merge(variables, loaded, fresh=[other.head])
  heads = [p for p in layout.flatten(variables) if p.startswith('params/head')]
  assert sorted(report.fresh) == sorted(heads)


@each_family
def test_training_updates_statistics_and_keeps_the_shapes(name):
  outputs, updated = apply(name, train=True)
  del outputs
  want = shapes(name).get('batch_stats', {})
  got = updated.get('batch_stats', {})
  assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(
    lambda x: (x.shape, x.dtype), want
  )


@each_family
def test_bfloat16_computes_in_it_and_keeps_float32_parameters(name):
  maps = apply(name, dtype='bfloat16', features_only=True)
  assert {x.dtype for x in maps.values()} == {jnp.dtype(jnp.bfloat16)}
  variables = shapes(name, dtype='bfloat16')
  assert {x.dtype for x in jax.tree.leaves(variables)} == {
    jnp.dtype(jnp.float32)
  }


@each_family
def test_field_that_is_not_there_is_an_error_with_the_nearest(name):
  with pytest.raises(UserError, match='num_classes'):
    build_model(name, num_clases=3)


@each_family
def test_rates_fall_block_by_block_from_the_classifier_to_the_image(name):
  tree = layout.flatten(layer_decay_tree(shapes(name)['params'], 0.5))
  powers = {path: -np.log2(np.ravel(scale)) for path, scale in tree.items()}
  assert all(not x.any() for p, x in powers.items() if p.startswith('head'))
  levels = sorted(set(np.concatenate(list(powers.values()))))
  assert levels == list(range(len(levels))) and len(levels) > 5
