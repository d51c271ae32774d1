"""What methods share that keep the entries with the largest scores."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.allocation import Allocation, leaf_densities
from jaxzoo.compress.schedules import (
  Schedule,
  count_table,
  exact,
  is_update,
  update_index,
)
from jaxzoo.compress.selection import (
  select_top,
  select_top_per_leaf,
  take_count,
)
from jaxzoo.compress.transform import Method


def targets(params, eligible, schedule: Schedule, sparsity, allocation):
  """int64 [updates, leaves] of what is kept; [updates, 1] of 'global'."""
  names = masks_lib.eligible_names(params, eligible)
  leaves = masks_lib.eligible_leaves(params, eligible)
  if allocation == 'global':
    densities = leaf_densities('uniform', names[:1], (), sparsity)
    sizes = [sum(leaf.size for leaf in leaves)]
  else:
    shapes = [leaf.shape for leaf in leaves]
    densities = leaf_densities(allocation, names, shapes, sparsity)
    sizes = [leaf.size for leaf in leaves]
  return count_table(schedule, tuple(densities), tuple(sizes))


def final_counts(
  params, eligible, schedule: Schedule, sparsity, allocation
) -> dict[str, int] | int:
  """What is kept in the end: by path, or in all for 'global'."""
  last = targets(params, eligible, schedule, sparsity, allocation)[-1]
  if allocation == 'global':
    return int(last[0])
  names = masks_lib.eligible_names(params, eligible)
  return dict(zip(names, map(int, last), strict=True))


def keep_top(
  scores: Sequence[Array], counts, allocation, min_per_leaf: int = 0
) -> list[Array]:
  """Masks of the largest scores, by leaf or of all leaves together.

  Args:
    scores: of the eligible leaves.
    counts: a row of `targets`.
    allocation: 'global' ranks all leaves together.
    min_per_leaf: entries that a leaf keeps however small they are.
  """
  if allocation != 'global':
    return select_top_per_leaf(scores, counts)
  if min_per_leaf:
    least = [min(min_per_leaf, score.size) for score in scores]
    safe = select_top_per_leaf(scores, least)
    scores = [
      jnp.where(keep, jnp.inf, score)
      for keep, score in zip(safe, scores, strict=True)
    ]
  return select_top(scores, counts)


def by_score(
  score: Callable,
  sparsity,
  schedule: Schedule,
  allocation: Allocation,
  *,
  min_per_leaf: int = 0,
  at_init: bool = True,
) -> Method:
  """Keeps the entries of the largest score, in the schedule's numbers.

  Args:
    score: (params, grads or None, key) -> scores of the eligible leaves, of
      the leaves given as lists.
    sparsity: final, of the eligible entries, in [0, 1].
    schedule: how it is reached.
    allocation: see `allocation`, or 'global'.
    min_per_leaf: entries that a layer keeps under 'global'.
    at_init: whether there is a score without gradients.
  """
  exact(sparsity)

  def select(row, params, grads, key, eligible):
    weights = masks_lib.eligible_leaves(params, eligible)
    if grads is not None:
      grads = masks_lib.eligible_leaves(grads, eligible)
    scores = score(weights, grads, key)
    kept = keep_top(scores, row, allocation, min_per_leaf)
    return masks_lib.as_tree(params, eligible, kept)

  def table(params, eligible):
    return targets(params, eligible, schedule, sparsity, allocation)

  def initial_masks(params, eligible, key):
    if schedule.begin > 0 or not at_init:
      return masks_lib.dense_masks(params, eligible)
    return select(table(params, eligible)[0], params, None, key, eligible)

  def update_masks(step, grads, params, masks, state, key, eligible, **extra):
    del masks, extra
    row = take_count(table(params, eligible), update_index(schedule, step))
    return select(row, params, grads, key, eligible), None, state

  return Method(
    update_masks=update_masks,
    is_update=lambda step: is_update(schedule, step),
    initial_masks=initial_masks,
    counts=lambda params, eligible: final_counts(
      params, eligible, schedule, sparsity, allocation
    ),
  )


def magnitudes(leaves: Sequence[jax.Array]) -> list[jax.Array]:
  """|w| in float32."""
  return [jnp.abs(leaf.astype(jnp.float32)) for leaf in leaves]
