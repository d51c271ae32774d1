"""CHEX: channel exploration (arXiv 2203.15794, CVPR 2022).

Channels are pruned to the target by their leverage scores, and a share of the
pruned ones, which falls along a cosine, is drawn to come back with the values
that it had when it was last used. How many each layer keeps follows from the
scales of its batch norms, under one budget of channels or of multiply-adds.
"""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxzoo.compress import channels, exploration
from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.compress.masks import PyTree, map_masks, path_name
from jaxzoo.compress.schedules import (
  Schedule,
  is_update,
  update_steps,
)
from jaxzoo.compress.transform import Method
from jaxzoo.compress.turns import after
from jaxzoo.errors import UserError, nearest

ALLOCATIONS = ('scale', 'uniform')
SCORES = ('leverage', 'l1')
BUDGETS = ('channels', 'macs')


class ChexState(NamedTuple):
  """Most recently used values of every leaf that channel groups touch.

  Attributes:
    recent: a tree like the parameters, None for other leaves.
  """

  recent: PyTree


class Numbers(NamedTuple):
  """Channels a layer after an update: kept by score, drawn to come back."""

  keep: Int[Array, ' l']
  regrow: Int[Array, ' l']


class Setting(NamedTuple):
  """The arguments of `chex`, which says what they are."""

  groups: tuple[ChannelGroup, ...]
  sparsity: float
  schedule: Schedule
  regrow: float
  allocation: str
  score: str
  budget: str
  positions: Mapping[str, int] | None
  as_published: bool
  at_start: bool
  recent_dtype: str | None


def chex(
  groups: Sequence[ChannelGroup],
  sparsity: float,
  schedule: Schedule,
  *,
  regrow: float = 0.3,
  allocation: str = 'scale',
  score: str = 'leverage',
  budget: str = 'channels',
  positions: Mapping[str, int] | None = None,
  as_published: bool = False,
  at_start: bool = True,
  recent_dtype: str | None = None,
) -> Method:
  """Prunes and regrows channels; masks are one bool vector a group.

  Between updates masks stay. With allocation 'uniform', score 'l1' and regrow
  0 it is uniform filter pruning.

  Args:
    groups: what may be pruned: every one with a norm for 'scale'.
    sparsity: S, final, of the channels or the multiply-adds.
    schedule: updates; at `end`, the last one, no channel comes back.
    regrow: d_0 <= S of the shares d = d_0 (1 + cos(pi t / end)) / 2 that come
      back.
    allocation: 'scale', the channels with the smallest |scale| of all layers
      go; or 'uniform', the same share of every layer.
    score: 'leverage' or 'l1', see `exploration.filter_scores`.
    budget: of 'channels', n - round(n S) of n stay in the end; or of 'macs',
      as many as cost at most 1 - S of the whole network.
    positions: for 'macs', of `channels.kernel_positions`.
    as_published: the channel at the threshold goes too, and ties with it: one
      channel fewer stays.
    at_start: whether the network is pruned to S - d_0 at once, uniformly by
      the norms of the filters.
    recent_dtype: of the stored values; 'bfloat16' halves their memory.

  Raises:
    UserError: settings that do not exist, or a group without a norm.
  """
  setting = Setting(
    tuple(groups),
    sparsity,
    schedule,
    regrow,
    allocation,
    score,
    budget,
    positions,
    as_published,
    at_start,
    recent_dtype,
  )
  return make_method(setting)


def make_method(setting: Setting) -> Method:
  """The method of a setting."""
  _check(setting)
  with_setting = lambda function: functools.partial(function, setting)
  return Method(
    update_masks=with_setting(_update_masks),
    is_update=lambda step: (step > 0) & is_update(setting.schedule, step),
    initial_masks=with_setting(_initial_masks),
    init=with_setting(_init),
    leaf_masks=lambda masks, params: channels.expand_masks(
      params, setting.groups, masks
    ),
    scheduled=lambda schedule: make_method(setting._replace(schedule=schedule)),
    metrics=with_setting(_metrics),
  )


def _numbers(setting: Setting, params, step) -> Numbers:
  """How many channels every layer has after the update at `step`."""
  steps = [s for s in update_steps(setting.schedule) if s]
  shares = [
    exploration.regrow_share(setting.regrow, s, setting.schedule.end)
    for s in steps
  ]
  uniform = setting.allocation == 'uniform'
  make = _uniform_numbers if uniform else _scale_numbers
  update = jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32) - 1
  numbers = make(setting, shares, _table(setting, params))
  return numbers(params, jnp.maximum(update, 0))


def _table(setting: Setting, params) -> tuple:
  """Costs of the kernels, () where the budget is of channels."""
  if setting.budget == 'channels':
    return ()
  return channels.cost_table(params, setting.positions, setting.groups)


def _initial_masks(setting: Setting, params, eligible, key) -> dict:
  del eligible, key
  channels.check_groups(setting.groups, params)
  everything = channels.all_channels(setting.groups)
  if not setting.at_start:
    return everything
  ratio = Fraction(str(setting.sparsity)) - Fraction(str(setting.regrow))
  counts = _uniform(setting.groups, ratio, _table(setting, params))
  leaves, masks = _leaves(params), {}
  for group, keep in zip(setting.groups, counts, strict=True):
    scores = exploration.filter_scores(
      filters_of(leaves, group), everything[group.name], 0, 'l1'
    )
    masks[group.name] = exploration.kept_filters(scores, keep)
  return masks


def _init(setting: Setting, params, eligible, key) -> ChexState:
  del eligible, key
  touched = channels.axes_of(setting.groups)
  store = lambda path, leaf: (
    leaf.astype(setting.recent_dtype or leaf.dtype)
    if path_name(path) in touched
    else None
  )
  return ChexState(jax.tree_util.tree_map_with_path(store, params))


def _update_masks(
  setting: Setting, step, grads, params, masks, state, key, eligible, **extra
):
  del grads, eligible, extra
  by_leaf = channels.expand_masks(params, setting.groups, masks)
  restored = map_masks(
    lambda p, mask, old: (
      None if mask is None else jnp.where(mask, p, old.astype(p.dtype))
    ),
    params,
    by_leaf,
    state.recent,
  )
  new = explore(
    setting.groups,
    _leaves(params),
    _leaves(restored),
    masks,
    _numbers(setting, params, step),
    jax.random.fold_in(key, step),
    setting.score,
  )
  recent = jax.tree.map(
    lambda old, x: x.astype(old.dtype), state.recent, restored
  )
  return new, restored, ChexState(recent)


def _metrics(setting: Setting, params, masks, state, eligible) -> dict:
  del state, eligible
  sizes = [group.size for group in setting.groups]
  dropped = jnp.stack([jnp.sum(~masks[g.name]) for g in setting.groups])
  found = {'channels': 1 - dropped.sum() / sum(sizes)}
  if setting.positions is not None:
    table = channels.cost_table(params, setting.positions, setting.groups)
    names = [group.name for group in setting.groups]
    found['macs'] = exploration.relative_macs(table, names, sizes, dropped)
  return found


def _check(setting: Setting) -> None:
  for name, known in (
    ('allocation', ALLOCATIONS),
    ('score', SCORES),
    ('budget', BUDGETS),
  ):
    value = getattr(setting, name)
    if value not in known:
      raise UserError(
        f'compress.{name}: no {value!r}; ' + nearest(value, known)
      )
  if not setting.groups:
    raise UserError(
      'compress.groups matches no channel group: there is nothing to prune'
    )
  if not 0 <= setting.regrow <= setting.sparsity < 1:
    raise UserError(
      f'compress.regrow={setting.regrow}, sparsity={setting.sparsity}: a '
      'channel can only come back that was pruned, 0 <= regrow <= sparsity < 1'
    )
  bare = [group.name for group in setting.groups if not group.norms]
  if setting.allocation == 'scale' and bare:
    raise UserError(
      f'channel group {bare[0]} has no norm whose scales could tell how many '
      "channels it needs: set compress.allocation='uniform'"
    )
  if setting.budget == 'macs' and setting.positions is None:
    raise UserError("budget='macs' needs the positions of the kernels")
  if not setting.at_start and not setting.schedule.begin:
    raise UserError('at_start=False, but the schedule begins at the start')


def _leaves(tree) -> dict[str, jax.Array]:
  flat = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {path_name(path): leaf for path, leaf in flat}


def filters_of(
  leaves: Mapping[str, jax.Array], group: ChannelGroup
) -> Float[Array, 'f c']:
  """A group's filters as columns: all kernels that make its channels."""
  kernels = [
    jnp.moveaxis(leaves[path], axis, -1).reshape(-1, group.size)
    for path, axis in group.producers
    if leaves[path].ndim > 1 and path.endswith('kernel')
  ]
  return jnp.concatenate(kernels).astype(jnp.float32)


def scales_of(
  leaves: Mapping[str, jax.Array], group: ChannelGroup
) -> Float[Array, ' c']:
  """|scale| of the last norm before a group's readers."""
  return jnp.abs(leaves[f'{group.norms[-1]}/scale'].astype(jnp.float32))


def _uniform(groups, ratio, table) -> list[int]:
  sizes, names = zip(*[(g.size, g.name) for g in groups], strict=True)
  return exploration.uniform_counts(sizes, ratio, table, names)


def _uniform_numbers(setting: Setting, shares, table):
  """(params, update) -> Numbers, the same share of every layer."""
  counts = lambda ratio: np.array(_uniform(setting.groups, ratio, table))
  down = counts(setting.sparsity)
  up = np.stack([counts(setting.sparsity - d) if d else down for d in shares])
  regrow = np.maximum(up - down, 0)
  return lambda params, update: Numbers(
    jnp.asarray(down), jnp.asarray(regrow)[update]
  )


def _scale_numbers(setting: Setting, shares, table):
  """(params, update) -> Numbers, by the norms' scales under one budget."""
  groups, sparsity = setting.groups, setting.sparsity
  sizes = jnp.array([group.size for group in groups])
  total = sum(group.size for group in groups)
  if table:
    names = [group.name for group in groups]
    targets = jnp.array([1 - (sparsity - d) for d in (0, *shares)])
    drop = lambda scales, i: exploration.within_macs(
      scales, table, names, targets[i]
    )
  elif setting.as_published:
    indices = exploration.channel_indices(total, sparsity, [0, *shares])
    drop = lambda scales, i: exploration.dropped_by_threshold(
      scales, jnp.asarray(indices)[i]
    )
  else:
    left = [Fraction(str(sparsity)) - Fraction(d) for d in (0, *shares)]
    numbers = [max(0, round(total * x)) for x in left]
    drop = lambda scales, i: exploration.dropped_exactly(
      scales, jnp.asarray(numbers)[i]
    )

  def find(params, update):
    leaves = _leaves(params)
    scales = [scales_of(leaves, group) for group in groups]
    keep = sizes - drop(scales, 0)
    up = sizes - drop(scales, update + 1)
    return Numbers(keep, jnp.maximum(up - keep, 0))

  return find


def explore(
  groups: Sequence[ChannelGroup],
  leaves: Mapping[str, jax.Array],
  restored: Mapping[str, jax.Array],
  masks: channels.Masks,
  numbers: Numbers,
  key: jax.Array,
  score: str = 'leverage',
) -> dict:
  """New channel masks of all groups.

  Layers of one shape are worked on together. Group i draws with fold_in(key,
  i), which is the same on every device.

  Args:
    groups: what is pruned.
    leaves: path -> array, with zeros where channels are dead.
    restored: likewise, with most recently used values there.
    masks: channel masks now.
    numbers: of each group.
    key: of this update.
    score: of the filters.
  """
  shapes = {}
  for i, group in enumerate(groups):
    shapes.setdefault(filters_of(leaves, group).shape, []).append(i)
  new, found = {}, None
  for places in shapes.values():
    own = [groups[i] for i in places]
    stacked = lambda each: jnp.stack(list(each))
    filters = stacked(filters_of(leaves, group) for group in own)
    found = jax.vmap(
      lambda *layer: exploration.explore_layer(*layer, score)
    )(
      filters if found is None else after(filters, found),
      stacked(filters_of(restored, group) for group in own),
      stacked(masks[group.name] for group in own),
      numbers.keep[jnp.array(places)],
      numbers.regrow[jnp.array(places)],
      jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.array(places)),
    )  # fmt: skip
    new |= {group.name: mask for group, mask in zip(own, found, strict=True)}
  return {group.name: new[group.name] for group in groups}
