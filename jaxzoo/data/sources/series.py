"""Multivariate series in CSV files.

A file has a header, a column of dates and a column for each channel, as the
public forecasting sets do (ETT, WTH, ECL, weather, electricity, traffic).
"""

import collections
import csv
import datetime
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float64

from jaxzoo.errors import UserError, nearest

MISSING = ('refuse', 'interpolate', 'previous')
IRREGULAR = ('refuse', 'keep')
# What stands in a cell for no value.
NO_VALUE = frozenset(
  ('', '-', '?', 'na', 'n/a', 'nan', 'nat', 'none', 'null', 'missing')
)
# Beside ISO 8601. Day and month in the other order would pass for these: such
# files need a format of their own.
DATE_FORMATS = tuple(
  day + time
  for day in ('%Y/%m/%d', '%d.%m.%Y')
  for time in ('', ' %H:%M', ' %H:%M:%S')
)


class Series(NamedTuple):
  """Values of several channels over time, without gaps.

  Attributes:
    name: for messages.
    times: datetime64[s] [n], rising.
    values: float64 [n, c], in the units of the file.
    columns: names of the channels.
  """

  name: str
  times: np.ndarray
  values: Float64[np.ndarray, 'n c']
  columns: tuple[str, ...]


def read_header(
  path: str | os.PathLike,
  *,
  columns: Sequence[str] = (),
  target: str = '',
  date: str = 'date',
) -> tuple[str, ...]:
  """The channels of a file in the order in which `read_csv` gives them.

  Args and errors are those of `read_csv`.
  """
  with _opened(path) as file:
    header = _header(next(csv.reader(file), []), path, date)
  return _channels(header, path, columns, target, date)


def read_csv(
  path: str | os.PathLike,
  *,
  columns: Sequence[str] = (),
  target: str = '',
  date: str = 'date',
  date_format: str = '',
  missing: str = 'refuse',
  irregular: str = 'refuse',
) -> Series:
  """A series from a file.

  Args:
    path: of the CSV file; the first line names the columns.
    columns: the channels, in their order; default all but `date`, as they
      stand in the file.
    target: a channel that is moved behind all others; '' for none.
    date: name of the column with the times.
    date_format: of `datetime.strptime`; default ISO 8601 and `DATE_FORMATS`.
    missing: what becomes of empty cells, and of rows whose times are missing
      in an otherwise regular file: 'refuse'; 'interpolate', linearly in time;
      'previous', the last value before. (What has no value before or after
      gets the nearest.)
    irregular: what becomes of times that are not equally far apart (whole
      months are): 'refuse', or 'keep': rows follow each other as they stand.

  Raises:
    UserError: no such file or column, a cell that is no number or no date,
      times that do not rise or repeat, and what `missing` and `irregular`
      refuse; it names the place.
  """
  _check_choice('missing', missing, MISSING)
  _check_choice('irregular', irregular, IRREGULAR)
  with _opened(path) as file:
    reader = csv.reader(file)
    header = _header(next(reader, []), path, date)
    names = _channels(header, path, columns, target, date)
    dates, values, lines = _cells(reader, header, names, path, date)
  times = _times(dates, lines, path, date_format)
  if len(times) < 2:
    raise UserError(f'{path} has {len(times)} rows: no series to forecast')
  if irregular == 'refuse':
    times, values = _on_grid(times, values, lines, path, missing)
  values = _filled(times, values, names, path, missing)
  return Series(pathlib.Path(path).name, times, values, names)


def _check_choice(field, value, known):
  if value not in known:
    raise UserError(f'data.{field}: no {value!r}; ' + nearest(value, known))


def _opened(path):
  try:
    # Spreadsheets put a byte-order mark in front of the header.
    return open(
      pathlib.Path(path).expanduser(), encoding='utf-8-sig', newline=''
    )
  except OSError as error:
    raise UserError(
      f'cannot read {path} ({error.strerror}): expected a CSV file with a '
      'column of dates and a column for each channel'
    ) from error


def _header(header, path, date) -> list[str]:
  header = [name.strip() for name in header]
  repeated = [x for x, n in collections.Counter(header).items() if n > 1]
  if repeated:
    raise UserError(f'{path} has several columns named {repeated[0]!r}')
  if date not in header:
    hint = ', '.join(header[:8]) if header else 'no header'
    semicolon = any(';' in name for name in header)
    raise UserError(
      f'{path} has no column {date!r} (it has {hint}): '
      + (
        'separate columns by commas, not semicolons'
        if semicolon
        else 'say which one has the dates with --config.data.date=NAME'
      )
    )
  return header


def _channels(header, path, columns, target, date) -> tuple[str, ...]:
  there = [name for name in header if name != date]
  names = list(columns) or there
  for field, name in [('columns', x) for x in names] + [('target', target)]:
    if name and name not in there:
      raise UserError(
        f'{path} has no column {name!r} (data.{field}); ' + nearest(name, there)
      )
  if not names:
    raise UserError(f'{path} has no column beside {date!r}')
  if target:
    names = [x for x in names if x != target] + [target]
  return tuple(names)


def _cells(reader, header, names, path, date):
  """Dates as text, values float64 [n, c] with NaN for missing, line numbers."""
  place = {name: i for i, name in enumerate(header)}
  wanted = [place[name] for name in names]
  dates, rows, lines = [], [], []
  for row in reader:
    if not any(cell.strip() for cell in row):
      continue  # a blank line, as at the end
    if len(row) != len(header):
      raise UserError(
        f'{path}, line {reader.line_num}: {len(row)} cells, but the header '
        f'has {len(header)}'
      )
    try:
      rows.append([float(row[i]) for i in wanted])
    except ValueError:
      rows.append([
        _number(row[i], header[i], path, reader.line_num) for i in wanted
      ])  # fmt: skip
    dates.append(row[place[date]].strip())
    lines.append(reader.line_num)
  values = np.asarray(rows, np.float64).reshape(len(rows), len(names))
  values[np.isinf(values)] = np.nan
  return dates, values, lines


def _number(cell, name, path, line) -> float:
  cell = cell.strip()
  if cell.lower() in NO_VALUE:
    return np.nan
  try:
    return float(cell)
  except ValueError:
    raise UserError(
      f'{path}, line {line}: {cell!r} in the column {name!r} is no number; '
      'leave columns out by naming the others in --config.data.columns'
    ) from None


def _times(dates, lines, path, date_format) -> np.ndarray:
  """datetime64[s] [n] of the cells; time zones are taken to UTC."""
  if not dates:
    return np.zeros(0, 'datetime64[s]')
  parse = _date_parser(dates[0], date_format)
  moments = []
  for cell, line in zip(dates, lines, strict=True):
    try:
      moment = parse(cell)
    except ValueError:
      raise UserError(
        f'{path}, line {line}: {cell!r} is no date; write dates as '
        '2016-07-01 00:00:00, or say how they are written with '
        "--config.data.date_format='%d/%m/%Y %H:%M'"
      ) from None
    if moment.tzinfo is not None:
      moment = moment.astimezone(datetime.UTC).replace(tzinfo=None)
    moments.append(moment)
  return np.asarray(moments, 'datetime64[s]')


def _date_parser(example, date_format):
  if date_format:
    return lambda cell: datetime.datetime.strptime(cell, date_format)
  for form in DATE_FORMATS:
    try:
      datetime.datetime.strptime(example, form)
    except ValueError:
      continue
    return lambda cell: datetime.datetime.strptime(cell, form)
  return datetime.datetime.fromisoformat


# Times.


def _on_grid(times, values, lines, path, missing):
  """The rows at equally spaced times, NaN for those that are missing."""
  steps = np.diff(times)
  bad = np.flatnonzero(steps <= np.timedelta64(0, 's'))
  if len(bad):
    i = int(bad[0])
    what = 'comes again' if steps[i] == np.timedelta64(0, 's') else (
      f'comes after {times[i]}'
    )  # fmt: skip
    raise UserError(
      f'{path}, line {lines[i + 1]}: the time {times[i + 1]} {what}; '
      f'{len(bad)} such places. Sort the rows by time and keep one of each, or '
      'take them as they stand with --config.data.irregular=keep'
    )
  step = step_of(times)
  if step.dtype == 'timedelta64[M]':
    return times, values
  off = (times - times[0]) % step != np.timedelta64(0, 's')
  if off.any():
    i = int(np.flatnonzero(off)[0])
    raise UserError(
      f'{path}, line {lines[i]}: the time {times[i]} is not a whole number of '
      f'steps of {step} after {times[0]}; {int(off.sum())} such rows. Resample '
      'the file to equal steps, or take the rows as they stand with '
      '--config.data.irregular=keep'
    )
  places = ((times - times[0]) // step).astype(np.int64)
  count = int(places[-1]) + 1
  if count == len(times):
    return times, values
  i = int(np.flatnonzero(steps != step)[0])
  absent = f'{count - len(times)} rows are missing in {path}, the first after '
  if missing == 'refuse':
    raise UserError(
      f'{absent}{times[i]} (line {lines[i]}), where every step is {step}: fill '
      'them with --config.data.missing=interpolate (or previous), or take the '
      'rows as they stand with --config.data.irregular=keep'
    )
  logging.warning('%s%s: filled (%s)', absent, times[i], missing)
  whole = np.full((count, values.shape[1]), np.nan)
  whole[places] = values
  return times[0] + np.arange(count) * step, whole


def step_of(times: np.ndarray) -> np.timedelta64:
  """The step between two times: whole months, or else the most common one."""
  months = times.astype('datetime64[M]')
  steps = np.diff(months)
  inside = times - months.astype(times.dtype)
  if steps[0] > np.timedelta64(0, 'M') and (steps == steps[0]).all():
    # On the same day of each, or on the last.
    ends = (times + np.timedelta64(1, 'D')).astype('datetime64[M]') > months
    if (inside == inside[0]).all() or ends.all():
      return steps[0]
  values, counts = np.unique(np.diff(times), return_counts=True)
  return values[counts.argmax()]


def times_after(times: np.ndarray, count: int) -> np.ndarray:
  """The `count` times that follow, by the step of `times`."""
  step, ahead = step_of(times), np.arange(1, count + 1)
  if step.dtype != 'timedelta64[M]':
    return times[-1] + ahead * step
  month = times[-1].astype('datetime64[M]')
  starts = lambda months: months.astype(times.dtype)
  last = (times[-1] + np.timedelta64(1, 'D')).astype('datetime64[M]') > month
  if last:  # counted from the end of the month
    return starts(month + ahead * step + 1) - (starts(month + 1) - times[-1])
  return starts(month + ahead * step) + (times[-1] - starts(month))


def _filled(times, values, names, path, missing):
  """`values` without NaN."""
  gone = np.isnan(values)
  if not gone.any():
    return values
  empty = gone.all(0)
  if empty.any():
    name = names[int(np.flatnonzero(empty)[0])]
    raise UserError(
      f'{path}: the column {name!r} has no values at all; name the others in '
      '--config.data.columns'
    )
  if missing == 'refuse':
    row, column = (int(x[0]) for x in np.nonzero(gone))
    raise UserError(
      f'{path}: {int(gone.sum())} values are missing, the first in the column '
      f'{names[column]!r} at {times[row]}: fill them with '
      '--config.data.missing=interpolate (or previous)'
    )
  logging.warning(
    '%s: %d missing values (%.2g %%) filled (%s)',
    path,
    gone.sum(),
    100 * gone.mean(),
    missing,
  )
  values, when = values.copy(), (times - times[0]).astype(np.float64)
  if (np.diff(when) <= 0).any():  # kept as it stands: by rows
    when = np.arange(len(when), dtype=np.float64)
  for j in np.flatnonzero(gone.any(0)):
    there = np.flatnonzero(~gone[:, j])
    if missing == 'interpolate':
      values[:, j] = np.interp(when, when[there], values[there, j])
    else:
      before = np.searchsorted(there, np.arange(len(values)), 'right') - 1
      values[:, j] = values[there[np.maximum(before, 0)], j]
  return values
