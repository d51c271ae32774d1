"""Fields of the atmosphere on a grid: ERA5 in files, or arrays in memory.

Three layouts: arrays that are there already; Baguan's folders of .npy files, an
hour a file; Zarr and NetCDF with the names of WeatherBench2, by xarray
(`pip install 'jaxzoo[weather]'`). All give one field at a time, its rows from
north to south, its channels as asked for, under the short names of
`models/forecasting/baguan_codes.py`.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from jaxzoo.errors import CorruptRecord, UserError, nearest
from jaxzoo.models.forecasting.baguan_codes import CONSTANTS, DYNAMIC
from jaxzoo.models.losses.weather import latitudes, level_of

SHARDS, SHARD = 60, 146  # of a year, and hours of one
# Short names -> those of WeatherBench2.
LONG_NAMES = {
  'z': 'geopotential',
  'q': 'specific_humidity',
  't': 'temperature',
  'u': 'u_component_of_wind',
  'v': 'v_component_of_wind',
  'u10': '10m_u_component_of_wind',
  'v10': '10m_v_component_of_wind',
  't2m': '2m_temperature',
  'msl': 'mean_sea_level_pressure',
}


class Fields(NamedTuple):
  """A series of fields at equal steps.

  Attributes:
    name: for messages.
    variables: the channels.
    constants: names of what does not change.
    first: time of the first field, datetime64[h].
    hours: from one to the next.
    count: of fields.
    read: number -> [h, w, v], float32.
    still: [h, w, c] of the constants.
    scale: (mean, std) [v] that came with the data, or None.
  """

  name: str
  variables: tuple[str, ...]
  constants: tuple[str, ...]
  first: np.datetime64
  hours: int
  count: int
  read: Callable[[int], Float32[np.ndarray, 'h w v']]
  still: Float32[np.ndarray, 'h w c']
  scale: tuple[np.ndarray, np.ndarray] | None = None


def from_arrays(
  name: str,
  fields: Float[np.ndarray, 't h w v'],
  variables: Sequence[str],
  still: Float[np.ndarray, 'h w c'],
  constants: Sequence[str],
  *,
  first: str,
  hours: int,
) -> Fields:
  """Fields in memory."""
  return Fields(
    name,
    tuple(variables),
    tuple(constants),
    np.datetime64(first, 'h'),
    hours,
    len(fields),
    lambda i: fields[i],
    np.asarray(still, np.float32),
  )


def _choose(wanted, known, name) -> list[int]:
  """Places of the wanted names."""
  for each in wanted:
    if each not in known:
      raise UserError(f'{name}: no variable {each!r}; ' + nearest(each, known))
  return [list(known).index(each) for each in wanted]


def read_folders(
  root, variables: Sequence[str], constants: Sequence[str]
) -> Fields:
  """Baguan's layout: ROOT/YEAR_SHARD/YEAR_SHARD_I.npy, [69 or more, h, w].

  File (shard s, number i) of a year is hour 146 s + i of it; beside them lie
  normalize_mean.npz and normalize_std.npz by variable, constant/NAME.npy and
  lat.npy. The years must follow each other.

  Raises:
    UserError: nothing there, or variables that are not in the data.
  """
  root = pathlib.Path(root).expanduser()
  years = sorted({p.name.split('_')[0] for p in root.glob('[0-9]*_*')})
  if not years or not all(year.isdigit() for year in years):
    raise UserError(
      f'{root}: no folders YEAR_SHARD with hourly fields; see '
      'jaxzoo/data/sources/era5.py'
    )
  if int(years[-1]) - int(years[0]) + 1 != len(years):
    raise UserError(f'{root}: the years {", ".join(years)} have gaps')
  places = _choose(variables, DYNAMIC, root)
  # A leap year's last day has no file: hours are counted by their files.
  first = np.datetime64(years[0], 'h')
  starts = [
    int((np.datetime64(year, 'h') - first).astype(int)) for year in years
  ]

  def read(i):
    place = int(np.searchsorted(starts, i, 'right')) - 1
    shard, number = divmod(i - starts[place], SHARD)
    stem = f'{years[place]}_{shard}'
    path = root / stem / f'{stem}_{number}.npy'
    try:
      whole = np.load(path, mmap_mode='r', allow_pickle=False)
      return np.moveaxis(whole[places], 0, -1).astype(np.float32)
    except (OSError, ValueError, IndexError) as error:
      raise CorruptRecord(path, error) from error

  still = [_constant(root, name) for name in constants]
  sample = read(0)
  if (root / 'lat.npy').exists():
    _check_latitudes(np.load(root / 'lat.npy', allow_pickle=False), root)
  return Fields(
    str(root),
    tuple(variables),
    tuple(constants),
    first,
    1,
    starts[-1] + SHARDS * SHARD,
    read,
    np.stack(still, -1) if still else np.zeros((*sample.shape[:2], 0), 'f4'),
    _published_scale(root, variables),
  )


def _constant(root, name):
  path = root / 'constant' / f'{name}.npy'
  if not path.exists():
    raise UserError(
      f'{path} does not exist; constants: ' + ', '.join(CONSTANTS)
    )
  return np.load(path, allow_pickle=False).astype(np.float32).squeeze()


def _published_scale(root, variables):
  paths = [root / f'normalize_{part}.npz' for part in ('mean', 'std')]
  if not all(path.exists() for path in paths):
    return None
  tables = []
  for path in paths:
    with np.load(path, allow_pickle=False) as stored:
      missing = [name for name in variables if name not in stored]
      if missing:
        raise UserError(f'{path}: no {", ".join(missing)}')
      values = [float(np.ravel(stored[name])[0]) for name in variables]
      tables.append(np.asarray(values, np.float32))
  return tuple(tables)


def _check_latitudes(degrees, name) -> None:
  want = latitudes(len(degrees))
  if not np.allclose(degrees, want, atol=0.02):
    raise UserError(
      f'{name}: latitudes {degrees[0]:g} ... {degrees[-1]:g} are not those of a '
      f'regular grid of {len(degrees)} rows, {want[0]:g} ... {want[-1]:g}'
    )


def import_xarray():
  """xarray, or a UserError that says how to get it."""
  try:
    import xarray
  except ImportError as error:
    raise UserError(
      'Zarr and NetCDF are read by xarray, which is not installed: '
      "pip install 'jaxzoo[weather]'"
    ) from error
  return xarray


def read_weatherbench(
  path, variables: Sequence[str], constants: Sequence[str]
) -> Fields:
  """Zarr or NetCDF with WeatherBench2's names of variables and dimensions.

  Latitudes may go either way, and dimensions come in any order.

  Raises:
    UserError: xarray is missing, the path cannot be opened, a variable or a
      level is not there, or times have gaps.
  """
  xarray = import_xarray()
  try:
    open_as = (
      xarray.open_dataset if str(path).endswith('.nc') else xarray.open_zarr
    )
    data = open_as(path)
  except Exception as error:  # of whatever file system and format
    raise UserError(f'{path} cannot be opened: {error}') from error
  for axis in ('time', 'latitude', 'longitude'):
    if axis not in data.sizes:
      raise UserError(
        f'{path}: no dimension {axis!r}; it has '
        + ', '.join(map(str, data.sizes))
      )
  times = data['time'].values.astype('datetime64[h]')
  steps = np.unique(np.diff(times).astype(int))
  if len(times) < 2 or len(steps) != 1:
    raise UserError(f'{path}: times are not at equal steps')
  south_first = float(data['latitude'][0]) < float(data['latitude'][-1])
  degrees = np.asarray(data['latitude'].values, float)
  _check_latitudes(degrees[::-1] if south_first else degrees, path)
  chosen = [_variable(data, name, path) for name in variables]

  def read(i):
    parts = [
      x.isel(time=i).transpose('latitude', 'longitude').values for x in chosen
    ]
    field = np.stack(parts, -1).astype(np.float32)
    if not np.isfinite(field).all():
      raise CorruptRecord(f'{path} at {times[i]}', 'missing values')
    return field[::-1] if south_first else field

  def constant(name):
    x = _variable(data, name, path)
    x = x.isel(time=0) if 'time' in x.sizes else x
    x = x.transpose('latitude', 'longitude').values.astype(np.float32)
    return x[::-1] if south_first else x

  still = [constant(name) for name in constants]
  shape = data.sizes['latitude'], data.sizes['longitude']
  return Fields(
    str(path),
    tuple(variables),
    tuple(constants),
    times[0],
    int(steps[0]),
    len(times),
    read,
    np.stack(still, -1) if still else np.zeros((*shape, 0), np.float32),
  )


def _variable(data, name, path):
  """The array of a short name, at its level."""
  level = level_of(name)
  short = name.rpartition('_')[0] if level else name
  long = LONG_NAMES.get(short, short)
  if long not in data:
    raise UserError(
      f'{path}: {name} is {long!r} there, which it lacks; '
      + nearest(long, map(str, data))
    )
  x = data[long]
  if not level:
    return x
  if 'level' not in x.sizes or level not in x['level'].values:
    raise UserError(f'{path}: {long!r} has no level {level} hPa')
  return x.sel(level=level)


def moments(
  fields: Fields, numbers: Sequence[int], most: int = 400
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of each variable over some fields, evenly chosen."""
  chosen = np.unique(
    np.linspace(numbers[0], numbers[-1], min(most, len(numbers))).astype(int)
  )
  total = square = 0.0
  for i in chosen:
    x = np.asarray(fields.read(int(i)), np.float64)
    total, square = total + x.mean((0, 1)), square + (x**2).mean((0, 1))
  mean = total / len(chosen)
  std = np.sqrt(np.maximum(square / len(chosen) - mean**2, 0))
  return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def climatology(
  fields: Fields, numbers: Sequence[int]
) -> Float32[np.ndarray, 'h w v']:
  """The mean over some fields."""
  total = functools.reduce(
    lambda total, i: total + fields.read(int(i)).astype(np.float64),
    numbers,
    0.0,
  )
  return (total / len(numbers)).astype(np.float32)
