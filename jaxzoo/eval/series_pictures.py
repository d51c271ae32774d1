"""Pictures of series: forecasts with their context, errors over the steps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxzoo.eval.pictures import drawn

CONTEXT = 2.0  # horizons of history that are drawn before a forecast


class Forecast(NamedTuple):
  """One window and what was forecast from it, in original units.

  Attributes:
    columns: names of the channels.
    times: datetime64 [l + h], of history and target.
    values: [l, c], or [l + h, c] where the truth is known.
    forecast: [h, c].
  """

  columns: Sequence[str]
  times: np.ndarray
  values: Float[np.ndarray, 'n c']
  forecast: Float[np.ndarray, 'h c']


def forecast_sheet(
  examples: Sequence[Forecast], *, columns: int = 2, channel: int | None = None
) -> np.ndarray:
  """History, forecast and, where it is known, the truth.

  Args:
    examples: a plot each.
    columns: plots in a row.
    channel: that is drawn; default another one in every plot.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  rows = max(1, -(-len(examples) // columns))
  figure = matplotlib.figure.Figure(
    figsize=(6.0 * columns, 2.4 * rows), layout='constrained'
  )
  for i, example in enumerate(examples):
    j = i % len(example.columns) if channel is None else channel
    _draw(figure.add_subplot(rows, columns, i + 1), example, j, legend=i == 0)
  return drawn(figure)


def channel_sheet(example: Forecast, *, most: int = 12) -> np.ndarray:
  """One forecast, a plot for each of its first `most` channels."""
  import matplotlib.figure  # a second to import: only where it is used

  count = min(most, len(example.columns))
  columns = 1 if count == 1 else 2
  rows = -(-count // columns)
  figure = matplotlib.figure.Figure(
    figsize=(6.0 * columns, 2.4 * rows), layout='constrained'
  )
  for j in range(count):
    _draw(figure.add_subplot(rows, columns, j + 1), example, j, legend=j == 0)
  return drawn(figure)


def _draw(axes, example: Forecast, j: int, legend: bool) -> None:
  horizon = len(example.forecast)
  first = len(example.times) - horizon
  start = max(0, first - int(CONTEXT * horizon))
  known = len(example.values)
  axes.plot(
    example.times[start:known],
    example.values[start:known, j],
    color='0.35',
    linewidth=1,
    label='measured',
  )
  # From the last known value on, so that the line has no gap.
  line = np.concatenate(
    [[example.values[first - 1, j]], example.forecast[:, j]]
  )
  axes.plot(
    example.times[first - 1 :],
    line,
    color='tab:orange',
    linewidth=1.4,
    label='forecast',
  )
  axes.axvline(example.times[first - 1], color='0.8', linewidth=1, zorder=0)
  axes.set_title(example.columns[j], fontsize=9)
  axes.tick_params(labelsize=7)
  for label in axes.get_xticklabels():
    label.set_rotation(20)
  if legend:
    axes.legend(fontsize=7, loc='upper left')


def error_curves(
  mse: Float[np.ndarray, 'h c'], columns: Sequence[str], *, named: int = 10
) -> np.ndarray:
  """The mean squared error by step ahead (left) and by channel (right).

  Args:
    mse: of standardised values.
    columns: names of the channels.
    named: channels with a line of their own on the left, and a name on the
      right: where there are more, only the mean and numbers.

  Returns:
    uint8 [h, w, 3].
  """
  import matplotlib.figure  # a second to import: only where it is used

  figure = matplotlib.figure.Figure(figsize=(10, 3.4), layout='constrained')
  left, right = figure.subplots(1, 2)
  steps = np.arange(1, len(mse) + 1)
  few = len(columns) <= named
  for j in range(len(columns) if few else 0):
    left.plot(steps, mse[:, j], linewidth=0.8, label=columns[j])
  left.plot(steps, mse.mean(1), color='black', linewidth=2, label='mean')
  left.set_xlabel('step ahead')
  left.set_ylabel('MSE, standardised')
  left.legend(fontsize=7)
  right.bar(range(len(columns)), mse.mean(0), color='tab:blue')
  if few:
    right.set_xticks(range(len(columns)), columns, rotation=45, fontsize=8)
  right.set_xlabel('channel')
  for axes in (left, right):
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
  return drawn(figure)
