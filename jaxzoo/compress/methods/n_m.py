"""N:M sparsity: n of every m neighbours, the pattern that hardware runs."""

import functools
import math
import re
from collections.abc import Sequence
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.methods.scored import magnitudes
from jaxzoo.compress.schedules import (
  Schedule,
  constant,
  density_at,
  is_update,
  update_index,
  update_steps,
)
from jaxzoo.compress.selection import select_n_m
from jaxzoo.compress.transform import Method


def n_m(
  n: int = 2,
  m: int = 4,
  schedule: Schedule = constant(),
  *,
  axis: int | Sequence[tuple[str, int]] = -2,
  decay: float = 0.0,
) -> Method:
  """Keeps the n largest |w| of every m along the axis a product sums over.

  On a ramp n falls from m in whole steps.

  Args:
    n: entries kept of every m.
    m: at most 16.
    schedule: default: pruned at initialisation.
    axis: of every kernel; or (regex, axis) pairs, the first that is found in
      the path, else -2: right for dense kernels [in, out] and convolutions
      [h, w, in, out]. A dense layer to several heads, [in, heads, d], has -3.
    decay: before the final masks, a term decay * w in the gradient of what
      they would prune now (SR-STE, arXiv 2102.04010; there 2e-4, with the
      pattern in the forward pass as well).
  """
  if not 0 < n <= m <= 16:
    raise ValueError(f'{n}:{m} sparsity: it needs 0 < n <= m <= 16')
  final = Fraction(n, m)
  kept = np.asarray(
    [
      max(n, math.ceil(density_at(schedule, final, step) * m))
      for step in update_steps(schedule)
    ],
    np.int32,
  )

  def axis_of(name):
    if isinstance(axis, int):
      return axis
    return next((a for rule, a in axis if re.search(rule, name)), -2)

  def pattern(params, eligible, count):
    names = masks_lib.eligible_names(params, eligible)
    leaves = magnitudes(masks_lib.eligible_leaves(params, eligible))
    chosen = [
      select_n_m(leaf, count, m, axis_of(name))
      for name, leaf in zip(names, leaves, strict=True)
    ]
    return masks_lib.as_tree(params, eligible, chosen)

  def initial_masks(params, eligible, key):
    del key
    if schedule.begin > 0:
      return masks_lib.dense_masks(params, eligible)
    return pattern(params, eligible, int(kept[0]))

  def update_masks(step, grads, params, masks, state, key, eligible, **extra):
    del grads, masks, key, extra
    count = jnp.asarray(kept)[update_index(schedule, step)]
    return pattern(params, eligible, count), None, state

  def grads(step, grads, params, state, eligible, **extra):
    del state, extra
    rate = jnp.where(step < schedule.end, decay, 0.0)
    return masks_lib.map_masks(
      lambda p, keep, g: (
        g if keep is None else g + jnp.where(keep, 0, rate * p).astype(g.dtype)
      ),
      params,
      pattern(params, eligible, n),
      grads,
    )

  def counts(params, eligible):
    found = {}
    for name, leaf in zip(
      masks_lib.eligible_names(params, eligible),
      masks_lib.eligible_leaves(params, eligible),
      strict=True,
    ):
      size = leaf.shape[axis_of(name)]
      along = size // m * n + min(n, size % m)
      found[name] = leaf.size // size * along
    return found

  return Method(
    update_masks=update_masks,
    is_update=lambda step: is_update(schedule, step),
    initial_masks=initial_masks,
    grads=grads if decay else None,
    counts=counts,
    scheduled=functools.partial(n_m, n, m, axis=axis, decay=decay),
  )
