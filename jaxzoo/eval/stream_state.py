"""Where a stream has come to, on disk, so that a run that was stopped goes on.

One file beside the run, replaced as a whole: the leaves of state and record as
plain arrays, never pickled.
"""

import hashlib
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from jaxzoo.eval.stream import Record
from jaxzoo.system import State
from jaxzoo.train.stored import from_stored, to_stored

FREE_FIELDS = ('evals', 'mesh', 'profile', 'baseline', 'log_steps')


def identity(state: State, config, **options) -> str:
  """Tells a stream: its config, the step that it starts from, its options."""
  fields = json.loads(config.to_json_best_effort())
  for name in FREE_FIELDS:
    fields.pop(name, None)
  step = int(np.max(jax.device_get(state.step)))
  text = json.dumps([fields, step, options], sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def save(folder, key: str, progress) -> None:
  """Writes (position, state, record); without a folder nothing happens.

  Args:
    folder: of the run, local or remote; '' for none.
    key: of `identity`.
    progress: position, state and a record of numpy arrays.
  """
  if not folder or jax.process_index():
    return
  position, state, record = progress
  arrays = {'position': np.int64(position)}
  leaves = jax.tree.leaves(jax.device_get(to_stored(state)))
  arrays |= {f'state/{i}': x for i, x in enumerate(leaves)}
  flat, _ = jax.tree_util.tree_flatten_with_path(record)
  arrays |= {'record/' + _name(path): x for path, x in flat}
  data = io.BytesIO()
  np.savez(data, **arrays)
  path = _path(folder, key)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.tmp')
  partial.write_bytes(data.getvalue())
  partial.replace(path)


def load(folder, key: str, like: State):
  """(position, state, record) as it was saved, or None.

  Args:
    folder: of the run.
    key: of `identity`.
    like: a state of the same form, which says where each array lies.
  """
  if not folder or not _path(folder, key).exists():
    return None
  path = _path(folder, key)
  plain = jax.eval_shape(to_stored, like)
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in stored.files}
  except (ValueError, OSError, KeyError) as error:
    logging.warning('%s is damaged (%s): the stream begins anew', path, error)
    return None
  leaves = [
    arrays.pop(f'state/{i}') for i in range(len(jax.tree.leaves(plain)))
  ]
  forms = [(x.shape, x.dtype) for x in jax.tree.leaves(plain)]
  if [(x.shape, x.dtype) for x in leaves] != forms:
    logging.warning('%s is of another system: the stream begins anew', path)
    return None
  state = jax.tree.unflatten(jax.tree.structure(plain), leaves)
  like = jax.tree.map(jnp.asarray, like)
  shardings = jax.tree.map(lambda x: x.sharding, like)
  state = jax.device_put(from_stored(state, like, shardings), shardings)
  position = int(arrays.pop('position'))
  return position, state, _record(arrays)


def _path(folder, key) -> epath.Path:
  return epath.Path(folder) / 'streams' / f'{key}.npz'


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _record(arrays):
  """The record of 'record/FIELD[/NAME]' -> array."""
  fields = {name: {} for name in Record._fields}
  for name, value in arrays.items():
    _, field, *inner = name.split('/')
    if inner:
      fields[field][inner[0]] = value
    else:
      fields[field] = value
  return Record(**fields)
