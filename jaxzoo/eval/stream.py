"""Online learning: a stream that is forecast first and learned after.

A window of the stream is forecast, scored, and then learned, before the next
one comes: `predict` and `step` of the system on the same batch, which has the
key `first` beside those of training (see below). The whole stream runs on the
device, in scans of some hundred windows, between which it can be saved.

Protocols: 'published' learns a window as soon as it is forecast, although with
a horizon of h its target lies h - 1 steps in the future and overlaps with what
comes next; 'delayed' learns it when its target has come, h - 1 windows later;
'strided' forecasts and learns every h-th window, so that targets do not overlap
and nothing is known too early. For h = 1 all are one.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxzoo.data.windows import Windows
from jaxzoo.errors import UserError, nearest
from jaxzoo.system import State, System
from jaxzoo.train.compiler import Options

PROTOCOLS = ('published', 'delayed', 'strided')


class Stream(NamedTuple):
  """The windows of a stream in the order of time, on the device.

  Attributes:
    values: [n, d], standardised.
    marks: [n, k], features of the rows' times.
    history: rows that a window shows.
    horizon: rows to forecast.
    stride: rows from window to window.
    delay: windows from a forecast to when its target is learned.
  """

  values: Float[Array, 'n d']
  marks: Float[Array, 'n k']
  history: int
  horizon: int
  stride: int
  delay: int

  @property
  def windows(self) -> int:
    span = self.history + self.horizon
    return (len(self.values) - span) // self.stride + 1

  def batch(self, i, first) -> dict[str, Array]:
    """Window i as a batch of one.

    Args:
      i: which.
      first: whether nothing of the stream has been learned yet.
    """
    start = i * self.stride

    def rows(x, skip, count):
      return jax.lax.dynamic_slice_in_dim(x, start + skip, count)[None]

    return {
      'history': rows(self.values, 0, self.history),
      'history_marks': rows(self.marks, 0, self.history),
      'target': rows(self.values, self.history, self.horizon),
      'target_marks': rows(self.marks, self.history, self.horizon),
      'first': jnp.asarray(first)[None],
    }


def make_stream(source: Windows, protocol: str = 'published') -> Stream:
  """The stream of a split's windows.

  Raises:
    UserError: no such protocol, or a source without marks.
  """
  if protocol not in PROTOCOLS:
    raise UserError(
      f'protocol: no {protocol!r}; ' + nearest(protocol, PROTOCOLS)
    )
  if source.marks is None:
    raise UserError(
      "data.marks='': a stream has the calendar beside its values: set "
      "data.marks to 'standardised' or 'raw'"
    )
  h = source.horizon
  stride = h if protocol == 'strided' else source.stride
  delay = math.ceil((h - 1) / stride) if protocol == 'delayed' else 0
  return Stream(
    np.asarray(source.values, np.float32),
    np.asarray(source.marks, np.float32),
    source.history,
    h,
    stride,
    delay,
  )


class Record(NamedTuple):
  """What is kept of windows, by their number on the leading axis.

  Attributes:
    mse: name of an output -> [n, d], mean square error over the horizon.
    mae: likewise the absolute one.
    steps: [n, h], of the forecast the mean square error of each step ahead.
    last: [n, d], the forecast of the horizon's last step.
    others: outputs that are no forecasts, [n, d].
  """

  mse: Mapping[str, Float[Array, 'n d']]
  mae: Mapping[str, Float[Array, 'n d']]
  steps: Float[Array, 'n h']
  last: Float[Array, 'n d']
  others: Mapping[str, Float[Array, 'n d']]


def score(outputs: Mapping, target: Float[Array, '1 h d']) -> Record:
  """The record of one window, [d] each."""
  forecasts = {k: y[0] for k, y in outputs.items() if y.shape == target.shape}
  error = {k: y - target[0] for k, y in forecasts.items()}
  return Record(
    {k: jnp.square(e).mean(0) for k, e in error.items()},
    {k: jnp.abs(e).mean(0) for k, e in error.items()},
    jnp.square(error['forecast']).mean(1),
    forecasts['forecast'][-1],
    {k: y[0] for k, y in outputs.items() if k not in forecasts},
  )


def peek(system: System, stream: Stream, state: State, count: int) -> Record:
  """Forecasts the first `count` windows and learns nothing."""

  def one(i):
    batch = stream.batch(i, True)
    return score(system.predict(state, batch), batch['target'])

  return jax.lax.map(one, jnp.arange(count))


def learn(
  system: System, stream: Stream, state: State, start, count: int
) -> tuple[State, Record]:
  """Forecasts, scores and learns `count` windows from `start` on, in one scan.

  With a delay it is the window `delay` before that is learned; `start` is at
  least `delay`, see `peek` for the windows before. Without one, a `step` whose
  metrics have `forecasts`, those of `predict`, has forecast the window already.
  """

  def body(state, i):
    batch = stream.batch(i, i <= stream.delay)
    learned = batch
    if stream.delay:
      learned = stream.batch(i - stream.delay, i == stream.delay)
    after, metrics = system.step(state, learned)
    outputs = None if stream.delay else metrics.get('forecasts')
    if outputs is None:
      outputs = system.predict(state, batch)
    return after, score(outputs, batch['target'])

  return jax.lax.scan(body, state, start + jnp.arange(count))


def over_seeds(function: Callable, mesh: jax.sharding.Mesh) -> Callable:
  """(state, start) -> (state, record) for states with a leading axis of seeds.

  The seeds are spread over the axis `data` of the mesh, whose devices then have
  nothing to tell each other.

  Args:
    function: `learn` with all but `state` and `start` given.
    mesh: whose `data` divides the number of seeds.
  """
  spec = PartitionSpec('data')

  def local(states, start):
    if states.step.shape[0] > 1:
      return jax.vmap(function, in_axes=(0, None))(states, start)
    # One seed on a device: branches stay branches.
    one = jax.tree.map(lambda x: x[0], states)
    return jax.tree.map(lambda x: x[None], function(one, start))

  return jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(spec, PartitionSpec()),
      out_specs=spec,
      check_vma=False,
    )
  )


class Progress(NamedTuple):
  """A stream that has been learned up to `position` (without it)."""

  position: int
  state: State
  record: Any  # numpy Record of all windows so far


def run(
  system: System,
  stream: Stream,
  state: State,
  *,
  chunk: int = 600,
  progress: Progress | None = None,
  save: Callable[[Progress], None] = lambda progress: None,
  options: Options | None = None,
) -> tuple[Progress, float]:
  """Runs a stream to its end.

  Args:
    system: that has `predict` and `step` for batches of a stream.
    stream: what comes.
    state: after training; it is left as it is.
    chunk: about how many windows are one scan. All scans are one compiled
      program where their size divides the stream; otherwise the last is another.
    progress: to go on from.
    save: called between two scans.
    options: of the compiler, see `train.compiler`.

  Returns:
    The final progress, and windows a second after the first scan (0 where
    there was one only).
  """
  total = stream.windows
  if total <= stream.delay:
    raise UserError(f'{total} windows: too few for a delay of {stream.delay}')
  size = chunk_size(total - stream.delay, chunk)
  state = jax.tree.map(jnp.asarray, state)
  # The rows are arguments: as constants they would be compiled in.
  rows = jnp.asarray(stream.values), jnp.asarray(stream.marks)
  given = lambda rows: stream._replace(values=rows[0], marks=rows[1])
  scan = jax.jit(
    lambda state, rows, start, count: learn(
      system, given(rows), state, start, count
    ),
    static_argnums=3,
    donate_argnums=0,
    # What comes out goes in again.
    out_shardings=(jax.tree.map(lambda x: x.sharding, state), None),
    compiler_options=options,
  )
  if progress is None:
    state = jax.tree.map(jnp.copy, state)  # the scan takes its buffers
    record = ()
    if stream.delay:
      ahead = jax.jit(
        lambda state, rows: peek(system, given(rows), state, stream.delay)
      )
      record = jax.device_get(ahead(state, rows))
    progress = Progress(stream.delay, state, record)
  started, timed, rate = None, 0, 0.0
  while progress.position < total:
    count = min(size, total - progress.position)
    state, record = scan(
      progress.state, rows, jnp.int32(progress.position), count
    )
    record = joined(progress.record, jax.device_get(record))
    progress = Progress(progress.position + count, state, record)
    if started is not None and count == size:
      timed += count
      rate = timed / (time.perf_counter() - started)
    started = started or time.perf_counter()
    if progress.position < total:
      pause = time.perf_counter()
      save(progress)
      started += time.perf_counter() - pause
  return progress, rate


def chunk_size(windows: int, chunk: int) -> int:
  """A size near `chunk` that divides `windows`, or `chunk` itself."""
  chunk = max(1, min(chunk, windows))
  sizes = range(max(1, chunk // 2), min(windows, 2 * chunk) + 1)
  whole = [size for size in sizes if windows % size == 0]
  return min(whole, key=lambda size: abs(size - chunk), default=chunk)


def joined(before, after):
  """Two records one after the other; `before` may be ()."""
  if before == ():
    return after
  return jax.tree.map(lambda a, b: np.concatenate([a, b]), before, after)


def metrics(record: Record, std: Float[np.ndarray, ' d']) -> dict[str, float]:
  """Means over windows and channels, which is the published cumulative error.

  Returns:
    mse and mae of the forecast, original_mse and original_mae in the units of
    the file; NAME_mse, NAME_mae of the forecasts that it is made of;
    worst_share, the part of mse that the worst hundredth of the windows is.
  """
  mean = lambda x: float(np.mean(x, dtype=np.float64))
  windows = np.sort(record.mse['forecast'].mean(1, dtype=np.float64))
  worst = windows[-max(1, len(windows) // 100) :]
  values = {
    'mse': mean(record.mse['forecast']),
    'mae': mean(record.mae['forecast']),
    'original_mse': mean(record.mse['forecast'] * std**2),
    'original_mae': mean(record.mae['forecast'] * std),
    'worst_share': float(worst.sum() / max(windows.sum(), 1e-12)),
  }
  for name in sorted(set(record.mse) - {'forecast'}):
    values[f'{name}_mse'] = mean(record.mse[name])
    values[f'{name}_mae'] = mean(record.mae[name])
  return values
