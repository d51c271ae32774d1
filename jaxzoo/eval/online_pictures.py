"""Pictures of online learning: the error and the ensemble's weight over time."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxzoo.eval.pictures import drawn

POINTS = 2000  # of a curve that is drawn


class Curves(NamedTuple):
  """Means over the last windows of a stream, at times of it.

  Attributes:
    times: [m].
    window: how many windows a mean is over.
    mse: name of a forecast -> [m].
    cumulative: likewise, over all windows until then.
    others: name -> [m, d]: what else there is, a curve each variable.
  """

  times: np.ndarray
  window: int
  mse: Mapping[str, Float[np.ndarray, ' m']]
  cumulative: Mapping[str, Float[np.ndarray, ' m']]
  others: Mapping[str, Float[np.ndarray, 'm d']]


def rolling(record, times: np.ndarray, window: int) -> Curves:
  """The curves of a record (see `stream.Record`)."""
  count = len(times)
  window = max(1, min(window, count))
  keep = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(int))
  means, totals = {}, {}
  for name, mse in record.mse.items():
    each = np.mean(mse, 1, dtype=np.float64)
    total = np.concatenate([[0], np.cumsum(each)])
    start = np.maximum(0, keep + 1 - window)
    means[name] = (total[keep + 1] - total[start]) / (keep + 1 - start)
    totals[name] = total[keep + 1] / (keep + 1)
  others = {name: np.asarray(x)[keep] for name, x in record.others.items()}
  return Curves(times[keep], window, means, totals, others)


def rolling_picture(curves: Curves) -> np.ndarray:
  """Rolling and cumulative error; below, the other outputs.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  rows = 2 + len(curves.others)
  figure = matplotlib.figure.Figure(
    figsize=(10, 2.6 * rows), layout='constrained'
  )
  axes = figure.subplots(rows, 1, sharex=True)
  titles = f'MSE of the last {curves.window} windows', 'MSE of all until then'
  for axis, lines, title in zip(
    axes, (curves.mse, curves.cumulative), titles, strict=False
  ):
    for name, y in lines.items():
      bold = name == 'forecast'
      axis.plot(
        curves.times,
        y,
        label=name,
        color='black' if bold else None,
        linewidth=1.6 if bold else 0.9,
      )
    axis.set_title(title, fontsize=9)
    axis.set_ylim(bottom=0)
  axes[0].legend(fontsize=7, loc='upper left')
  for axis, (name, y) in zip(axes[2:], curves.others.items(), strict=True):
    axis.plot(curves.times, y, linewidth=0.4, color='tab:blue', alpha=0.5)
    axis.plot(curves.times, y.mean(1), color='black', linewidth=1.4)
    axis.set_title(f'{name}: each variable, and their mean', fontsize=9)
  for axis in axes:
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=7)
  return drawn(figure)


def stream_picture(
  times: np.ndarray,
  truth: Float[np.ndarray, 'n d'],
  forecast: Float[np.ndarray, 'n d'],
  columns: Sequence[str],
  *,
  shown: int = 240,
  most: int = 8,
) -> np.ndarray:
  """The end of the stream: what came, and what had been forecast of it.

  Args:
    times: of the forecast rows.
    truth: at them, in original units.
    forecast: of them, made a horizon before.
    columns: names of the variables.
    shown: rows at the end.
    most: variables that are drawn.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  count = min(most, len(columns))
  rows = -(-count // 2)
  figure = matplotlib.figure.Figure(
    figsize=(12, 2.2 * rows), layout='constrained'
  )
  for j in range(count):
    axis = figure.add_subplot(rows, 2 if count > 1 else 1, j + 1)
    axis.plot(times[-shown:], truth[-shown:, j], color='0.35', linewidth=1)
    axis.plot(
      times[-shown:], forecast[-shown:, j], color='tab:orange', linewidth=1
    )
    axis.set_title(columns[j], fontsize=9)
    axis.tick_params(labelsize=7)
    if not j:
      axis.legend(['measured', 'forecast'], fontsize=7, loc='upper left')
  return drawn(figure)


def rolling_table(curves: Curves) -> list[list]:
  """Rows of a CSV file: the curves, other outputs as means over variables."""
  names = list(curves.mse)
  head = ['date']
  head += [f'{name}_mse_{curves.window}' for name in names]
  head += [f'{name}_mse_cumulative' for name in names]
  head += list(curves.others)
  columns = [curves.mse[name] for name in names]
  columns += [curves.cumulative[name] for name in names]
  columns += [x.mean(1) for x in curves.others.values()]
  return [head, *map(list, zip(curves.times, *columns, strict=True))]
