"""Errors of forecasts against plain loops; what is drawn and written."""

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import forecasting as data
from jaxzoo.errors import UserError
from jaxzoo.eval import forecasting, series_pictures
from jaxzoo.eval.evaluator import Predictions

RNG = np.random.default_rng(0)


def pair(n=9, h=5, c=3):
  return RNG.normal(size=(2, n, h, c)).astype(np.float32)


def test_errors_are_those_of_plain_loops():
  forecast, truth = pair()
  mask = np.arange(9) % 4 > 0
  std = np.array([0.5, 2.0, 10.0])
  found = forecasting.errors(forecasting.sums(forecast, truth, mask))
  want = dict.fromkeys(
    ('mse', 'mae', 'original_mse', 'original_mae', 'decayed_mae'), 0.0
  )
  for i in np.flatnonzero(mask):
    for t in range(5):
      for j in range(3):
        error = float(forecast[i, t, j]) - float(truth[i, t, j])
        want['mse'] += error**2
        want['mae'] += abs(error)
        want['original_mse'] += (std[j] * error) ** 2
        want['original_mae'] += abs(std[j] * error)
        want['decayed_mae'] += abs(error) * (t + 1) ** -0.5
  got = forecasting.metrics(found, std, decay=0.5)
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_allclose(
      got[name], value / (mask.sum() * 15), err_msg=name
    )


def test_sums_of_parts_add_up():
  forecast, truth = pair()
  whole = forecasting.sums(forecast, truth)
  parts = forecasting.sums(forecast[:4], truth[:4]) + forecasting.sums(
    forecast[4:], truth[4:]
  )
  for a, b in zip(parts, whole, strict=True):
    np.testing.assert_allclose(a, b)


def persistence(source, transforms):
  """Forecasts the last value for all steps."""
  del transforms
  rows = [
    np.repeat(source[i]['history'][-1:], source.horizon, 0)
    for i in range(len(source))
  ]
  return Predictions({'forecast': np.stack(rows)}, np.ones(len(source), bool))


@pytest.fixture
def config():
  return catalog.get_config('card:tiny')


def test_evaluator_is_the_same_in_pieces(config, monkeypatch):
  want = forecasting.make_evaluator(config)(persistence)
  monkeypatch.setattr(forecasting, 'PIECE', 5 * 8 * 3)
  got = forecasting.make_evaluator(config)(persistence)
  assert want.metrics.keys() == got.metrics.keys()
  for name, value in want.metrics.items():
    np.testing.assert_allclose(got.metrics[name], value)
  assert want.tables()['forecasts'] == got.tables()['forecasts']


def test_original_units_are_those_of_the_file(config):
  found = forecasting.make_evaluator(config)(persistence).metrics
  series = data.read_series(config).values
  rows = range(len(series) - 36, len(series))  # of the test split
  errors = [
    series[t + step] - series[t - 1]
    for t in rows[: 36 - config.horizon + 1]
    for step in range(config.horizon)
  ]
  np.testing.assert_allclose(
    found['original_mse'], np.mean(np.square(errors)), rtol=1e-5
  )
  np.testing.assert_allclose(
    found['original_mae'], np.mean(np.abs(errors)), rtol=1e-5
  )


def test_incomplete_batch_is_left_out_where_that_is_asked_for(config):
  evaluate = forecasting.make_evaluator(config, whole_batches=10)
  source = data.read_split(config, 'test')
  assert len(source) % 10
  count = len(source) // 10 * 10
  want = forecasting.errors(
    forecasting.sums(
      persistence(source, ()).outputs['forecast'][:count],
      source.targets()[:count],
    )
  )
  np.testing.assert_allclose(
    evaluate(persistence).metrics['mse'], want.mse.mean()
  )
  with pytest.raises(UserError, match='fewer windows than a batch of 1000'):
    forecasting.make_evaluator(config, whole_batches=1000)


def test_tables_say_what_the_metrics_say(config):
  found = forecasting.make_evaluator(config, sheet=2)(persistence)
  tables = found.tables()
  for name, size in (('errors_by_step', 8), ('errors_by_channel', 3)):
    head, *rows = tables[name]
    assert len(rows) == size
    for j, metric in enumerate(head[1:], 1):
      mean = np.mean([row[j] for row in rows])
      np.testing.assert_allclose(mean, found.metrics[metric], err_msg=metric)
  head, *rows = tables['forecasts']
  assert head == ['window', 'date', 'channel', 'truth', 'forecast']
  assert len(rows) == 2 * 8 * 3
  # The first window of the test split, at its first step.
  series = data.read_series(config)
  first = len(series.values) - 36
  window, date, channel, truth, forecast = rows[0]
  assert date == series.times[first] and channel == 'driver'
  np.testing.assert_allclose(
    truth, series.values[first, 0], rtol=1e-4, atol=1e-6
  )
  np.testing.assert_allclose(
    forecast, series.values[first - 1, 0], rtol=1e-4, atol=1e-6
  )


def test_pictures_are_drawn(config):
  images = forecasting.make_evaluator(config)(persistence).pictures()
  assert set(images) == {'forecasts', 'errors'}
  for image in images.values():
    assert image.dtype == np.uint8 and image.ndim == 3
    assert len(np.unique(image)) > 20, 'more than a white sheet'


def test_unknown_future_is_drawn_without_truth():
  times = np.datetime64('2020-01-01', 's') + np.arange(30).astype(
    'timedelta64[h]'
  )
  example = series_pictures.Forecast(
    ('a', 'b', 'c'), times, RNG.normal(size=(20, 3)), np.ones((10, 3))
  )
  image = series_pictures.channel_sheet(example)
  assert image.shape[2] == 3 and image.min() < 128
