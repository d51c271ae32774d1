"""What every evaluator is: a function from predictions to numbers and pictures.

An evaluator is `evaluate(predict) -> Evaluation`, where `predict(source,
transforms)` gives what the system makes of every record of a source.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxzoo.data.pipeline import eval_batches
from jaxzoo.system import State, System
from jaxzoo.train import mesh as meshes

# Batches that may wait on the devices: reading ahead of them without a bound
# would fill their memory.
IN_FLIGHT = 2


class Evaluation(NamedTuple):
  """What an evaluator found.

  Attributes:
    metrics: name -> number.
    pictures: () -> {name: uint8 [h, w, 3]}, drawn only when they are wanted.
    tables: () -> {name: rows of a CSV file, the first with its columns}.
  """

  metrics: Mapping[str, float]
  pictures: Callable[[], Mapping[str, np.ndarray]] = dict
  tables: Callable[[], Mapping[str, Sequence[Sequence]]] = dict


class Predictions(NamedTuple):
  """A system's outputs for the records of a source, in the source's order.

  Attributes:
    outputs: name -> [n, ...].
    mask: bool [n], False for records that could not be read.
  """

  outputs: dict[str, np.ndarray]
  mask: np.ndarray


class Predict(NamedTuple):
  """predict(source, transforms) -> Predictions, of one state.

  Attributes:
    system: that predicts; an evaluator of online learning takes its `step`.
    state: of its parameters.
    folder: where an evaluator may keep what a later start goes on from; ''
      for nowhere.
    rows: (state, source, transforms) -> Predictions.
  """

  system: System
  state: State
  folder: str
  rows: Callable[..., Predictions]

  def __call__(self, source, transforms) -> Predictions:
    return self.rows(self.state, source, transforms)


def make_predict(system, mesh, batch_size: int, folder=''):
  """(state) -> predict(source, transforms) -> Predictions, see `Predict`.

  The compiled function is kept, so that an evaluation after every epoch
  compiles once. Every process reads its part of each batch; all get all rows.

  Args:
    system: whose `predict` gives a dict of arrays with a row for each example.
    mesh: that the state lies on.
    batch_size: global; rounded up to a multiple of the devices.
    folder: see `Predict`.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  batch_size = -(-batch_size // ways) * ways
  sharding = meshes.batch_sharding(mesh)

  def rows(state, batch):
    batch = dict(batch)
    kept = {key: batch.pop(key) for key in ('index', 'mask')}
    return system.predict(state, batch), kept

  rows = jax.jit(rows, out_shardings=meshes.replicated(mesh))

  def all_rows(state, source, transforms) -> Predictions:
    parts = []
    for batch in eval_batches(
      source,
      transforms,
      batch_size=batch_size // jax.process_count(),
      shard=jax.process_index(),
      shards=jax.process_count(),
    ):
      parts.append(rows(state, meshes.to_devices(batch, sharding)))
      if len(parts) > IN_FLIGHT:
        jax.block_until_ready(parts[-1 - IN_FLIGHT])
    return _in_order(jax.device_get(parts), len(source))

  return lambda state: Predict(system, state, str(folder), all_rows)


def _in_order(parts, size: int) -> Predictions:
  """Rows of all batches at their records' places, padding dropped."""
  index = np.concatenate([kept['index'] for _, kept in parts])
  mask = np.concatenate([kept['mask'] for _, kept in parts])
  place = index[mask]
  found = np.zeros(size, bool)
  found[place] = True
  outputs = {}
  for name in parts[0][0]:
    rows = np.concatenate([output[name] for output, _ in parts])[mask]
    outputs[name] = np.zeros((size, *rows.shape[1:]), rows.dtype)
    outputs[name][place] = rows
  return Predictions(outputs, found)
