"""Forecasting from config to windows: which series, which rows, which scale."""

import functools
import os
from typing import NamedTuple

import numpy as np

from jaxzoo.data import synthetic_series
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import series as files
from jaxzoo.data.sources.series import Series
from jaxzoo.data.windows import (
  CALENDAR,
  Scale,
  Windows,
  calendar,
  split_rows,
  standardisation,
  with_lead,
)
from jaxzoo.errors import UserError, nearest

MARKS = ('', 'raw', 'standardised')


class Published(NamedTuple):
  """A public data set.

  Attributes:
    file: its name in `data.root`.
    channels: how many it has.
    target: the channel that stands last.
    split: see `windows.split_rows`; the usual one of long-term forecasting.
    irregular: see `series.read_csv`. Published numbers of files with gaps are
      of their rows as they stand.
  """

  file: str
  channels: int
  target: str = 'OT'
  split: tuple[float, ...] = (0.7, 0.1, 0.2)
  irregular: str = 'keep'


_HOURS = (8640, 2880, 2880)  # 12, 4 and 4 months of 30 days
_QUARTERS = (34560, 11520, 11520)
PUBLISHED = {
  'etth1': Published('ETTh1.csv', 7, split=_HOURS, irregular='refuse'),
  'etth2': Published('ETTh2.csv', 7, split=_HOURS, irregular='refuse'),
  'ettm1': Published('ETTm1.csv', 7, split=_QUARTERS, irregular='refuse'),
  'ettm2': Published('ETTm2.csv', 7, split=_QUARTERS, irregular='refuse'),
  'wth': Published('WTH.csv', 12, 'WetBulbCelsius'),
  'ecl': Published('ECL.csv', 321, 'MT_320'),
  'weather': Published('weather.csv', 21),
  'electricity': Published('electricity.csv', 321),
  'traffic': Published('traffic.csv', 862),
}
DATASETS = (*PUBLISHED, *synthetic_series.KINDS, 'custom')


def defaults(dataset: str) -> dict:
  """The fields of `config.data` that every forecasting config has.

  kind, dataset; root, the folder with a published set; path, of the file
  itself ('custom', or a published set elsewhere); columns, target, date,
  date_format, missing, irregular, as for `series.read_csv` ('' is the set's
  own, of 'custom' 'refuse'); split, as for `windows.split_rows`, () the set's
  own; marks, '' for none, 'raw' or 'standardised' by the training rows;
  embedded, settings of an embedded series.
  """
  return dict(
    kind='forecasting',
    dataset=dataset,
    root='',
    path='',
    columns=(),
    target='',
    date='date',
    date_format='',
    missing='refuse',
    irregular='',
    split=(),
    marks='',
    embedded=(
      synthetic_series.KINDS[dataset].settings()._asdict()
      if dataset in synthetic_series.KINDS
      else {}
    ),
  )


def read_series(config) -> Series:
  """The whole series of a config, in original units.

  Raises:
    UserError: see `series.read_csv`, or a data set that there is none of.
  """
  data = config.data
  _check_dataset(data.dataset)
  if data.dataset in synthetic_series.KINDS:
    return _embedded(data.dataset, tuple(sorted(data.embedded.items())))
  path, options = _file(config)
  series = _read(
    path,
    date_format=data.date_format,
    missing=data.missing,
    irregular=data.irregular or _published(data.dataset).irregular,
    **options,
  )
  expected = _published(data.dataset).channels
  if expected and not data.columns and len(series.columns) != expected:
    raise UserError(
      f'{path} has {len(series.columns)} channels, but {data.dataset} has '
      f'{expected}: another file? (Read it with data.dataset=custom.)'
    )
  return series


# Training and evaluations use the same file; series do not change.
@functools.lru_cache(maxsize=4)
def _read(path, **options) -> Series:
  return files.read_csv(path, **options)


@functools.lru_cache(maxsize=4)
def _embedded(kind, settings) -> Series:
  return synthetic_series.make(kind, dict(settings))


def _check_dataset(dataset):
  if dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {dataset!r}; ' + nearest(dataset, DATASETS)
    )


def _published(dataset) -> Published:
  return PUBLISHED.get(dataset, Published('', 0, '', irregular='refuse'))


def _file(config) -> tuple[str, dict]:
  """The path of a config's file, and which of its columns are read."""
  data, known = config.data, _published(config.data.dataset)
  if not data.path and data.dataset == 'custom':
    raise UserError(
      'data.path is empty: name your CSV file with --config.data.path=FILE.csv'
    )
  if not data.path and not data.root:
    raise UserError(
      f'data.root is empty: say in which folder {known.file} lies with '
      '--config.data.root=DIR'
    )
  columns = tuple(data.columns)
  target = data.target
  if not target and (not columns or known.target in columns):
    target = known.target
  path = data.path or os.path.join(data.root, known.file)
  return path, dict(columns=columns, target=target, date=data.date)


def read_scale(config) -> Scale:
  """Mean and population standard deviation of the training rows."""
  series = read_series(config)
  rows = _rows(config, series)['train']
  return standardisation(series.values[rows.start : rows.stop], series.columns)


def _rows(config, series) -> dict[str, range]:
  data = config.data
  split = data.split or _published(data.dataset).split
  return split_rows(len(series.values), split)


def read_split(config, split: str) -> Windows:
  """The windows of a split, standardised by the training rows.

  Reads of the config `history`, `horizon` and `data`, see `defaults`. Windows
  of validation and test begin `history` rows before their split, so that every
  row of it is forecast.

  Args:
    config: of a forecasting system.
    split: 'train', 'val' or 'test'.

  Raises:
    UserError: anything wrong with file, columns or sizes.
  """
  series = read_series(config)
  rows = _rows(config, series)
  if split not in rows:
    raise UserError(f'no split {split!r}; ' + nearest(split, rows))
  for field in ('history', 'horizon'):
    if config[field] < 1:
      raise UserError(f'{field}={config[field]}: it must be at least 1')
  wanted = with_lead(rows[split], config.history)
  part = slice(wanted.start, wanted.stop)
  scale = read_scale(config)
  return Windows(
    f'{series.name}, {split}',
    scale.apply(series.values[part]),
    config.history,
    config.horizon,
    marks=read_marks(config, series.times, rows['train'])[part]
    if config.data.marks
    else None,
    times=series.times[part],
  )


def read_marks(config, times: np.ndarray, train: range) -> np.ndarray:
  """The calendar features of `times`, float32 [n, 7], see `windows.CALENDAR`.

  Args:
    config: `data.marks` says whether they are standardised.
    times: of all rows.
    train: the rows whose mean and deviation it is done by.
  """
  return marks_of(times, _marks_scale(config, times, train))


def _marks_scale(config, times, train) -> dict | None:
  """Mean and deviation of the features that a config has standardised."""
  kind = config.data.marks
  if kind not in MARKS:
    raise UserError(f'data.marks: no {kind!r}; ' + nearest(kind, MARKS[1:]))
  if kind != 'standardised':
    return None
  rows = calendar(times[train.start : train.stop])
  std = rows.std(0)
  std = np.where(std > 0, std, 1.0)
  return {'mean': rows.mean(0).tolist(), 'std': std.tolist()}


def marks_of(times: np.ndarray, scale: dict | None) -> np.ndarray:
  """The calendar features of `times`, float32 [n, 7].

  Args:
    times: datetime64 [n].
    scale: `mean` and `std` that they are standardised by; None for raw ones.
  """
  marks = calendar(times)
  if scale is None:
    return marks.astype(np.float32)
  return Scale(np.asarray(scale['mean']), np.asarray(scale['std'])).apply(marks)


def train_data(config) -> Data:
  """The windows of the training rows."""
  return Data(read_split(config, 'train'), ())


def eval_data(config, split: str) -> Data:
  """The windows of a split, each once."""
  return Data(read_split(config, split), ())


def channels(config) -> int:
  """How many channels a config's series has; of 'custom' by its header."""
  data = config.data
  _check_dataset(data.dataset)
  if data.dataset in synthetic_series.KINDS:
    return data.embedded.channels
  if data.columns:
    return len(data.columns)
  if data.dataset in PUBLISHED:
    return PUBLISHED[data.dataset].channels
  if not data.path:
    return 1  # of a config that has no file yet: any number would do
  path, options = _file(config)
  return len(files.read_header(path, **options))


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, width = config.batch_size, channels(config)
  zeros = lambda *shape: np.zeros((b, *shape), np.float32)
  batch = {
    'history': zeros(config.history, width),
    'target': zeros(config.horizon, width),
  }
  if config.data.marks:
    batch['history_marks'] = zeros(config.history, len(CALENDAR))
    batch['target_marks'] = zeros(config.horizon, len(CALENDAR))
  return batch


def facts(config) -> dict:
  """What later use of a run needs to know of its training data, for JSON."""
  series, scale = read_series(config), read_scale(config)
  train = _rows(config, series)['train']
  return dict(
    name=series.name,
    columns=list(series.columns),
    mean=scale.mean.tolist(),
    std=scale.std.tolist(),
    marks=_marks_scale(config, series.times, train),
  )
