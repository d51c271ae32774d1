"""Random pruning: the floor that every method must beat."""

import functools

import jax

from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.scored import by_score
from jaxzoo.compress.schedules import Schedule, constant
from jaxzoo.compress.transform import Method, leaf_keys


def random(
  sparsity: float,
  schedule: Schedule = constant(),
  *,
  allocation: Allocation = 'uniform',
) -> Method:
  """Keeps entries drawn once, so that the masks of a ramp are nested.

  With the default schedule this is static sparse training.

  Args:
    sparsity: final, of the eligible entries, in [0, 1].
    schedule: default: pruned at initialisation.
    allocation: 'uniform', 'erk', 'global', or regexes with sparsities.
  """

  def score(weights, grads, key):
    del grads
    keys = leaf_keys(key, 0, len(weights))
    return [
      jax.random.uniform(key, leaf.shape)
      for key, leaf in zip(keys, weights, strict=True)
    ]

  method = by_score(score, sparsity, schedule, allocation)
  return method._replace(
    scheduled=functools.partial(random, sparsity, allocation=allocation)
  )
