"""Solar plants: the embedded set, MMSP's layout, windows, metrics."""

import csv
import functools

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import solar
from jaxzoo.data import synthetic_plants as plants
from jaxzoo.data.sources.plants import read_plants
from jaxzoo.errors import UserError
from jaxzoo.eval import solar as evaluation
from jaxzoo.eval.evaluator import Predictions

SETTINGS = plants.Settings(seed=1, days=6, sites=2, size=4)


@functools.cache
def embedded():
  return plants.load(SETTINGS)


def write(root, data=None):
  """A set of plants in MMSP's layout."""
  data = data or embedded()
  (root / 'satellite').mkdir(parents=True)
  (root / 'nwp').mkdir()
  (root / 'solar_power').mkdir()
  times = data.first + np.arange(len(data.frames))
  np.save(root / 'satellite/satellite.npy', data.frames)
  np.save(root / 'satellite/satellite_coords.npy', data.coordinates)
  np.save(root / 'satellite/satellite_times.npy', times)
  text = lambda time: str(time.astype('datetime64[s]')).replace('T', ' ')
  with open(root / 'nwp/nwp.csv', 'w', newline='') as file:
    out = csv.writer(file)
    out.writerow(['fcst_date', *data.columns])
    for cell in data.weather:
      for i, row in enumerate(cell.values):
        out.writerow(
          [text(cell.first + np.int64(i)), *map(repr, map(float, row))]
        )
  with open(root / 'solar_power/solar_power.csv', 'w', newline='') as file:
    out = csv.writer(file)
    out.writerow(['datetime', 'site', 'lat', 'lon', 'power'])
    for site in data.sites:
      for i, x in enumerate(site.power):
        time = text(site.first + np.int64(i))
        out.writerow([time, site.name, *site.place, repr(float(x))])
  return root


@pytest.fixture
def written(tmp_path):
  return write(tmp_path / 'mmsp')


def config_of(**data):
  config = catalog.get_config('fusionsf:tiny').unlock()
  config.frame = (4, 4)
  config.data.update(embedded=SETTINGS._asdict(), sites=())
  config.data.update(data)
  return config


# The embedded plants.


def test_same_settings_give_the_same_plants():
  again = plants.load(SETTINGS)
  np.testing.assert_array_equal(again.frames, embedded().frames)
  np.testing.assert_array_equal(again.sites[1].power, embedded().sites[1].power)
  other = plants.load(SETTINGS._replace(seed=2))
  assert not np.allclose(other.frames, again.frames)


def test_night_has_no_power_and_clouds_take_it_away():
  day, hour = plants.hours_of(24 * SETTINGS.days)
  del day
  for site in embedded().sites:
    night = (hour < 4) | (hour > 20)
    assert (site.power[night] == 0).all() and site.power.max() > 0.2
  height = np.full(3, 0.8)
  clear, half, full = plants.irradiance(height, np.array([0.0, 0.5, 1.0]))
  assert clear > half > full > 0


def test_clouds_drift_with_the_wind():
  sky = plants.draw_sky(np.random.default_rng(0), 2, SETTINGS)
  sky = sky._replace(
    amplitudes=np.repeat(sky.amplitudes[:1], 2, 0),
    drift=np.array([[0.0, 0.0], [0.1, 0.2]]),
    cover=np.zeros(2),
  )
  places = np.random.default_rng(1).uniform(-1, 1, (20, 2))
  before = plants.cloud(sky, places)[0]
  after = plants.cloud(sky, places + [0.1, 0.2])[1]
  np.testing.assert_allclose(before, after, atol=1e-12)
  assert before.std() > 0


def test_weather_forecast_foresees_more_than_yesterday_tells():
  data = plants.load(SETTINGS._replace(days=40, sites=4))
  foreseen, yesterday = [], []
  for site in data.sites:
    ghi = data.weather[site.cell].values[:, 0]
    power = site.power
    lit = power > 0.02
    lit[:24] = False
    foreseen.append(np.corrcoef(ghi[lit], power[lit])[0, 1])
    yesterday.append(np.corrcoef(np.roll(power, 24)[lit], power[lit])[0, 1])
  assert np.mean(foreseen) > np.mean(yesterday) + 0.05


# The layout on disk.


def test_what_is_written_reads_back(written):
  data, want = read_plants(written), embedded()
  np.testing.assert_array_equal(data.frames, want.frames)
  assert isinstance(data.frames, np.memmap), 'frames stay on disk'
  assert data.columns == want.columns and data.first == want.first
  for got, site in zip(data.sites, want.sites, strict=True):
    np.testing.assert_allclose(got.power, site.power)
    np.testing.assert_allclose(
      data.weather[got.cell].values, want.weather[site.cell].values
    )


def test_gaps_of_weather_are_interpolated_and_of_power_are_zero(written):
  for path, row in (
    (written / 'nwp/nwp.csv', 30),
    (written / 'solar_power/solar_power.csv', 37),
  ):
    lines = path.read_text().splitlines()
    del lines[row]
    path.write_text('\n'.join(lines) + '\n')
  data, want = read_plants(written), embedded()
  cell = data.weather[data.sites[0].cell].values
  other = want.weather[want.sites[0].cell].values
  np.testing.assert_allclose(cell[29], (other[28] + other[30]) / 2)
  assert np.isnan(data.sites[0].power[36])
  windows = solar.read_split(
    config_of(dataset='mmsp', root=str(written)), 'train'
  )
  assert windows.power(0)[36] == 0


@pytest.mark.parametrize(
  'name, old, new, message',
  [
    ('nwp/nwp.csv', 'fcst_date', 'date', "no column 'fcst_date'"),
    ('solar_power/solar_power.csv', ',power', ',powr', "no column 'power'"),
    ('solar_power/solar_power.csv', '03:00:00', '03:30:00', 'full hour'),
    ('solar_power/solar_power.csv', '03:00:00', '04:00:00', 'hour twice'),
    ('nwp/nwp.csv', '03:00:00', 'three', 'write times as'),
  ],
)  # fmt: skip
def test_wrong_tables_say_what_is_wrong(written, name, old, new, message):
  path = written / name
  path.write_text(path.read_text().replace(old, new))
  with pytest.raises(UserError, match=message):
    read_plants(written)


def test_site_without_weather_is_named(written):
  path = written / 'solar_power/solar_power.csv'
  place = embedded().sites[1].place
  path.write_text(path.read_text().replace(str(place[0]), '12.3'))
  with pytest.raises(UserError, match='plant 1'):
    read_plants(written)


def test_pickled_arrays_are_not_read(written):
  path = written / 'satellite/satellite_times.npy'
  np.save(path, np.array(['2021-03-01', None], object))
  with pytest.raises(UserError, match='pickled'):
    read_plants(written)


def test_missing_frames_are_named(written):
  (written / 'satellite/satellite.npy').unlink()
  with pytest.raises(UserError, match=r'satellite\.npy'):
    read_plants(written)


# Windows.


def test_windows_of_both_sources_are_the_same(written):
  ours = solar.read_split(config_of(), 'train')
  theirs = solar.read_split(
    config_of(dataset='mmsp', root=str(written)), 'train'
  )
  assert len(ours) == len(theirs)
  for key, x in ours[5].items():
    np.testing.assert_allclose(x, theirs[5][key], atol=1e-4, err_msg=key)


def test_window_has_the_past_and_the_forecast_of_the_future():
  config = config_of(scale='all')
  windows = solar.read_split(config, 'train')
  data, record = embedded(), windows[3]
  power = data.sites[0].power
  np.testing.assert_allclose(record['power'][:, 0], power[3:27], rtol=1e-6)
  np.testing.assert_allclose(record['target'][:, 0], power[27:51], rtol=1e-6)
  np.testing.assert_array_equal(record['time'][0], [3, 1, 3])
  np.testing.assert_array_equal(record['time'][-1], [3, 2, 2])
  values = np.concatenate([cell.values for cell in data.weather])
  ghi = (data.weather[0].values[27:51, 0] - values[:, 0].mean()) / values[
    :, 0
  ].std()
  np.testing.assert_allclose(record['weather'][:, 0], ghi, rtol=1e-4, atol=1e-4)
  frames = (data.frames - data.frames.mean(0)) / data.frames.std(0)
  np.testing.assert_allclose(record['satellite'], frames[3:27], atol=1e-4)


def test_no_hour_is_in_two_splits():
  windows = {
    split: solar.split_windows(500, (0.6, 0.2, 0.2), 47)
    for split in solar.SPLITS
  }['train']
  hours = {
    k: {h for i in v for h in range(i, i + 48)} for k, v in windows.items()
  }
  assert not hours['train'] & hours['val'] and not hours['val'] & hours['test']
  published = solar.split_windows(500, (0.6, 0.2, 0.2), 0)
  assert sum(map(len, published.values())) == 500


def test_scale_of_the_training_span_does_not_see_the_test():
  config = config_of()
  before = solar.read_split(config, 'train')[0]['satellite']
  all_of_it = solar.read_split(config_of(scale='all'), 'train')[0]['satellite']
  assert not np.allclose(before, all_of_it, atol=1e-3)


def test_coordinates_are_scaled_to_the_frame():
  pixels, places = solar.normalized_coordinates(embedded())
  np.testing.assert_allclose([pixels.min(), pixels.max()], [-1, 1], atol=1e-6)
  assert (np.abs(places) < 0.8).all()


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(sites=(1, 9)), 'sites='),
    (dict(dataset='mmps'), 'mmsp'),
    (dict(dataset='mmsp'), 'data.root'),
    (dict(shares=(0.9, 0.3, 0.2)), 'shares'),
    (dict(stride=0), 'stride'),
    (dict(scale='some'), 'scale'),
    (dict(channels=2), 'channels'),
  ],
)
def test_wrong_fields_are_named(fields, message):
  with pytest.raises(UserError, match=message):
    solar.read_split(config_of(**fields), 'train')


def test_other_sizes_than_the_config_says_are_refused():
  config = config_of()
  config.weather_variables = 17
  with pytest.raises(UserError, match='weather_variables=8'):
    solar.read_split(config, 'train')


# Metrics.


def test_metrics_are_the_published_ones_and_add_up():
  rng = np.random.default_rng(0)
  y = rng.uniform(0, 1, (10, 24))
  y[:, :6] = 0
  f = y + rng.normal(size=y.shape)
  parts = evaluation.sums(f[:4], y[:4]) + evaluation.sums(f[4:], y[4:])
  got = evaluation.metrics(parts)
  np.testing.assert_allclose(got['rmse'], np.sqrt(((f - y) ** 2).mean()))
  np.testing.assert_allclose(got['mae'], np.abs(f - y).mean())
  relative = np.abs(f - y) / np.maximum(np.abs(y), 1.17e-6)
  np.testing.assert_allclose(got['mape'], relative.mean())
  mask = np.arange(10) < 4
  assert evaluation.metrics(evaluation.sums(f, y, mask)) == evaluation.metrics(
    evaluation.sums(f[:4], y[:4])
  )


def test_evaluator_knows_yesterday_and_draws():
  config = config_of(gap=0)
  evaluate = evaluation.make_evaluator(config, split='test', sheet=2)
  source = solar.read_split(config, 'test')

  def predict(windows, transforms):
    del transforms
    past = np.stack([windows.power(i)[:24] for i in range(len(windows))])
    return Predictions({'forecast': past[..., None]}, np.ones(len(past), bool))

  found = evaluate(predict)
  np.testing.assert_allclose(found.metrics['skill'], 0, atol=1e-9)
  perfect = evaluate(
    lambda windows, _: Predictions(
      {
        'forecast': np.stack(
          [windows[i]['target'] for i in range(len(windows))]
        )
      },
      np.ones(len(windows), bool),
    )
  )
  assert perfect.metrics['mae'] == 0 and perfect.metrics['skill'] == 1
  assert found.pictures()['forecasts'].ndim == 3
  tables = found.tables()
  assert len(tables['by_hour']) == 25 and len(tables['by_site']) == 3
  del source
