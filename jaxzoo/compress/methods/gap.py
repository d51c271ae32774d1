"""GaP: scheduled grow-and-prune (arXiv 2106.09857, ICLR 2022).

Sparse from the start, without a dense model: layers are divided into
partitions, one of which at a time is dense while it trains and is then pruned
again by magnitude. Every weight trains among dense ones several times, and
memory never holds more than the sparse model and one dense partition.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.scored import final_counts, magnitudes
from jaxzoo.compress.schedules import Schedule, constant, is_update
from jaxzoo.compress.selection import kth_largest, select_top_per_leaf
from jaxzoo.compress.transform import Method

# Number of partitions of a Transformer of 6 + 6 blocks -> the blocks that
# begin the second, the third, ... [code, cyclic].
TRANSFORMER = {2: (6,), 3: (6, 9), 6: (2, 4, 6, 8, 10)}

# How leaves are divided: a number, of consecutive ones with about as many
# weights each; regexes on the path, one a partition, the first that is found;
# or path -> number.
Partition = int | Sequence[str] | Callable[[str], int]


def transformer_partition(parts: int, encoder_blocks: int = 6) -> Callable:
  """The published partitions of an encoder and a decoder: path -> number."""
  bounds = TRANSFORMER[parts]

  def of(name):
    found = re.search(r'(encoder|decoder)\D*(\d+)', name)
    block = int(found[2]) + (encoder_blocks if found[1] == 'decoder' else 0)
    return sum(block >= bound for bound in bounds)

  return of


def divide(
  partition: Partition, names: Sequence[str], sizes: Sequence[int]
) -> list[int]:
  """The partition of every leaf, from 0.

  Raises:
    ValueError: a leaf that no pattern is found in, or too many partitions.
  """
  if callable(partition):
    return [int(partition(name)) for name in names]
  if isinstance(partition, int):
    if not 1 <= partition <= len(names):
      raise ValueError(f'{partition} partitions of {len(names)} layers')
    middles = np.cumsum(sizes) - np.asarray(sizes) / 2
    return [int(partition * x / sum(sizes)) for x in middles]
  found = []
  for name in names:
    hits = [i for i, rule in enumerate(partition) if re.search(rule, name)]
    if not hits:
      raise ValueError(f'gap: {name} is in none of the partitions')
    found.append(hits[0])
  return found


def is_dense(part: int, phase, parts: int):
  """Whether a partition is dense in a phase of the cycle."""
  return phase % parts == part


def is_pruned_at(part: int, phase: int, parts: int) -> bool:
  """Whether a partition is pruned at the beginning of a phase.

  All are, the one that is about to grow too; but before the first phase that
  one has never been sparse.
  """
  return phase > 0 or not is_dense(part, phase, parts)


class Settings(NamedTuple):
  """What `gap` takes, see there."""

  sparsity: float
  schedule: Schedule
  partition: Partition
  allocation: Allocation
  parallel: bool

  @property
  def phases(self) -> int:
    return (self.schedule.last - self.schedule.begin) // self.schedule.every


def gap(
  sparsity: float,
  schedule: Schedule = constant(),
  *,
  partition: Partition = 4,
  allocation: Allocation = 'uniform',
  reset_inner: bool | str = True,
  parallel: bool = False,
) -> Method:
  """Cyclic grow-and-prune (C-GaP).

  Phase s begins with the call begin + s * every: all is pruned to its number
  by magnitude, then the partition s mod (number of partitions) becomes dense.
  With the update at `schedule.last` the phases are over and all is sparse.

  Args:
    sparsity: of the eligible entries, in [0, 1].
    schedule: constant(begin=1, every=T, last=N * T + 1) for N phases of T
      steps; the default has none: pruned once.
    partition: how leaves are divided, see `Partition`.
    allocation: 'uniform', 'erk', or regexes with sparsities, such as those of
      `global_ratios`.
    reset_inner: whether the optimizer starts afresh with every phase [code];
      'moments' keeps the counters of rate schedules.
    parallel: the dense partition is the one that the method's state names, in
      all phases, see `gap_parallel`.
  """
  settings = Settings(sparsity, schedule, partition, allocation, parallel)
  due = lambda step: is_update(schedule, step)
  resets = lambda step: due(step) & (step > schedule.begin)
  choose = functools.partial(_choose, settings)
  return Method(
    update_masks=functools.partial(_update_masks, settings),
    is_update=due,
    init=(lambda params, eligible, key: jnp.int32(0)) if parallel else None,
    initial_masks=lambda params, eligible, key: choose(
      0, 0, params, None, eligible
    ),
    reset_inner=resets if reset_inner and settings.phases else None,
    keep_counters=reset_inner == 'moments',
    counts=functools.partial(_numbers, settings),
    finalize=lambda params, masks, eligible: choose(
      settings.phases, 0, params, masks, eligible
    ),
    scheduled=functools.partial(
      gap,
      sparsity,
      partition=partition,
      allocation=allocation,
      reset_inner=reset_inner,
      parallel=parallel,
    ),
  )


def _numbers(settings: Settings, params, eligible) -> dict[str, int]:
  return final_counts(
    params,
    eligible,
    settings.schedule,
    settings.sparsity,
    settings.allocation,
  )


def _choose(settings: Settings, phase, number, params, masks, eligible):
  """Everything pruned, but for partition `number` while phases last."""
  names = masks_lib.eligible_names(params, eligible)
  weights = masks_lib.eligible_leaves(params, eligible)
  scores = magnitudes(weights)
  if masks is not None and not settings.parallel:  # merged: other places
    current = masks_lib.eligible_leaves(
      masks_lib.full_masks(params, masks), eligible
    )
    scores = [
      jnp.where(m, w, -1.0) for m, w in zip(current, scores, strict=True)
    ]
  counts = _numbers(settings, params, eligible)
  kept = select_top_per_leaf(scores, [counts[name] for name in names])
  parts = divide(settings.partition, names, [leaf.size for leaf in weights])
  growing, total = phase < settings.phases, max(parts) + 1
  chosen = [
    keep | (growing & is_dense(part, number, total))
    for keep, part in zip(kept, parts, strict=True)
  ]
  return masks_lib.as_tree(params, eligible, chosen)


def _update_masks(
  settings, step, grads, params, masks, state, key, eligible, **extra
):
  del grads, key, extra
  phase = (step - settings.schedule.begin) // settings.schedule.every
  number = state if settings.parallel else phase
  return _choose(settings, phase, number, params, masks, eligible), None, state


class Percentile(NamedTuple):
  """Where a percentile of many |w| lies.

  Attributes:
    below: the largest |w| that is not above it.
    value: the percentile, interpolated linearly.
    whole: whether it is one of the |w| and not between two.
  """

  below: float
  value: float
  whole: bool


def percentile(weights: Sequence[jax.Array], ratio: float) -> Percentile:
  """The (100 ratio)-th percentile of |w| of all arrays together."""
  size = sum(weight.size for weight in weights)
  position = (size - 1) * (100 * ratio / 100)
  place = math.floor(position)
  scores = magnitudes(weights)
  below = float(kth_largest(scores, size - place))
  above = float(kth_largest(scores, max(size - place - 1, 1)))
  value = below + (position - place) * (above - below)
  return Percentile(below, value, position == place)


def prune_by_percentile(weight: jax.Array, ratio: float) -> np.ndarray:
  """The released code's local pruning: |w| above its percentile [code].

  Of n distinct values n - 1 - floor((n - 1) ratio) stay, not round(n (1 -
  ratio)); with more zeros than that, exactly what is not zero.

  Args:
    weight: of any shape.
    ratio: sparsity in [0, 1]; from 0.999 on everything goes.
  """
  if ratio >= 0.999:
    return np.zeros(weight.shape, bool)
  if ratio == 0:
    return np.ones(weight.shape, bool)
  return np.abs(np.asarray(weight)) > percentile([weight], ratio).below


def global_ratios(
  params: masks_lib.PyTree, sparsity: float, eligible=None
) -> dict[str, float]:
  """Sparsities by path from one magnitude threshold for all layers [code].

  The share of each layer strictly below the percentile of all |w|. Taken of a
  trained network, the non-uniform allocation of the published runs:
  `gap(0.9, allocation=global_ratios(params, 0.9))`.
  """
  flags = masks_lib.eligible_tree(params, eligible)
  leaves = masks_lib.eligible_leaves(params, flags)
  threshold = percentile(leaves, sparsity)
  found = {}
  for name, leaf in zip(
    masks_lib.eligible_names(params, flags), leaves, strict=True
  ):
    values = np.abs(np.asarray(leaf, np.float32))
    below = values < threshold.below
    if not threshold.whole:
      below |= values == np.float32(threshold.below)
    found[f'^{re.escape(name)}$'] = float(below.mean())
  return found
