"""Masks: pytrees of bools beside the parameters, and what is done with them.

A mask tree has the structure of the parameters: a bool array of the leaf's
shape where the leaf is eligible for pruning, None elsewhere.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any
Eligible = Any  # a tree of Python bools, (path, leaf) -> bool, or patterns


def path_name(path) -> str:
  """'a/b/c' of a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def names_of(tree) -> list[str]:
  """The path of every leaf, in the order of the leaves."""
  return [
    path_name(p) for p, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
  ]


def default_eligible(name: str, leaf) -> bool:
  """Kernels of two axes or more; no depthwise ones.

  A convolution with one channel of input per output, [k, k, 1, c], is taken
  for depthwise.
  """
  return (
    name.rpartition('/')[2] == 'kernel'
    and leaf.ndim >= 2
    and not (leaf.ndim == 4 and leaf.shape[2] == 1)
  )


def eligible_tree(params: PyTree, eligible: Eligible = None) -> PyTree:
  """Which leaves may be pruned, as a tree of Python bools.

  Args:
    params: arrays or abstract.
    eligible: None for `default_eligible` (and, in a tree without any leaf
      called `kernel`, for all leaves of two axes or more); a predicate (path,
      leaf) -> bool; a sequence of regexes on the path; or the tree itself.

  Raises:
    ValueError: no leaf is eligible.
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  leaves = [(path_name(path), leaf) for path, leaf in flat]
  if eligible is None:
    named = any(name.rpartition('/')[2] == 'kernel' for name, _ in leaves)
    eligible = default_eligible if named else lambda _, leaf: leaf.ndim >= 2
  elif isinstance(eligible, str):
    eligible = (eligible,)
  if isinstance(eligible, Sequence) and all(
    isinstance(pattern, str) for pattern in eligible
  ):
    patterns = eligible
    eligible = lambda name, leaf: any(re.search(p, name) for p in patterns)
  if callable(eligible):
    chosen = [bool(eligible(name, leaf)) for name, leaf in leaves]
  else:
    chosen = [bool(x) for x in structure.flatten_up_to(eligible)]
  if not any(chosen):
    raise ValueError(
      'no parameter is eligible for pruning; there are '
      + ', '.join(name for name, _ in leaves[:8])
    )
  return jax.tree.unflatten(structure, chosen)


def eligible_leaves(params: PyTree, eligible: PyTree) -> list[jax.Array]:
  """The leaves that may be pruned, in order."""
  flags = jax.tree.leaves(eligible)
  return [
    leaf for leaf, flag in zip(jax.tree.leaves(params), flags, strict=True)
    if flag
  ]  # fmt: skip


def eligible_names(params: PyTree, eligible: PyTree) -> list[str]:
  """Their paths."""
  flags = jax.tree.leaves(eligible)
  return [n for n, flag in zip(names_of(params), flags, strict=True) if flag]


def as_tree(params: PyTree, eligible: PyTree, leaves: Sequence) -> PyTree:
  """A tree with `leaves` where eligible, None elsewhere."""
  iterator = iter(leaves)
  flags = jax.tree.leaves(eligible)
  structure = jax.tree.structure(params)
  return structure.unflatten([next(iterator) if f else None for f in flags])


def map_masks(function: Callable, params: PyTree, masks: PyTree, *rest):
  """function(leaf, mask or None, *rest) over the parameters' leaves."""
  leaves, structure = jax.tree.flatten(params)
  others = [structure.flatten_up_to(tree) for tree in (masks, *rest)]
  return structure.unflatten(
    [function(*each) for each in zip(leaves, *others, strict=True)]
  )


def full_masks(params: PyTree, masks: PyTree) -> PyTree:
  """`masks` with a scalar True for None: every leaf is an array."""
  return map_masks(
    lambda _, mask: jnp.bool_(True) if mask is None else mask, params, masks
  )


def dense_masks(params: PyTree, eligible: PyTree) -> PyTree:
  """Masks that keep everything."""
  leaves = eligible_leaves(params, eligible)
  return as_tree(params, eligible, [jnp.ones(x.shape, bool) for x in leaves])


def apply_masks(params: PyTree, masks: PyTree) -> PyTree:
  """Zeros wherever a mask is False; other leaves as they are."""
  return map_masks(
    lambda p, m: p if m is None else jnp.where(m, p, jnp.zeros((), p.dtype)),
    params,
    masks,
  )


def pack_masks(masks: PyTree, axis: int | Callable = -1) -> PyTree:
  """One bit an entry, packed along one axis so that the others stay sharded.

  Args:
    masks: bool arrays and None.
    axis: of every leaf, or a function of its shape; an axis that is sharded
      must not be the one that is packed.

  Returns:
    The same tree with uint8 arrays [..., ceil(n / 8), ...].
  """
  of = axis if callable(axis) else lambda _: axis
  return jax.tree.map(lambda m: jnp.packbits(m, axis=of(m.shape)), masks)


def unpack_masks(
  packed: PyTree, shapes: PyTree, axis: int | Callable = -1
) -> PyTree:
  """The inverse of `pack_masks`; `shapes` is a tree of arrays or abstract."""
  of = axis if callable(axis) else lambda _: axis

  def unpack(bits, like):
    where = of(like.shape)
    return jnp.unpackbits(bits, axis=where, count=like.shape[where]).astype(
      bool
    )

  return jax.tree.map(unpack, packed, shapes)


class LeafSummary(NamedTuple):
  """Entries that are kept, and all, of one leaf."""

  nnz: int
  size: int

  @property
  def density(self) -> float:
    return self.nnz / self.size


def mask_summary(params: PyTree, masks: PyTree) -> dict[str, LeafSummary]:
  """path -> (nnz, size) of every eligible leaf; on the host."""
  found = {}
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  for (path, leaf), mask in zip(
    flat, structure.flatten_up_to(masks), strict=True
  ):
    if mask is not None:
      nnz = int(np.asarray(jax.device_get(mask)).sum(dtype=np.int64))
      found[path_name(path)] = LeafSummary(nnz, int(np.prod(leaf.shape)))
  return found


def sparsity_of(params: PyTree, masks: PyTree) -> float:
  """Share of the eligible entries that are masked out; on the host."""
  rows = mask_summary(params, masks).values()
  return 1 - sum(row.nnz for row in rows) / sum(row.size for row in rows)


def assert_sparsity(
  params: PyTree, masks: PyTree, counts: int | Mapping[str, int] | None = None
) -> None:
  """Checks that masks have exactly `counts` ones and params nothing off them.

  Args:
    params: of the trained network.
    masks: see the module.
    counts: of all leaves together, or by path; None: only the zeros.

  Raises:
    ValueError: with the first leaf that differs.
  """
  rows = mask_summary(params, masks)
  if isinstance(counts, Mapping):
    for name, count in counts.items():
      if rows[name].nnz != count:
        raise ValueError(f'{name}: {rows[name].nnz} entries kept, not {count}')
  elif counts is not None and sum(r.nnz for r in rows.values()) != counts:
    total = sum(row.nnz for row in rows.values())
    raise ValueError(f'{total} entries kept, not {counts}')
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  for (path, leaf), mask in zip(
    flat, structure.flatten_up_to(masks), strict=True
  ):
    if mask is not None:
      off = np.asarray(jax.device_get(leaf))[~np.asarray(jax.device_get(mask))]
      if np.any(off != 0):
        raise ValueError(
          f'{path_name(path)}: {np.count_nonzero(off)} entries off the mask '
          'are not zero'
        )
