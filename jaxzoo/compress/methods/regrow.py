"""SET and RigL: sparse from the start, dropping and growing as they train."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.scored import (
  final_counts,
  keep_top,
  magnitudes,
  targets,
)
from jaxzoo.compress.schedules import (
  Schedule,
  constant,
  cosine_decay,
  is_update,
  update_index,
  update_steps,
)
from jaxzoo.compress.selection import select_top_per_leaf, take_count
from jaxzoo.compress.transform import Method, leaf_keys


def drop_and_grow(
  magnitude: Sequence[Array], growth: Sequence[Array], kept, grown
) -> list[Array]:
  """Masks of the `kept` largest |w| and, of all others, the largest growth.

  What has just been dropped may come back, with its value.

  Args:
    magnitude: of each leaf, -inf (or 0) off its mask.
    growth: scores.
    kept: entries of each leaf that stay by magnitude.
    grown: entries of each leaf that are added.
  """
  stay = select_top_per_leaf(magnitude, kept)
  open_ = [
    jnp.where(keep, -jnp.inf, score)
    for keep, score in zip(stay, growth, strict=True)
  ]
  new = select_top_per_leaf(open_, grown)
  return [a | b for a, b in zip(stay, new, strict=True)]


def _method(
  growth: Callable,
  sparsity,
  schedule: Schedule,
  allocation: Allocation,
  alpha: float,
  skip: bool,
  advance_schedule: bool,
) -> Method:
  """Drops the smallest |w| and grows by `growth`(weights, grads, keys)."""
  if allocation == 'global':
    raise ValueError(
      "sparse training keeps the number of each layer: allocation 'uniform', "
      "'erk' or a mapping"
    )

  def tables(params, eligible):
    """int64 [updates, leaves]: what stays by magnitude, what is grown."""
    rows = targets(params, eligible, schedule, sparsity, allocation)
    sizes = [x.size for x in masks_lib.eligible_leaves(params, eligible)]
    grown = [
      [
        min(
          math.floor(count * cosine_decay(alpha, step, schedule.last)),
          size - count,
        )
        for count, size in zip(row, sizes, strict=True)
      ]
      for row, step in zip(rows, update_steps(schedule), strict=True)
    ]
    grown = np.asarray(grown, np.int64)
    return rows - grown, grown

  def initial_masks(params, eligible, key):
    if schedule.begin > 0:
      return masks_lib.dense_masks(params, eligible)
    leaves = masks_lib.eligible_leaves(params, eligible)
    first = targets(params, eligible, schedule, sparsity, allocation)[0]
    noise = [
      jax.random.uniform(k, leaf.shape)
      for k, leaf in zip(leaf_keys(key, 0, len(leaves)), leaves, strict=True)
    ]
    chosen = keep_top(noise, first, allocation)
    return masks_lib.as_tree(params, eligible, chosen)

  def update_masks(step, grads, params, masks, state, key, eligible, **extra):
    del extra
    weights = masks_lib.eligible_leaves(params, eligible)
    current = masks_lib.eligible_leaves(
      masks_lib.full_masks(params, masks), eligible
    )
    magnitude = [
      jnp.where(m, w, -jnp.inf)
      for m, w in zip(current, magnitudes(weights), strict=True)
    ]
    scores = growth(
      masks_lib.eligible_leaves(grads, eligible),
      leaf_keys(key, step, len(weights)),
    )
    index = update_index(schedule, step)
    kept, grown = (take_count(t, index) for t in tables(params, eligible))
    chosen = drop_and_grow(magnitude, scores, kept, grown)
    return masks_lib.as_tree(params, eligible, chosen), None, state

  return Method(
    update_masks=update_masks,
    is_update=lambda step: is_update(schedule, step),
    initial_masks=initial_masks,
    skip_step=(lambda step: is_update(schedule, step)) if skip else None,
    advance_schedule=advance_schedule,
    counts=lambda params, eligible: final_counts(
      params, eligible, schedule, sparsity, allocation
    ),
  )


def rigl(
  sparsity: float,
  schedule: Schedule = constant(),
  *,
  allocation: Allocation = 'erk',
  alpha: float = 0.3,
  skip: bool = True,
  advance_schedule: bool = True,
) -> Method:
  """Drops the smallest |w|, grows the largest |dL/dw| (arXiv 1911.11134).

  Sparse from a random mask on; at an update, alpha (1 + cos(pi t / last)) / 2
  of a layer's entries are exchanged. A schedule with a ramp starts dense and
  regrows on the way down.

  Args:
    sparsity: of the eligible entries, in [0, 1].
    schedule: usually constant(every=100, last=3/4 of the steps).
    allocation: 'erk', 'uniform', or regexes with sparsities.
    alpha: the share that is exchanged at first.
    skip: whether an update takes the place of a step of training.
    advance_schedule: whether the rate's schedule goes on at such a step.
  """
  method = _method(
    lambda grads, keys: magnitudes(grads),
    sparsity, schedule, allocation, alpha, skip, advance_schedule,
  )  # fmt: skip
  return method._replace(
    scheduled=functools.partial(
      rigl,
      sparsity,
      allocation=allocation,
      alpha=alpha,
      skip=skip,
      advance_schedule=advance_schedule,
    )
  )


def sparse_evolution(
  sparsity: float,
  schedule: Schedule = constant(),
  *,
  allocation: Allocation = 'erk',
  alpha: float = 0.3,
  skip: bool = True,
  advance_schedule: bool = True,
) -> Method:
  """SET: drops the smallest |w|, grows at random (arXiv 1707.04780).

  Arguments as for `rigl`, whose control it is.
  """

  def growth(grads, keys):
    return [
      jax.random.uniform(key, g.shape)
      for key, g in zip(keys, grads, strict=True)
    ]

  method = _method(
    growth, sparsity, schedule, allocation, alpha, skip, advance_schedule
  )
  return method._replace(
    scheduled=functools.partial(
      sparse_evolution,
      sparsity,
      allocation=allocation,
      alpha=alpha,
      skip=skip,
      advance_schedule=advance_schedule,
    )
  )
