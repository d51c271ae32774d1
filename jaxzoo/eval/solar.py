"""Solar power forecasts against what came, beside yesterday's power."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jaxzoo.data import solar as data
from jaxzoo.eval import series_pictures
from jaxzoo.eval.evaluator import Evaluation

LEAST_POWER = 1.17e-6  # what |y| counts at least in MAPE, as published


class Sums(NamedTuple):
  """What the metrics are made of; those of disjoint windows add up.

  Attributes:
    count: windows.
    square: of (forecast - truth) over them, by hour.
    absolute: likewise.
    relative: |forecast - truth| / max(1.17e-6, |truth|).
  """

  count: int
  square: Float[np.ndarray, ' t']
  absolute: Float[np.ndarray, ' t']
  relative: Float[np.ndarray, ' t']

  def __add__(self, other: 'Sums') -> 'Sums':
    return Sums(*(a + b for a, b in zip(self, other, strict=True)))


def sums(
  forecast: Float[np.ndarray, 'n t'],
  truth: Float[np.ndarray, 'n t'],
  mask: Bool[np.ndarray, ' n'] | None = None,
) -> Sums:
  """The sums over the windows of `mask`, default all."""
  error = np.asarray(forecast, np.float64) - truth
  truth = np.abs(np.asarray(truth, np.float64))
  relative = np.abs(error) / np.maximum(truth, LEAST_POWER)
  if mask is not None:
    error, relative = error[mask], relative[mask]
  return Sums(
    len(error), (error**2).sum(0), np.abs(error).sum(0), relative.sum(0)
  )


def metrics(total: Sums) -> dict[str, float]:
  """RMSE, MAE and MAPE (a ratio) over all windows and hours.

  MAPE is that of the published tables: hours of the night, whose power is 0,
  make nearly all of it, so that it ranks nothing.
  """
  n = total.count or np.nan
  return {
    'rmse': float(np.sqrt(total.square.mean() / n)),
    'mae': float(total.absolute.mean() / n),
    'mape': float(total.relative.mean() / n),
  }


def make_evaluator(
  config, *, split: str = 'test', sites: tuple = (), sheet: int = 6
):
  """An evaluator of a split.

  Args:
    config: of the run.
    split: 'val' or 'test'.
    sites: (first, behind the last) of others than those trained on; ().
    sheet: forecasts on the picture.

  Returns:
    predict -> Evaluation with `rmse`, `mae`, `mape` in the unit of the data,
    `nrmse` and `nmae` with each site's power divided by its largest, and
    `skill`, 1 - MAE / MAE of yesterday's power at the same hour. The picture
    `forecasts`, the tables `by_hour` and `by_site`.
  """
  source = data.read_split(config, split, tuple(sites) or None)
  power = np.stack([source.power(i) for i in range(len(source))])
  past, truth = power[:, : data.DAY], power[:, data.DAY :]
  which = np.array([source.where(i)[0] for i in range(len(source))])
  limits = np.ones(len(source.plants.sites))
  limits[list(source.sites)] = data.capacities(source)
  limit = limits[which][:, None]

  def evaluate(predict) -> Evaluation:
    found = predict(source, ())
    forecast, mask = found.outputs['forecast'][..., 0], found.mask
    total = sums(forecast, truth, mask)
    values = metrics(total)
    scaled = metrics(sums(forecast / limit, truth / limit, mask))
    values |= {f'n{name}': scaled[name] for name in ('rmse', 'mae')}
    yesterday = metrics(sums(past, truth, mask))['mae']
    values['skill'] = 1 - values['mae'] / max(yesterday, 1e-12)

    def draw():
      chosen = np.linspace(0, len(source) - 1, sheet).round().astype(int)
      return {
        'forecasts': series_pictures.forecast_sheet(
          [_example(source, i, forecast[i]) for i in np.unique(chosen)]
        )
      }

    def tables() -> Mapping:
      n = max(total.count, 1)
      hours = [['hour', 'rmse', 'mae']]
      hours += [
        [i + 1, float(np.sqrt(s / n)), float(a / n)]
        for i, (s, a) in enumerate(
          zip(total.square, total.absolute, strict=True)
        )
      ]
      places = [['site', 'rmse', 'mae', 'nmae']]
      for site in source.sites:
        own = metrics(sums(forecast, truth, mask & (which == site)))
        places.append(
          [
            source.plants.sites[site].name,
            own['rmse'],
            own['mae'],
            own['mae'] / limits[site],
          ]
        )
      return {'by_hour': hours, 'by_site': places}

    return Evaluation(values, draw, tables)

  return evaluate


def _example(source, index, forecast) -> series_pictures.Forecast:
  site, first = source.where(int(index))
  times = first + np.arange(-data.DAY, data.DAY)
  return series_pictures.Forecast(
    (source.plants.sites[site].name,),
    times.astype('datetime64[s]'),
    source.power(int(index))[:, None],
    forecast[:, None],
  )
