"""Saliency |w dL/dw|: of one batch, or summed over several (SNIP)."""

import functools

import jax
import jax.numpy as jnp

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.scored import by_score
from jaxzoo.compress.schedules import Schedule, constant
from jaxzoo.compress.transform import Method


def saliency(
  sparsity: float,
  schedule: Schedule = constant(begin=1),
  *,
  allocation: Allocation = 'global',
  batches: int = 1,
) -> Method:
  """Keeps the largest |w dL/dw|, what the loss would change by to first order.

  With the default schedule this is SNIP (arXiv 1810.02340): the network is
  pruned once, before it is trained. Over several batches the gradients are
  summed before the absolute value is taken.

  Args:
    sparsity: final, of the eligible entries, in [0, 1].
    schedule: an update at step 0, which has no gradient, is made at step 1.
    allocation: 'uniform', 'erk', 'global', or regexes with sparsities.
    batches: whose gradients the first update sums; until then no weights are
      trained.
  """
  first = max(1, schedule.begin)
  schedule = schedule._replace(
    begin=first,
    end=max(first, schedule.end),
    last=max(first, schedule.last),
  )
  rebuild = functools.partial(
    saliency, sparsity, allocation=allocation, batches=batches
  )
  if batches > 1:
    return _summed(sparsity, schedule, allocation, batches, rebuild)

  method = by_score(_scores, sparsity, schedule, allocation, at_init=False)
  return method._replace(scheduled=rebuild)


def _scores(weights, grads, key):
  del key
  return [
    jnp.abs((w * g).astype(jnp.float32))
    for w, g in zip(weights, grads, strict=True)
  ]


def _summed(sparsity, schedule, allocation, batches, rebuild) -> Method:
  """SNIP over several batches: one update, at the last of them."""
  if schedule.end != schedule.begin:
    raise ValueError('saliency over several batches prunes once, at no ramp')
  last = schedule.begin + batches - 1
  once = constant(begin=last)
  method = by_score(_scores, sparsity, once, allocation, at_init=False)

  def init(params, eligible, key):
    del key
    leaves = masks_lib.eligible_leaves(params, eligible)
    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in leaves]
    return masks_lib.as_tree(params, eligible, zeros)

  def update_masks(step, grads, params, masks, total, key, eligible, **extra):
    total = masks_lib.map_masks(
      lambda g, sum_: None if sum_ is None else sum_ + g, grads, total
    )
    summed = masks_lib.map_masks(
      lambda g, sum_: g if sum_ is None else sum_, grads, total
    )
    new = lambda: method.update_masks(
      step, summed, params, masks, (), key, eligible, **extra
    )[0]
    return jax.lax.cond(step == last, new, lambda: masks), None, total

  return method._replace(
    init=init,
    update_masks=update_masks,
    is_update=lambda step: (step >= schedule.begin) & (step <= last),
    skip_step=lambda step: (step >= schedule.begin) & (step < last),
    advance_schedule=True,
    scheduled=rebuild,
  )
