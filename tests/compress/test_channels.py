"""Channel groups of the models: masked networks equal compact ones."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.compress import channels
from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.compress.masks import apply_masks
from jaxzoo.errors import UserError
from jaxzoo.models.backbones.mobile import Block
from jaxzoo.models.create import build_model
from jaxzoo.system import from_loss
from jaxzoo.train.flops import count_flops

# Small members of every family that exports groups.
SMALL = {
  'basic': ('resnet18', dict(depths=(1, 2), width=8, small_stem=True)),
  'bottleneck': ('resnet50', dict(depths=(1, 2), width=4, small_stem=True)),
  'preact': ('preact_resnet18', dict(depths=(1, 2), width=8)),
  'vit': (
    'vit_tiny_patch16_224',
    dict(width=24, depth=2, num_heads=3, patch_size=8),
  ),
  'mobile': (
    'mobilenet_v3_small',
    dict(
      blocks=(
        Block(3, 8, 8, 1, 4, nn.relu),  # adds to the stem, expands nothing
        Block(3, 24, 12, 2, 0, nn.hard_swish),
        Block(5, 36, 12, 1, 4, nn.hard_swish),
      ),
      stem_width=8,
      last_width=24,
      hidden_width=16,
    ),
  ),
}
WHOLE = {name: (name, {}) for name in (
  'mobilenet_v2', 'mobilenet_v3_small', 'efficientnet_b0')}  # fmt: skip
each_small = pytest.mark.parametrize('name', SMALL)
each_model = pytest.mark.parametrize('name', [*SMALL, *WHOLE])
SIZE = 16


@functools.cache
def build(name, widths=()):
  model, options = (SMALL | WHOLE)[name]
  return build_model(
    model, num_classes=5, image_size=SIZE, widths=widths, **options
  ).module


def groups_of(name):
  module = build(name)
  place = __import__(type(module).__module__, fromlist=['channel_groups'])
  return place.channel_groups(module)


@functools.cache
def shapes_of(name):
  return jax.eval_shape(
    lambda: build(name).init(jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
  )


@functools.cache
def variables_of(name):
  """Random parameters and statistics, none of them 0 or 1."""
  rng = np.random.default_rng(0)
  return jax.tree_util.tree_map_with_path(
    lambda path, x: np.float32(
      rng.uniform(0.5, 1.5, x.shape)
      if channels.path_name(path).endswith(('var', 'scale'))
      else rng.normal(size=x.shape) / math.sqrt(max(1, x.size // x.shape[-1]))
    ),
    shapes_of(name),
  )


def random_masks(groups, seed=0, share=0.5):
  rng = np.random.default_rng(seed)
  return {g.name: rng.uniform(size=g.size) < share for g in groups}


def masked(name, masks):
  groups, variables = groups_of(name), variables_of(name)
  by_leaf = channels.expand_masks(variables['params'], groups, masks)
  params = jax.device_get(apply_masks(variables['params'], by_leaf))
  return params, variables.get('batch_stats', {})


def outputs(module, params, stats):
  image = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3))
  apply = jax.jit(
    lambda p, s: module.apply({'params': p, 'batch_stats': s}, image)
  )
  return apply(params, stats)


@each_model
def test_groups_fit_the_parameters(name):
  groups = groups_of(name)
  channels.check_groups(groups, shapes_of(name)['params'])
  # Every axis of a kernel that is no window belongs to at most one group.
  for path, own in channels.axes_of(groups).items():
    assert len({axis for axis, _, _ in own}) == len(own), path


@each_small
def test_compact_network_equals_the_masked_one(name):
  masks = random_masks(groups_of(name))
  params, stats = masked(name, masks)
  smaller = channels.compact(params, stats, groups_of(name), masks)
  module = build(name, tuple(smaller[2].items()))
  want = outputs(build(name), params, stats)
  error = channels.verify_compact(want, outputs(module, *smaller[:2]))
  assert error < 1e-4
  assert np.abs(want).max() > 1e-3, 'all is dead: nothing is tested'
  assert smaller[2] == {n: max(1, m.sum()) for n, m in masks.items()}


@each_small
def test_groups_are_complete(name):
  # What the readers of dead channels hold is irrelevant: they may be anything.
  masks = random_masks(groups_of(name))
  params, stats = masked(name, masks)
  want = outputs(build(name), params, stats)
  axes = channels.axes_of(g._replace(producers=(), norms=())
                          for g in groups_of(name))  # fmt: skip
  rng = np.random.default_rng(2)

  def disturb(path, leaf):
    for axis, group, repeat in axes.get(channels.path_name(path), ()):
      alive = np.tile(masks[group], repeat)
      noise = rng.normal(size=leaf.shape).astype(np.float32)
      shape = [1] * leaf.ndim
      shape[axis] = -1
      own = makers.get((channels.path_name(path)), np.ones(1, bool))
      leaf = np.where(alive.reshape(shape) | ~own, leaf, noise)
    return leaf

  # Not where the same entry makes a dead channel: that must stay 0.
  makers = {}
  for g in groups_of(name):
    for path, axis in g.producers:
      flat = {channels.path_name(p): x for p, x in
              jax.tree_util.tree_flatten_with_path(params)[0]}  # fmt: skip
      shape = [1] * flat[path].ndim
      shape[axis] = -1
      makers[path] = masks[g.name].reshape(shape)
  changed = jax.tree_util.tree_map_with_path(disturb, params)
  np.testing.assert_allclose(
    outputs(build(name), changed, stats), want, rtol=1e-5, atol=1e-5
  )


@each_small
def test_kept_channels_are_rounded_up_with_dead_ones(name):
  masks = random_masks(groups_of(name), seed=3)
  params, stats = masked(name, masks)
  smaller = channels.compact(
    params, stats, groups_of(name), masks, multiple_of=4
  )
  sizes = {g.name: g.size for g in groups_of(name)}
  for group, width in smaller[2].items():
    assert width % 4 == 0 or width == sizes[group]
    assert width >= masks[group].sum()
  module = build(name, tuple(smaller[2].items()))
  channels.verify_compact(
    outputs(build(name), params, stats), outputs(module, *smaller[:2])
  )


def test_wrong_groups_are_told():
  groups = groups_of('basic')
  # Norms that are forgotten keep their biases: dead channels are not 0.
  broken = [g._replace(norms=(), consumers=()) for g in groups]
  masks = random_masks(groups)
  variables = variables_of('basic')
  by_leaf = channels.expand_masks(variables['params'], broken, masks)
  params = jax.device_get(apply_masks(variables['params'], by_leaf))
  stats = variables['batch_stats']
  smaller = channels.compact(params, stats, groups, masks)
  module = build('basic', tuple(smaller[2].items()))
  with pytest.raises(UserError, match='channel groups of this model'):
    channels.verify_compact(
      outputs(build('basic'), params, stats), outputs(module, *smaller[:2])
    )
  with pytest.raises(ValueError, match='conv1'):
    channels.check_groups([groups[0]._replace(size=3)], variables['params'])


def test_flattened_maps_repeat_the_channels():
  group = ChannelGroup(
    'c', 3, (('conv/kernel', 3),), consumers=(('fc/kernel', 0, 4),)
  )
  params = {
    'conv': {'kernel': np.ones((1, 1, 2, 3))},
    'fc': {'kernel': np.arange(12.0)[:, None] * np.ones((1, 2))},
  }
  mask = {'c': np.array([True, False, True])}
  smaller, _, widths = channels.compact(params, {}, [group], mask)
  assert widths == {'c': 2}
  np.testing.assert_array_equal(
    smaller['fc']['kernel'][:, 0], [0, 2, 3, 5, 6, 8, 9, 11]
  )
  by_leaf = channels.expand_masks(params, [group], mask)
  np.testing.assert_array_equal(
    np.flatnonzero(by_leaf['fc']['kernel'][:, 1]), smaller['fc']['kernel'][:, 0]
  )


@each_small
def test_costs_are_those_of_the_compact_network(name):
  groups, params = groups_of(name), variables_of(name)['params']
  image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  positions = channels.kernel_positions(build(name), image)
  table = channels.cost_table(params, positions, groups)
  assert {layer.path for layer in table} == {
    path for path in (channels.path_name(p) for p, _ in
      jax.tree_util.tree_flatten_with_path(params)[0])
    if path.endswith('kernel')
  }  # fmt: skip
  masks = random_masks(groups, seed=4)
  counts = {n: max(1, int(m.sum())) for n, m in masks.items()}
  smaller = channels.compact(*masked(name, masks), groups, masks)
  module = build(name, tuple(counts.items()))
  flops = lambda module, params: count_flops(
    lambda p, x: module.apply(
      {'params': p, 'batch_stats': jax.tree.map(np.asarray, {})}, x
    ) if not smaller[1] else module.apply(
      {'params': p, 'batch_stats': stats[id(module)]}, x
    ),
    params, image,
  )  # fmt: skip
  stats = {
    id(module): smaller[1],
    id(build(name)): variables_of(name).get('batch_stats', {}),
  }
  attention = 0
  if name == 'vit':  # the products of attention have no kernel
    attention = flops(build(name), params) - 2 * channels.macs(table)
    attention = attention * sum(
      counts[g.name] for g in groups if g.name.endswith('attn')
    ) // sum(g.size for g in groups if g.name.endswith('attn'))  # fmt: skip
  got = 2 * channels.macs(table, counts) + attention
  assert got == flops(module, smaller[0])


def test_statistics_of_dead_channels_stay():
  group = ChannelGroup('c', 2, (('w', 0),), norms=('bn',))
  stats = lambda a, b: {'bn': {'mean': jnp.array([a, b])}}

  def loss(params, extra, batch, rng):
    moved = jax.tree.map(lambda x: x + 1, extra['batch_stats'])
    return jnp.sum(params['w']), ({**extra, 'batch_stats': moved}, {})

  system = from_loss(
    lambda rng, batch: ({'w': jnp.ones(2)}, {'batch_stats': stats(0.0, 5.0)}),
    loss,
    lambda *_: None,
    optax.sgd(0.1),
  )
  system = channels.freeze_dead_statistics(
    system, [group], lambda state: {'c': jnp.array([True, False])}
  )
  state = system.init(jax.random.key(0), {})
  state, _ = system.step(state, {})
  np.testing.assert_array_equal(
    state.extra['batch_stats']['bn']['mean'], [1.0, 5.0]
  )


def test_scanned_blocks_have_no_groups():
  model, options = SMALL['vit']
  module = build_model(model, image_size=SIZE, scan=True, **options).module
  with pytest.raises(UserError, match='scan=False'):
    __import__(type(module).__module__, fromlist=['x']).channel_groups(module)
