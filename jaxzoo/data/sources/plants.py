"""Solar plants under satellite frames: the layout of MMSP on disk.

    ROOT/satellite/satellite.npy         [t, h, w, c], an hour a frame
    ROOT/satellite/satellite_coords.npy  [h, w, 2], latitude and longitude
    ROOT/satellite/satellite_times.npy   [t]
    ROOT/nwp/nwp.csv                     fcst_date, lat, lon, weather variables
    ROOT/solar_power/solar_power.csv     datetime, site, lat, lon, power

The three arrays may lie in ROOT as well. Frames are not read into memory.
"""

import csv
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float

from jaxzoo.errors import UserError, nearest

HOUR = np.timedelta64(1, 'h')


class Site(NamedTuple):
  """One plant, an hour a row.

  Attributes:
    name: as in the file.
    place: latitude and longitude, degrees.
    first: hour of the first row, datetime64[h].
    power: [n], in the unit of the file; NaN where it was not measured.
    cell: its place in `Plants.weather`.
  """

  name: str
  place: tuple[float, float]
  first: np.datetime64
  power: Float[np.ndarray, ' n']
  cell: int


class Weather(NamedTuple):
  """The forecast for one cell of 0.1 degrees, an hour a row.

  Attributes:
    first: hour of the first row.
    values: [n, k].
  """

  first: np.datetime64
  values: Float[np.ndarray, 'n k']


class Plants(NamedTuple):
  """A set of plants with all that is known around them.

  Attributes:
    name: for messages.
    frames: [t, h, w, c].
    coordinates: [h, w, 2] of the pixels, degrees.
    first: hour of the first frame.
    sites: the plants.
    weather: cells, each with the same columns.
    columns: names of the weather variables.
  """

  name: str
  frames: Float[np.ndarray, 't h w c']
  coordinates: Float[np.ndarray, 'h w 2']
  first: np.datetime64
  sites: tuple[Site, ...]
  weather: tuple[Weather, ...]
  columns: tuple[str, ...]


def read_plants(root) -> Plants:
  """The data set in a folder, see the module.

  Hours that the table of power leaves out are not measured ones; those that
  the table of weather leaves out are interpolated.

  Raises:
    UserError: a file, a column or a cell is missing, or times are not hours.
  """
  root = pathlib.Path(root).expanduser()
  frames = _array(root, 'satellite.npy')
  coordinates = np.asarray(_array(root, 'satellite_coords.npy'), np.float64)
  times = _hours(
    _array(root, 'satellite_times.npy'), root / 'satellite_times.npy'
  )
  if frames.ndim != 4 or coordinates.shape != (*frames.shape[1:3], 2):
    raise UserError(
      f'{root}: satellite.npy {frames.shape} and satellite_coords.npy '
      f'{coordinates.shape} do not fit; expected [t, h, w, c] and [h, w, 2]'
    )
  if len(times) != len(frames) or (np.diff(times) != HOUR).any():
    raise UserError(
      f'{root}: satellite_times.npy must have an hour for each of the '
      f'{len(frames)} frames, without gaps'
    )
  cells, weather, columns = _read_weather(root / 'nwp' / 'nwp.csv')
  sites = _read_sites(root / 'solar_power' / 'solar_power.csv', cells)
  return Plants(
    str(root), frames, coordinates, times[0], sites, weather, columns
  )


def _array(root: pathlib.Path, name: str) -> np.ndarray:
  for path in (root / 'satellite' / name, root / name):
    if path.exists():
      try:
        return np.load(path, mmap_mode='r', allow_pickle=False)
      except (ValueError, OSError) as error:
        raise UserError(
          f'{path} is no plain array ({error}); pickled ones are not read: '
          'save it as numbers, times as datetime64'
        ) from error
  raise UserError(f'{root / "satellite" / name} does not exist')


def _hours(values, path) -> np.ndarray:
  """Times of any spelling as datetime64[h]; refuses what is no full hour."""
  values = np.asarray(values)
  if values.dtype.kind not in 'MUS':
    raise UserError(f'{path}: times must be datetime64 or text, not numbers')
  try:
    exact = values.astype('U').astype('datetime64[s]')
  except ValueError as error:
    raise UserError(f'{path}: {error}; write times as 2021-01-31 13:00') from (
      error
    )
  hours = exact.astype('datetime64[h]')
  if (hours != exact).any():
    bad = exact[np.argmax(hours != exact)]
    raise UserError(f'{path}: {bad} is no full hour; resample to hours first')
  return hours


def _read_table(path, needed) -> tuple[dict[str, list], list[str]]:
  """(column -> texts, columns in order)."""
  if not path.exists():
    raise UserError(f'{path} does not exist')
  with open(path, newline='') as file:
    reader = csv.reader(file)
    header = [name.strip() for name in next(reader, [])]
    for name in needed:
      if name not in header:
        raise UserError(
          f'{path}: no column {name!r}; '
          + (nearest(name, header) if header else 'it is empty')
        )
    rows = [row for row in reader if row]
  bad = next((i for i, r in enumerate(rows) if len(r) != len(header)), None)
  if bad is not None:
    raise UserError(
      f'{path}, line {bad + 2}: {len(rows[bad])} values for '
      f'{len(header)} columns'
    )
  columns = zip(*rows, strict=True) if rows else ((),) * len(header)
  return dict(zip(header, map(list, columns), strict=True)), header


def _numbers(texts, path, column) -> Float[np.ndarray, ' n']:
  try:
    return np.array([float(x) if x.strip() else np.nan for x in texts])
  except ValueError as error:
    raise UserError(f'{path}, column {column}: {error}') from error


def _cells_of(lat, lon) -> np.ndarray:
  """(row, column) of 0.1 degrees for each place."""
  return np.round(np.stack([lat, lon], -1) * 10).astype(int)


def _on_hours(hours, values) -> tuple[np.datetime64, np.ndarray]:
  """Rows at their hours, NaN where there is none; of double ones the last."""
  first = hours.min()
  table = np.full(
    (int((hours.max() - first) / HOUR) + 1, *values.shape[1:]), np.nan
  )
  table[((hours - first) / HOUR).astype(int)] = values
  return first, table


def _read_weather(path):
  """((row, column) -> index, cells, names of the columns)."""
  table, header = _read_table(path, ('fcst_date', 'lat', 'lon'))
  hours = _hours(table['fcst_date'], path)
  names = [name for name in header if name and name != 'fcst_date']
  values = np.stack([_numbers(table[n], path, n) for n in names], -1)
  lat, lon = values[:, names.index('lat')], values[:, names.index('lon')]
  keys, which = np.unique(_cells_of(lat, lon), axis=0, return_inverse=True)
  cells = []
  for i, key in enumerate(keys):
    first, own = _on_hours(
      hours[which.ravel() == i], values[which.ravel() == i]
    )
    cells.append(Weather(first, _without_gaps(own, f'{path}, cell {key / 10}')))
  index = {tuple(key): i for i, key in enumerate(keys)}
  return index, tuple(cells), tuple(names)


def _without_gaps(values, name) -> Float[np.ndarray, 'n k']:
  """Linear interpolation over NaN, column by column."""
  values, places = values.copy(), np.arange(len(values))
  for column in values.T:
    missing = np.isnan(column)
    if missing.all():
      raise UserError(f'{name}: a column without any number')
    column[missing] = np.interp(
      places[missing], places[~missing], column[~missing]
    )
  return values


def _read_sites(path, cells: Mapping) -> tuple[Site, ...]:
  table, _ = _read_table(path, ('datetime', 'site', 'lat', 'lon', 'power'))
  hours = _hours(table['datetime'], path)
  lat, lon, power = (
    _numbers(table[name], path, name) for name in ('lat', 'lon', 'power')
  )
  names, sites = np.array(table['site']), []
  for name in dict.fromkeys(table['site']):
    own = names == name
    if len(np.unique(hours[own])) < own.sum():
      raise UserError(f'{path}: site {name} has an hour twice')
    place = float(lat[own][0]), float(lon[own][0])
    cell = cells.get(tuple(_cells_of(*map(np.asarray, place))))
    if cell is None:
      raise UserError(
        f'{path}: site {name} at {place} lies in no cell of the weather '
        'forecast, whose places are rounded to 0.1 degrees'
      )
    first, values = _on_hours(hours[own], power[own])
    missing = np.isnan(values).sum()
    if missing:
      logging.info('%s: site %s lacks %d hours', path, name, missing)
    sites.append(Site(str(name), place, first, values, cell))
  if not sites:
    raise UserError(f'{path}: no rows')
  return tuple(sites)
