"""ABS: stages of a run, thresholds in turns, what is extracted."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from jaxzoo.compress import channels, superbit
from jaxzoo.errors import UserError
from jaxzoo.models.compression import abs_quant, bits
from jaxzoo.models.layers import quantized
from jaxzoo.models.supervised import classification
from jaxzoo.weights import layout

SIZE = 8


def config_of(**overrides):
  config = ml_collections.ConfigDict(
    dict(
      model='resnet18',
      model_options=dict(depths=(1,), width=8, small_stem=True),
      num_classes=3,
      image_size=(SIZE, SIZE),
      in_chans=3,
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      epochs=6.0,
      total_steps=6,
      mean=(0.5, 0.5, 0.5),
      std=(0.25, 0.25, 0.25),
      loss=dict(
        kind='softmax',
        label_smoothing=0.0,
        smoothed='all',
        mixup=0.0,
        cutmix=0.0,
        mixup_switch=0.5,
        mixup_prob=1.0,
        mixup_ramp=0.0,
      ),
      quant=dict(
        bits=(2, 4, 8),
        pretrain_epochs=1.0,
        search_epochs=3.0,
        pruned='conv1$',
        filters_per_group=4,
        cost_weight=0.5,
        target_bits=4.0,
        gain=0.1,
        weight_bits=8,
        activation_bits=8,
        search_rate=1.0,
      ),
    )
  )
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed, rows=4):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (rows, SIZE, SIZE, 3), np.uint8),
    'label': rng.integers(0, 3, rows).astype(np.int32),
  }


@functools.cache
def run():
  """(system, states, metrics) of a whole run of six steps."""
  system = abs_quant.build(config_of(), optax.sgd(0.1, momentum=0.9))
  states, history = [jax.jit(system.init)(jax.random.key(0), batch_of(0))], []
  step = jax.jit(system.step)
  for i in range(6):
    state, metrics = step(states[-1], batch_of(i))
    states.append(jax.device_get(state))
    history.append(metrics)
  assert step._cache_size() <= 2  # arrays of the device, then of the host
  return system, states, history


def moved(before, after, name):
  return jax.tree.map(
    lambda a, b: bool(np.any(a != b)),
    *(s.params['quantizers'][name] for s in (before, after)),
  )


def test_stages_follow_each_other():
  _, _, history = run()
  assert [float(m['stage']) for m in history] == [0, 1, 1, 1, 2, 2]
  assert all(np.isfinite(x) for m in history for x in m.values())


def test_thresholds_learn_in_turns_and_only_while_searching():
  _, states, _ = run()
  for t in range(6):
    searching = 1 <= t < 4
    for name, turn in (
      ('threshold_weight', t % 2 == 0),
      ('threshold_activation', t % 2 == 1),
    ):
      assert moved(states[t], states[t + 1], name) == (searching and turn), t
    filters = moved(states[t], states[t + 1], 'threshold_filters')
    assert filters == {'stage1_block0/conv1': searching and t % 2 == 0}


def test_scales_are_those_of_weights_and_of_a_batch():
  _, states, _ = run()
  setting = bits.make_setting(config_of())
  assert [x.path for x in setting.layers] == [
    'stem_conv', 'stage1_block0/conv1', 'stage1_block0/conv2', 'head'
  ]  # fmt: skip
  # The first image batch is signed, what follows a ReLU is not.
  signed = states[2].extra['quant']['signed']
  np.testing.assert_array_equal(signed, [True, False, False, False])
  weights = layout.flatten(states[1].params['network'])
  w = superbit.standardized(weights['stage1_block0/conv1/kernel'])
  # One step after: moved by less than a learning rate allows.
  scale = states[2].params['quantizers']['scale_weight'][1]
  assert abs(scale - np.abs(w).max()) < 0.3


def test_full_precision_stage_is_the_network_itself():
  system, states, _ = run()
  batch, state = batch_of(7), states[0]
  module = classification.make_backbone(config_of()).module
  image = (batch['image'] / 255 - 0.5) / 0.25
  want = module.apply(
    {
      'params': state.params['network'],
      'batch_stats': state.extra['batch_stats'],
    },
    image.astype(np.float32),
  )
  np.testing.assert_allclose(
    system.predict(state, batch)['logits'], want, rtol=1e-4, atol=1e-5
  )


def test_gates_are_fixed_after_the_search():
  _, states, _ = run()
  for state in states[5:]:
    jax.tree.map(
      np.testing.assert_array_equal,
      state.extra['quant']['gates'],
      states[4].extra['quant']['gates'],
    )


def weights_of(state, gates, config):
  setting = bits.make_setting(config)
  return quantized.quantize_weights(
    state.params['network'],
    state.params['quantizers'],
    setting.layers,
    gates,
    jnp.bool_(True),
    setting.pruned,
    setting.filters,
    setting.bits,
  )[0]


def test_stored_integers_are_the_weights_of_the_network():
  _, states, _ = run()
  state, config = states[-1], config_of()
  gates = quantized.Gates(**state.extra['quant']['gates'])
  used = layout.flatten(weights_of(state, gates, config))
  masks = bits.channel_masks(config, state.extra)
  stored = bits.integer_weights(config, state.params, state.extra)
  assert len(stored) == 4
  for path, w in stored.items():
    value = 2.0 * w['levels'] / (2 ** w['bits'] - 1) - 1
    if path == 'stage1_block0/conv1/kernel':
      value = value * masks['stage1_block0/conv1']
    if path == 'stage1_block0/conv2/kernel':
      value = value * masks['stage1_block0/conv1'][:, None]
    np.testing.assert_allclose(
      w['unit'] * w['scale'] * value, used[path], rtol=1e-3, atol=1e-4
    )


def test_closed_filters_can_be_taken_out():
  _, states, _ = run()
  state, config = states[-1], config_of()
  setting = bits.make_setting(config)
  gates = quantized.Gates(**state.extra['quant']['gates'])
  gates = gates._replace(filters={'stage1_block0/conv1': jnp.array([0.0, 1.0])})
  extra = {'quant': {'gates': gates._asdict()}}
  masks = bits.channel_masks(config, extra)
  weights, stats = weights_of(state, gates, config), state.extra['batch_stats']
  *smaller, widths = channels.compact(weights, stats, setting.pruned, masks)
  assert widths == {'stage1_block0/conv1': 4}
  image = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 3))
  apply = lambda module, p, s: module.apply(
    {'params': p, 'batch_stats': s}, image
  )
  channels.verify_compact(
    apply(setting.module, weights, stats),
    apply(classification.compacted(config, widths), *smaller),
  )
  # And they are not paid for: conv1 makes half, conv2 takes half.
  full = gates._replace(filters={'stage1_block0/conv1': jnp.ones(2)})
  cost = lambda g: float(quantized.bit_cost(setting.layers, g))
  inner = [x for x in bits.extract(config, extra) if x.share < 1]
  saved = sum(x.macs * x.weight * x.activation / 2 for x in inner)
  whole = sum(x.macs for x in setting.layers) * 1024
  assert len(inner) == 2
  assert cost(full) - cost(gates) == pytest.approx(saved / whole, rel=1e-4)


def test_summary_counts_the_bit_operations_of_the_extracted_layers():
  _, states, _ = run()
  found = abs_quant.summary(config_of(), states[-1])
  gates = quantized.Gates(**states[-1].extra['quant']['gates'])
  setting = bits.make_setting(config_of())
  cost = quantized.bit_cost(setting.layers, gates, setting.bits)
  assert found['bop_ratio'] == pytest.approx(1 / float(cost), rel=1e-5)


def test_uniform_bits_cost_what_the_target_says():
  config = config_of(**{'quant.weight_bits': 4, 'quant.activation_bits': 4})
  setting = bits.make_setting(config)
  layers = setting.layers
  ends = [layer.macs * 64 for layer in layers if layer.ends]
  inner = [layer.macs * 16 for layer in layers if not layer.ends]
  whole = sum(layer.macs for layer in layers) * 1024
  assert setting.target == pytest.approx((sum(ends) + sum(inner)) / whole)
  cost = quantized.bit_cost(layers, setting.start)
  assert float(cost) == pytest.approx(setting.target)
  # As many as 4 bits of weights and 2 of activations take.
  mixed = bits.make_setting(
    config_of(
      **{
        'quant.target_bits': 8**0.5,
        'quant.weight_bits': 4,
        'quant.activation_bits': 2,
      }
    )
  )
  cost = quantized.bit_cost(layers, mixed.start)
  assert float(cost) == pytest.approx(mixed.target)


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('quant.bits', (2, 5, 8), 'twice'),
    ('quant.weight_bits', 5, '2, 4, 8'),
    ('quant.pruned', 'conv9', 'stage1_block0/conv1'),
    ('quant.filters_per_group', 3, 'divisor'),
    ('model', 'lightvit_tiny', 'channel groups'),
  ],
)
def test_mistakes_are_told(field, value, message):
  config = config_of(**{field: value})
  if field == 'model':
    config.model_options = {}
    config.image_size = (224, 224)
  with pytest.raises(UserError, match=message):
    abs_quant.build(config, optax.sgd(0.1))
