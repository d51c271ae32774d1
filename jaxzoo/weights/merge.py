"""Loaded arrays into a model's parameters."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights import layout

PyTree = Any


class Report(NamedTuple):
  """What became of every array; paths 'a/b/c', sorted.

  Attributes:
    loaded: taken from the checkpoint.
    fresh: left as they were, as `fresh` allows.
    missing: not in the checkpoint, and left as they were.
    unexpected: in the checkpoint, but not in the model.
    misshapen: of another shape in the checkpoint, and left as they were.
  """

  loaded: tuple[str, ...]
  fresh: tuple[str, ...]
  missing: tuple[str, ...]
  unexpected: tuple[str, ...]
  misshapen: tuple[str, ...]


def merge(
  params: PyTree,
  loaded: Mapping,
  *,
  fresh: Sequence[str] = (),
  strict: bool = True,
) -> tuple[PyTree, Report]:
  """`params` with the arrays of `loaded` in their places.

  Each array takes the dtype and the sharding of the leaf it replaces; only the
  shards of this process's devices are copied to them.

  Args:
    params: nested dicts of arrays, or of `jax.ShapeDtypeStruct`.
    loaded: nested dicts of numpy arrays.
    fresh: regexes, searched for in the path. A leaf that one matches may be
      missing from the checkpoint or have another shape there; it is left as
      it is.
    strict: missing, unexpected and misshapen arrays are an error; otherwise
      they are only reported.

  Returns:
    The new tree and the report.

  Raises:
    UserError: with `strict`, lists everything that does not fit.
  """
  target, source = layout.flatten(params), layout.flatten(loaded)
  patterns = [re.compile(pattern) for pattern in fresh]
  may_stay = lambda path: any(p.search(path) for p in patterns)
  merged, taken, stayed, missing, misshapen = {}, [], [], [], []
  for path, leaf in target.items():
    merged[path] = leaf
    value = source.get(path)
    if value is not None and np.shape(value) == tuple(leaf.shape):
      merged[path] = _place(value, leaf)
      taken.append(path)
    elif may_stay(path):
      stayed.append(path)
    elif value is None:
      missing.append(path)
    else:
      misshapen.append(path)
  unexpected = sorted(set(source) - set(target))
  report = Report(
    *(
      tuple(sorted(paths))
      for paths in (taken, stayed, missing, unexpected, misshapen)
    )
  )
  if strict and (missing or unexpected or misshapen):
    raise UserError(_complaint(report, target, source))
  return _rebuild(params, merged), report


def _rebuild(tree, flat, prefix=''):
  """The structure of `tree`, empty dicts too, with the leaves of `flat`."""
  if not isinstance(tree, Mapping):
    return flat[prefix]
  below = lambda name: f'{prefix}/{name}' if prefix else name
  return {
    name: _rebuild(node, flat, below(name)) for name, node in tree.items()
  }


def _place(value: np.ndarray, leaf) -> jax.Array:
  sharding = getattr(leaf, 'sharding', None)
  if sharding is None:
    return jnp.asarray(value, leaf.dtype)
  if isinstance(value, jax.Array):  # of another run, perhaps on many hosts
    return jax.device_put(value.astype(leaf.dtype), sharding)
  return jax.make_array_from_callback(
    tuple(leaf.shape),
    sharding,
    lambda index: np.asarray(value[index], leaf.dtype),
  )


def _complaint(report: Report, target, source) -> str:
  lines = ['the checkpoint does not fit the model:']
  shape = lambda x: tuple(np.shape(x))
  for path in report.misshapen:
    lines.append(
      f'  {path}: {shape(source[path])} in the checkpoint, '
      f'{shape(target[path])} in the model'
    )
  lines += [f'  {path}: not in the checkpoint' for path in report.missing]
  lines += [f'  {path}: not in the model' for path in report.unexpected]
  lines.append(
    'Check the sizes in the config; what is meant to start anew belongs in '
    'the patterns of fresh parameters (init.fresh)'
  )
  return '\n'.join(lines)
