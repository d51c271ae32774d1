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
from jaxzoo.system import System, federate


def merge_copies(
  sparsity: float,
  partition: Partition,
  *,
  allocation: Allocation = 'uniform',
  eligible: masks_lib.Eligible = None,
) -> Callable:
  """(params, extra) with a copy axis -> the same after the exchange.

  Partition i of every copy is that of copy i, pruned to its number; what is
  in no partition, and the extras, are those of the first copy [code].

  Arguments as for `gap`.
  """

  def merge(params, extra):
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
    merged = jax.tree.map(
      lambda own, flag: next(pruned) if flag else own, first, flags
    )
    spread = lambda x, like: jnp.broadcast_to(x, like.shape)
    return (
      jax.tree.map(spread, merged, params),
      jax.tree.map(lambda x: spread(x[0], x), extra),
    )

  return merge


def grow_in_parallel(
  system: System, copies: int, *, every: int, merge: Callable
) -> System:
  """P-GaP of a system whose optimizer is `sparsify(.., gap(parallel=True))`.

  A batch is cut into one part for each copy. `predict` merges the copies
  first, so that it sees the sparse model at any time.

  Args:
    system: of one copy.
    copies: as many as there are partitions.
    every: steps of a phase.
    merge: of `merge_copies`.
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

  def step(state, batch):
    return inner.step(state, cut(batch))

  def predict(state, batch):
    params, extra = merge(state.params, state.extra)
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    return system.predict(
      state._replace(params=first(params), extra=first(extra)), batch
    )

  return System(init, step, predict)
