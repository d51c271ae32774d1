"""Structured pruning: channels as groups, and networks that are smaller.

A channel lives in several arrays at once: the output axis of the kernel that
makes it, the norm behind, the input axis of the kernels that read it. A
`ChannelGroup` says which; models export theirs (`channel_groups`). Pruning
keeps one bool vector a group, leaf masks are made of them where they are
wanted, and `compact` takes the dead channels out.

Costs are multiply-adds, what most papers call FLOPs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxzoo.errors import UserError
from jaxzoo.system import System

PyTree = Any
Masks = Mapping[str, Bool[Array, ' c']]


class ChannelGroup(NamedTuple):
  """Channels that live and die together.

  Attributes:
    name: of the group; by custom the module that makes the channels.
    size: how many channels there are.
    producers: (path, axis) of kernels and biases whose axis these channels are.
    norms: modules with `scale` and `bias` [c], and statistics where they are
      batch norms.
    consumers: (path, axis, repeat) of kernels that read them. Of a map of
      h x w positions, flattened before a dense layer, channel c is at the
      places c + size j: repeat is h w, else 1.

  Paths are 'a/b/kernel' within the parameters. A channel whose producers and
  norms are 0 must be 0 where it is read: activations between have f(0) = 0.
  """

  name: str
  size: int
  producers: tuple[tuple[str, int], ...]
  norms: tuple[str, ...] = ()
  consumers: tuple[tuple[str, int, int], ...] = ()


def path_name(path) -> str:
  """'a/b/c' of a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def below(groups: Iterable[ChannelGroup], prefix: str) -> tuple:
  """The groups of a network whose parameters lie under `prefix` ('net/')."""
  return tuple(
    group._replace(
      producers=tuple((prefix + path, axis) for path, axis in group.producers),
      norms=tuple(prefix + path for path in group.norms),
      consumers=tuple((prefix + p, a, r) for p, a, r in group.consumers),
    )
    for group in groups
  )


def axes_of(
  groups: Iterable[ChannelGroup],
) -> dict[str, list[tuple[int, str, int]]]:
  """Path of a leaf -> [(axis, name of the group, repeat)]."""
  axes = {}
  for group in groups:
    own = [(path, axis, 1) for path, axis in group.producers]
    own += [(f'{n}/{leaf}', 0, 1) for n in group.norms for leaf in _NORM]
    for path, axis, repeat in (*own, *group.consumers):
      axes.setdefault(path, []).append((axis, group.name, repeat))
  return axes


_NORM = ('scale', 'bias')


def check_groups(groups: Sequence[ChannelGroup], params: PyTree) -> None:
  """Raises ValueError where a group does not fit the parameters."""
  shapes = _flat(params)
  sizes = {group.name: group.size for group in groups}
  if len(sizes) != len(groups):
    raise ValueError('two channel groups have one name')
  for path, own in axes_of(groups).items():
    if path not in shapes:
      raise ValueError(f'channel group {own[0][1]}: no parameter {path}')
    for axis, name, repeat in own:
      found = shapes[path].shape[axis]
      if found != repeat * sizes[name]:
        raise ValueError(
          f'channel group {name}: axis {axis} of {path} has {found} places, '
          f'not {repeat} x {sizes[name]}'
        )


def _flat(tree) -> dict:
  return {
    path_name(path): leaf
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def all_channels(groups: Iterable[ChannelGroup]) -> dict:
  """Channel masks of the whole network."""
  return {group.name: jnp.ones(group.size, bool) for group in groups}


def expand_masks(
  params: PyTree, groups: Iterable[ChannelGroup], channel_masks: Masks
) -> PyTree:
  """Leaf masks of channel masks.

  The mask of a kernel is the outer product of those of its axes: alive where
  both the channel that it reads and the one that it makes are.

  Args:
    params: arrays or `jax.ShapeDtypeStruct`.
    groups: of the network.
    channel_masks: name -> bool [c].

  Returns:
    A tree like `params`: bool arrays, None where no group touches a leaf.
  """
  axes = axes_of(groups)

  def of(path, leaf):
    own = axes.get(path_name(path))
    if own is None:
      return None
    mask = jnp.ones((1,) * leaf.ndim, bool)
    for axis, name, repeat in own:
      alive = jnp.tile(channel_masks[name], repeat)
      shape = [1] * leaf.ndim
      shape[axis] = alive.size
      mask = mask & alive.reshape(shape)
    return jnp.broadcast_to(mask, leaf.shape)

  return jax.tree_util.tree_map_with_path(of, params)


def compact(
  params: PyTree,
  batch_stats: PyTree,
  groups: Sequence[ChannelGroup],
  channel_masks: Masks,
  *,
  multiple_of: int = 1,
) -> tuple[PyTree, PyTree, dict[str, int]]:
  """The network without its dead channels, on the host.

  Args:
    params: masked: what belongs to dead channels is 0. Nested dicts.
    batch_stats: running statistics of its batch norms, {} if there are none.
    groups: of the network.
    channel_masks: name -> bool [c].
    multiple_of: numbers of channels are rounded up to a multiple of it (at
      most to all of them) with dead channels of the lowest index: 8 or 128
      for the tiles of a TPU. At least one channel stays of every group.

  Returns:
    (params, batch_stats, widths): widths are the channels left, by group, for
    the field `widths` of the model.
  """
  kept = {
    group.name: _kept(np.asarray(channel_masks[group.name]), multiple_of)
    for group in groups
  }
  sizes = {group.name: group.size for group in groups}
  axes = axes_of(groups)
  norms = {norm: group.name for group in groups for norm in group.norms}

  def of_params(path, leaf):
    leaf = np.asarray(leaf)
    for axis, name, repeat in axes.get(path_name(path), ()):
      turns = sizes[name] * np.arange(repeat)[:, None]
      leaf = np.take(leaf, (kept[name] + turns).reshape(-1), axis)
    return leaf

  def of_statistics(path, leaf):
    name = norms.get(path_name(path).rpartition('/')[0])
    return np.asarray(leaf) if name is None else np.asarray(leaf)[kept[name]]

  return (
    jax.tree_util.tree_map_with_path(of_params, params),
    jax.tree_util.tree_map_with_path(of_statistics, batch_stats),
    {name: len(places) for name, places in kept.items()},
  )


def _kept(alive: np.ndarray, multiple_of: int) -> np.ndarray:
  """Indices that stay, ascending."""
  wanted = math.ceil(max(1, alive.sum()) / multiple_of) * multiple_of
  wanted = min(wanted, alive.size)
  dead = np.flatnonzero(~alive)[: wanted - alive.sum()]
  return np.sort(np.concatenate([np.flatnonzero(alive), dead]))


def verify_compact(
  masked: PyTree, compacted: PyTree, tolerance: float = 1e-4
) -> float:
  """max |masked - compacted| / max |masked|, of the outputs on one input.

  Raises:
    UserError: it is above the tolerance: a group lacks a leaf, or something
      between a channel and its readers has f(0) != 0.
  """
  error = 0.0
  for a, b in zip(
    jax.tree.leaves(masked), jax.tree.leaves(compacted), strict=True
  ):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    error = max(error, np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))
  if not error <= tolerance:
    raise UserError(
      f'the compact network differs from the masked one by {error:.2g} of its '
      f'largest output, more than {tolerance:.2g}: the channel groups of this '
      'model are wrong'
    )
  return float(error)


def freeze_dead_statistics(
  system: System, groups: Sequence[ChannelGroup], masks_of
) -> System:
  """Running statistics of dead channels stay as they were.

  A channel that comes back then has those that it had when it died: the most
  recently used ones (CHEX, arXiv 2203.15794, section 3.3). Its output is 0
  until then, whatever they are.

  Args:
    system: with `extra['batch_stats']`, or without, which changes nothing.
    groups: of its network.
    masks_of: state -> channel masks, those that the step computes with; groups
      that it lacks are whole.
  """
  norms = {norm: group.name for group in groups for norm in group.norms}

  def step(state, batch):
    before, masks = state.extra.get('batch_stats'), masks_of(state)
    state, metrics = system.step(state, batch)
    if before is None:
      return state, metrics

    def keep(path, old, new):
      name = norms.get(path_name(path).rpartition('/')[0])
      return new if name not in masks else jnp.where(masks[name], new, old)

    stats = jax.tree_util.tree_map_with_path(
      keep, before, state.extra['batch_stats']
    )
    extra = {**state.extra, 'batch_stats': stats}
    return state._replace(extra=extra), metrics

  return System(system.init, step, system.predict)


# Costs.


class LayerCost(NamedTuple):
  """Multiply-adds of one kernel for one example.

  Attributes:
    path: of the kernel.
    macs: of the whole kernel.
    groups: (name, size) of every axis that channel groups share.
  """

  path: str
  macs: int
  groups: tuple[tuple[str, int], ...] = ()


def kernel_positions(module: nn.Module, *inputs) -> dict[str, int]:
  """How many places of one example each kernel is applied at.

  Found by tracing; nothing is computed. Of convolutions and dense layers of
  linen, scanned or not (a scanned kernel holds all its layers).

  Args:
    module: a network.
    *inputs: arrays or `jax.ShapeDtypeStruct` with a batch of 1.

  Returns:
    'a/b/kernel' -> output positions.
  """
  found = {}

  def record(call, args, options, context):
    output = call(*args, **options)
    layer = context.module
    if context.method_name == '__call__' and isinstance(
      layer, nn.Conv | nn.Dense | nn.DenseGeneral
    ):
      path = '/'.join((*layer.path, 'kernel'))
      places = output.size // math.prod(np.atleast_1d(layer.features))
      found[path] = found.get(path, 0) + places
    return output

  def trace():
    with nn.intercept_methods(record):
      return module.init(
        jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in inputs)
      )

  jax.eval_shape(trace)
  return found


def cost_table(
  params: PyTree,
  positions: Mapping[str, int],
  groups: Iterable[ChannelGroup] = (),
) -> tuple[LayerCost, ...]:
  """The cost of every kernel in `positions`, for `macs`.

  A kernel [*window, in, out] is multiplied once a position: its size times
  the positions are its multiply-adds.
  """
  axes, sizes = axes_of(groups), {group.name: group.size for group in groups}
  return tuple(
    LayerCost(
      path,
      math.prod(leaf.shape) * int(positions[path]),
      tuple((name, sizes[name]) for _, name, _ in axes.get(path, ())),
    )
    for path, leaf in _flat(params).items()
    if path in positions
  )


def macs(table: Iterable[LayerCost], counts: Mapping[str, int] = {}) -> int:
  """Multiply-adds with so many channels left: exact, in Python's integers.

  Args:
    table: of `cost_table`.
    counts: name of a group -> channels; others are whole.
  """
  total = 0
  for layer in table:
    cost = layer.macs
    for name, size in layer.groups:
      cost = cost // size * counts.get(name, size)
    total += cost
  return total
