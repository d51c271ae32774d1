"""What ABS searches in a network, and what has been found.

The layers, gates and stages of a config (`make_setting`), and of a state after
the search: bits by layer, channels, integer weights. See `abs_quant.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.compress import superbit
from jaxzoo.errors import UserError
from jaxzoo.models.layers import quantized
from jaxzoo.models.layers.quantized import Gates, Layer
from jaxzoo.models.supervised import classification
from jaxzoo.weights import layout


class Plan(NamedTuple):
  """First steps of the stages.

  Attributes:
    search: quantised from here on, with gates that learn.
    tune: gates are fixed from here on.
  """

  search: int
  tune: int


def make_plan(config) -> Plan:
  """The stages' steps, from epochs of the run."""
  unit = config.total_steps / config.epochs if config.epochs else 0
  search = round(config.quant.pretrain_epochs * unit)
  return Plan(search, search + round(config.quant.search_epochs * unit))


class Setting(NamedTuple):
  """What is quantised, and how.

  Attributes:
    module: the network.
    layers: of it.
    pruned: channel groups whose filters have gates.
    filters: to a gate.
    bits: that there are.
    start: gates before anything is searched.
    target: relative bit operations, 0 for none.
    plan: stages.
  """

  module: object
  layers: tuple
  pruned: tuple
  filters: int
  bits: tuple[int, ...]
  start: Gates
  target: float
  plan: Plan


def make_setting(config) -> Setting:
  """The setting of a config.

  Raises:
    UserError: bits, groups or a model that cannot be.
  """
  fields = config.quant
  built = classification.make_backbone(config)
  pruned = ()
  if fields.pruned:
    pattern = re.compile(fields.pruned)
    groups = classification.channel_groups(config)
    pruned = tuple(g for g in groups if pattern.search(g.name))
    if not pruned:
      raise UserError(
        f'quant.pruned={fields.pruned!r} matches no channel group of '
        f'{config.model}; there are '
        + ', '.join(group.name for group in groups[:8])
      )
    odd = [g for g in pruned if g.size % fields.filters_per_group]
    if odd:
      raise UserError(
        f'{odd[0].name} has {odd[0].size} filters: set quant.filters_per_group='
        f'{fields.filters_per_group} to a divisor'
      )
  shapes = jax.eval_shape(
    lambda: built.module.init(
      jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in built.inputs)
    )
  )
  layers = quantized.list_layers(
    built.module, built.inputs[0], shapes['params'], pruned
  )
  bits = tuple(fields.bits)
  superbit.check_bits(bits)
  uniform = lambda weight, activation: quantized.uniform_gates(
    layers, pruned, fields.filters_per_group, weight, activation, bits
  )
  return Setting(
    built.module,
    layers,
    pruned,
    fields.filters_per_group,
    bits,
    uniform(fields.weight_bits, fields.activation_bits),
    uniform_cost(layers, fields.target_bits, bits)
    if fields.target_bits
    else 0.0,
    make_plan(config),
  )


def uniform_cost(layers: Sequence[Layer], width: float, bits) -> float:
  """`bit_cost` of one number of bits, which need not be one of `bits`.

  The first and the last layer have the most that there are.
  """
  widths = [max(bits) if layer.ends else width for layer in layers]
  cost = sum(x.macs * w * w for x, w in zip(layers, widths, strict=True))
  return cost / (32 * 32 * sum(layer.macs for layer in layers))


def stage_of(steps, plan: Plan):
  """(quantised, searching, fixed): bools []."""
  active = steps >= plan.search
  fixed = steps >= plan.tune
  return active, active & ~fixed, fixed


# What comes out.


class LayerBits(NamedTuple):
  """One layer after the search.

  Attributes:
    path: of its module.
    weight: bits of its weights.
    activation: bits of what it takes.
    macs: multiply-adds of the whole layer.
    share: of them that is left.
  """

  path: str
  weight: int
  activation: int
  macs: int
  share: float


def extract(config, extra: Mapping) -> list[LayerBits]:
  """The bits of every layer, from the state's extras."""
  setting, gates = make_setting(config), Gates(**extra['quant']['gates'])
  shares = {n: float(np.mean(g)) for n, g in gates.filters.items()}
  width = lambda g: int(superbit.width_of(jnp.asarray(g), setting.bits))
  return [
    LayerBits(
      layer.path,
      width(gates.weight[i]),
      width(gates.activation[i]),
      layer.macs,
      float(np.prod([shares[name] for name in layer.groups])),
    )
    for i, layer in enumerate(setting.layers)
  ]


def bit_operations(layers: list[LayerBits]) -> float:
  """BOPs of one example: sum of macs share b_w b_x."""
  return float(sum(x.macs * x.share * x.weight * x.activation for x in layers))


def channel_masks(config, extra: Mapping) -> dict[str, np.ndarray]:
  """Channels that are left by group, for `compress.channels.compact`."""
  filters = make_setting(config).filters
  gates = extra['quant']['gates']['filters']
  return {n: np.repeat(np.asarray(g) > 0, filters) for n, g in gates.items()}


def integer_weights(config, params: Mapping, extra: Mapping) -> dict:
  """Weights as they are stored: levels and what they mean.

  Returns:
    path of a kernel -> dict of `levels` uint8, `bits` int, `scale` and
    `unit`: the kernel is unit scale (2 levels / (2^bits - 1) - 1).
  """
  setting, stored = make_setting(config), {}
  flat = layout.flatten(params['network'])
  for i, layer in enumerate(extract(config, extra)):
    w = jnp.asarray(flat[f'{layer.path}/kernel'])
    unit = 1.0
    if i < len(setting.layers) - 1:
      unit, w = float(jnp.sqrt(w.var() + 1e-12)), superbit.standardized(w)
    scale = params['quantizers']['scale_weight'][i]
    sums, _ = superbit.decompose(
      superbit.normalized(w, scale, True), setting.bits
    )
    level = sums[setting.bits.index(layer.weight)]
    stored[f'{layer.path}/kernel'] = {
      'levels': np.asarray(jnp.round(level * (2**layer.weight - 1)), np.uint8),
      'bits': layer.weight,
      'scale': float(scale),
      'unit': unit,
    }
  return stored


def summary(config, state) -> dict[str, float]:
  """What the run has come to, for result.json."""
  layers = extract(config, jax.device_get(state.extra))
  full = sum(layer.macs for layer in layers) * 32 * 32
  mean = lambda values: float(np.mean(list(values)))
  return {
    'bops': bit_operations(layers),
    'bop_ratio': full / bit_operations(layers),
    'bits_weight': mean(layer.weight for layer in layers),
    'bits_activation': mean(layer.activation for layer in layers),
  }
