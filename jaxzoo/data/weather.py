"""Weather from config to windows: which fields, which times, which lead."""

import functools

import numpy as np
from jaxtyping import Float32

from jaxzoo.data import synthetic_atmosphere
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import era5
from jaxzoo.data.sources.era5 import Fields
from jaxzoo.errors import UserError, nearest

DATASETS = ('atmosphere', 'folders', 'weatherbench')
START = '2001-01-01'  # of the embedded atmosphere


def read_fields(config) -> Fields:
  """The fields of a config.

  Reads `variables`, `constants`, `grid` and of `config.data`: `dataset`,
  'atmosphere' (embedded, with the settings `embedded`), 'folders' (Baguan's
  layout) or 'weatherbench' (Zarr or NetCDF); `root`, where the latter two lie.

  Raises:
    UserError: no such set or variable, another grid, or see `sources/era5.py`.
  """
  data = config.data
  if data.dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {data.dataset!r}; ' + nearest(data.dataset, DATASETS)
    )
  if data.dataset != 'atmosphere' and not data.root:
    raise UserError(
      f'data.root is empty: say where the {data.dataset} data lies with '
      '--config.data.root=PATH'
    )
  fields = _open(*_key(config))
  size = fields.still.shape[:2]
  if size != tuple(config.grid):
    raise UserError(
      f'{fields.name} has a grid of {size[0]}x{size[1]}: set '
      f'--config.grid={size[0]},{size[1]}'
    )
  return fields


def _key(config) -> tuple:
  """What the fields of a config depend on."""
  data = config.data
  return (
    data.dataset,
    data.root,
    tuple(config.variables),
    tuple(config.constants),
    tuple(sorted((k, _tuple(v)) for k, v in data.embedded.items())),
  )


def _tuple(x):
  return tuple(x) if isinstance(x, (list, tuple)) else x


# Training and evaluators read the same fields; they do not change.
@functools.lru_cache(maxsize=2)
def _open(dataset, root, variables, constants, embedded) -> Fields:
  if dataset == 'folders':
    return era5.read_folders(root, variables, constants)
  if dataset == 'weatherbench':
    return era5.read_weatherbench(root, variables, constants)
  settings = synthetic_atmosphere.Settings(**dict(embedded))
  known, still = synthetic_atmosphere.VARIABLES, synthetic_atmosphere.CONSTANTS
  for name in (*variables, *constants):
    if name not in (*known, *still):
      raise UserError(
        f'the embedded atmosphere has no {name!r}; '
        + nearest(name, (*known, *still))
      )
  fields, surface = synthetic_atmosphere.load(settings)
  return era5.from_arrays(
    f'atmosphere {tuple(settings)}',
    fields[..., [known.index(name) for name in variables]],
    variables,
    surface[..., [still.index(name) for name in constants]],
    constants,
    first=START,
    hours=synthetic_atmosphere.HOURS,
  )


def span_numbers(fields: Fields, span, field: str) -> range:
  """Numbers of the fields from a date to before another.

  Raises:
    UserError: no dates, or none of the fields lies between them.
  """
  try:
    first, last = (np.datetime64(str(date), 'h') for date in span)
  except ValueError as error:
    raise UserError(
      f'{field}={tuple(span)}: write two dates, as 1979-01-01,2016-01-01 '
      f'({error})'
    ) from error
  number = lambda date: (
    -(-int((date - fields.first).astype(int)) // fields.hours)
  )
  numbers = range(max(0, number(first)), min(fields.count, number(last)))
  if not numbers:
    end = fields.first + np.int64(fields.hours * fields.count)
    raise UserError(
      f'{field}={tuple(span)}: {fields.name} has {fields.first} to {end}'
    )
  return numbers


class WeatherWindows:
  """A field and those after it, at multiples of the lead time.

  A record has `field` [h, w, i], `lead` in hours, `target` [k, h, w, v], and
  with `average` also `climatology` [h, w, v], all standardised.

  Args:
    fields: the data.
    numbers: fields of the split; all of a window lie in it.
    lead: hours.
    count: k.
    scale: (mean, std) of the variables.
    every: hours of the day that a window may start at; () for all.
    average: [h, w, v], or None.

  Raises:
    UserError: a lead time between two fields, or no window.
  """

  def __init__(
    self,
    fields: Fields,
    numbers: range,
    lead: int,
    count: int,
    scale,
    every: tuple[int, ...] = (),
    average: Float32[np.ndarray, 'h w v'] | None = None,
  ):
    if lead < 1 or lead % fields.hours:
      raise UserError(
        f'data.lead={lead}: {fields.name} has a field every {fields.hours} '
        'hours; use a multiple'
      )
    self.fields, self.lead, self.count = fields, lead, count
    self.mean, self.std = scale
    self._stride = lead // fields.hours
    last = numbers.stop - self._stride * count
    starts = np.arange(numbers.start, max(numbers.start, last))
    if every:
      hour = (self._times(starts) - self._times(starts).astype('M8[D]')).astype(
        int
      )
      starts = starts[np.isin(hour, every)]
    if not len(starts):
      raise UserError(
        f'{fields.name}: {len(numbers)} fields are too few for {count} lead '
        f'times of {lead} hours'
      )
    self.starts = starts
    self._still = _standardized(fields.still)
    self._average = None
    if average is not None:
      self._average = self._standardize(average)

  def _times(self, numbers):
    return self.fields.first + np.asarray(numbers) * np.timedelta64(
      self.fields.hours, 'h'
    )

  def _standardize(self, field):
    return ((field - self.mean) / self.std).astype(np.float32)

  def __len__(self):
    return len(self.starts)

  def __repr__(self):
    first, last = self._times(self.starts[[0, -1]])
    return f'{self.fields.name}, {first} to {last}'

  def time(self, index: int) -> np.datetime64:
    """Of the field that a window starts from."""
    return self._times(self.starts[index])

  def undo(self, field: Float32[np.ndarray, '... v']) -> np.ndarray:
    """In the units of the data."""
    return field * self.std + self.mean

  def __getitem__(self, index) -> dict:
    start = int(self.starts[index])
    read = lambda i: self._standardize(self.fields.read(i))
    record = {
      'field': np.concatenate([read(start), self._still], -1),
      'lead': np.float32(self.lead),
      'target': np.stack(
        [read(start + self._stride * (k + 1)) for k in range(self.count)]
      ),
    }
    if self._average is not None:
      record['climatology'] = self._average
    return record


def _standardized(still):
  """Constant fields with mean 0 and deviation 1."""
  mean, std = still.mean((0, 1)), still.std((0, 1))
  return ((still - mean) / np.where(std > 0, std, 1)).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _scale(key, numbers):
  fields = _open(*key)
  return fields.scale or era5.moments(fields, numbers)


@functools.lru_cache(maxsize=4)
def _average(key, numbers):
  return era5.climatology(_open(*key), numbers)


def read_split(config, split: str, count: int, *, scored: bool = False):
  """Windows of a split, standardised by the training span.

  Reads of `config.data`, beside what `read_fields` does: `train`, `val` and
  `test`, two dates each; `lead`, hours.

  Args:
    config: of the run.
    split: one of the three.
    count: targets of a window.
    scored: with the climatology, which is the mean of the truth over the split,
      and starting at `data.eval_hours` alone.
  """
  fields, data = read_fields(config), config.data
  if split not in ('train', 'val', 'test'):
    raise UserError(
      f'no split {split!r}; ' + nearest(split, ('train', 'val', 'test'))
    )
  trained = span_numbers(fields, data.train, 'data.train')
  numbers = span_numbers(fields, data[split], f'data.{split}')
  return WeatherWindows(
    fields,
    numbers,
    data.lead,
    count,
    _scale(_key(config), trained),
    tuple(data.eval_hours) if scored else (),
    _average(_key(config), numbers) if scored else None,
  )


def train_data(config) -> Data:
  """Every window of the training span, with `config.rollout.steps` targets."""
  return Data(read_split(config, 'train', config.rollout.steps), ())


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, grid, v = config.batch_size, tuple(config.grid), len(config.variables)
  return {
    'field': np.zeros((b, *grid, v + len(config.constants)), np.float32),
    'lead': np.zeros(b, np.float32),
    'target': np.zeros((b, config.rollout.steps, *grid, v), np.float32),
  }
