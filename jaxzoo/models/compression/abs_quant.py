"""ABS: automatic bit sharing (arXiv 2101.04935).

Any backbone of the classification system with weights and activations of 2, 4
or 8 bits a layer, which one is learned together with which filters are left,
at the price of the bit operations. One run has three stages: the network is
trained at full precision (or starts from published weights), then bits are
searched, then gates are fixed and the network is fine-tuned.

Losses: cross-entropy, and while searching + lambda log R, R the bit operations
over those at 32 bits. With a target lambda follows it (a multiplicative
controller), and the bits that are kept are the last ones within the target.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxzoo.compress import superbit
from jaxzoo.models.compression import bits
from jaxzoo.models.compression.bits import (
  Plan,
  Setting,
  make_setting,
  stage_of,
)
from jaxzoo.models.layers import quantized
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.quantized import Gates
from jaxzoo.models.supervised import classification
from jaxzoo.system import System, from_loss

SHARDING = ()  # the network's own, see `sharding`
sharding = classification.sharding
summary = bits.summary

BOUNDS = (1e-4, 10.0)  # of lambda under a target


def build(config, tx: optax.GradientTransformation) -> System:
  """Quantisation-aware classification as a System.

  Batches and `predict` are those of `classification`; parameters are `network`
  and `quantizers`, see `layers/quantized.py`. Metrics: `loss`, `accuracy`,
  `grad_norm`; `stage`, 0 full precision, 1 searching, 2 fine-tuning;
  `bop_ratio`, bit operations at 32 bits over those now; `bits_weight` and
  `bits_activation`, means over the layers; `filters`, share that is left;
  `cost_weight`, lambda.

  Args:
    config: fields of `classification.build`, and `quant`: `bits`;
      `pretrain_epochs` and `search_epochs`; `pruned`, a regex on the names of
      channel groups ('' for none); `filters_per_group`; `cost_weight`, lambda;
      `target_bits`, the bits at which a uniform network has the bit operations
      that are aimed at, 0 for none; `gain` of the controller;
      `weight_bits` and `activation_bits` before a search, or without one;
      `search_rate`, of the learning rate while searching.
    tx: the optimizer; what matches '^quantizers/' gets no weight decay.

  Raises:
    UserError: see `make_setting` and `classification.check_loss`.
  """
  classification.check_loss(config.loss)
  setting = make_setting(config)
  base = from_loss(
    lambda rng, batch: init_variables(rng, batch, setting, config),
    make_loss(setting, config),
    make_predict(setting, config),
    in_turns(tx, setting.plan, config.quant.search_rate),
    advance=make_advance(setting, config),
    microbatches=config.microbatches,
  )
  measure = make_calibration(setting, config)

  def step(state, batch):
    state = jax.lax.cond(
      state.step == setting.plan.search,
      lambda state: measure(state, batch),
      lambda state: state,
      state,
    )
    return base.step(state, batch)

  return System(base.init, step, base.predict)


def init_variables(rng, batch, setting: Setting, config):
  """(params, extra)."""
  blank = jnp.zeros((1, *batch['image'].shape[1:]))
  variables = setting.module.init(rng, blank)
  params = {
    'network': variables['params'],
    'quantizers': quantized.init_quantizers(
      setting.layers, setting.pruned, setting.bits
    ),
  }
  extra = {
    **classification.statistics(variables),
    'quant': {
      'steps': jnp.int32(0),
      'signed': jnp.zeros(len(setting.layers), bool),
      'gates': jax.tree.map(jnp.copy, setting.start)._asdict(),
      'cost': quantized.bit_cost(setting.layers, setting.start, setting.bits),
      'met': jnp.bool_(False),
      'cost_weight': jnp.float32(config.quant.cost_weight),
    },
  }
  return params, extra


def forward(params, extra, image, setting: Setting, config, rng=None):
  """(logits, new statistics, Gates) at the stage of `extra`.

  In training if there is a key for dropout.
  """
  own, network = extra['quant'], params['network']
  active, _, fixed = stage_of(own['steps'], setting.plan)
  stored = Gates(**own['gates'])
  weights, of_weights, of_filters = quantized.quantize_weights(
    network,
    params['quantizers'],
    setting.layers,
    stored,
    fixed,
    setting.pruned,
    setting.filters,
    setting.bits,
  )
  weights = jax.tree.map(
    lambda q, w: jnp.where(active, q, w).astype(w.dtype), weights, network
  )
  interceptor = quantized.quantizing(
    setting.layers,
    params['quantizers'],
    own['signed'],
    stored,
    fixed,
    active,
    setting.bits,
  )
  image = normalize(image, config.mean, config.std, jnp.dtype(config.dtype))
  with nn.intercept_methods(interceptor):
    logits, updated = setting.module.apply(
      {'params': weights, **classification.statistics(extra)},
      image,
      rng is not None,
      rngs=None if rng is None else {'dropout': rng},
      mutable=['gates'] if rng is None else ['gates', 'batch_stats'],
    )
  of_activations = quantized.activation_gates(
    updated.pop('gates'), setting.layers
  )
  return logits, updated, Gates(of_weights, of_activations, of_filters)


def make_loss(setting: Setting, config) -> Callable:
  """Cross-entropy, and while searching the price of bit operations."""
  compare = classification.LOSSES[config.loss.kind]

  def loss(params, extra, batch, rng):
    mix_rng, dropout_rng = jax.random.split(rng)
    image, targets, labels = classification.mixed(batch, mix_rng, config)
    logits, updated, gates = forward(
      params, extra, image, setting, config, dropout_rng
    )
    own = extra['quant']
    active, searching, _ = stage_of(own['steps'], setting.plan)
    cost = quantized.bit_cost(setting.layers, gates, setting.bits)
    heads = jax.tree.leaves(logits)
    value = sum(compare(head, targets) for head in heads) / len(heads)
    price = own['cost_weight'] * jnp.log(cost)
    value = value + jnp.where(searching, price, 0)
    within = cost <= setting.target * (1 + 1e-6) if setting.target else True
    keep = searching & (within | ~own['met'])
    stored = jax.tree.map(
      lambda new, old: jnp.where(keep, new, old), gates._asdict(), own['gates']
    )
    own = {
      **own,
      'gates': jax.lax.stop_gradient(stored),
      'cost': jax.lax.stop_gradient(cost),
      'met': own['met'] | (searching & within),
    }
    right = sum(heads).argmax(-1) == labels
    metrics = {
      'accuracy': right.mean(dtype=jnp.float32),
      **describe(gates, cost, setting),
      'stage': active + (active & ~searching).astype(jnp.float32),
      'cost_weight': own['cost_weight'],
    }
    return value, ({**extra, **updated, 'quant': own}, metrics)

  return loss


def describe(gates: Gates, cost, setting: Setting) -> dict:
  """Metrics of gates."""
  width = jax.vmap(lambda g: superbit.width_of(g, setting.bits))
  filters = jax.tree.leaves(gates.filters)
  return {
    'bop_ratio': 1 / cost,
    'bits_weight': width(gates.weight).mean(),
    'bits_activation': width(gates.activation).mean(),
    'filters': jnp.concatenate(filters).mean() if filters else jnp.float32(1),
  }


def make_predict(setting: Setting, config) -> Callable:
  """(params, extra, batch) -> logits."""

  def predict(params, extra, batch):
    logits, _, _ = forward(params, extra, batch['image'], setting, config)
    heads = jax.tree.leaves(logits)
    return {'logits': sum(heads).astype(jnp.float32) / len(heads)}

  return predict


def make_advance(setting: Setting, config) -> Callable:
  """Counts steps; lambda follows the target while searching."""
  gain = config.quant.gain

  def advance(params, extra):
    own = extra['quant']
    _, searching, _ = stage_of(own['steps'], setting.plan)
    weight = own['cost_weight']
    if setting.target:
      excess = jnp.log(own['cost'] / setting.target)
      moved = jnp.clip(weight * jnp.exp(gain * excess), *BOUNDS)
      weight = jnp.where(searching, moved, weight)
    # A scale of 0 or below has no meaning.
    quantizers = dict(params['quantizers'])
    for name in ('scale_weight', 'scale_activation'):
      quantizers[name] = jnp.maximum(quantizers[name], 1e-3)
    own = {**own, 'steps': own['steps'] + 1, 'cost_weight': weight}
    return {**params, 'quantizers': quantizers}, {**extra, 'quant': own}

  return advance


def make_calibration(setting: Setting, config) -> Callable:
  """(state, batch) -> state with the scales of a batch."""

  def measure(state, batch):
    network = state.params['network']
    image = normalize(batch['image'], config.mean, config.std)
    with nn.intercept_methods(quantized.measuring(setting.layers)):
      _, sown = setting.module.apply(
        {'params': network, **classification.statistics(state.extra)},
        image.astype(config.dtype),
        mutable=['measured'],
      )
    quantizers, signed = quantized.calibrate(
      network, state.params['quantizers'], setting.layers, sown['measured']
    )
    own = {**state.extra['quant'], 'signed': signed}
    params = {**state.params, 'quantizers': quantizers}
    return state._replace(params=params, extra={**state.extra, 'quant': own})

  return measure


class TurnState(NamedTuple):
  """State of `in_turns`."""

  count: jax.Array
  inner: object


def in_turns(
  tx: optax.GradientTransformation, plan: Plan, search_rate: float
) -> optax.GradientTransformationExtraArgs:
  """Thresholds of weights and of activations learn in turns, step by step.

  While searching alone; the one that waits sees neither gradient nor update.
  All updates of the search are multiplied by `search_rate`.
  """
  tx = optax.with_extra_args_support(tx)

  def only(tree, searching, count):
    even = count % 2 == 0
    turns = {
      'threshold_weight': searching & even,
      'threshold_filters': searching & even,
      'threshold_activation': searching & ~even,
    }
    mask = lambda turn: lambda x: jnp.where(turn, x, jnp.zeros_like(x))
    quantizers = {
      name: jax.tree.map(mask(turns[name]), part) if name in turns else part
      for name, part in tree['quantizers'].items()
    }
    return {**tree, 'quantizers': quantizers}

  def init(params):
    return TurnState(jnp.int32(0), tx.init(params))

  def update(grads, state, params=None, **extra):
    _, searching, _ = stage_of(state.count, plan)
    grads = only(grads, searching, state.count)
    updates, inner = tx.update(grads, state.inner, params, **extra)
    rate = jnp.where(searching, search_rate, 1.0)
    updates = jax.tree.map(lambda u: (u * rate).astype(u.dtype), updates)
    updates = only(updates, searching, state.count)
    return updates, TurnState(state.count + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Published weights; quantisers start fresh."""
  return {'network': classification.convert(state_dict, config)}


convert_extra = classification.convert_extra


def fresh(config) -> tuple[str, ...]:
  """Paths that published weights lack."""
  own = classification.fresh(config)
  return (r'^quantizers/', *(f'^network/{p.removeprefix("^")}' for p in own))
