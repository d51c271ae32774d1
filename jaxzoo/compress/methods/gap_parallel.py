"""P-GaP: the partitions of grow-and-prune trained at once, each in a copy.

Of as many copies of the sparse model as there are partitions, copy i has
partition i dense. After a phase the copies are merged: each partition is taken
from the copy that trained it dense, everything is pruned, and all copies go on
from there (arXiv 2106.09857, section 3.2). Copies exchange nothing in between.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.allocation import Allocation
from jaxzoo.compress.methods.gap import Partition, divide
from jaxzoo.compress.methods.scored import final_counts, magnitudes
from jaxzoo.compress.schedules import constant
from jaxzoo.compress.selection import select_top_per_leaf
from jaxzoo.compress.transform import SparseState
from jaxzoo.system import State, System, federate


def merge_copies(
  sparsity: float,
  partition: Partition,
  *,
  allocation: Allocation = 'uniform',
  eligible: masks_lib.Eligible = None,
) -> Callable:
  """(params, extra) with a copy axis -> the same after the exchange.

  Partition i of every copy is that of copy i, pruned to its number; what is
  in no partition, and the extras, are those of the first copy [code]. Averages
  of the parameters (`extra['ema']`) are merged as those are.

  Arguments as for `gap`.
  """

  def merged(params):
    first = jax.tree.map(lambda x: x[0], params)
    flags = masks_lib.eligible_tree(first, eligible)
    names = masks_lib.eligible_names(first, flags)
    leaves = masks_lib.eligible_leaves(params, flags)
    parts = divide(partition, names, [leaf[0].size for leaf in leaves])
    trained = [leaf[part] for leaf, part in zip(leaves, parts, strict=True)]
    counts = final_counts(first, flags, constant(), sparsity, allocation)
    kept = select_top_per_leaf(
      magnitudes(trained), [counts[name] for name in names]
    )
    pruned = iter(
      jnp.where(mask, leaf, 0) for mask, leaf in zip(kept, trained, strict=True)
    )
    one = jax.tree.map(
      lambda own, flag: next(pruned) if flag else own, first, flags
    )
    return jax.tree.map(
      lambda x, like: jnp.broadcast_to(x, like.shape), one, params
    )

  def merge(params, extra):
    spread = lambda x: jnp.broadcast_to(x[0], x.shape)
    extra = {
      name: merged(tree) if name == 'ema' else jax.tree.map(spread, tree)
      for name, tree in extra.items()
    }
    return merged(params), extra

  return merge


def grow_in_parallel(
  system: System,
  copies: int,
  *,
  every: int,
  merge: Callable,
  until: int | None = None,
) -> System:
  """P-GaP of a system whose optimizer is `sparsify(.., gap(parallel=True))`.

  A batch is cut into one part for each copy. `predict` merges the copies
  first, so that it sees the sparse model at any time.

  Args:
    system: of one copy.
    copies: as many as there are partitions.
    every: steps of a phase.
    merge: of `merge_copies`.
    until: step after which the phases are over: from there on one copy alone
      learns whole batches, and the others are what it is; None: never.
  """
  inner = federate(system, copies, every=every, average=merge)

  def cut(batch):
    return jax.tree.map(
      lambda x: x.reshape(copies, x.shape[0] // copies, *x.shape[1:]), batch
    )

  def number(node):
    if not isinstance(node, SparseState):
      return node
    return node._replace(method=jnp.arange(copies, dtype=jnp.int32))

  def init(rng, batch):
    state = inner.init(rng, cut(batch))
    opt = jax.tree.map(
      number, state.opt, is_leaf=lambda x: isinstance(x, SparseState)
    )
    return state._replace(opt=opt)

  def grow(state, batch):
    return inner.step(state, cut(batch))

  def tune(state, batch):
    tuned, metrics = system.step(first_copy(state), batch)
    spread = lambda x: jnp.broadcast_to(x, (copies, *x.shape))
    parts = jax.tree.map(spread, tuned._replace(step=()))
    # As means over copies are.
    metrics = {k: jnp.asarray(x) / 1 for k, x in metrics.items()}
    return parts._replace(step=tuned.step), metrics

  def step(state, batch):
    if until is None:
      return grow(state, batch)
    return jax.lax.cond(state.step < until, grow, tune, state, batch)

  def predict(state, batch):
    params, extra = merge(state.params, state.extra)
    merged = state._replace(params=params, extra=extra)
    return system.predict(first_copy(merged), batch)

  return System(init, step, predict)


def first_copy(state: State) -> State:
  """The state of one copy, of a state of all."""
  parts = jax.tree.map(lambda x: x[0], state._replace(step=()))
  return parts._replace(step=state.step)
