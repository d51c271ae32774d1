"""Layouts of parameter trees, and tables of positions, as numpy arrays."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

PyTree = Any

_BLOCK = re.compile(r'block_(\d+)')


def flatten(tree: Mapping) -> dict[str, Any]:
  """Nested dicts -> one dict with paths 'a/b/c'; an empty dict vanishes.

  >>> flatten({'a': {'b': 1, 'c': {'d': 2}}})
  {'a/b': 1, 'a/c/d': 2}
  """
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      for path, leaf in flatten(value).items():
        flat[f'{name}/{path}'] = leaf
    else:
      flat[name] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict:
  """The inverse of `flatten`.

  >>> unflatten({'a/b': 1, 'a/c/d': 2})
  {'a': {'b': 1, 'c': {'d': 2}}}

  Raises:
    ValueError: a path is both a leaf and the parent of another.
  """
  tree = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
      if not isinstance(node, dict):
        raise ValueError(f'{path} lies below a leaf')
    if name in node:
      raise ValueError(f'{path} is a leaf and has leaves below it')
    node[name] = leaf
  return tree


def stack_blocks(tree: Mapping) -> dict:
  """`block_0`, `block_1`, ... -> `blocks`, stacked on a new leading axis.

  Wherever in the tree they are; everything else stays as it is.

  Raises:
    ValueError: numbers are missing, or blocks differ in names or shapes.
  """
  if not isinstance(tree, Mapping):
    return tree
  numbered = {}
  rest = {}
  for name, value in tree.items():
    match = _BLOCK.fullmatch(name)
    if match:
      numbered[int(match[1])] = flatten(value)
    else:
      rest[name] = stack_blocks(value)
  if not numbered:
    return rest
  if sorted(numbered) != list(range(len(numbered))):
    raise ValueError(f'blocks {sorted(numbered)} are not 0, 1, 2, ...')
  shapes = [
    {path: np.shape(leaf) for path, leaf in numbered[i].items()}
    for i in range(len(numbered))
  ]
  for i, own in enumerate(shapes):
    if own != shapes[0]:
      raise ValueError(f'block_{i} differs from block_0: they do not stack')
  rest['blocks'] = unflatten(
    {
      path: np.stack([numbered[i][path] for i in range(len(numbered))])
      for path in numbered[0]
    }
  )
  return rest


def stack_deep(tree: Mapping) -> dict:
  """`stack_blocks` wherever there is more than one block.

  As `models/layers/stack.py` lays them out, which does not scan a single one.
  """
  if not isinstance(tree, Mapping):
    return tree
  if 'block_1' in tree:
    return stack_blocks(tree)
  return {name: stack_deep(value) for name, value in tree.items()}


def unstack_blocks(tree: Mapping) -> dict:
  """`blocks` -> `block_0`, `block_1`, ...: the inverse of `stack_blocks`.

  Raises:
    ValueError: the leaves under `blocks` have different leading sizes.
  """
  if not isinstance(tree, Mapping):
    return tree
  result = {}
  for name, value in tree.items():
    if name != 'blocks' or not isinstance(value, Mapping):
      result[name] = unstack_blocks(value)
      continue
    flat = flatten(value)
    depths = {np.shape(leaf)[:1] for leaf in flat.values()}
    if len(depths) != 1 or () in depths:
      raise ValueError(f'leaves under blocks have leading sizes {depths}')
    for i in range(depths.pop()[0]):
      result[f'block_{i}'] = unflatten({p: x[i] for p, x in flat.items()})
  return result


def to_layout(tree: Mapping, like: Mapping) -> dict:
  """`tree` with its blocks stacked exactly where those of `like` are.

  Subtrees that `like` lacks stay as they are.
  """
  if not isinstance(tree, Mapping) or not isinstance(like, Mapping):
    return tree
  numbered = lambda names: any(_BLOCK.fullmatch(name) for name in names)
  here = {name: value for name, value in tree.items()}
  if 'blocks' in like and numbered(tree):
    here = stack_blocks(here)
  elif numbered(like) and 'blocks' in tree:
    here = unstack_blocks(here)
  return {
    name: to_layout(value, like[name]) if name in like else value
    for name, value in here.items()
  }


def _cubic(distance, a):
  """Keys' cubic convolution kernel (1981) with parameter `a`."""
  x = np.abs(distance)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _interpolation(old: int, new: int, method: str, antialias: bool):
  """The matrix [new, old] that resizes one axis, with half-pixel centres."""
  if method not in ('bilinear', 'bicubic'):
    raise ValueError(f"method {method!r}: not 'bilinear' or 'bicubic'")
  # Without anti-aliasing a = -0.75, with it -0.5: PyTorch's two choices.
  if method == 'bilinear':
    kernel, radius = lambda x: np.maximum(1 - np.abs(x), 0.0), 1
  else:
    a = -0.5 if antialias else -0.75
    kernel, radius = lambda x: _cubic(x, a), 2
  # In float32, as the published tables were made: it moves a weight by 1e-5.
  centres = (np.arange(new, dtype=np.float32) + np.float32(0.5)) * np.float32(
    old / new
  ) - np.float32(0.5)
  matrix = np.zeros((new, old))
  if antialias:
    # The kernel widens as the axis shrinks; taps outside have no weight.
    widen = max(old / new, 1.0)
    matrix = kernel((np.arange(old) - centres[:, None]) / widen)
    return matrix / matrix.sum(1, keepdims=True)
  first = np.floor(centres).astype(int)
  for offset in range(1 - radius, 1 + radius):
    # Taps outside fall on the border.
    index = np.clip(first + offset, 0, old - 1)
    np.add.at(matrix, (np.arange(new), index), kernel(centres - first - offset))
  return matrix


def resize_positions(
  table: Float[np.ndarray, 'p+n w'],
  old_grid: tuple[int, int],
  new_grid: tuple[int, int],
  method: str = 'bilinear',
  antialias: bool = False,
  *,
  prefix: int = 1,
) -> Float[np.ndarray, 'p+m w']:
  """A table of positions for another grid of patches.

  The first rows, the class token's and of what is beside it, are kept; the
  others are the cells of the grid, row by row. Half-pixel centres, as
  PyTorch's `interpolate` without
  `align_corners`: its default method, 'bilinear', is that of the
  person-retrieval systems, 'bicubic' that of transformers'
  `interpolate_pos_encoding`.

  Args:
    table: float; n = rows times columns of `old_grid`.
    old_grid: (rows, columns).
    new_grid: (rows, columns).
    method: 'bilinear' or 'bicubic'.
    antialias: widen the kernel where the grid shrinks.
    prefix: rows in front of the grid, p.

  Returns:
    The new table, in the dtype of the old one.

  Raises:
    ValueError: the table does not have p + n rows.
  """
  rows, columns = old_grid
  if table.shape[0] != prefix + rows * columns:
    raise ValueError(
      f'a table of {table.shape[0]} rows is not {prefix} class token and a '
      f'{rows}x{columns} grid'
    )
  if tuple(old_grid) == tuple(new_grid):
    return table
  width = table.shape[1]
  grid = table[prefix:].reshape(rows, columns, width).astype(np.float64)
  vertical = _interpolation(rows, new_grid[0], method, antialias)
  horizontal = _interpolation(columns, new_grid[1], method, antialias)
  grid = np.tensordot(vertical, grid, (1, 0))
  grid = np.tensordot(horizontal, grid, (1, 1)).swapaxes(0, 1)
  cells = grid.reshape(-1, width).astype(table.dtype)
  return np.concatenate([table[:prefix], cells])


def resize_text_positions(
  table: Float[np.ndarray, 't w'], length: int
) -> Float[np.ndarray, 'u w']:
  """Linear interpolation along positions, with half-pixel centres.

  Row i of the result is at (i + 0.5) t / length - 0.5 of the table, clamped to
  its ends. Channels are never mixed. (CFAM: 77 positions to 168.)
  """
  if table.shape[0] == length:
    return table
  matrix = _interpolation(table.shape[0], length, 'bilinear', False)
  return (matrix @ table.astype(np.float64)).astype(table.dtype)
