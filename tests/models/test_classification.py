"""Losses on classes, mixing, and the system around any backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxzoo import catalog, initial, main
from jaxzoo.errors import UserError
from jaxzoo.models.losses import classification as losses
from jaxzoo.models.supervised import classification
from jaxzoo.weights import layout

KEY = jax.random.key(0)
KEYS = jax.random.split(KEY, 64)


def tiny(**overrides):
  config = catalog.get_config('classification:tiny').unlock()
  config.update(overrides)
  return config


def batch_of(config, seed=0):
  rng = np.random.default_rng(seed)
  shape = (config.batch_size, *config.image_size, config.in_chans)
  return {
    'image': rng.integers(0, 256, shape, np.uint8),
    'label': rng.integers(0, config.num_classes, shape[0]).astype(np.int32),
  }


# Losses.


def test_cross_entropy_of_smoothed_labels_is_the_mixture_of_two():
  logits = jax.random.normal(KEY, (6, 5))
  labels = jnp.arange(6) % 5
  targets = losses.soft_targets(labels, 5, 0.1)
  np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
  hard = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  uniform = -jax.nn.log_softmax(logits).mean(1)
  np.testing.assert_allclose(
    losses.cross_entropy(logits, targets),
    (0.9 * hard + 0.1 * uniform).mean(),
    rtol=1e-6,
  )


def test_binary_cross_entropy_asks_of_each_class_for_itself():
  logits = np.array([[2.0, -1.0], [0.5, 3.0]])
  targets = np.array([[1.0, 0.0], [0.3, 0.7]])
  p = 1 / (1 + np.exp(-logits))
  want = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()
  got = losses.binary_cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('loss', ['cross_entropy', 'binary_cross_entropy'])
def test_losses_are_float32_and_finite_for_large_bfloat16_logits(loss):
  logits = jnp.array([[3e4, -3e4]], jnp.bfloat16)
  value = getattr(losses, loss)(logits, jnp.array([[0.0, 1.0]]))
  assert value.dtype == jnp.float32 and jnp.isfinite(value)


# Mixing.


def weights(keys=KEYS, size=(12, 9), **options):
  draw = lambda key: losses.mixing_weights(key, *size, **options)
  return np.asarray(jax.jit(jax.vmap(draw))(keys))


def test_mixup_keeps_one_share_everywhere():
  got = weights(mixup=0.8)
  assert np.all(got == got[:, :1, :1])
  assert len(np.unique(got[:, 0, 0])) == len(KEYS)
  assert got.min() >= 0 and got.max() <= 1


def test_cutmix_takes_one_box_from_the_partner():
  for each in weights(cutmix=1.0):
    assert set(np.unique(each)) <= {0.0, 1.0}
    rows, columns = np.nonzero(each == 0)
    if len(rows):
      box = each[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
      assert not box.any(), 'not a box'


def test_share_of_cutmix_is_that_of_the_recipe():
  # timm's rectangle, drawn in NumPy: same mean and spread of the share.
  rng, shares = np.random.default_rng(0), []
  for _ in range(4000):
    ratio = np.sqrt(1 - rng.beta(1, 1))
    cut = []
    for side in (12, 9):
      half, centre = int(side * ratio) // 2, rng.integers(side)
      low, high = np.clip([centre - half, centre + half], 0, side)
      cut.append((high - low) / side)
    shares.append(1 - cut[0] * cut[1])
  keys = jax.random.split(jax.random.key(1), 4000)
  got = weights(keys, cutmix=1.0).mean((1, 2))
  np.testing.assert_allclose(got.mean(), np.mean(shares), atol=0.02)
  np.testing.assert_allclose(got.std(), np.std(shares), atol=0.02)


def test_one_of_the_two_is_chosen_for_each_batch():
  box = lambda switch: np.mean(
    [
      len(np.unique(w)) > 1
      for w in weights(mixup=1.0, cutmix=1.0, switch=switch)
    ]
  )
  assert box(0.0) == 0 and box(1.0) > 0.8 and 0.2 < box(0.5) < 0.7


@pytest.mark.parametrize(
  'options', [dict(), dict(mixup=1.0, prob=0.0), dict(cutmix=1.0, prob=0.0)]
)
def test_images_stay_whole_where_nothing_is_mixed(options):
  assert np.all(weights(**options) == 1)


def test_partners_are_mixed_with_each_other():
  x = jax.random.normal(KEY, (6, 4, 4, 3))
  share = jax.random.uniform(KEY, (4, 4, 1))
  got = losses.mix(x, share)
  np.testing.assert_allclose(got[1], share * x[1] + (1 - share) * x[4], 1e-6)
  # The sum over the batch stays, and the order of the batch plays no part.
  np.testing.assert_allclose(got.sum(0), x.sum(0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(losses.mix(x[::-1], share), got[::-1], rtol=1e-6)


def test_mixing_a_sharded_batch_gathers_nothing():
  mesh = Mesh(np.asarray(jax.devices()), ('data',))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  x = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32, sharding=sharding)
  text = (
    jax.jit(lambda x: losses.mix(x, 0.3), out_shardings=sharding)
    .lower(x)
    .compile()
    .as_text()
  )
  assert 'all-to-all' not in text and 'all-gather' not in text
  assert 'collective-permute' in text


# The network.


def test_options_of_the_config_are_fields_of_the_module():
  config = tiny()
  module = classification.make_backbone(config).module
  assert (module.depths, module.width, module.small_stem) == ((1, 1), 8, True)
  assert module.num_classes == 10
  config.model_options.depths = [2, 1]  # as read back from JSON
  assert classification.make_backbone(config).module.depths == (2, 1)


def test_scan_and_remat_reach_the_networks_that_have_them():
  module = classification.make_backbone(tiny(remat='full')).module
  assert module.remat == 'full' and not hasattr(module, 'scan')
  config = vit(scan=True, remat='dots')
  module = classification.make_backbone(config).module
  assert module.scan and module.remat == 'dots'
  config.model_options.scan = False
  assert not classification.make_backbone(config).module.scan


def vit(name='deit_tiny_patch16_224', **overrides):
  config = tiny(**overrides)
  config.model = name
  config.model_options = dict(depth=2, width=16, num_heads=2, patch_size=8)
  return config


@pytest.mark.parametrize(
  'change, words',
  [
    (dict(model='resnet19'), "no model 'resnet19'; did you mean"),
    (dict(model='clip_vit_b16'), 'clip_vit_b16.*no classes'),
    (dict(num_classes=0), 'num_classes=0'),
    (
      dict(loss=dict(kind='softmx')),
      "loss.kind.*'softmx'; did you mean softmax",
    ),
    (dict(loss=dict(smoothed='al')), "loss.smoothed.*'al'"),
    (dict(loss=dict(mixup=-1.0)), 'loss.mixup=-1.0'),
    (dict(loss=dict(label_smoothing=1.5)), 'loss.label_smoothing=1.5'),
    (dict(loss=dict(mixup_ramp=-1.0)), 'loss.mixup_ramp=-1.0'),
    (dict(loss=dict(mixup_ramp=9.0)), 'of mixup alone'),
    (dict(dtype='float31'), 'dtype'),
  ],
  ids=str,
)
def test_mistakes_are_told_before_anything_is_compiled(change, words):
  with pytest.raises(UserError, match=words):
    classification.build(tiny(**change), optax.sgd(0.1))


def test_option_that_the_network_lacks_is_an_error_with_the_nearest():
  config = tiny()
  config.model_options.drop_pth = 0.1
  with pytest.raises(UserError, match='drop_pth'):
    classification.make_backbone(config)


# The system.


def test_prediction_is_the_classifier_of_its_vector():
  config = tiny()
  system = main.create_system(config)
  batch = batch_of(config)
  state = jax.jit(system.init)(KEY, batch)
  got = jax.jit(system.predict)(state, {'image': batch['image']})
  assert got['logits'].shape == (16, 10) and got['vector'].shape == (16, 16)
  assert {x.dtype for x in got.values()} == {jnp.dtype(jnp.float32)}
  head = state.params['head']
  np.testing.assert_allclose(
    got['logits'], got['vector'] @ head['kernel'] + head['bias'], atol=1e-5
  )


def test_distilled_network_learns_with_both_heads_and_predicts_their_mean():
  config = vit('deit_tiny_distilled_patch16_224')
  config.model_options.depth = 1
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  config.ema = 0.0
  system = main.create_system(config)
  batch = batch_of(config)
  state = jax.jit(system.init)(KEY, batch)
  module = classification.make_backbone(config).module
  image = classification.normalize(batch['image'], config.mean, config.std)
  # Without drop path, training and testing differ in the mean alone.
  forward = lambda params: module.apply({'params': params}, image, True)
  heads = jax.jit(forward)(state.params)
  got = jax.jit(system.predict)(state, batch)
  np.testing.assert_allclose(got['logits'], sum(heads) / 2, atol=1e-5)
  _, metrics = jax.jit(system.step)(state, batch)
  each = [
    optax.softmax_cross_entropy_with_integer_labels(x, batch['label']).mean()
    for x in heads
  ]
  np.testing.assert_allclose(metrics['loss'], sum(each) / 2, rtol=1e-5)
  assert got['vector'].ndim == 2


def test_accuracy_is_on_the_label_with_the_larger_share():
  config = tiny()
  config.loss.update(mixup=1.0, cutmix=0.0, mixup_prob=1.0)
  batch = batch_of(config)
  mixed = jax.jit(lambda *x: classification.mixed(*x, config))
  for key in KEYS[:6]:
    image, targets, labels = mixed(batch, key)
    best = np.asarray(targets).argmax(1)
    np.testing.assert_array_equal(best, labels)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    assert image.dtype == jnp.float32 and float(image.max()) <= 1


def test_mixup_that_comes_in_slowly_begins_with_whole_pictures():
  config = tiny(epochs=4.0)
  config.loss.update(
    mixup=5.0, cutmix=0.0, mixup_prob=1.0, mixup_ramp=2.0, label_smoothing=0.0
  )
  plain = config.copy_and_resolve_references()
  plain.loss.update(mixup=0.0, mixup_ramp=0.0)
  batch = batch_of(config)
  mixing = main.create_system(config, total_steps=8)  # 2 an epoch
  whole = main.create_system(plain, total_steps=8)
  step, reference = jax.jit(mixing.step), jax.jit(whole.step)
  state, same = mixing.init(KEY, batch), whole.init(KEY, batch)
  for i in range(4):
    state, metrics = step(state, batch)
    same, wanted = reference(same, batch)
    equal = np.allclose(metrics['loss'], wanted['loss'], rtol=1e-5)
    assert equal == (i < 2), i
    assert state.extra['steps'] == i + 1


def test_what_is_drawn_depends_on_the_step():
  config = tiny(ema=0.0)
  config.optim.lr = 0.0
  config.loss.update(mixup=1.0, cutmix=0.0, mixup_prob=1.0)
  system = main.create_system(config)
  state = jax.jit(system.init)(KEY, batch_of(config))
  step = jax.jit(system.step)
  seen = set()
  for _ in range(3):
    state, metrics = step(state, batch_of(config))
    seen.add(float(metrics['loss']))
  assert len(seen) == 3


# Published weights.


def published(config, classes):
  """A state dict of the config's network with random weights."""
  there = config.copy_and_resolve_references()
  there.num_classes = classes
  built = classification.make_backbone(there)
  rng = np.random.default_rng(0)
  shapes = classification._shapes(built)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )
  return built.export(variables), variables


@pytest.mark.parametrize('make', [tiny, vit], ids=['resnet', 'vit'])
@pytest.mark.parametrize('classes', [10, 7], ids=['same', 'other'])
def test_weights_are_taken_and_a_classifier_of_other_classes_is_not(
  make, classes
):
  config = make(ema=0.9, scan=True)
  state_dict, theirs = published(config, classes)
  system = main.create_system(config)
  state = jax.jit(system.init)(KEY, batch_of(config))
  weights = initial.convert_weights(state_dict, config)
  got, report = initial.put_weights(state, weights, config)
  fresh = [] if classes == 10 else ['head/bias', 'head/kernel']
  assert list(report.fresh) == fresh
  want = layout.flatten(
    layout.to_layout(theirs['params'], {'params': state.params}['params'])
  )
  start = layout.flatten(state.params)
  for path, value in layout.flatten(got.params).items():
    expected = start if path in fresh else want
    np.testing.assert_array_equal(value, expected[path], err_msg=path)
  for name, value in layout.flatten(got.extra['ema']).items():
    np.testing.assert_array_equal(value, layout.flatten(got.params)[name])
  if 'batch_stats' in theirs:
    for tree in ('batch_stats', 'ema_stats'):
      jax.tree.map(
        np.testing.assert_array_equal, got.extra[tree], theirs['batch_stats']
      )


def test_classifier_of_the_published_classes_must_be_there():
  config = tiny(num_classes=1000)
  state_dict, _ = published(config, 1000)
  del state_dict['fc.bias']
  weights = initial.convert_weights(state_dict, config)
  system = main.create_system(config)
  state = jax.eval_shape(system.init, KEY, batch_of(config))
  with pytest.raises(UserError, match='head/bias: not in the checkpoint'):
    initial.put_weights(state, weights, config)


def test_sharding_is_that_of_the_network_wherever_its_arrays_lie():
  import re

  rules = catalog.sharding(catalog.get_config('classification:resnet50'))
  for path in ('params/head/kernel', 'opt/0/mu/head/kernel'):
    assert [axes for rule, axes in rules if re.search(rule, path)]
  rules = catalog.sharding(vit())
  path = 'extra/ema/transformer/blocks/mlp/fc1/kernel'
  assert [axes for rule, axes in rules if re.search(rule, path)]


# The config.


@pytest.mark.parametrize(
  'options, side, small_stem, crop',
  [
    ('model=resnet18', 224, False, 'random_resized'),
    ('model=resnet18,size=32', 32, True, 'pad'),
    ('model=deit_tiny_patch16_224,size=32', 32, None, 'pad'),
  ],
)
def test_models_by_name_come_as_published_or_for_small_pictures(
  options, side, small_stem, crop
):
  config = catalog.get_config(f'classification:folder,{options}')
  assert config.image_size == (side, side) and config.data.crop == crop
  module = classification.make_backbone(config).module
  assert getattr(module, 'small_stem', None) == small_stem
