"""Windows, splits, scale, calendar; embedded series; the data of a config."""

import datetime

import numpy as np
import pytest
from absl import logging

from jaxzoo import catalog
from jaxzoo.data import forecasting, synthetic_series, windows
from jaxzoo.errors import UserError


def config_of(name='card:tiny', **fields):
  config = catalog.get_config(name).copy_and_resolve_references().unlock()
  config.update_from_flattened_dict(fields)
  return config


def csv_of(tmp_path, values, name='x.csv'):
  start = datetime.datetime(2020, 1, 1)
  rows = [','.join(['date', *(f'c{j}' for j in range(values.shape[1]))])]
  for i, row in enumerate(values):
    time = start + datetime.timedelta(hours=i)
    rows.append(','.join([f'{time}', *map(repr, map(float, row))]))
  path = tmp_path / name
  path.write_text('\n'.join(rows))
  return str(path)


# Splits, as the specifications have them.


def test_ett_is_split_by_counts():
  rows = windows.split_rows(17420, forecasting.PUBLISHED['etth1'].split)
  assert rows == {
    'train': range(8640),
    'val': range(8640, 11520),
    'test': range(11520, 14400),
  }


def test_shares_are_cut_down_and_validation_takes_the_rest():
  # electricity.csv: int(0.7 n), int(0.2 n).
  rows = windows.split_rows(26304, (0.7, 0.1, 0.2))
  assert [len(x) for x in rows.values()] == [18412, 2632, 5260]
  assert rows['test'].stop == 26304


@pytest.mark.parametrize(
  'parts', [(0.7, 0.3), (0.8, 0.2, 0.2), (100, 100, 100), (0.7, 0.3, 0.0)]
)
def test_splits_that_do_not_go_are_refused(parts):
  with pytest.raises(UserError, match='data.split'):
    windows.split_rows(200, parts)


def test_every_row_of_a_later_split_is_forecast_and_none_of_another(tmp_path):
  n, history, horizon = 60, 7, 3
  values = np.arange(n, dtype=float)[:, None]
  config = config_of(
    'card:custom',
    history=history,
    horizon=horizon,
    **{'data.path': csv_of(tmp_path, values)},
  )
  scale = forecasting.read_scale(config)
  seen = {}
  for split in ('train', 'val', 'test'):
    source = forecasting.read_split(config, split)
    truth = np.round(scale.undo(source.targets())).astype(int)
    seen[split] = set(truth.reshape(-1))
    for i in range(len(source)):
      record = source[i]
      np.testing.assert_array_equal(record['target'], source.targets()[i])
      whole = np.concatenate([record['history'], record['target']])
      np.testing.assert_allclose(
        np.diff(scale.undo(whole), axis=0), 1, atol=1e-5
      )
    assert len(source) == {'train': 42 - 9, 'val': 6 - 2, 'test': 12 - 2}[split]
  assert seen['train'] == set(range(history, 42))
  assert seen['val'] == set(range(42, 48))
  assert seen['test'] == set(range(48, 60))


def test_scale_is_of_the_training_rows_alone(tmp_path):
  values = np.random.default_rng(0).normal(3, 2, (100, 2))
  changed = values.copy()
  changed[70:] *= 100  # validation and test
  for each in (values, changed):
    config = config_of(
      'card:custom', **{'data.path': csv_of(tmp_path, each, f'{each[-1, 0]}')}
    )
    scale = forecasting.read_scale(config)
    np.testing.assert_allclose(scale.mean, values[:70].mean(0))
    np.testing.assert_allclose(scale.std, values[:70].std(0))  # by n
  np.testing.assert_allclose(scale.undo(scale.apply(values)), values, rtol=1e-5)


def test_constant_channel_is_centred_with_a_warning(monkeypatch):
  told = []
  monkeypatch.setattr(logging, 'warning', lambda *text: told.append(text))
  values = np.stack([np.full(5, 0.1), np.arange(5)], -1)
  scale = windows.standardisation(values, ('still', 'moving'))
  np.testing.assert_array_equal(scale.apply(values)[:, 0], 0)
  assert 'still' in told[0] and 'moving' not in told[0]


def test_short_series_are_refused_with_the_numbers(tmp_path):
  path = csv_of(tmp_path, np.random.default_rng(0).normal(size=(100, 2)))
  config = config_of('card:custom', **{'data.path': path})
  with pytest.raises(UserError, match='70 rows.*96 . 96'):
    forecasting.train_data(config)


def test_part_of_windows_is_the_same_windows():
  rng = np.random.default_rng(0)
  source = windows.Windows(
    'x',
    rng.normal(size=(40, 2)),
    4,
    3,
    marks=rng.normal(size=(40, 7)),
    stride=2,
  )
  part = source.part(3, 9)
  assert len(part) == 6
  for i in range(6):
    for name, x in part[i].items():
      np.testing.assert_array_equal(x, source[3 + i][name])
  np.testing.assert_array_equal(part.targets(), source.targets()[3:9])
  with pytest.raises(IndexError):
    source[len(source)]


# Calendar.


def test_calendar_is_what_datetime_says():
  rng = np.random.default_rng(0)
  seconds = rng.integers(0, 80 * 365 * 86400, 500)
  times = np.datetime64('1965-03-01T00:00:00') + seconds.astype(
    'timedelta64[s]'
  )
  for time, row in zip(times, windows.calendar(times), strict=True):
    at = time.astype(datetime.datetime)
    assert row.tolist() == [
      at.minute, at.hour, at.weekday(), at.day, at.timetuple().tm_yday,
      at.month, at.isocalendar().week,
    ]  # fmt: skip


@pytest.mark.parametrize('kind', ['raw', 'standardised'])
def test_marks_go_with_their_rows(kind):
  config = config_of(**{'data.marks': kind})
  source = forecasting.read_split(config, 'test')
  series = forecasting.read_series(config)
  want = windows.calendar(series.times)
  if kind == 'standardised':
    train = want[: int(0.7 * len(want))]
    spread = train.std(0)
    want = (want - train.mean(0)) / np.where(spread > 0, spread, 1)
  np.testing.assert_allclose(
    source[len(source) - 1]['target_marks'], want[-config.horizon :], rtol=1e-5
  )
  batch = forecasting.example_batch(config)
  for name, x in source[0].items():
    assert batch[name].shape[1:] == x.shape, name


# Embedded series.


def test_followers_repeat_the_driver_after_their_lag():
  settings = synthetic_series.Coupled(spread=3, cycle=0.0, noise=0.0)
  values = synthetic_series.coupled(settings).values
  driver = values[:, 0]
  for j in range(1, settings.channels):
    late = settings.lag + settings.spread * (j - 1)
    scale = 10.0 ** (j % 3)
    np.testing.assert_allclose(
      values[late:, j] / scale, driver[:-late], atol=1e-12
    )


def test_driver_does_not_tell_its_own_future():
  settings = synthetic_series.Coupled(rows=20000)
  driver = synthetic_series.coupled(settings).values[:, 0]
  late = 2 * settings.memory
  assert abs(np.corrcoef(driver[late:], driver[:-late])[0, 1]) < 0.1
  assert np.corrcoef(driver[1:], driver[:-1])[0, 1] > 0.9


def test_regimes_of_a_drifting_series_have_their_laws():
  settings = synthetic_series.Drifting(noise=0.0, drift=0.0)
  values = synthetic_series.drifting(settings).values
  first, second = synthetic_series.regimes(settings)[:2]
  odd = values[first:second]
  for j in range(1, settings.channels):
    pair = np.corrcoef(odd[2 + j :, j], odd[1 + j : -1, j - 1])[0, 1]
    assert pair > 0.999
  even = values[:first] - values[:first].mean(0)
  pair = np.corrcoef(even[1:, 1], even[:-1, 0])[0, 1]
  assert abs(pair) < 0.5
  # The mean moves from regime to regime.
  assert (
    np.abs(values[:first].mean(0) - values[first:second].mean(0)).max() > 0.5
  )


def test_embedded_settings_are_obeyed_and_misspelled_ones_told():
  config = config_of()
  assert forecasting.read_series(config).values.shape == (180, 3)
  assert forecasting.channels(config) == 3
  with pytest.raises(UserError, match='did you mean lag'):
    synthetic_series.make('coupled', {'lagg': 3})
  with pytest.raises(UserError, match='channels=1'):
    synthetic_series.make('coupled', {'channels': 1})


# Configs.


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'data.dataset': 'etth3'}, 'did you mean etth'),
    ({'data.dataset': 'etth1'}, 'data.root is empty.*ETTh1.csv'),
    ({'data.dataset': 'custom'}, 'data.path is empty'),
    ({'data.marks': 'row'}, 'did you mean raw'),
    ({'data.split': (10, 10, 1000)}, 'needs 1020 rows'),
    ({'history': 0}, 'history=0'),
    ({'horizon': 0}, 'horizon=0'),
  ],
)
def test_wrong_configs_are_refused(fields, words):
  with pytest.raises(UserError, match=words):
    forecasting.train_data(config_of(**fields))


def test_file_of_another_set_is_refused(tmp_path):
  path = csv_of(tmp_path, np.random.default_rng(0).normal(size=(100, 2)))
  config = config_of(**{'data.dataset': 'etth1', 'data.path': path,
                        'data.columns': ('c0', 'c1')})  # fmt: skip
  assert forecasting.read_series(config).columns == ('c0', 'c1')
  config.data.columns = ()
  with pytest.raises(UserError, match="no column 'OT'"):
    forecasting.read_series(config)


def test_custom_channels_are_those_of_the_header(tmp_path):
  path = csv_of(tmp_path, np.random.default_rng(0).normal(size=(10, 5)))
  config = config_of('card:custom', **{'data.path': path})
  assert forecasting.example_batch(config)['history'].shape == (32, 96, 5)
