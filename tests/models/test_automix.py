"""AutoMix: the mix block, who learns from what, schedules, weights."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.mix_block import MixBlock, mask_loss, upsample
from jaxzoo.models.supervised import automix
from jaxzoo.weights import automix as names
from jaxzoo.weights import layout

KEY = jax.random.key(0)
SIZE, ROWS = 16, 8


def config_of(**overrides):
  config = ml_collections.ConfigDict(
    dict(
      model='resnet18',
      model_options=dict(depths=(1, 1, 1), width=4, small_stem=True),
      num_classes=3,
      image_size=(SIZE, SIZE),
      in_chans=3,
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      mean=(0.5, 0.5, 0.5),
      std=(0.25, 0.25, 0.25),
      total_steps=0,
      mix_block=dict(
        layer='stage2', reduction=2, lam_concat=False, upsampling='nearest'
      ),
      loss=dict(
        mix_q=1.0,
        one_q=1.0,
        mix_k=1.0,
        mask=0.1,
        mask_decay=False,
        mask_margin=0.1,
        lam_margin=0.08,
        alpha=2.0,
        label_smoothing=0.0,
        switch_off=0.0,
        groups=1,
      ),
      momentum=dict(base=0.9, end=0.99, start=0.1),
    )
  )
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (ROWS, SIZE, SIZE, 3), np.uint8),
    'label': rng.integers(0, 3, ROWS).astype(np.int32),
  }


@functools.cache
def start():
  """(networks, the first params and extra) of the small config."""
  networks, _ = automix.make_networks(config_of())
  init = lambda: automix.init_networks(
    networks, KEY, jnp.zeros((1, SIZE, SIZE, 3))
  )
  return networks, *jax.jit(init)()


def mixing(lam, seed=0):
  return automix.Mixing(
    jnp.float32(lam), jax.random.permutation(jax.random.key(seed), ROWS)[None]
  )


# The mix block.


def mask_of(x, partner, lam=0.3, scale=1, **options):
  block = MixBlock(**options)
  variables = block.init(KEY, x, partner, lam, scale)
  grown = jax.tree.map(lambda p: 30 * p + 0.1, variables)
  return block.apply(grown, x, partner, lam, scale)


def features(seed, rows=2):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(rows, 4, 3, 6)).astype(np.float32)


@pytest.mark.parametrize('lam_concat', [False, True])
def test_order_of_the_keys_does_not_matter_and_that_of_queries_goes_through(
  lam_concat,
):
  x, partner = features(0), features(1)
  want = mask_of(x, partner, lam_concat=lam_concat)
  assert np.ptp(want) > 1e-3
  turned = mask_of(x, partner[:, ::-1, ::-1], lam_concat=lam_concat)
  np.testing.assert_allclose(turned, want, rtol=1e-5)
  turned = mask_of(x[:, ::-1, ::-1], partner, lam_concat=lam_concat)
  np.testing.assert_allclose(turned[:, ::-1, ::-1], want, rtol=1e-5)


def test_share_is_seen_by_the_block_where_it_is_a_channel():
  x, partner = features(0), features(1)
  change = lambda **options: np.abs(
    mask_of(x, partner, 0.1, **options) - mask_of(x, partner, 0.9, **options)
  ).max()
  assert change(lam_concat=True) > 1e-3
  assert change(lam_concat=False) == 0


def test_upsampling_repeats_or_interpolates():
  mask = features(0)[..., 0]
  np.testing.assert_array_equal(
    upsample(mask, 4, 'nearest')[:, ::4, 3::4], mask
  )
  smooth = upsample(mask, 2, 'bilinear')
  # Half-pixel centres: a quarter of the way to the neighbour.
  np.testing.assert_allclose(
    smooth[:, 1, 1],
    (9 * mask[:, 0, 0] + 3 * (mask[:, 0, 1] + mask[:, 1, 0]) + mask[:, 1, 1])
    / 16,
    rtol=1e-5,
  )


def test_mask_may_be_off_by_the_margin():
  mask = jnp.full((2, 3, 3), 0.5)
  assert mask_loss(mask, 0.42) == 0
  np.testing.assert_allclose(mask_loss(mask, 0.2), 0.2, rtol=1e-5)
  # The mean over everything comes first.
  half = jnp.stack([jnp.zeros((3, 3)), jnp.ones((3, 3))])
  assert mask_loss(half, 0.5) == 0


# Partners.


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_partners_are_a_permutation_within_the_group(groups):
  index = automix.draw(KEY, 12, 2.0, groups).index
  got = np.asarray(automix.partners(jnp.arange(12), index)).reshape(groups, -1)
  want = np.arange(12).reshape(groups, -1)
  np.testing.assert_array_equal(np.sort(got, 1), want)
  assert (got != want).any()


def test_groups_that_do_not_divide_the_batch_are_an_error():
  with pytest.raises(UserError, match='loss.groups=3'):
    automix.draw(KEY, 8, 2.0, 3)


# Who learns from what.


@functools.cache
def gradients():
  """loss -> gradient of it alone, by its name."""
  networks, params, extra = start()
  image = jnp.asarray(batch_of()['image'], jnp.float32) / 255
  targets = jax.nn.one_hot(batch_of()['label'], 3)

  def losses(params, k):
    values, _, _ = automix.automix_losses(
      networks,
      params,
      {**extra, **k},
      image,
      targets,
      mixing(0.9),
      mixing(0.6, 1),
      KEY,
    )
    return values

  k = {name: x for name, x in extra.items() if not name.startswith('batch')}
  return jax.jit(jax.jacrev(losses, (0, 1)))(params, k)


def moved(tree):
  return any(bool(jnp.any(x != 0)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  'loss, learners',
  [
    ('mix_q', {'backbone', 'head_mix'}),
    ('one_q', {'backbone', 'head_one'}),
    ('mix_k', {'mix_block'}),
    ('mask', {'mix_block'}),
  ],
)
def test_each_loss_teaches_its_own(loss, learners):
  own, k = gradients()[loss]
  assert {name for name in own if moved(own[name])} == learners
  assert not moved(k)


def test_extreme_share_is_plain_mixup():
  networks, params, _ = start()
  image = jax.random.normal(KEY, (ROWS, SIZE, SIZE, 3))
  seen = jax.random.normal(KEY, (ROWS, 8, 8, 8))
  for lam, plain in ((0.07, True), (0.5, False), (0.95, True)):
    bb = mixing(lam)
    mixed = automix.make_mixtures(
      networks,
      params['mix_block'],
      seen,
      image,
      mixing(0.4),
      bb,
      automix.Margins(),
    ).bb
    want = lam * image + (1 - lam) * automix.partners(image, bb.index)
    # A mask of a block that has just started is 1/2.
    want = want if plain else (image + automix.partners(image, bb.index)) / 2
    np.testing.assert_allclose(mixed, want, atol=0.05 if not plain else 1e-5)


# The step.


@functools.cache
def run():
  system = automix.build(config_of(), optax.sgd(0.1))
  state = jax.jit(system.init)(KEY, batch_of())
  after, metrics = jax.jit(system.step)(state, batch_of())
  return system, state, after, metrics


@pytest.mark.slow
def test_momentum_network_starts_as_a_copy_and_follows_the_updated_one():
  _, state, after, metrics = run()
  assert all(np.isfinite(x) for x in metrics.values())
  for name in automix.TWICE:
    q, k = layout.flatten(after.params[name]), after.extra[f'{name}_k']
    before = layout.flatten(state.params[name])
    first = layout.flatten(state.extra[f'{name}_k'])
    for path, x in layout.flatten(k).items():
      np.testing.assert_array_equal(first[path], before[path])
      np.testing.assert_allclose(
        x, 0.9 * before[path] + 0.1 * q[path], rtol=1e-5, atol=1e-6
      )


@pytest.mark.slow
def test_each_network_has_batch_statistics_of_its_own():
  _, state, after, _ = run()
  q, k = (after.extra[automix.stats_name(which)] for which in 'qk')
  for tree in (q, k):
    changed = jax.tree.map(
      lambda a, b: bool(jnp.any(a != b)), tree, state.extra['batch_stats']
    )
    assert all(jax.tree.leaves(changed))
  assert jnp.any(q['stem_bn']['mean'] != k['stem_bn']['mean'])


def test_all_four_heads_answer():
  system, state, after, _ = run()
  outputs = jax.jit(system.predict)(after, batch_of())
  heads = {f'logits_{x}_{w}' for x in ('one', 'mix') for w in 'qk'}
  assert set(outputs) == {'logits', 'vector', *heads}
  np.testing.assert_array_equal(outputs['logits'], outputs['logits_one_k'])
  assert all(outputs[name].shape == (ROWS, 3) for name in heads)
  head = after.extra['head_one_k']
  np.testing.assert_allclose(
    outputs['vector'] @ head['kernel'] + head['bias'],
    outputs['logits'],
    atol=1e-5,
  )
  del state
  assert jnp.any(outputs['logits_one_q'] != outputs['logits_one_k'])


@pytest.mark.parametrize(
  'options',
  [
    {'microbatches': 2},
    {
      'total_steps': 10,
      'loss.switch_off': 0.8,
      'loss.mask_decay': True,
      'loss.groups': 4,
      'mix_block.lam_concat': True,
      'mix_block.upsampling': 'bilinear',
    },
    {
      'model': 'deit_tiny_patch16_224',
      'model_options': {'depth': 4, 'width': 48, 'patch_size': 4},
      'scan': True,
    },
  ],
  ids=['microbatches', 'schedules', 'transformer'],
)
def test_options_keep_the_shapes_of_the_state(options):
  config = config_of()
  with config.unlocked():
    if 'model_options' in options:
      config.model_options = options['model_options']
    config.update_from_flattened_dict(
      {name: x for name, x in options.items() if name != 'model_options'}
    )
  system = automix.build(config, optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, batch_of())
  after, metrics = jax.eval_shape(system.step, state, batch_of())
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert shapes(after) == shapes(state)
  assert {x.shape for x in metrics.values()} == {()}


def test_schedules_of_the_run_move_the_weights():
  networks, params, extra = start()
  config = config_of(
    total_steps=10, **{'loss.mask_decay': True, 'loss.switch_off': 1.0}
  )

  @jax.jit
  def at(step):
    loss = automix.make_loss(config, networks, step)
    value, (_, metrics) = loss(params, extra, batch_of(), KEY)
    return value, metrics

  for step, share in ((0, 1.0), (10, 0.0)):
    value, parts = at(step)
    want = parts['loss_mix_q'] + parts['loss_one_q']
    want += share * (parts['loss_mix_k'] + 0.1 * parts['loss_mask'])
    np.testing.assert_allclose(value, want, rtol=1e-5)


def test_momentum_jumps_to_the_cosine_after_its_start():
  at = functools.partial(
    automix.momentum_at, total_steps=100, base=0.9, end=1.0
  )
  cosine = lambda t: 1 - 0.1 * (np.cos(np.pi * t) + 1) / 2
  np.testing.assert_allclose(at(jnp.int32(9)), 0.9, rtol=1e-6)
  np.testing.assert_allclose(at(jnp.int32(10)), cosine(0.1), rtol=1e-6)
  np.testing.assert_allclose(at(jnp.int32(100)), 1.0, rtol=1e-6)
  assert at(jnp.int32(0), start=0.0) == 0
  np.testing.assert_allclose(
    at(jnp.int32(1), start=0.0), cosine(0.01), rtol=1e-6
  )
  np.testing.assert_allclose(
    automix.momentum_at(jnp.int32(50), 0, 0.9), 0.9, rtol=1e-6
  )


def test_options_that_are_not_there_are_errors_with_the_nearest():
  with pytest.raises(UserError, match='bilinear'):
    automix.build(config_of(**{'mix_block.upsampling': 'linear'}), optax.sgd(1))
  system = automix.build(
    config_of(**{'mix_block.layer': 'stage9'}), optax.sgd(1)
  )
  with pytest.raises(UserError, match='stage3'):
    jax.eval_shape(system.init, KEY, batch_of())


def test_distilled_network_is_an_error():
  config = config_of(model='deit_tiny_distilled_patch16_224')
  with config.unlocked():
    config.model_options = dict(depth=4, width=48, patch_size=4)
  system = automix.build(config, optax.sgd(1))
  with pytest.raises(UserError, match='distilled'):
    jax.eval_shape(system.init, KEY, batch_of())


# Weights.


def random_networks():
  """(params, extra, backbone), all random."""
  networks, built = automix.make_networks(config_of())
  shapes = jax.eval_shape(
    lambda: automix.init_networks(networks, KEY, jnp.zeros((1, SIZE, SIZE, 3)))
  )
  rng = np.random.default_rng(0)
  params, extra = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )
  return params, extra, built


def state_dict_of(params, extra, built):
  k = {name: extra[f'{name}_k'] for name in automix.TWICE}
  return names.save(
    (params, extra['batch_stats']), (k, extra['batch_stats_k']), built.export
  )


def assert_same(got, want):
  got, want = layout.flatten(got), layout.flatten(want)
  assert got.keys() == want.keys()
  for path, x in want.items():
    np.testing.assert_array_equal(got[path], x, err_msg=path)


def test_names_of_the_released_code_go_both_ways():
  params, extra, built = random_networks()
  state_dict = state_dict_of(params, extra, built)
  assert 'backbone_q.layer1.0.conv1.weight' in state_dict
  assert state_dict['mix_block.value.weight'].shape == (1, 8, 1, 1)
  assert_same(automix.convert(state_dict, config_of()), params)
  assert_same(automix.convert_extra(state_dict, config_of()), extra)


def test_aliases_of_the_momentum_network_are_read_last():
  params, extra, built = random_networks()
  state_dict = state_dict_of(params, extra, built)
  for alias, own in names.ALIASES.items():
    state_dict |= {
      alias + name.removeprefix(own): x + 1
      for name, x in state_dict.items()
      if name.startswith(own)
    }
  loaded = automix.convert_extra(state_dict, config_of())
  for name in ('backbone_k', 'head_one_k', 'batch_stats_k'):
    assert_same(loaded[name], jax.tree.map(lambda x: x + 1, extra[name]))
  assert_same(loaded['head_mix_k'], extra['head_mix_k'])
  assert_same(automix.convert(state_dict, config_of()), params)


def test_bare_backbone_becomes_both_networks():
  params, extra, _ = random_networks()
  whole = build_model(
    'resnet18', num_classes=3, image_size=SIZE, depths=(1, 1, 1), width=4,
    small_stem=True,
  )  # fmt: skip
  variables = {
    'params': {**params['backbone'], 'head': params['head_one']},
    'batch_stats': extra['batch_stats'],
  }
  state_dict = whole.export(variables)
  assert_same(
    automix.convert(state_dict, config_of()), {'backbone': params['backbone']}
  )
  assert_same(
    automix.convert_extra(state_dict, config_of()),
    {
      'backbone_k': params['backbone'],
      'batch_stats': extra['batch_stats'],
      'batch_stats_k': extra['batch_stats'],
    },
  )
