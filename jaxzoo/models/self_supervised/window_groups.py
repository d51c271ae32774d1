"""Masks of patches, and windows of visible tokens packed into equal groups.

What GreenMIM's encoder needs of the host (arXiv 2205.13515, 3.2 and 3.3), in
NumPy alone, so that data workers can make it: which patches are kept, and for
stages with many tokens the groups that attend together. Tokens are numbered
patch by patch, in increasing order of the kept patches, row by row in each; so
no stage has to sort them, and merging is that of small maps.

Everything has a static size. A group has as many places as a whole window has
tokens, and a stage as many groups as the packing has been seen to need and
some more; a mask that needs yet more is drawn anew.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxzoo.errors import UserError


class StagePlan(NamedTuple):
  """How the blocks of one stage attend.

  Attributes:
    side: tokens along one side of a patch.
    window: side of the windows.
    shift: of the windows of every second block.
    groups: how many groups of tokens there are; 1 where all attend together.
    capacity: places of a group.
  """

  side: int
  window: int
  shift: int
  groups: int
  capacity: int


def plan_stages(
  grid: tuple[int, int], kept: int, window: int, side: int = 8, stages: int = 4
) -> tuple[StagePlan, ...]:
  """What is known of the stages before any mask is drawn.

  Args:
    grid: (rows, columns) of patches, as large as one token of the last stage.
    kept: patches that are visible.
    window: side of the windows, in tokens; no larger than the map.
    side: tokens along one side of a patch in the first stage.
    stages: each but the first has half the side of the one before.
  """
  plans = []
  for _ in range(stages):
    resolution = side * min(grid)
    fits = resolution <= window
    effective = min(window, resolution)
    tokens, capacity = kept * side * side, effective**2
    groups = 1
    if tokens > 2 * capacity:
      full = -(-tokens // capacity)
      groups = full + max(2, -(-full // 4))
    plans.append(
      StagePlan(
        side,
        effective,
        0 if fits else window // 2,
        groups,
        capacity if groups > 1 else tokens,
      )
    )
    side //= 2
  return tuple(plans)


def coordinates(keep: Int[np.ndarray, ' k'], columns: int, side: int):
  """(y, x) of every token on the whole map, [k side²] each.

  Args:
    keep: kept patches, increasing, numbered row by row; NumPy or JAX.
    columns: of the grid of patches.
    side: tokens along one side of a patch.
  """
  inner_y, inner_x = np.divmod(np.arange(side * side), side)
  y = (keep // columns * side)[:, None] + inner_y
  x = (keep % columns * side)[:, None] + inner_x
  return y.reshape(-1), x.reshape(-1)


def window_ids(y, x, window: int, shift: int, width: int):
  """The number of each token's window, row by row over the map.

  Shifted windows that leave the map are cut off at its border: parts that
  Swin rolls around to the other side, and masks, are windows of their own.
  """
  offset = (window - shift) % window
  columns = (width + offset - 1) // window + 1
  return (y + offset) // window * columns + (x + offset) // window


def knapsack(counts: Sequence[int], capacity: int) -> tuple[int, list[int]]:
  """The fullest choice of items that fits: its total, and which items.

  Value and weight are both the count. Where several choices are as full,
  items are left out from the last one on, as long as the total is reached
  without them.

  >>> knapsack([4, 3, 5, 3], 8)
  (8, [1, 2])

  Args:
    counts: non-negative.
    capacity: the total must not exceed it.

  Returns:
    (total, indices of the chosen items, increasing).
  """
  # reached[i][c]: the largest total <= c of the first i items.
  reached = np.zeros((len(counts) + 1, capacity + 1), np.int64)
  for i, count in enumerate(counts):
    reached[i + 1] = reached[i]
    if count <= capacity:
      taken = count + reached[i, : capacity + 1 - count]
      reached[i + 1, count:] = np.maximum(reached[i, count:], taken)
  total = left = int(reached[-1, capacity])
  chosen = []
  for i in range(len(counts) - 1, -1, -1):
    if reached[i, left] != left:
      chosen.append(i)
      left -= counts[i]
  return total, chosen[::-1]


def pack_windows(counts: Sequence[int], capacity: int) -> list[list[int]]:
  """Windows into groups: the fullest group, again and again.

  Args:
    counts: tokens of each window, from 1 to `capacity`.
    capacity: tokens that a group holds.

  Returns:
    Of each group its windows, increasing.
  """
  remaining, groups = list(range(len(counts))), []
  while remaining:
    _, chosen = knapsack([int(counts[i]) for i in remaining], capacity)
    groups.append([remaining[i] for i in chosen])
    taken = set(groups[-1])
    remaining = [i for i in remaining if i not in taken]
  return groups


def group_tokens(
  ids: Int[np.ndarray, ' n'], capacity: int, groups: int | None = None
) -> Int[np.ndarray, 'g p'] | None:
  """Which tokens make a group: windows are never torn apart.

  Args:
    ids: the window of each token.
    capacity: places of a group.
    groups: how many groups to fill; None for as many as are needed.

  Returns:
    int32 token numbers, -1 in places that stay empty; None where more than
    `groups` are needed.
  """
  _, windows, counts = np.unique(ids, return_inverse=True, return_counts=True)
  packed = pack_windows(counts, capacity)
  groups = len(packed) if groups is None else groups
  if len(packed) > groups:
    return None
  order = np.full((groups, capacity), -1, np.int32)
  for row, members in zip(order, packed, strict=False):
    tokens = [np.flatnonzero(windows == member) for member in members]
    tokens = np.concatenate(tokens)
    row[: len(tokens)] = tokens
  return order


def group_stages(
  keep: Int[np.ndarray, ' k'],
  grid: tuple[int, int],
  plans: Sequence[StagePlan],
) -> dict[str, Int[np.ndarray, 'g p']] | None:
  """The groups of one mask, for all stages that have several.

  Args:
    keep: kept patches, in any order.
    grid: (rows, columns) of patches.
    plans: of the stages.

  Returns:
    `groups1` for the plain and `groups1_shifted` for the shifted blocks of the
    first stage, and so on, as `group_tokens` has them; None where the mask
    needs more groups than planned.
  """
  found = {}
  for stage, plan in enumerate(plans, 1):
    if plan.groups == 1:
      continue
    y, x = coordinates(np.sort(keep), grid[1], plan.side)
    for name, shift in _names(stage, plan).items():
      ids = window_ids(y, x, plan.window, shift, grid[1] * plan.side)
      order = group_tokens(ids, plan.capacity, plan.groups)
      if order is None:
        return None
      found[name] = order
  return found


def _names(stage: int, plan: StagePlan) -> dict[str, int]:
  """Name of the groups -> shift of the windows that they are of."""
  names = {f'groups{stage}': 0}
  return names | ({f'groups{stage}_shifted': plan.shift} if plan.shift else {})


def draw_masks(
  rng: np.random.Generator,
  masks: int,
  grid: tuple[int, int],
  ratio: float,
  plans: Sequence[StagePlan],
) -> dict[str, np.ndarray]:
  """Masks with their groups, as a batch has them.

  Args:
    rng: where noise comes from; the patches of least noise are kept.
    masks: how many.
    grid: (rows, columns) of patches.
    ratio: of patches that are masked.
    plans: of the stages, for `kept_patches(grid, ratio)` patches.

  Returns:
    `keep` int32 [masks, k], in order of their noise, and what `group_stages`
    gives, with a leading axis of masks.
  """
  kept, drawn = kept_patches(grid, ratio), []
  while len(drawn) < masks:
    keep = np.argsort(rng.random(grid[0] * grid[1]))[:kept].astype(np.int32)
    groups = group_stages(keep, grid, plans)
    if groups is not None:
      drawn.append({'keep': keep, **groups})
  return {name: np.stack([mask[name] for mask in drawn]) for name in drawn[0]}


def blank_masks(
  masks: int,
  grid: tuple[int, int],
  ratio: float,
  plans: Sequence[StagePlan],
) -> dict[str, np.ndarray]:
  """Zeros in the names, shapes and types of `draw_masks`."""
  blank = {'keep': np.zeros((masks, kept_patches(grid, ratio)), np.int32)}
  for stage, plan in enumerate(plans, 1):
    if plan.groups > 1:
      shape = (masks, plan.groups, plan.capacity)
      blank |= {x: np.zeros(shape, np.int32) for x in _names(stage, plan)}
  return blank


def patch_grid(size: tuple[int, int], side: int) -> tuple[int, int]:
  """(rows, columns) of the patches that are masked, `side` pixels each.

  Raises:
    UserError: images that are no whole patches.
  """
  if any(length % side for length in size):
    raise UserError(
      f'image_size={tuple(size)}: sides must be multiples of {side}, the '
      'patches that are masked'
    )
  return size[0] // side, size[1] // side


def kept_patches(grid: tuple[int, int], ratio: float) -> int:
  """How many patches stay visible, rounded down.

  >>> kept_patches((7, 7), 0.75)
  12
  """
  return int(grid[0] * grid[1] * (1 - ratio))
