"""A barotropic atmosphere, embedded: Rossby waves on a sphere.

The streamfunction is a sum of spherical harmonics. Each moves as the linear
vorticity equation on a sphere with a westerly wind says (Rossby-Haurwitz
waves, Haurwitz 1940): exactly, long ones slower than short ones, so that the
pattern changes as it goes. Each is damped and stirred at random as well, so
that there is a limit to what can be forecast, and a climate. Heights, winds and
temperature follow from the streamfunction. Drawn by NumPy's frozen generator.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Complex, Float

from jaxzoo.errors import UserError
from jaxzoo.models.losses.weather import latitudes

RADIUS = 6.371e6  # m
TURN = 7.292e-5  # 1/s, of the Earth
GRAVITY = 9.81
VARIABLES = ('z_500', 'u_500', 'v_500', 't_850')
CONSTANTS = ('land_sea_mask', 'geopotential_at_surface')
HOURS = 6  # from one field to the next
SPEED = 15.0  # m/s, typical of the winds of the waves
_CHUNK = 256  # fields in memory as float64


class Settings(NamedTuple):
  """What to draw. The same settings give the same weather.

  Attributes:
    seed: of everything that is random.
    grid: (latitudes, longitudes).
    years: of 365 days, training, validation and test together.
    waves: largest total wave number.
    memory: days in which a wave is damped to 1 / e.
    westerly: wind at the equator that carries all waves, m/s.
  """

  seed: int = 0
  grid: tuple[int, int] = (32, 64)
  years: float = 3.0
  waves: int = 10
  memory: float = 8.0
  westerly: float = 30.0


class Waves(NamedTuple):
  """Spherical harmonics: of degree l, order m >= 1, on a grid.

  Attributes:
    degree: l, [k].
    order: m, [k].
    frequency: radians a second, eastward positive, [k].
    values: P_l^m(sin latitude) e^{i m longitude}, [k, h, w].
    slopes: its derivative by latitude, likewise.
  """

  degree: np.ndarray
  order: np.ndarray
  frequency: Float[np.ndarray, ' k']
  values: Complex[np.ndarray, 'k h w']
  slopes: Complex[np.ndarray, 'k h w']


def legendre(most: int, x: Float[np.ndarray, ' h']) -> dict:
  """(l, m) -> P_l^m(x), normalised to a mean square of 1 over [-1, 1].

  By the usual recurrence in l, from P_m^m (Press et al., section 6.7).
  """
  table, sine = {}, np.sqrt(1 - x**2)
  start = np.ones_like(x)
  for m in range(most + 1):
    if m:
      start = start * sine * np.sqrt((2 * m + 1) / (2 * m))
    below, value = np.zeros_like(x), start
    table[m, m] = value
    for degree in range(m + 1, most + 1):
      a = np.sqrt((4 * degree**2 - 1) / (degree**2 - m**2))
      b = np.sqrt(((degree - 1) ** 2 - m**2) / (4 * (degree - 1) ** 2 - 1))
      below, value = value, a * (x * value - b * below)
      table[degree, m] = value
  return table


def make_waves(settings: Settings) -> Waves:
  """All waves of a grid, with the speeds that the westerly gives them.

  In a solid westerly of angular velocity a, wave (l, m) turns at
  m (a - 2 (Omega + a) / (l (l + 1))) (Haurwitz 1940).
  """
  rows, columns = settings.grid
  latitude = np.deg2rad(latitudes(rows))
  longitude = 2 * np.pi * np.arange(columns) / columns
  step = 1e-4
  tables = [
    legendre(settings.waves, np.sin(latitude + shift))
    for shift in (0.0, step, -step)
  ]
  keys = [(n, m) for n, m in tables[0] if m >= 1 and n >= 3]
  degree, order = np.array(keys).T
  spin = settings.westerly / RADIUS
  frequency = order * (spin - 2 * (TURN + spin) / (degree * (degree + 1)))
  turns = np.exp(1j * order[:, None] * longitude)
  pick = lambda table: np.stack([table[key] for key in keys])
  slopes = (pick(tables[1]) - pick(tables[2])) / (2 * step)
  product = lambda p: p[:, :, None] * turns[:, None]
  return Waves(
    degree, order, frequency, product(pick(tables[0])), product(slopes)
  )


def amplitudes(
  settings: Settings, waves: Waves, steps: int
) -> Complex[np.ndarray, 't k']:
  """a' = r e^{-i w dt} a + sqrt(1 - r^2) noise: waves that move and fade."""
  rng = np.random.default_rng(settings.seed)
  keep = np.exp(-HOURS / 24 / settings.memory)
  turn = keep * np.exp(-1j * waves.frequency * HOURS * 3600)
  noise = rng.standard_normal((steps, len(turn), 2)) @ [1, 1j]
  table = np.empty((steps, len(turn)), complex)
  table[0] = noise[0]
  for t in range(1, steps):
    table[t] = turn * table[t - 1] + np.sqrt(1 - keep**2) * noise[t]
  return table * spectrum(waves)


def spectrum(waves: Waves) -> Float[np.ndarray, ' k']:
  """Deviation of each wave; most energy has the size of depressions."""
  energy = 1 / (1 + ((waves.degree - 6) / 2.5) ** 4)
  return np.sqrt(energy) / waves.degree


def load(
  settings: Settings = Settings(),
) -> tuple[Float[np.ndarray, 't h w 4'], Float[np.ndarray, 'h w 2']]:
  """(fields of `VARIABLES`, `CONSTANTS`), float32, from north to south.

  z_500 is a geopotential in m2/s2, winds are in m/s, t_850 in K.

  Raises:
    UserError: no steps, or a grid too coarse for the waves.
  """
  rows, columns = settings.grid
  if min(rows, columns // 2) < settings.waves:
    raise UserError(
      f'{settings}: a grid of {rows}x{columns} does not show {settings.waves} '
      'waves; lower data.embedded.waves'
    )
  steps = round(settings.years * 365 * 24 / HOURS)
  if steps < 40:
    raise UserError(f'years={settings.years}: at least 10 days')
  waves = make_waves(settings)
  states = amplitudes(settings, waves, steps)
  fields = np.empty((steps, rows, columns, len(VARIABLES)), np.float32)
  for first in range(0, steps, _CHUNK):
    rows_of = slice(first, min(first + _CHUNK, steps))
    day = np.arange(steps)[rows_of] * HOURS / 24
    fields[rows_of] = weather_of(settings, waves, states[rows_of], day)
  return fields, continents(settings)


def weather_of(
  settings: Settings,
  waves: Waves,
  states: Complex[np.ndarray, 't k'],
  day: Float[np.ndarray, ' t'],
) -> Float[np.ndarray, 't h w 4']:
  """The fields of some states of the waves; `day` of the year."""
  latitude = np.deg2rad(latitudes(settings.grid[0]))[:, None]
  flat = lambda basis: basis.reshape(len(basis), -1)
  synthesis = lambda basis: (states @ flat(basis)).real.reshape(
    -1, *settings.grid
  )
  # psi / a in m/s; u = -dpsi/dlat / a, v = dpsi/dlon / (a cos lat).
  energy = spectrum(waves) ** 2
  square = np.abs(waves.slopes) ** 2
  unit = SPEED / np.sqrt((energy * square.mean((1, 2))).sum())
  stream, east = unit * synthesis(waves.values), -unit * synthesis(waves.slopes)
  around = synthesis(1j * waves.order[:, None, None] * waves.values)
  north = unit * around / np.maximum(np.cos(latitude), 0.05)
  coriolis = 2 * TURN * np.sin(latitude)
  # Balanced with the waves, and with the wind that carries them.
  height = 5500 * GRAVITY + RADIUS * (
    coriolis * stream - settings.westerly * TURN * np.sin(latitude) ** 2
  )
  east = east + settings.westerly * np.cos(latitude)
  season = 8 * np.sin(2 * np.pi * day / 365)[:, None, None] * np.sin(latitude)
  # Wind from the equator is warm, and so are ridges.
  wave = (np.sign(latitude) * north + np.sin(latitude) * stream) / SPEED
  warm = 288 - 35 * np.sin(latitude) ** 2 - season + 4 * wave
  return np.stack([height, east, north, warm], -1).astype(np.float32)


def continents(settings: Settings) -> Float[np.ndarray, 'h w 2']:
  """Land where a smooth random field is high, mountains where higher."""
  rng = np.random.default_rng([settings.seed, 1])
  rows, columns = settings.grid
  latitude = np.deg2rad(latitudes(rows))
  table = legendre(5, np.sin(latitude))
  longitude = 2 * np.pi * np.arange(columns) / columns
  height = sum(
    p[:, None] * np.cos(m * longitude + rng.uniform(0, 2 * np.pi))
    * rng.standard_normal() / degree
    for (degree, m), p in table.items() if degree
  )  # fmt: skip
  land = height > np.quantile(height, 0.7)
  mountains = 2e4 * np.maximum(height - np.quantile(height, 0.7), 0)
  return np.stack([land, mountains / (1 + height.std())], -1).astype(np.float32)
