"""Solar power from config to windows: which plants, which days, which scale."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from jaxzoo.data import synthetic_plants
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import plants as files
from jaxzoo.data.sources.plants import Plants
from jaxzoo.errors import UserError, nearest

DAY = 24  # hours of the past, and of the forecast
DATASETS = ('plants', 'mmsp')
SCALES = ('train', 'all')
SPLITS = ('train', 'val', 'test')
_CHUNK = 512  # frames in memory at a time


class Scale(NamedTuple):
  """Means and deviations: of each pixel, of each weather variable."""

  frame_mean: Float32[np.ndarray, 'h w c']
  frame_std: Float32[np.ndarray, 'h w c']
  weather_mean: Float32[np.ndarray, ' k']
  weather_std: Float32[np.ndarray, ' k']


def read_plants(config) -> Plants:
  """The plants of a config.

  Reads of `config.data`: `dataset`, 'plants' (embedded, with the settings
  `embedded`) or 'mmsp', in the folder `root`.

  Raises:
    UserError: no such set, or anything wrong with its files.
  """
  data = config.data
  if data.dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {data.dataset!r}; ' + nearest(data.dataset, DATASETS)
    )
  if data.dataset == 'mmsp' and not data.root:
    raise UserError(
      'data.root is empty: say where mmsp lies with --config.data.root=DIR'
    )
  return _read(data.dataset, data.root, tuple(sorted(data.embedded.items())))


# Training and evaluators read the same set; it does not change.
@functools.lru_cache(maxsize=2)
def _read(dataset, root, embedded):
  if dataset == 'mmsp':
    return files.read_plants(root)
  return synthetic_plants.load(synthetic_plants.Settings(**dict(embedded)))


def split_windows(
  count: int, shares: Sequence[float], gap: int
) -> dict[str, range]:
  """Windows of each split, in time: train, val, test.

  Args:
    count: windows of the series, one an hour.
    shares: of the three.
    gap: windows that are left out at each border, so that no hour of a window
      is in another split: 47. (0: as published.)

  >>> split_windows(100, (0.6, 0.2, 0.2), 5)
  {'train': range(0, 60), 'val': range(65, 80), 'test': range(85, 100)}
  """
  first = int(count * shares[0])
  second = first + int(count * shares[1])
  return {
    'train': range(0, first),
    'val': range(min(first + gap, second), second),
    'test': range(min(second + gap, count), count),
  }


class SolarWindows:
  """Every window of some sites in a split.

  Window i of a site has rows i to i + 24 as the past and the next 24 as the
  future. A record has what `fusionsf.build` asks for: `satellite`,
  `coordinates`, `site`, `time`, `power`, `weather`, `target`. Hours that were
  not measured are 0.

  Args:
    plants: the data.
    sites: numbers of sites, one after the other.
    split: of `SPLITS`.
    shares: see `split_windows`.
    gap: likewise.
    stride: hours between windows.
    scale: what inputs are standardised by.
    channels: of the frames, the first ones.

  Raises:
    UserError: no such site, or series that are too short.
  """

  def __init__(
    self,
    plants: Plants,
    sites: Sequence[int],
    split: str,
    shares: Sequence[float],
    gap: int,
    stride: int,
    scale: Scale,
    channels: int,
  ):
    if split not in SPLITS:
      raise UserError(f'no split {split!r}; ' + nearest(split, SPLITS))
    if stride < 1:
      raise UserError(f'data.stride={stride}: it must be at least 1')
    self.plants, self.split, self.sites = plants, split, tuple(sites)
    self._scale, self._channels = scale, channels
    self._coordinates, self._places = normalized_coordinates(plants)
    self._windows = []
    for site in self.sites:
      rows = usable_rows(plants, site)
      starts = split_windows(len(rows) - 2 * DAY + 1, shares, gap)[split]
      if not starts:
        raise UserError(
          f'{plants.name}: site {plants.sites[site].name} has {len(rows)} '
          f'hours with frames and weather, too few for {split}'
        )
      self._windows += [(site, rows[i]) for i in starts[::stride]]

  def __len__(self):
    return len(self._windows)

  def __repr__(self):
    return f'{self.plants.name}, {self.split} of {len(self.sites)} sites'

  def where(self, index: int) -> tuple[int, np.datetime64]:
    """(number of the site, first hour of the future) of a window."""
    site, start = self._windows[index]
    return site, self.plants.sites[site].first + np.int64(start + DAY)

  def power(self, index: int) -> Float32[np.ndarray, '48']:
    """Past and future of a window, hours that were not measured as 0."""
    site, start = self._windows[index]
    power = self.plants.sites[site].power[start : start + 2 * DAY]
    return np.nan_to_num(power).astype(np.float32)

  def __getitem__(self, index) -> dict:
    site, start = self._windows[index]
    plants, scale = self.plants, self._scale
    own = plants.sites[site]
    past = own.first + np.arange(start, start + DAY)
    at = int((past[0] - plants.first).astype(int))
    frames = np.asarray(plants.frames[at : at + DAY, ..., : self._channels])
    cell = plants.weather[own.cell]
    ahead = int((past[0] - cell.first).astype(int)) + DAY
    weather = cell.values[ahead : ahead + DAY]
    power = self.power(index)[:, None]
    return {
      'satellite': (frames.astype(np.float32) - scale.frame_mean)
      / scale.frame_std,
      'coordinates': self._coordinates,
      'site': self._places[site],
      'time': month_day_hour(past),
      'power': power[:DAY],
      'weather': (weather.astype(np.float32) - scale.weather_mean)
      / scale.weather_std,
      'target': power[DAY:],
    }


def usable_rows(plants: Plants, site: int) -> range:
  """Rows of a site whose hours have a frame and a weather forecast."""
  own = plants.sites[site]
  cell = plants.weather[own.cell]
  offset = lambda first: int((first - own.first).astype(int))
  begin = max(0, offset(plants.first), offset(cell.first))
  end = min(
    len(own.power),
    offset(plants.first) + len(plants.frames),
    offset(cell.first) + len(cell.values),
  )
  return range(begin, max(begin, end))


def month_day_hour(times: np.ndarray) -> np.ndarray:
  """int32 [n, 3]: month from 1, day from 1, hour from 0."""
  hours = times.astype('datetime64[h]')
  days, months = hours.astype('datetime64[D]'), hours.astype('datetime64[M]')
  columns = (
    months.astype(int) % 12 + 1,
    (days - months.astype('datetime64[D]')).astype(int) + 1,
    (hours - days.astype('datetime64[h]')).astype(int),
  )
  return np.stack(columns, -1).astype(np.int32)


def normalized_coordinates(
  plants: Plants,
) -> tuple[Float32[np.ndarray, 'h w 2'], Float32[np.ndarray, 'n 2']]:
  """Pixels and sites with the frame at [-1, 1] in either coordinate.

  [chosen] Degrees themselves would give the rotary code angles of thousands.
  """
  pixels = np.asarray(plants.coordinates, np.float64)
  low, high = pixels.min((0, 1)), pixels.max((0, 1))
  centre, half = (low + high) / 2, np.maximum((high - low) / 2, 1e-9)
  places = np.array([site.place for site in plants.sites])
  scaled = lambda x: ((x - centre) / half).astype(np.float32)
  return scaled(pixels), scaled(places)


@functools.lru_cache(maxsize=4)
def _scale_of(key, sites, shares, kind, channels) -> Scale:
  plants = _read(*key)
  last, cells = 0, []
  for site in sites:
    rows = usable_rows(plants, site)
    count = len(rows) - 2 * DAY + 1
    end = rows.start + split_windows(count, shares, 0)['train'].stop + 2 * DAY
    own = plants.sites[site]
    cell = plants.weather[own.cell]
    offset = lambda first, own=own: int((own.first - first).astype(int))
    last = max(last, offset(plants.first) + end)
    cells.append(cell.values[: max(1, offset(cell.first) + end)])
  if kind == 'all':
    last, cells = len(plants.frames), [cell.values for cell in plants.weather]
  mean, std = _moments(plants.frames[:last, ..., :channels])
  values = np.concatenate(cells)
  return Scale(
    mean,
    std,
    values.mean(0).astype(np.float32),
    _positive(values.std(0)).astype(np.float32),
  )


def _positive(std):
  """Deviations to divide by: 1 where something is constant."""
  return np.where(std > 1e-6, std, 1.0)


def _moments(frames):
  """Mean and deviation of each pixel over time, a part of it at a time."""
  total = square = 0.0
  for start in range(0, len(frames), _CHUNK):
    part = np.asarray(frames[start : start + _CHUNK], np.float64)
    total, square = total + part.sum(0), square + (part**2).sum(0)
  mean = total / len(frames)
  std = np.sqrt(np.maximum(square / len(frames) - mean**2, 0))
  return mean.astype(np.float32), _positive(std).astype(np.float32)


def site_numbers(plants: Plants, sites: Sequence[int]) -> tuple[int, ...]:
  """The sites from the first to before the last of a pair; () for all.

  Raises:
    UserError: there are no such sites.
  """
  if not sites:
    return tuple(range(len(plants.sites)))
  if len(sites) != 2 or not 0 <= sites[0] < sites[1] <= len(plants.sites):
    raise UserError(
      f'sites={tuple(sites)}: write the first and the one behind the last of '
      f'{len(plants.sites)}, as in --config.data.sites=0,10'
    )
  return tuple(range(*sites))


def read_split(config, split: str, sites: Sequence[int] | None = None):
  """Windows of a split, standardised as the training sites are.

  Reads of `config.data`, beside what `read_plants` does: `sites`, (first,
  behind the last) of those to train on, () for all; `shares` of the splits;
  `gap` and `stride`; `scale`: inputs are standardised by the training span of
  the training sites, 'train', or by 'all' there is, as published; `channels`
  of the frames.

  Args:
    config: of the run.
    split: 'train', 'val' or 'test'.
    sites: others than the config's.
  """
  data = config.data
  plants = read_plants(config)
  check_sizes(config, plants)
  if data.scale not in SCALES:
    raise UserError(
      f'data.scale: no {data.scale!r}; ' + nearest(data.scale, SCALES)
    )
  trained = site_numbers(plants, tuple(data.sites))
  shares = tuple(data.shares)
  if len(shares) != 3 or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
    raise UserError(
      f'data.shares={shares}: three positive shares, at most 1 together'
    )
  key = (data.dataset, data.root, tuple(sorted(data.embedded.items())))
  scale = _scale_of(key, trained, shares, data.scale, data.channels)
  chosen = trained if sites is None else site_numbers(plants, tuple(sites))
  return SolarWindows(
    plants, chosen, split, shares, data.gap, data.stride, scale, data.channels
  )


def train_data(config) -> Data:
  """Every window of the training span of the training sites."""
  return Data(read_split(config, 'train'), ())


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data.

  `config.frame` has the sizes (h, w) and `config.weather_variables` the number
  that the data must have.
  """
  b, size = config.batch_size, tuple(config.frame)
  zeros = lambda *shape: np.zeros((b, *shape), np.float32)
  return {
    'satellite': zeros(DAY, *size, config.data.channels),
    'coordinates': zeros(*size, 2),
    'site': zeros(2),
    'time': np.zeros((b, DAY, 3), np.int32),
    'power': zeros(DAY, 1),
    'weather': zeros(DAY, config.weather_variables),
    'target': zeros(DAY, 1),
  }


def check_sizes(config, plants: Plants) -> None:
  """Raises a UserError where the data has other sizes than the config says."""
  size, count = plants.frames.shape[1:3], len(plants.columns)
  if size != tuple(config.frame) or count != config.weather_variables:
    raise UserError(
      f'{plants.name} has frames of {size} and {count} weather variables: set '
      f'--config.frame={size[0]},{size[1]} '
      f'--config.weather_variables={count}'
    )
  if not 1 <= config.data.channels <= plants.frames.shape[3]:
    raise UserError(
      f'data.channels={config.data.channels}: the frames have '
      f'{plants.frames.shape[3]}'
    )


def capacities(windows: SolarWindows) -> Float[np.ndarray, ' s']:
  """The largest power that each site of some windows ever gave."""
  return np.array(
    [np.nanmax(windows.plants.sites[site].power) for site in windows.sites]
  )
