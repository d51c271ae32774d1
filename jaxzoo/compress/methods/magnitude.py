"""Magnitude pruning: at once, or gradually (arXiv 1710.01878)."""

import functools

from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.scored import by_score, magnitudes
from jaxzoo.compress.schedules import Schedule, constant
from jaxzoo.compress.transform import Method


def magnitude(
  sparsity: float,
  schedule: Schedule = constant(),
  *,
  allocation: Allocation = 'uniform',
  min_per_leaf: int = 0,
) -> Method:
  """Keeps the largest |w|.

  With the schedule `cubic` this is gradual magnitude pruning (GMP). What is
  pruned stays pruned: its weight is zero, the least there is.

  Args:
    sparsity: final, of the eligible entries, in [0, 1].
    schedule: default: pruned at initialisation.
    allocation: 'uniform', 'erk', 'global', or regexes with sparsities.
    min_per_leaf: entries that a layer keeps under 'global'.
  """
  method = by_score(
    lambda weights, grads, key: magnitudes(weights),
    sparsity,
    schedule,
    allocation,
    min_per_leaf=min_per_leaf,
  )
  return method._replace(
    scheduled=functools.partial(
      magnitude, sparsity, allocation=allocation, min_per_leaf=min_per_leaf
    )
  )
