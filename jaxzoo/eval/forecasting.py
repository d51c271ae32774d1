"""Forecasts against what came: errors in both units, pictures, tables."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64

from jaxzoo.data import forecasting as data
from jaxzoo.data.windows import Windows
from jaxzoo.errors import UserError
from jaxzoo.eval import series_pictures
from jaxzoo.eval.evaluator import Evaluation

# Numbers of forecasts that are in memory at a time: those of a large set, 862
# channels by 720 steps by some thousand windows, would not fit.
PIECE = 2**27


class Sums(NamedTuple):
  """What the errors are made of; those of disjoint windows add up.

  Attributes:
    count: windows.
    square: of (forecast - truth), summed over the windows.
    absolute: likewise.
  """

  count: int
  square: Float64[np.ndarray, 'h c']
  absolute: Float64[np.ndarray, 'h c']

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(*(a + b for a, b in zip(self, other, strict=True)))


class Errors(NamedTuple):
  """Means over the windows, by step ahead and by channel."""

  mse: Float64[np.ndarray, 'h c']
  mae: Float64[np.ndarray, 'h c']


def sums(
  forecast: Float[np.ndarray, 'n h c'],
  truth: Float[np.ndarray, 'n h c'],
  mask: Bool[np.ndarray, ' n'] | None = None,
) -> Sums:
  """The sums over the windows of `mask`, default all."""
  error = np.asarray(forecast, np.float64) - truth
  if mask is not None:
    error = error[mask]
  return Sums(len(error), (error**2).sum(0), np.abs(error).sum(0))


def errors(total: Sums) -> Errors:
  """Of sums; NaN where there are no windows."""
  n = total.count or np.nan
  return Errors(total.square / n, total.absolute / n)


def metrics(
  found: Errors, std: Float[np.ndarray, ' c'], decay: float = 0.0
) -> dict[str, float]:
  """Means over steps ahead and channels.

  Args:
    found: of standardised values.
    std: what one standardised unit is in original ones, by channel.
    decay: of the weights t^-decay of step t = 1..h in `decayed_mae`, which
      there is for decay > 0 (CARD's loss and model selection: 0.5).

  Returns:
    mse and mae in standardised units, original_mse and original_mae in the
    units of the file.
  """
  values = {
    'mse': found.mse.mean(),
    'mae': found.mae.mean(),
    'original_mse': (found.mse * std**2).mean(),
    'original_mae': (found.mae * std).mean(),
  }
  if decay:
    steps = np.arange(1, len(found.mae) + 1.0)
    values['decayed_mae'] = (found.mae.mean(1) * steps**-decay).mean()
  return {name: float(value) for name, value in values.items()}


def make_evaluator(
  config,
  *,
  split: str = 'test',
  decay: float = 0.0,
  whole_batches: int = 0,
  sheet: int = 6,
):
  """An evaluator of every window of a split.

  Args:
    config: of the run.
    split: 'train', 'val' or 'test'.
    decay: see `metrics`.
    whole_batches: a batch size whose last, incomplete batch is left out, as
      in published evaluations; 0: every window counts.
    sheet: plots on the picture of forecasts, each of a channel in a window.

  Returns:
    predict -> Evaluation, of a system whose `predict` gives `forecast`
    [n, h, c] in standardised units. Its metrics are those of `metrics`; its
    pictures `forecasts`, with context, and `errors`, by step ahead and by
    channel; its tables `forecasts`, the drawn windows in original units,
    `errors_by_step` and `errors_by_channel`.
  """
  source, steps = data.eval_data(config, split)
  scale, columns = data.read_scale(config), data.read_series(config).columns
  windows = len(source)
  if whole_batches:
    windows -= windows % whole_batches
    if not windows:
      raise UserError(
        f'{source!r}: fewer windows than a batch of {whole_batches} '
        f'(evals: whole_batches)'
      )

  def evaluate(predict) -> Evaluation:
    total, shown = None, {}
    chosen = set(np.linspace(0, windows - 1, min(sheet, windows)).astype(int))
    for first, piece in pieces(source, windows):
      outputs, mask = predict(piece, steps)
      forecast = outputs['forecast']
      part = sums(forecast, piece.targets(), mask)
      total = part if total is None else total + part
      shown |= {
        i: forecast[i - first]
        for i in chosen
        if first <= i < first + len(piece)
      }
    found = errors(total)
    examples = [
      series_pictures.Forecast(
        columns,
        source.times[i * source.stride :][: source.history + source.horizon],
        scale.undo(_rows(source, i)),
        scale.undo(forecast),
      )
      for i, forecast in sorted(shown.items())
    ]
    return Evaluation(
      metrics(found, scale.std, decay),
      lambda: {
        'forecasts': series_pictures.forecast_sheet(examples),
        'errors': series_pictures.error_curves(found.mse, columns),
      },
      lambda: {
        'forecasts': forecast_table(examples),
        'errors_by_step': error_table(
          found, scale.std, 'step', range(1, 1 + source.horizon), axis=1
        ),
        'errors_by_channel': error_table(
          found, scale.std, 'channel', columns, axis=0
        ),
      },
    )

  return evaluate


def _rows(source, i):
  start = i * source.stride
  return source.values[start : start + source.history + source.horizon]


def pieces(source: Windows, windows: int) -> Iterator[tuple[int, Windows]]:
  """(first, windows from it on): parts whose forecasts fit into memory."""
  each = source.horizon * source.values.shape[1]
  size = max(1, PIECE // each)
  for first in range(0, windows, size):
    yield first, source.part(first, min(first + size, windows))


def forecast_table(examples) -> list[list]:
  """Rows of a CSV file: window, date, channel, truth and forecast."""
  rows = [['window', 'date', 'channel', 'truth', 'forecast']]
  for number, example in enumerate(examples):
    steps = len(example.forecast)
    for i, time in enumerate(example.times[-steps:]):
      for j, column in enumerate(example.columns):
        truth = example.values[i - steps, j]
        rows.append([number, time, column, truth, example.forecast[i, j]])
  return rows


def error_table(found: Errors, std, name, keys, axis) -> list[list]:
  """Rows of a CSV file: the errors in both units, by `name`."""
  columns = [
    table.mean(axis) for table in (*found, found.mse * std**2, found.mae * std)
  ]
  head = [name, 'mse', 'mae', 'original_mse', 'original_mae']
  return [head, *map(list, zip(keys, *columns, strict=True))]
