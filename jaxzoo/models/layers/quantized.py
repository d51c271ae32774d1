"""Any network with quantised weights and activations, by interception.

Weights are quantised before the network is applied, what convolutions and dense
layers take while it is: the network itself knows nothing of it. Layers are in
the order in which they are applied; the first and the last keep the most bits
there are (ABS, arXiv 2101.04935).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.compress import channels, superbit
from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.errors import UserError
from jaxzoo.weights import layout

KINDS = nn.Conv | nn.Dense | nn.DenseGeneral
# Values of an activation that its percentile is taken of: sorting all would
# need their memory again.
SAMPLE = 2**16
PERCENTILE = 99.9


class Layer(NamedTuple):
  """A quantised layer.

  Attributes:
    path: of its module.
    macs: multiply-adds for one example.
    groups: channel groups that share its cost, by name.
    ends: whether it is the first or the last one, of fixed bits.
  """

  path: str
  macs: int
  groups: tuple[str, ...]
  ends: bool


class Gates(NamedTuple):
  """What is added to the lowest bits, and which filters are left.

  Attributes:
    weight: 0 or 1 for each layer and offset, [l, g].
    activation: likewise.
    filters: name of a channel group -> [n], a gate for each group of filters.
  """

  weight: Float[Array, 'l g']
  activation: Float[Array, 'l g']
  filters: dict


def list_layers(
  module: nn.Module, image, params, pruned: Sequence[ChannelGroup] = ()
) -> tuple[Layer, ...]:
  """The layers of a network, by tracing it.

  Args:
    module: the network.
    image: `jax.ShapeDtypeStruct` with a batch of 1.
    params: its parameters, abstract or not.
    pruned: channel groups whose filters have gates.

  Raises:
    UserError: scanned blocks, which would share one number of bits.
  """
  if getattr(module, 'scan', False):
    raise UserError('every layer has bits of its own: set scan=False')
  positions = channels.kernel_positions(module, image)
  table = {c.path: c for c in channels.cost_table(params, positions, pruned)}
  # In the order of the calls, in which `positions` came together.
  costs = [table[path] for path in positions if path in table]
  last = len(costs) - 1
  return tuple(
    Layer(
      cost.path.rpartition('/')[0],
      cost.macs,
      tuple(name for name, _ in cost.groups),
      i in (0, last),
    )
    for i, cost in enumerate(costs)
  )


def init_quantizers(
  layers: Sequence[Layer],
  pruned: Sequence[ChannelGroup],
  bits: Sequence[int] = superbit.BITS,
) -> dict[str, Any]:
  """Scales of 1, until `calibrate`; thresholds of 0: every gate is open."""
  count, offsets = len(layers), len(bits) - 1
  return {
    'scale_weight': jnp.ones(count),
    'scale_activation': jnp.ones(count),
    'threshold_weight': jnp.zeros((count, offsets)),
    'threshold_activation': jnp.zeros((count, offsets)),
    'threshold_filters': {group.name: jnp.zeros(()) for group in pruned},
  }


def gates_of_width(width: int, bits: Sequence[int]) -> list[float]:
  """The gates that give so many bits.

  Raises:
    UserError: no such number of bits.
  """
  if width not in bits:
    raise UserError(f'{width} bits: there are {", ".join(map(str, bits))}')
  return [float(b <= width) for b in bits[1:]]


def uniform_gates(
  layers: Sequence[Layer],
  pruned: Sequence[ChannelGroup],
  filters: int,
  weight: int,
  activation: int,
  bits: Sequence[int] = superbit.BITS,
) -> Gates:
  """One number of bits for all layers but the ends, and all filters.

  Args:
    layers: of the network.
    pruned: groups whose filters have gates.
    filters: to a gate.
    weight: bits of the weights.
    activation: bits of what layers take.
    bits: that there are.
  """
  most = gates_of_width(bits[-1], bits)
  rows = lambda width: jnp.array(
    [most if x.ends else gates_of_width(width, bits) for x in layers]
  )
  return Gates(
    rows(weight),
    rows(activation),
    {group.name: jnp.ones(group.size // filters) for group in pruned},
  )


def quantize_weights(
  network: Mapping,
  quantizers: Mapping,
  layers: Sequence[Layer],
  gates: Gates,
  fixed: Bool[Array, ''],
  pruned: Sequence[ChannelGroup],
  filters: int,
  bits: Sequence[int] = superbit.BITS,
) -> tuple[dict, Float[Array, 'l g'], dict]:
  """Kernels on their levels, and filters of closed gates as 0.

  A kernel is quantised in units of its own standard deviation around its mean,
  which is taken off; the unit is put back, which matters to layers without a
  norm behind them. The last layer is quantised as it is.

  Args:
    network: parameters.
    quantizers: see `init_quantizers`.
    layers: of the network.
    gates: to use where `fixed`.
    fixed: whether gates are given rather than those of the thresholds.
    pruned: groups whose filters have gates.
    filters: to a gate.
    bits: that there are.

  Returns:
    (parameters, gates of the weights, gates of the filters).
  """
  flat, rows = layout.flatten(network), []
  kernels = {}
  for i, layer in enumerate(layers):
    path = f'{layer.path}/kernel'
    w = flat[path]
    unit = jnp.float32(1)
    if i < len(layers) - 1:
      unit = jnp.sqrt(w.var() + 1e-12)
      w = superbit.standardized(w)
    kernels[path] = w
    own = superbit.quantize(
      w,
      quantizers['scale_weight'][i],
      quantizers['threshold_weight'][i],
      signed=True,
      bits=bits,
      gates=jnp.ones(len(bits) - 1) if layer.ends else gates.weight[i],
      fixed=True if layer.ends else fixed,
    )
    flat[path] = jax.lax.stop_gradient(unit) * own.value
    rows.append(own.gates)
  opened = {}
  for group in pruned:
    path = group.producers[0][0]
    live = superbit.filter_gates(
      kernels[path], quantizers['threshold_filters'][group.name], filters
    )
    opened[group.name] = jnp.where(fixed, gates.filters[group.name], live)
    close_filters(flat, group, opened[group.name], filters)
  return layout.unflatten(flat), jnp.stack(rows), opened


def close_filters(flat: dict, group: ChannelGroup, gates, filters: int) -> None:
  """Multiplies what a group's channels are made of by their gates, in `flat`.

  The gradient of the gates runs through the filters alone; norms and readers
  follow, so that dead channels are exactly 0.
  """
  alive = jnp.repeat(gates, filters)
  still = jax.lax.stop_gradient(alive)

  def scale(path, axis, vector):
    shape = [1] * flat[path].ndim
    shape[axis] = vector.size
    flat[path] = flat[path] * vector.reshape(shape)

  for path, axis in group.producers:
    scale(path, axis, alive)
  for norm in group.norms:
    for leaf in ('scale', 'bias'):
      scale(f'{norm}/{leaf}', 0, still)
  for path, axis, repeat in group.consumers:
    scale(path, axis, jnp.tile(still, repeat))


def quantizing(
  layers: Sequence[Layer],
  quantizers: Mapping,
  signed: Bool[Array, ' l'],
  gates: Gates,
  fixed: Bool[Array, ''],
  active: Bool[Array, ''],
  bits: Sequence[int] = superbit.BITS,
) -> Callable:
  """For `nn.intercept_methods`: layers take their input on its levels.

  The gates are sown into the collection 'gates'.

  Args:
    layers: of the network.
    quantizers: see `init_quantizers`.
    signed: whether a layer's input may be negative.
    gates: to use where `fixed`.
    fixed: as for `quantize_weights`.
    active: whether anything is quantised.
    bits: that there are.
  """
  numbers = {layer.path: i for i, layer in enumerate(layers)}

  def quantize(call, args, options, context):
    layer = context.module
    i = numbers.get('/'.join(layer.path))
    own = isinstance(layer, KINDS) and context.method_name == '__call__'
    if not own or i is None:
      return call(*args, **options)
    x = args[0].astype(jnp.float32)
    ends = layers[i].ends
    found = superbit.quantize(
      x,
      quantizers['scale_activation'][i],
      quantizers['threshold_activation'][i],
      signed=signed[i],
      bits=bits,
      gates=jnp.ones(len(bits) - 1) if ends else gates.activation[i],
      fixed=True if ends else fixed,
    )
    layer.sow('gates', 'activation', found.gates, reduce_fn=lambda _, new: new)
    x = jnp.where(active, found.value, x).astype(args[0].dtype)
    return call(x, *args[1:], **options)

  return quantize


def activation_gates(sown: Mapping, layers: Sequence[Layer]):
  """The gates that `quantizing` has sown, [l, g]."""
  flat = layout.flatten(sown)
  return jnp.stack([flat[f'{layer.path}/activation'] for layer in layers])


def measuring(layers: Sequence[Layer]) -> Callable:
  """For `nn.intercept_methods`: sows what `calibrate` needs."""
  known = {layer.path for layer in layers}

  def measure(call, args, options, context):
    layer = context.module
    own = isinstance(layer, KINDS) and context.method_name == '__call__'
    if own and '/'.join(layer.path) in known:
      values = args[0].astype(jnp.float32).reshape(-1)
      sample = values[:: -(-values.size // SAMPLE)]
      largest = jnp.percentile(jnp.abs(sample), PERCENTILE)
      replace = lambda _, new: new
      layer.sow('measured', 'largest', largest, reduce_fn=replace)
      layer.sow('measured', 'least', values.min(), reduce_fn=replace)
    return call(*args, **options)

  return measure


def calibrate(
  network: Mapping,
  quantizers: Mapping,
  layers: Sequence[Layer],
  measured: Mapping,
) -> tuple[dict, Bool[Array, ' l']]:
  """(quantizers with scales of the data, which inputs may be negative).

  Weights: the largest |w| in units of the standard deviation; activations: the
  99.9th percentile of |x| of a batch.
  """
  flat, seen = layout.flatten(network), layout.flatten(measured)
  kernels = [flat[f'{layer.path}/kernel'] for layer in layers]
  unit = [superbit.standardized(w) for w in kernels[:-1]] + kernels[-1:]
  of = lambda leaf: jnp.stack([seen[f'{x.path}/{leaf}'] for x in layers])
  scales = {
    'scale_weight': jnp.stack([jnp.abs(w).max() for w in unit]),
    'scale_activation': jnp.maximum(of('largest'), 1e-3),
  }
  return {**quantizers, **scales}, of('least') < 0


def bit_cost(
  layers: Sequence[Layer], gates: Gates, bits: Sequence[int] = superbit.BITS
) -> Float[Array, '']:
  """Bit operations over those at 32 x 32 bits, see `superbit.bit_operations`.

  The share of a layer is the product of those of the groups of the channels
  that it makes and takes.
  """
  whole = sum(layer.macs for layer in layers) * 32 * 32
  shares = {name: g.mean() for name, g in gates.filters.items()}
  total = jnp.float32(0)
  for i, layer in enumerate(layers):
    share = jnp.float32(1)
    for name in layer.groups:
      share = share * shares[name]
    total = total + superbit.bit_operations(
      layer.macs / whole,
      superbit.width_of(gates.weight[i], bits),
      superbit.width_of(gates.activation[i], bits),
      share,
    )
  return total
