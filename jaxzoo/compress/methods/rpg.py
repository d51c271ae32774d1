"""RPG: higher ranks by adversarial pruning (arXiv 2311.17493, NeurIPS 2023).

Very sparse matrices lose rank: rows and columns empty. RPG prunes globally by
magnitude down an exponential ramp and regrows, in every layer, where the
gradient of loss + strength * rank loss is largest: entries that raise the rank
score higher.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.methods.rank import rank_gradients, relative_ranks
from jaxzoo.compress.methods.regrow import drop_and_grow
from jaxzoo.compress.methods.scored import keep_top, magnitudes, targets
from jaxzoo.compress.schedules import (
  Schedule,
  constant,
  cosine_decay,
  exponential,
  is_update,
  update_index,
  update_steps,
)
from jaxzoo.compress.selection import take_count
from jaxzoo.compress.transform import Method, Write

# sparsity -> (strength, delta) of the published runs [code].
PUBLISHED = {
  0.80: (0.5, 0.2),
  0.90: (0.5, 0.1),
  0.95: (3.0, 0.2),
  0.98: (4.0, 0.2),
}


def published_settings(sparsity: float) -> tuple[float, float]:
  """(strength, delta) of the published sparsity that is nearest."""
  return PUBLISHED[min(PUBLISHED, key=lambda s: abs(s - float(sparsity)))]


def rpg_schedule(ramp: int, stop: int, every: int) -> Schedule:
  """The published schedule: updates at every multiple of `every` below `stop`.

  The first, at density 1, only exchanges entries; the density is final after
  ramp // every more.

  Raises:
    ValueError: the final density is not reached before `stop`.
  """
  end = (ramp // every + 1) * every
  last = (stop - 1) // every * every
  if end > last:
    raise ValueError(
      f'the ramp ends at step {end}, with the last update at {last}: make '
      f'`every` less than {every}, so that (ramp // every + 1) * every < stop'
    )
  return exponential(every, end, every, last)


class Settings(NamedTuple):
  """What `rpg` takes, see there."""

  sparsity: float
  schedule: Schedule
  strength: float
  delta: float
  alpha: float
  stop: int
  ranked: Callable
  min_per_layer: int
  reference_counts: bool


def rpg(
  sparsity: float,
  schedule: Schedule = constant(begin=1),
  *,
  strength: float | None = None,
  delta: float | None = None,
  alpha: float = 0.3,
  stop: int | None = None,
  ranked: Callable = lambda name, leaf: leaf.ndim >= 4,
  min_per_layer: int = 1,
  reference_counts: bool = False,
  rank_loss_every_step: bool = False,
  advance_schedule: bool = True,
) -> Method:
  """Prunes by magnitude over all layers, regrows by loss and rank.

  At an update t of a layer with n entries: floor(n f) of them are exchanged,
  f = alpha (1 + cos(pi t / stop)) / 2. After `schedule.end` layers keep their
  numbers and only exchange. The batch of an update is for scores alone.

  Args:
    sparsity: of all eligible entries together, in [0, 1].
    schedule: usually `rpg_schedule`.
    strength: of the rank loss (lambda); default that of the nearest published
      sparsity.
    delta: energy outside of the low-rank approximation; likewise.
    alpha: the share that is exchanged at first; 0: none, and updates train.
    stop: where the exchange would end; default just after the last update.
    ranked: (path, leaf) -> whether it has a rank loss; default convolutions
      alone, as published.
    min_per_layer: entries that a layer keeps however small they are.
    reference_counts: keep one entry more, as the released code does.
    rank_loss_every_step: add the term to the training gradient as well (the
      paper's equation; the released code uses it in scores alone).
    advance_schedule: whether the rate's schedule goes on at an update.
  """
  own_strength, own_delta = published_settings(sparsity)
  settings = Settings(
    sparsity,
    schedule,
    own_strength if strength is None else strength,
    own_delta if delta is None else delta,
    alpha,
    schedule.last + 1 if stop is None else stop,
    ranked,
    0 if reference_counts else min_per_layer,
    reference_counts,
  )
  rebuild = functools.partial(
    rpg,
    sparsity,
    strength=strength,
    delta=delta,
    alpha=alpha,
    stop=stop,
    ranked=ranked,
    min_per_layer=min_per_layer,
    reference_counts=reference_counts,
    rank_loss_every_step=rank_loss_every_step,
    advance_schedule=advance_schedule,
  )
  bind = lambda function: functools.partial(function, settings)
  due = lambda step: is_update(schedule, step)
  return Method(
    update_masks=bind(_update_masks),
    is_update=due,
    skip_step=due if alpha else None,
    advance_schedule=advance_schedule,
    grads=bind(_grads_every_step) if rank_loss_every_step else None,
    counts=lambda params, eligible: int(
      _numbers(settings, params, eligible)[-1, 0]
    ),
    metrics=_metrics,
    scheduled=rebuild,
  )


def _numbers(settings: Settings, params, eligible) -> np.ndarray:
  """int64 [updates, 1]: entries of all layers that an update keeps."""
  rows = targets(
    params, eligible, settings.schedule, settings.sparsity, 'global'
  )
  if not settings.reference_counts:
    return rows
  size = sum(leaf.size for leaf in masks_lib.eligible_leaves(params, eligible))
  return np.minimum(rows + 1, size)


def _update_masks(
  settings, step, grads, params, masks, state, key, eligible, **extra
):
  del key, extra
  index = update_index(settings.schedule, step)
  weights = masks_lib.eligible_leaves(params, eligible)
  magnitude = magnitudes(weights)
  current = masks_lib.eligible_leaves(
    masks_lib.full_masks(params, masks), eligible
  )
  count = take_count(_numbers(settings, params, eligible), index)

  def pruned():
    # What is off the masks stays off, also where weights on them are zero.
    scores = [
      jnp.where(m, w, -1.0) for m, w in zip(current, magnitude, strict=True)
    ]
    return keep_top(scores, count, 'global', settings.min_per_layer)

  kept = jax.lax.cond(step <= settings.schedule.end, pruned, lambda: current)
  chosen = kept
  if settings.alpha:
    growth = magnitudes(_with_rank(settings, grads, params, eligible))
    chosen = _exchange(settings, index, magnitude, growth, kept)
  # What pruning took away and regrowing gave back begins at zero.
  where = [new & ~old for new, old in zip(chosen, kept, strict=True)]
  tree = lambda leaves: masks_lib.as_tree(params, eligible, leaves)
  zeros = [jnp.zeros((), leaf.dtype) for leaf in weights]
  return tree(chosen), Write(tree(where), tree(zeros)), state


def _exchange(settings, index, magnitude, growth, kept) -> list[Array]:
  """Masks after a share of every layer's entries has been regrown."""
  shares = np.stack(
    [
      _limbs(cosine_decay(settings.alpha, step, settings.stop))
      for step in update_steps(settings.schedule)
    ]
  )
  counts = jnp.stack([mask.sum(dtype=jnp.int32) for mask in kept])
  sizes = jnp.asarray([mask.size for mask in kept], jnp.int32)
  grown = floor_share(counts, jnp.asarray(shares)[index])
  grown = jnp.where(counts < sizes, grown, 0)
  inside = [
    jnp.where(m, w, -jnp.inf) for m, w in zip(kept, magnitude, strict=True)
  ]
  return drop_and_grow(inside, growth, counts - grown, grown)


def _with_rank(settings, grads, params, eligible) -> list[Array]:
  """Gradients of eligible leaves plus those of strength * rank loss."""
  names = masks_lib.eligible_names(params, eligible)
  weights = masks_lib.eligible_leaves(params, eligible)
  own = masks_lib.eligible_leaves(grads, eligible)
  chosen = [
    i
    for i, (name, leaf) in enumerate(zip(names, weights, strict=True))
    if settings.ranked(name, leaf)
  ]
  if chosen and settings.strength:
    _, terms = rank_gradients([weights[i] for i in chosen], settings.delta)
    for i, term in zip(chosen, terms, strict=True):
      own[i] = own[i].astype(jnp.float32) + settings.strength * term
  return own


def _grads_every_step(settings, step, grads, params, state, eligible, **extra):
  del step, state, extra
  own = iter(_with_rank(settings, grads, params, eligible))
  return jax.tree.map(
    lambda g, flag: next(own).astype(g.dtype) if flag else g, grads, eligible
  )


def _metrics(params, masks, state, eligible) -> dict[str, float]:
  """rank/PATH: rank of every kernel over its smaller side."""
  del masks, state
  names = masks_lib.eligible_names(params, eligible)
  leaves = jax.device_get(masks_lib.eligible_leaves(params, eligible))
  ranks = relative_ranks(dict(zip(names, leaves, strict=True)))
  return {f'rank/{name}': rank for name, rank in ranks.items()}


def _limbs(fraction: float) -> np.ndarray:
  """uint32 [3]: a number in [0, 1) as 48 bits, 16 a limb, low first.

  Rounded up, so that a product that is an integer but for rounding is one.
  """
  value = min(-int(-fraction * 2**48 // 1), 2**48 - 1)
  return np.asarray([value >> 16 * i & 0xFFFF for i in range(3)], np.uint32)


def floor_share(counts: Int[Array, ' l'], limbs: Array) -> Int[Array, ' l']:
  """floor(counts * fraction), exact where float32 is not.

  Args:
    counts: below 2^31.
    limbs: of the fraction, [3], see `_limbs`.
  """
  n = counts.astype(jnp.uint32)
  columns = [jnp.uint32(0)] * 5
  for i, part in enumerate((n & 0xFFFF, n >> 16)):
    for j in range(3):
      product = part * limbs[j]
      columns[i + j] = columns[i + j] + (product & 0xFFFF)
      if i + j < 4:
        columns[i + j + 1] = columns[i + j + 1] + (product >> 16)
  for i in range(4):
    columns[i + 1] = columns[i + 1] + (columns[i] >> 16)
  low = columns[3] & 0xFFFF
  return (low | (columns[4] << 16)).astype(jnp.int32)
