"""Sparse networks in a file, and back: safetensors with masks of bits.

A leaf is stored as it is (`NAME`), as the values that its mask keeps and the
mask of one bit an entry (`NAME.values`, `NAME.mask`), or, of N:M sparsity, as
the n values of each group and where in it they are (`NAME.values`,
`NAME.index`). How each was stored the file's metadata says.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath
from jax.experimental import sparse

from jaxzoo.compress.masks import (
  PyTree,
  assert_sparsity,
  map_masks,
  path_name,
)
from jaxzoo.errors import UserError

KEY = 'jaxzoo.sparse'  # of the metadata
FORMS = ('masks', 'n_m', 'dense')


class Loaded(NamedTuple):
  """What a file has.

  Attributes:
    params: nested dicts of arrays.
    masks: likewise, bool or None.
    extra: nested dicts: batch statistics.
    info: what was said about it when it was written.
  """

  params: dict
  masks: dict
  extra: dict
  info: dict[str, Any]


def encode(values: np.ndarray, mask: np.ndarray) -> dict[str, np.ndarray]:
  """Kept values in row-major order, and bits packed along the last axis."""
  return {'values': values[mask], 'mask': np.packbits(mask, axis=-1)}


def decode(parts: Mapping[str, np.ndarray], shape) -> tuple:
  """(values, mask) of `encode`."""
  mask = np.unpackbits(parts['mask'], axis=-1, count=shape[-1]).astype(bool)
  values = np.zeros(shape, parts['values'].dtype)
  values[mask] = parts['values']
  return values, mask


def _index_bits(m: int) -> int:
  return 2 if m <= 4 else 4


def encode_n_m(
  values: np.ndarray, mask: np.ndarray, n: int, m: int, axis: int
) -> dict[str, np.ndarray]:
  """The n values of every group of m along an axis, and their places.

  Returns:
    values [..., groups, n] with that axis last, and index: uint8, the places
    within the groups, 2 bits each (4 where m > 4), the first the lowest.

  Raises:
    ValueError: a group keeps more than n.
  """
  width = -values.shape[axis] % m

  def grouped(x):
    x = np.moveaxis(x, axis, -1)
    x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width)])
    return x.reshape(*x.shape[:-1], -1, m)

  values, mask = grouped(values), grouped(mask)
  if mask.sum(-1).max() > n:
    raise ValueError(f'a group of {m} keeps more than {n}')
  place = np.sort(np.argsort(~mask, -1, kind='stable')[..., :n], -1)
  kept = np.take_along_axis(np.where(mask, values, 0), place, -1)
  bits = _index_bits(m)
  flat = place.ravel().astype(np.uint8)
  flat = np.pad(flat, (0, -flat.size % (8 // bits))).reshape(-1, 8 // bits)
  shifts = np.arange(0, 8, bits, dtype=np.uint8)
  index = np.bitwise_or.reduce(flat << shifts, axis=-1)
  return {'values': kept, 'index': index.astype(np.uint8)}


def decode_n_m(
  parts: Mapping[str, np.ndarray], shape, n: int, m: int, axis: int
) -> tuple:
  """(values, mask) of `encode_n_m`."""
  kept, bits = parts['values'], _index_bits(m)
  shifts = np.arange(0, 8, bits, dtype=np.uint8)
  place = (parts['index'][:, None] >> shifts) & (2**bits - 1)
  place = place.ravel()[: kept.size].reshape(kept.shape).astype(np.int64)

  def spread(x):
    groups = np.zeros((*kept.shape[:-1], m), x.dtype)
    np.put_along_axis(groups, place, x, -1)
    flat = groups.reshape(*kept.shape[:-2], -1)[..., : shape[axis]]
    return np.moveaxis(flat, -1, axis)

  return spread(kept), spread(np.ones(kept.shape, bool))


def to_sparse(params: PyTree, masks: PyTree) -> PyTree:
  """Masked leaves as `jax.experimental.sparse.BCOO`, the others as they are."""
  convert = lambda p, mask: p if mask is None else sparse.BCOO.fromdense(p)
  return map_masks(convert, params, masks)


def _flat(tree: PyTree) -> dict[str, np.ndarray]:
  flat = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))[0]
  return {path_name(path): np.asarray(leaf) for path, leaf in flat}


def _nested(flat: Mapping[str, Any]) -> dict:
  tree: dict = {}
  for name, value in flat.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = value
  return tree


def save(
  path,
  params: PyTree,
  masks: PyTree,
  *,
  extra: PyTree = (),
  form: str = 'masks',
  n: int = 2,
  m: int = 4,
  axis: Mapping[str, int] | None = None,
  info: Mapping[str, Any] | None = None,
) -> int:
  """Writes a sparse network; returns the bytes of the file.

  Args:
    path: of a .safetensors file, local or remote.
    params: zero off the masks.
    masks: bool arrays and None, with the structure of params.
    extra: what belongs to the network beside them: batch statistics.
    form: of masked leaves: 'masks', 'n_m', or 'dense': as they are.
    n: entries kept of every m, for 'n_m'.
    m: at most 16.
    axis: path -> axis of the groups where it is not the second last.
    info: JSON that goes with it.

  Raises:
    ValueError: parameters that are not zero off their mask, or a group that
      keeps more than n.
    UserError: an unknown form.
  """
  if form not in FORMS:
    raise UserError(f'form {form!r}: one of {", ".join(FORMS)}')
  assert_sparsity(params, masks)
  kept, arrays, leaves = _flat(masks), {}, {}
  for name, values in _flat(params).items():
    if name not in kept or form == 'dense':
      arrays[name] = values
      continue
    leaves[name] = dict(form=form, shape=values.shape)
    if form == 'masks':
      parts = encode(values, kept[name])
    else:
      along = (axis or {}).get(name, -2)
      leaves[name] |= dict(n=n, m=m, axis=along)
      parts = encode_n_m(values, kept[name], n, m, along)
    arrays |= {f'{name}.{part}': x for part, x in parts.items()}
  arrays |= {f'extra/{name}': x for name, x in _flat(extra).items()}
  text = json.dumps({'leaves': leaves, 'info': dict(info or {})})
  arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
  data = safetensors.numpy.save(arrays, metadata={KEY: text})
  epath.Path(path).expanduser().write_bytes(data)
  return len(data)


def load(path) -> Loaded:
  """Reads what `save` wrote.

  Raises:
    UserError: no such file, or not one of these.
  """
  path = epath.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f'no file {path}')
  data = path.read_bytes()
  try:
    size = int.from_bytes(data[:8], 'little')
    about = json.loads(data[8 : 8 + size]).get('__metadata__', {})
    arrays = safetensors.numpy.load(data)
  except (ValueError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} is no safetensors file: {error}') from error
  if KEY not in about:
    raise UserError(
      f'{path} was not written by python -m jaxzoo.compress export'
    )
  about = json.loads(about[KEY])
  params, masks = {}, {}
  for name, leaf in about['leaves'].items():
    form, shape = leaf.pop('form'), tuple(leaf.pop('shape'))
    names = ('values', 'mask' if form == 'masks' else 'index')
    parts = {part: arrays.pop(f'{name}.{part}') for part in names}
    if form == 'masks':
      params[name], masks[name] = decode(parts, shape)
    else:
      params[name], masks[name] = decode_n_m(parts, shape, **leaf)
  extra = {
    name.removeprefix('extra/'): arrays.pop(name)
    for name in list(arrays)
    if name.startswith('extra/')
  }
  params |= arrays
  masks = {name: masks.get(name) for name in params}
  return Loaded(_nested(params), _nested(masks), _nested(extra), about['info'])
