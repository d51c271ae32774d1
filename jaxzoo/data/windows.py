"""Windows of a series: its splits, its scale, the features of its times."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Float64

from jaxzoo.errors import UserError

CALENDAR = ('minute', 'hour', 'weekday', 'day', 'day_of_year', 'month', 'week')


class Scale(NamedTuple):
  """Standardisation: (value - mean) / std, by channel."""

  mean: Float64[np.ndarray, ' c']
  std: Float64[np.ndarray, ' c']

  def apply(
    self, values: Float[np.ndarray, '... c']
  ) -> Float32[np.ndarray, '... c']:
    return ((values - self.mean) / self.std).astype(np.float32)

  def undo(
    self, values: Float[np.ndarray, '... c']
  ) -> Float64[np.ndarray, '... c']:
    return values * self.std + self.mean


class Windows:
  """Every window of a stretch of a series, `stride` rows apart.

  A record has `history` float32 [l, c] and `target` float32 [h, c]; with marks
  also `history_marks` [l, k] and `target_marks` [h, k].

  Args:
    name: for messages.
    values: of the stretch, [n, c]: window i is rows i stride to
      i stride + l + h.
    history: l, at least 1.
    horizon: h, at least 1.
    marks: features of the rows' times, [n, k].
    times: of the rows, for pictures and tables.
    stride: between the first rows of two windows.

  Raises:
    UserError: the stretch is shorter than one window.
  """

  def __init__(
    self,
    name: str,
    values: Float32[np.ndarray, 'n c'],
    history: int,
    horizon: int,
    *,
    marks: Float32[np.ndarray, 'n k'] | None = None,
    times: np.ndarray | None = None,
    stride: int = 1,
  ):
    for field, value in dict(history=history, horizon=horizon).items():
      if value < 1:
        raise UserError(f'{field}={value}: it must be at least 1')
    if len(values) < history + horizon:
      raise UserError(
        f'{name} has {len(values)} rows, too few for one window of '
        f'{history} + {horizon} (history + horizon): take shorter ones, or '
        'give it a larger share of the rows (data.split)'
      )
    self.name, self.values, self.marks = name, values, marks
    self.history, self.horizon, self.stride = history, horizon, stride
    self.times = times

  def __len__(self) -> int:
    return (len(self.values) - self.history - self.horizon) // self.stride + 1

  def __getitem__(self, i) -> dict[str, np.ndarray]:
    start = range(len(self))[i] * self.stride
    middle, stop = start + self.history, start + self.history + self.horizon
    record = {
      'history': self.values[start:middle],
      'target': self.values[middle:stop],
    }
    if self.marks is not None:
      record['history_marks'] = self.marks[start:middle]
      record['target_marks'] = self.marks[middle:stop]
    return record

  def __repr__(self) -> str:
    return f'Windows({self.name}, {len(self)} of {self.history}+{self.horizon})'

  def part(self, first: int, last: int) -> 'Windows':
    """Windows `first` to `last` (without it), as a source of their own."""
    rows = slice(
      first * self.stride,
      (last - 1) * self.stride + self.history + self.horizon,
    )
    cut = lambda x: None if x is None else x[rows]
    return Windows(
      self.name,
      self.values[rows],
      self.history,
      self.horizon,
      marks=cut(self.marks),
      times=cut(self.times),
      stride=self.stride,
    )

  def targets(self) -> Float32[np.ndarray, 'n h c']:
    """Of all windows, without a copy."""
    first = self.values[self.history :]
    view = np.lib.stride_tricks.sliding_window_view(first, self.horizon, axis=0)
    return view[:: self.stride].transpose(0, 2, 1)


# From rows to splits.


def split_rows(rows: int, parts: Sequence[float]) -> dict[str, range]:
  """Rows of training, validation and test, one after the other.

  Args:
    rows: of the series.
    parts: three numbers of rows (ETT: 8640, 2880, 2880; what is left is not
      used), or three shares of all rows: training int(share rows), test
      likewise, validation what is between.

  Raises:
    UserError: three such numbers they are not, or more than there are rows.
  """
  parts = tuple(parts)
  counts = all(float(x).is_integer() and x >= 1 for x in parts)
  if len(parts) != 3 or min(parts) <= 0 or not (counts or sum(parts) < 1.001):
    raise UserError(
      f'data.split={parts}: write the rows of training, validation and test '
      'as in 8640,2880,2880, or their shares as in 0.7,0.1,0.2'
    )
  if counts:
    train, val, test = (int(x) for x in parts)
    if train + val + test > rows:
      raise UserError(
        f'data.split={parts} needs {train + val + test} rows, but there are '
        f'{rows}: write shares as in 0.7,0.1,0.2'
      )
  else:
    train, test = int(rows * parts[0]), int(rows * parts[2])
    val = rows - train - test
  ends = np.cumsum([train, val, test]).tolist()
  return {
    'train': range(ends[0]),
    'val': range(ends[0], ends[1]),
    'test': range(ends[1], ends[2]),
  }


def with_lead(rows: range, history: int) -> range:
  """`rows` and the `history` before them, which the first window looks at."""
  return range(max(0, rows.start - history), rows.stop)


def standardisation(
  values: Float[np.ndarray, 'n c'], columns: Sequence[str]
) -> Scale:
  """Mean and population standard deviation; 1 for a constant channel.

  A constant channel is centred and stays 0, with a warning that names it.
  """
  mean, std = values.mean(0), values.std(0)
  # The mean of equal numbers is not exactly that number.
  constant = np.ptp(values, axis=0) == 0
  if constant.any():
    names = [x for x, c in zip(columns, constant, strict=True) if c]
    logging.warning(
      'constant in the training rows, centred and not scaled: %s',
      ', '.join(names),
    )
    mean = np.where(constant, values[0], mean)
  return Scale(mean, np.where(constant, 1.0, std))


def calendar(times: np.ndarray) -> Float64[np.ndarray, 'n 7']:
  """The features `CALENDAR` of datetime64 [n], as numbers.

  Minute, hour, weekday (Monday 0), day of the month, day of the year and month
  (from 1), ISO week.
  """
  days = times.astype('datetime64[D]')
  months, years = days.astype('datetime64[M]'), days.astype('datetime64[Y]')
  since = lambda unit, start: (
    (times - start).astype(f'timedelta64[{unit}]').astype(np.int64)
  )
  number = lambda delta: delta.astype(np.int64)
  weekday = (number(days - np.datetime64('1970-01-05'))) % 7
  # The ISO week is that of its Thursday.
  thursday = days + (3 - weekday).astype('timedelta64[D]')
  week = number(thursday - thursday.astype('datetime64[Y]').astype(days.dtype))
  minutes = since('m', days)
  columns = (
    minutes % 60,
    minutes // 60,
    weekday,
    number(days - months.astype(days.dtype)) + 1,
    number(days - years.astype(days.dtype)) + 1,
    number(months.astype(np.int64)) % 12 + 1,
    week // 7 + 1,
  )
  return np.stack(columns, -1).astype(np.float64)
