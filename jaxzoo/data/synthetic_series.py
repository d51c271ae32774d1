"""Embedded series whose structure is known: coupled channels, drifting ones.

Drawn from a seed by NumPy's frozen generator: the same on every machine.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxzoo.data.sources.series import Series
from jaxzoo.errors import UserError, nearest

START = np.datetime64('2020-01-01T00:00:00')
HOUR = np.timedelta64(3600, 's')
DAY = 24


class Coupled(NamedTuple):
  """Channels that follow one of them, hours later.

  The first channel, `driver`, is noise smoothed over `memory` hours: its own
  past tells nothing of it beyond those. Channel j = 1, 2, ... follows it after
  `lag` + (j - 1) `spread` hours, under a daily cycle of its own: what it does
  in the next `lag` hours stands in the driver's past and in no other place.

  Attributes:
    rows: hours.
    channels: the driver among them, at least 2.
    lag: see above.
    spread: likewise.
    memory: likewise.
    cycle: amplitude of the daily cycle; the driver's deviation is 1.
    noise: deviation of what is added to every value of the followers.
    seed: of all draws.
  """

  rows: int = 6000
  channels: int = 4
  lag: int = 24
  spread: int = 0
  memory: int = 12
  cycle: float = 0.5
  noise: float = 0.1
  seed: int = 0


def coupled(settings: Coupled) -> Series:
  """The series of `Coupled`, in made-up units: see there."""
  _check(settings, 2)
  rng = np.random.default_rng(settings.seed)
  ahead = settings.lag + settings.spread * settings.channels
  driver = _smooth(rng, settings.rows + ahead, settings.memory)
  hour = np.arange(settings.rows)
  columns = [driver[ahead:]]
  for j in range(1, settings.channels):
    late = settings.lag + settings.spread * (j - 1)
    phase = rng.uniform(0, 2 * np.pi)
    columns.append(
      driver[ahead - late : ahead - late + settings.rows]
      + settings.cycle * np.cos(2 * np.pi * hour / DAY + phase)
      + settings.noise * rng.standard_normal(settings.rows)
    )
  values = np.stack(columns, -1)
  # Each in units of its own, as measured channels are.
  values = values * 10.0 ** (np.arange(settings.channels) % 3)
  names = ('driver', *(f'follower_{j}' for j in range(1, settings.channels)))
  return _series('coupled', values, names)


class Drifting(NamedTuple):
  """Channels whose law changes every `regime` rows.

  In even regimes every channel is a cycle of its own, predictable from its own
  past: its period and its phase are drawn anew for each regime, and its
  amplitude wanders. In odd regimes channel j repeats what channel j - 1 did a
  step ago, by a factor that wanders, and the first channel is noise of short
  memory: the others' past tells what comes. Means shift from regime to regime.

  Attributes:
    rows: hours.
    channels: at least 2.
    regime: rows of a regime; 0: the first one lasts.
    drift: deviation of what amplitudes and factors gain over a regime.
    shift: deviation of the means of regimes.
    noise: deviation of what is added to every value.
    seed: of all draws.
  """

  rows: int = 8000
  channels: int = 6
  regime: int = 1000
  drift: float = 0.3
  shift: float = 1.0
  noise: float = 0.2
  seed: int = 0


def drifting(settings: Drifting) -> Series:
  """The series of `Drifting`, in made-up units: see there."""
  _check(settings, 2)
  rng = np.random.default_rng(settings.seed)
  length = settings.regime or settings.rows
  parts = []
  for i in range(-(-settings.rows // length)):
    part = _coupled_regime if i % 2 else _cyclic_regime
    mean = settings.shift * rng.standard_normal(settings.channels)
    parts.append(mean + part(settings, length, rng))
  values = np.concatenate(parts)[: settings.rows]
  values = values + settings.noise * rng.standard_normal(values.shape)
  names = tuple(f'channel_{j}' for j in range(settings.channels))
  return _series('drifting', values, names)


def regimes(settings: Drifting) -> np.ndarray:
  """The rows where a new regime begins, without the first."""
  if not settings.regime:
    return np.zeros(0, np.int64)
  return np.arange(settings.regime, settings.rows, settings.regime)


def _cyclic_regime(settings, length, rng):
  time = np.arange(length)[:, None]
  period = rng.uniform(8, 48, settings.channels)
  phase = rng.uniform(0, 2 * np.pi, settings.channels)
  wave = np.cos(2 * np.pi * time / period + phase)
  return (1 + _wander(rng, length, settings)) * wave


def _coupled_regime(settings, length, rng):
  factors = 0.95 * (1 + _wander(rng, length, settings))
  values = np.zeros((length, settings.channels))
  values[:, 0] = _smooth(rng, length, 4)
  for j in range(1, settings.channels):
    values[1:, j] = factors[1:, j] * values[:-1, j - 1]
  return values


def _wander(rng, length, settings):
  """A random walk from 0 for each channel, kept within 1/2 of it."""
  steps = rng.standard_normal((length, settings.channels))
  walk = settings.drift * np.cumsum(steps, 0) / np.sqrt(length)
  return np.clip(walk, -0.5, 0.5)


def _smooth(rng, length, memory) -> Float[np.ndarray, ' n']:
  """Noise of deviation 1, averaged over `memory` values (triangular)."""
  memory = max(1, memory)
  kernel = np.convolve(np.ones(memory), np.ones(memory))
  noise = rng.standard_normal(length + len(kernel) - 1)
  return np.convolve(noise, kernel, 'valid') / np.sqrt((kernel**2).sum())


class Kind(NamedTuple):
  """An embedded series: its settings and the function that makes it of them."""

  settings: Callable[..., NamedTuple]
  make: Callable[[NamedTuple], Series]


KINDS = {
  'coupled': Kind(Coupled, coupled),
  'drifting': Kind(Drifting, drifting),
}


def make(kind: str, settings: Mapping) -> Series:
  """The embedded series `kind`, of settings by name."""
  entry = KINDS[kind]
  unknown = set(settings) - set(entry.settings._fields)
  if unknown:
    name = min(unknown)
    raise UserError(
      f'data.embedded: {kind} has no {name!r}; '
      + nearest(name, entry.settings._fields)
    )
  return entry.make(entry.settings(**settings))


def _check(settings, least: int) -> None:
  for field, minimum in (('rows', 2), ('channels', least)):
    value = getattr(settings, field)
    if value < minimum:
      raise UserError(
        f'data.embedded.{field}={value}: it must be at least {minimum}'
      )


def _series(name, values, names) -> Series:
  return Series(name, START + HOUR * np.arange(len(values)), values, names)
