"""Weather: the embedded atmosphere, both layouts on disk, windows, scores."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import synthetic_atmosphere as atmosphere
from jaxzoo.data import weather as data
from jaxzoo.data.sources import era5
from jaxzoo.errors import CorruptRecord, UserError
from jaxzoo.eval import weather as evaluation
from jaxzoo.eval.evaluator import Predictions
from jaxzoo.models.losses import weather

SETTINGS = atmosphere.Settings(grid=(8, 16), years=0.06, waves=4)


@functools.cache
def waves_of():
  return atmosphere.make_waves(SETTINGS)


def config_of(**fields):
  config = catalog.get_config('baguan:tiny').unlock()
  config.update_from_flattened_dict(fields)
  return config


# The embedded atmosphere.


def test_legendre_functions_are_orthonormal():
  x, w = np.polynomial.legendre.leggauss(20)
  table = atmosphere.legendre(6, x)
  for (n, m), p in table.items():
    for (k, order), q in table.items():
      if m == order:
        product = (w * p * q).sum() / 2
        np.testing.assert_allclose(product, n == k, atol=1e-12)


def test_slopes_are_the_derivatives_by_latitude():
  waves = waves_of()
  fine = atmosphere.make_waves(SETTINGS._replace(grid=(720, 16)))
  step = np.deg2rad(0.25)
  # Rows go from north to south.
  slope = -(fine.values[:, 2:] - fine.values[:, :-2]) / (2 * step)
  np.testing.assert_allclose(slope, fine.slopes[:, 1:-1], atol=2e-3)
  assert waves.values.shape == (len(waves.degree), 8, 16)


def test_a_single_wave_turns_with_its_own_speed():
  waves = waves_of()
  k = int(np.flatnonzero(waves.order == 1)[0])
  # A time in which it moves by exactly two columns of the grid.
  seconds = 2 * (2 * np.pi / 16) / waves.frequency[k]
  state = np.zeros(len(waves.order), complex)
  state[k] = 1
  later = state * np.exp(-1j * waves.frequency * seconds)
  both = atmosphere.weather_of(
    SETTINGS, waves, np.stack([state, later]), np.zeros(2)
  )
  np.testing.assert_allclose(
    both[1], np.roll(both[0], 2, axis=1), rtol=1e-4, atol=1e-3
  )


def test_speeds_are_those_of_the_vorticity_equation():
  # zeta = lap psi; d zeta/dt + a d zeta/dlon + 2 (Omega + a) dpsi/dlon = 0,
  # and lap Y = -l (l + 1) Y on the unit sphere.
  waves, spin = waves_of(), SETTINGS.westerly / atmosphere.RADIUS
  size = -waves.degree * (waves.degree + 1)
  along = 1j * waves.order
  turn = 2 * (atmosphere.TURN + spin)
  rest = -1j * waves.frequency * size + spin * along * size + turn * along
  np.testing.assert_allclose(np.abs(rest), 0, atol=1e-15)


def test_best_forecast_beats_persistence_and_climate():
  settings = atmosphere.Settings(grid=(16, 32), years=0.3, waves=8)
  fields, _ = atmosphere.load(settings)
  waves = atmosphere.make_waves(settings)
  states = atmosphere.amplitudes(settings, waves, len(fields))
  keep = np.exp(-0.25 / settings.memory) * np.exp(
    -1j * waves.frequency * 6 * 3600
  )
  day = np.arange(len(fields)) * 0.25
  for steps in (4, 12):
    best = atmosphere.weather_of(
      settings, waves, states[:-steps] * keep**steps, day[steps:]
    )
    rows = weather.latitude_weights(weather.latitudes(16))[:, None, None]
    rmse = lambda f, truth=fields[steps:], rows=rows: np.sqrt(
      (rows * (f - truth) ** 2).mean((0, 1, 2))
    )
    assert (rmse(best) < 0.8 * rmse(fields[:-steps])).all()
    assert (rmse(best) < 0.95 * rmse(fields.mean(0))).all()


def test_same_settings_give_the_same_weather():
  first, still = atmosphere.load(SETTINGS)
  again, _ = atmosphere.load(SETTINGS)
  np.testing.assert_array_equal(first, again)
  assert 0.1 < still[..., 0].mean() < 0.5 and np.isfinite(still).all()
  with pytest.raises(UserError, match='waves'):
    atmosphere.load(SETTINGS._replace(waves=9))


# Windows.


def test_window_has_the_fields_at_multiples_of_the_lead():
  config = config_of()
  windows = data.read_split(config, 'train', 2)
  fields, _ = atmosphere.load(atmosphere.Settings(**config.data.embedded))
  record = windows[3]
  assert record['field'].shape == (8, 16, 6) and record['lead'] == 24
  for k in range(2):
    np.testing.assert_allclose(
      windows.undo(record['target'][k]), fields[3 + 4 * (k + 1)], rtol=1e-4,
      atol=1e-2,
    )  # fmt: skip
  last = int(windows.starts[-1]) + 2 * 4
  assert last < 11 * 4, 'no target lies behind the span'


def test_scored_windows_start_at_the_hours_that_are_asked_for():
  windows = data.read_split(config_of(), 'test', 1, scored=True)
  hours = {windows.time(i).astype(object).hour for i in range(len(windows))}
  assert hours == {0, 12}
  targets = np.stack([windows[i]['climatology'] for i in range(3)])
  np.testing.assert_array_equal(targets[0], targets[1])


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'data.lead': 5}, 'every 6 hours'),
    ({'data.test': ('2030-01-01', '2031-01-01')}, 'data.test'),
    ({'data.test': ('soon', 'later')}, 'two dates'),
    ({'grid': (16, 32)}, 'config.grid=8,16'),
    ({'data.dataset': 'era5'}, 'data.dataset'),
    ({'data.dataset': 'folders'}, 'data.root'),
    ({'variables': ('z_850',)}, 'z_500'),
    ({'data.test': ('2001-01-12', '2001-01-13')}, 'too few'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    data.read_split(config_of(**fields), 'test', 2)


# Baguan's layout.


def write_folders(root, hours=200):
  rng = np.random.default_rng(0)
  fields = rng.normal(size=(hours, 69, 4, 8)).astype(np.float32)
  for i, field in enumerate(fields):
    shard, number = divmod(i, era5.SHARD)
    folder = root / f'2018_{shard}'
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f'2018_{shard}_{number}.npy', field)
  (root / 'constant').mkdir()
  np.save(root / 'constant/lake_cover.npy', fields[0, 0])
  np.save(root / 'lat.npy', weather.latitudes(4))
  for part, value in (('mean', 2.0), ('std', 3.0)):
    names = {name: np.array([value]) for name in ('t2m', 'z_500')}
    np.savez(root / f'normalize_{part}.npz', **names)
  return fields


def test_folders_are_read_by_hour_and_name(tmp_path):
  want = write_folders(tmp_path)
  fields = era5.read_folders(tmp_path, ('z_500', 't2m'), ('lake_cover',))
  index = [era5.DYNAMIC.index(name) for name in ('z_500', 't2m')]
  for i in (0, 145, 146, 199):
    np.testing.assert_array_equal(
      fields.read(i), np.moveaxis(want[i, index], 0, -1)
    )
  np.testing.assert_array_equal(fields.scale[0], [2, 2])
  assert fields.first == np.datetime64('2018-01-01T00') and fields.hours == 1
  with pytest.raises(CorruptRecord, match='2018_3_'):
    fields.read(500)


def test_folders_without_what_is_asked_for_are_refused(tmp_path):
  with pytest.raises(UserError, match='YEAR_SHARD'):
    era5.read_folders(tmp_path, ('t2m',), ())
  write_folders(tmp_path, 2)
  with pytest.raises(UserError, match='z_500'):
    era5.read_folders(tmp_path, ('z_510',), ())
  with pytest.raises(UserError, match=r'soil_type\.npy'):
    era5.read_folders(tmp_path, ('t2m',), ('soil_type',))
  np.save(tmp_path / 'lat.npy', np.linspace(0, 30, 4))
  with pytest.raises(UserError, match='latitudes'):
    era5.read_folders(tmp_path, ('t2m',), ())


# WeatherBench2.


def test_xarray_missing_says_what_to_install(monkeypatch):
  import builtins

  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name == 'xarray':
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, '__import__', without)
  with pytest.raises(UserError, match=r'jaxzoo\[weather\]'):
    era5.read_weatherbench('anywhere.zarr', ('t2m',), ())


@pytest.fixture
def zarr_store(tmp_path):
  """WeatherBench2's order: longitude first, latitude from south to north."""
  xarray = pytest.importorskip('xarray')
  pytest.importorskip('zarr')
  rng = np.random.default_rng(0)
  times = np.datetime64('2018-01-01', 'ns') + np.arange(12) * np.timedelta64(
    6 * 3600 * 10**9, 'ns'
  )
  degrees = weather.latitudes(4)[::-1].copy()
  axes = dict(
    time=times, level=[500, 850], longitude=np.arange(8) * 45.0,
    latitude=degrees,
  )  # fmt: skip
  upper = rng.normal(size=(12, 2, 8, 4)).astype(np.float32)
  surface = rng.normal(size=(12, 8, 4)).astype(np.float32)
  dims = ('time', 'level', 'longitude', 'latitude')
  store = xarray.Dataset(
    {
      'geopotential': (dims, upper),
      '2m_temperature': (('time', *dims[2:]), surface),
      'land_sea_mask': (dims[2:], surface[0]),
    },
    coords=axes,
  )
  path = tmp_path / 'wb2.zarr'
  store.to_zarr(path)
  return path, upper, surface


def test_weatherbench_is_turned_to_north_and_rows_first(zarr_store):
  path, upper, surface = zarr_store
  fields = era5.read_weatherbench(path, ('t2m', 'z_850'), ('land_sea_mask',))
  assert fields.hours == 6 and fields.count == 12
  got = fields.read(7)
  np.testing.assert_array_equal(got[..., 0], surface[7].T[::-1])
  np.testing.assert_array_equal(got[..., 1], upper[7, 1].T[::-1])
  np.testing.assert_array_equal(fields.still[..., 0], surface[0].T[::-1])


def test_weatherbench_names_what_it_lacks(zarr_store):
  path = zarr_store[0]
  with pytest.raises(UserError, match='level 925'):
    era5.read_weatherbench(path, ('z_925',), ())
  with pytest.raises(UserError, match='specific_humidity'):
    era5.read_weatherbench(path, ('q_500',), ())
  with pytest.raises(UserError, match='cannot be opened'):
    era5.read_weatherbench(path / 'nothing.zarr', ('t2m',), ())


# The evaluator.


def test_evaluator_scores_against_persistence_and_climate():
  config = config_of()
  evaluate = evaluation.make_evaluator(config, split='test')
  rows = weather.latitude_weights(weather.latitudes(8))

  def predict_with(shift):
    def predict(source, transforms):
      del transforms
      records = [source[i] for i in range(len(source))]
      fields = jnp.stack([r['target'] for r in records]) + shift
      mask = np.ones(len(records), bool)
      if 'climatology' not in records[0]:
        return Predictions({'forecast': np.asarray(fields)}, mask)
      found = weather.scores(
        fields,
        jnp.stack([r['target'] for r in records]),
        jnp.stack([r['climatology'] for r in records])[:, None],
        rows,
      )._asdict()
      return Predictions({k: np.asarray(x) for k, x in found.items()}, mask)

    return predict

  perfect = evaluate(predict_with(0.0))
  assert (
    perfect.metrics['z_500_rmse_24h'] == 0 and perfect.metrics['skill'] == 1
  )
  np.testing.assert_allclose(perfect.metrics['t_850_acc_24h'], 1, rtol=1e-5)
  off = evaluate(predict_with(1.0))
  windows = data.read_split(config, 'test', 2, scored=True)
  np.testing.assert_allclose(
    off.metrics['u_500_rmse_24h'], windows.std[1], rtol=1e-4
  )
  table = off.tables()['by_lead']
  assert {row[0] for row in table[1:]} == set(evaluation.METHODS)
  rmse = {tuple(row[:3]): row[3] for row in table[1:]}
  first = windows[0]
  assert rmse['persistence', 'z_500', 24] > 0
  assert rmse['climatology', 'z_500', 24] > 0
  pictures = off.pictures()
  assert set(pictures) == {'maps', 'by_lead'}
  del first


def test_references_are_those_of_a_plain_computation():
  windows = data.read_split(config_of(), 'test', 2, scored=True)
  stays, anomaly = evaluation.references_of(windows)
  rows = weather.latitude_weights(weather.latitudes(8))[:, None, None]
  root = lambda x: np.sqrt((rows * x**2).mean((1, 2)))
  records = [windows[i] for i in range(len(windows))]
  np.testing.assert_allclose(
    stays.rmse,
    sum(root(r['target'] - r['field'][..., :4]) for r in records),
    rtol=1e-4,
  )
  np.testing.assert_allclose(
    anomaly.rmse,
    sum(root(r['target'] - r['climatology']) for r in records),
    rtol=1e-4,
  )
  assert stays.count[0, 0] == len(records)
