"""Weather forecasts by variable and lead time, beside persistence and climate."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from jaxzoo.data import weather as data
from jaxzoo.eval.evaluator import Evaluation
from jaxzoo.eval.pictures import drawn
from jaxzoo.models.losses import weather
from jaxzoo.models.losses.weather import Scores

METHODS = ('forecast', 'persistence', 'climatology')


def add_up(rows: Scores) -> Scores:
  """Of samples [n, k, v] -> [k, v], float64."""
  return Scores(*(np.asarray(x, np.float64).sum(0) for x in rows))


def score(total: Scores, std: Float[np.ndarray, ' v'], centred: bool):
  """(RMSE in the units of the data, ACC), [k, v], of summed scores."""
  with np.errstate(divide='ignore', invalid='ignore'):
    rmse, acc = weather.rmse_and_acc(total, centred=centred)
  return rmse * std, acc


def references_of(source) -> tuple[Scores, Scores]:
  """The scores, added up, of fields that stay as they are, and of the climate."""
  rows = weather.latitude_weights(
    weather.latitudes(source.fields.still.shape[0])
  )
  variables = len(source.fields.variables)

  @jax.jit
  def both(record):
    climate = record['climatology'][None]
    stays = record['field'][None, ..., :variables]
    return [
      weather.scores(forecast, record['target'], climate, rows)
      for forecast in (stays, climate)
    ]

  totals = [Scores(*(0.0,) * len(Scores._fields))] * 2
  for i in range(len(source)):
    totals = [
      Scores(
        *(a + np.asarray(b, np.float64) for a, b in zip(*pair, strict=True))
      )
      for pair in zip(totals, both(source[i]), strict=True)
    ]
  return tuple(totals)


def make_evaluator(
  config,
  *,
  split: str = 'test',
  steps: int = 0,
  report: Sequence[str] = (),
  hours: Sequence[int] = (),
  centred: bool = True,
):
  """An evaluator of a split.

  Args:
    config: of the run.
    split: 'val' or 'test'.
    steps: lead times; 0: the config's `forecast_steps`.
    report: variables whose metrics are given by name; () for all. The others
      stand in the table.
    hours: lead times whose metrics are given by name; () for all.
    centred: see `weather.rmse_and_acc`.

  Returns:
    predict -> Evaluation with `VARIABLE_rmse_HOURSh` and `VARIABLE_acc_HOURSh`,
    weighted by latitude, in the units of the data; `skill`, the mean over all
    variables and lead times of 1 - RMSE / that of the better of persistence
    and climatology; `standardised_rmse`, likewise in deviations of a variable. The pictures `maps` and `by_lead`, the table `by_lead`.
  """
  steps = steps or config.forecast_steps
  source = data.read_split(config, split, steps, scored=True)
  names = source.fields.variables
  leads = [source.lead * (k + 1) for k in range(steps)]
  reported = [name for name in names if not report or name in report]
  late = [lead for lead in leads if not hours or lead in hours]
  known = {}

  def references():
    """(RMSE, ACC) of persistence and of climatology, computed once."""
    if not known:
      stays, anomaly = references_of(source)
      known['persistence'] = score(stays, source.std, centred)
      # The climate has no anomalies: their correlation is not defined.
      rmse, _ = score(anomaly, source.std, centred)
      known['climatology'] = rmse, np.full_like(rmse, np.nan)
    return known

  def evaluate(predict) -> Evaluation:
    found = predict(source, ())
    rows = Scores(**{k: x[found.mask] for k, x in found.outputs.items()})
    table = {'forecast': score(add_up(rows), source.std, centred)}
    table |= references()
    rmse, acc = table['forecast']
    best = np.minimum(table['persistence'][0], table['climatology'][0])
    best = best[: len(rmse)]
    values = {
      'skill': float(np.mean(1 - rmse / best)),
      'standardised_rmse': float(np.mean(rmse / source.std)),
    }
    for k, lead in enumerate(leads[: len(rmse)]):
      for j, name in enumerate(names):
        if lead in late and name in reported:
          values[f'{name}_rmse_{lead}h'] = float(rmse[k, j])
          values[f'{name}_acc_{lead}h'] = float(acc[k, j])

    def draw():
      first = _Head(source)
      fields = predict(first, ()).outputs['forecast'][0]
      return {
        'maps': maps(source, fields, leads),
        'by_lead': curves(table, names, leads),
      }

    return Evaluation(
      values, draw, lambda: {'by_lead': rows_of(table, names, leads)}
    )

  return evaluate


class _Head:
  """The first window, without what would be scored."""

  def __init__(self, source):
    self._source = source

  def __len__(self):
    return 1

  def __getitem__(self, index):
    record = dict(self._source[index])
    del record['climatology']
    return record


def rows_of(table, names, leads) -> list[list]:
  """A CSV table of all methods, variables and lead times."""
  rows = [['method', 'variable', 'lead_hours', 'rmse', 'acc']]
  for method in METHODS:
    rmse, acc = table[method]
    for k in range(len(rmse)):
      for j, name in enumerate(names):
        rows.append(
          [method, name, leads[k], float(rmse[k, j]), float(acc[k, j])]
        )
  return rows


def maps(source, fields: Float[np.ndarray, 'k h w v'], leads) -> np.ndarray:
  """Truth, forecast and error of the first variable, a column a lead time."""
  import matplotlib.figure  # a second to import: only where it is used

  name, record = source.fields.variables[0], source[0]
  chosen = sorted({0, len(fields) // 2, len(fields) - 1})
  figure = matplotlib.figure.Figure(
    figsize=(4.2 * len(chosen), 6.6), layout='constrained'
  )
  axes = figure.subplots(3, len(chosen), squeeze=False)
  for column, k in enumerate(chosen):
    truth = source.undo(record['target'][k])[..., 0]
    forecast = source.undo(fields[k])[..., 0]
    low, high = truth.min(), truth.max()
    most = np.abs(forecast - truth).max() or 1.0
    shown = (
      ('truth', truth, dict(cmap='viridis', vmin=low, vmax=high)),
      ('forecast', forecast, dict(cmap='viridis', vmin=low, vmax=high)),
      ('error', forecast - truth, dict(cmap='RdBu_r', vmin=-most, vmax=most)),
    )
    for axis, (title, values, style) in zip(
      axes[:, column], shown, strict=True
    ):
      image = axis.imshow(values, extent=(0, 360, -90, 90), **style)
      axis.set_title(f'{title}, {name}, {leads[k]} h', fontsize=9)
      axis.tick_params(labelsize=7)
      figure.colorbar(image, ax=axis, shrink=0.8).ax.tick_params(labelsize=7)
  figure.suptitle(f'from {source.time(0)}', fontsize=9)
  return drawn(figure)


def curves(table, names, leads, *, most: int = 8) -> np.ndarray:
  """RMSE over the lead time, a plot for each of the first variables."""
  import matplotlib.figure

  count = min(most, len(names))
  columns = min(4, count)
  figure = matplotlib.figure.Figure(
    figsize=(3.4 * columns, 2.6 * -(-count // columns)), layout='constrained'
  )
  for j in range(count):
    axes = figure.add_subplot(-(-count // columns), columns, j + 1)
    for method in METHODS:
      rmse = table[method][0][:, j]
      axes.plot(
        leads[: len(rmse)], rmse, marker='o', markersize=3, label=method
      )
    axes.set_title(f'{names[j]}, RMSE', fontsize=9)
    axes.set_xlabel('hours', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if j == 0:
      axes.legend(fontsize=7)
  return drawn(figure)
