"""Solar plants under moving clouds, embedded.

Clouds are random waves that drift with a wind and change as they go, above a
cover that comes and goes in days. A satellite sees them, with noise; plants
turn what comes through into power; a weather forecast knows the large clouds
of the next day, but not quite where they will be. Each of the three tells
something that the others do not. Drawn by NumPy's frozen generator.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxzoo.data.sources.plants import Plants, Site, Weather
from jaxzoo.errors import UserError

START = np.datetime64('2021-03-01T00', 'h')
CENTRE = (38.0, 100.0)  # latitude, longitude
SPAN = 4.0  # degrees to either side
WAVES = 48
COLUMNS = ('ghi', 'cloud', 't2m', 'u', 'v', 'humidity', 'lat', 'lon')


class Settings(NamedTuple):
  """What to draw. The same settings give the same plants.

  Attributes:
    seed: of everything that is random.
    days: of the series.
    sites: plants.
    size: pixels of a frame, each way.
    noise: deviation of what is added to a pixel, whose own is about 0.3.
    wind: half widths of the frame that clouds drift in an hour.
    lifetime: hours in which clouds change.
    misplaced: deviation of a day's weather forecast from the place of clouds,
      in half widths of the frame.
  """

  seed: int = 0
  days: int = 120
  sites: int = 12
  size: int = 16
  noise: float = 0.1
  wind: float = 0.04
  lifetime: float = 30.0
  misplaced: float = 0.35


class Sky(NamedTuple):
  """Waves of cloud: sum_k Re(a_k(t) exp(i k (x - drift(t)))) + cover(t).

  Attributes:
    numbers: k, [m, 2], in half widths of the frame.
    amplitudes: complex [t, m].
    drift: [t, 2].
    cover: [t].
  """

  numbers: Float[np.ndarray, 'm 2']
  amplitudes: np.ndarray
  drift: Float[np.ndarray, 't 2']
  cover: Float[np.ndarray, ' t']


def load(settings: Settings = Settings()) -> Plants:
  """The plants; sites in random order of place, all equally long.

  Raises:
    UserError: fewer than 4 days, or no site.
  """
  if settings.days < 4 or settings.sites < 1 or settings.size < 2:
    raise UserError(f'{settings}: 4 days, one site and 2 pixels at least')
  rng = np.random.default_rng(settings.seed)
  hours = 24 * settings.days
  sky = draw_sky(rng, hours, settings)
  grid = np.linspace(-1, 1, settings.size)
  # Rows from north to south.
  pixels = np.stack(np.meshgrid(-grid, grid, indexing='ij'), -1)
  frames = cloud(sky, pixels.reshape(-1, 2)).reshape(hours, *pixels.shape[:2])
  frames = frames + settings.noise * rng.standard_normal(frames.shape)
  places = rng.uniform(-0.7, 0.7, (settings.sites, 2))
  truth = cloud(sky, places)
  # A day's forecast has its own error of place, the same for all cells.
  shift = settings.misplaced * rng.standard_normal((settings.days, 2))
  shift = np.repeat(shift, 24, 0)
  foreseen = cloud(sky, places, shift, smooth=True)
  foreseen = np.clip(foreseen + 0.05 * rng.standard_normal(truth.shape), 0, 1)
  degrees = CENTRE + SPAN * places
  sites, cells = [], []
  for i, place in enumerate(degrees):
    power = plant_power(rng, place, truth[:, i])
    sites.append(Site(f'plant {i}', tuple(map(float, place)), START, power, i))
    cells.append(Weather(START, forecast(rng, sky, place, foreseen[:, i])))
  return Plants(
    f'plants {tuple(settings)}',
    frames[..., None].astype(np.float32),
    CENTRE + SPAN * pixels,
    START,
    tuple(sites),
    tuple(cells),
    COLUMNS,
  )


def wander(rng, steps: int, time: float, shape=()) -> np.ndarray:
  """x' = r x + sqrt(1 - r^2) noise with r = exp(-1 / time): variance 1."""
  keep = np.exp(-1 / time)
  noise = rng.standard_normal((steps, *shape))
  x = np.empty_like(noise)
  x[0] = noise[0]
  for t in range(1, steps):
    x[t] = keep * x[t - 1] + np.sqrt(1 - keep**2) * noise[t]
  return x


def draw_sky(rng, hours: int, settings: Settings) -> Sky:
  """Clouds of wavelengths from about one width of the frame to a fifth."""
  length = rng.uniform(0.4, 2.0, WAVES)
  angle = rng.uniform(0, 2 * np.pi, WAVES)
  numbers = (
    2 * np.pi / length[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)
  )
  parts = wander(rng, hours, settings.lifetime, (WAVES, 2))
  amplitudes = (parts @ [1, 1j]) * length * 0.35 / np.sqrt(WAVES)
  # From west to east, with turns that last days.
  wind = settings.wind * (
    np.array([0.0, 1.0]) + 0.3 * wander(rng, hours, 60.0, (2,))
  )
  cover = 0.3 + 0.3 * wander(rng, hours, 40.0)
  return Sky(numbers, amplitudes, np.cumsum(wind, 0), cover)


def cloud(
  sky: Sky,
  places: Float[np.ndarray, 'n 2'],
  shift: Float[np.ndarray, 't 2'] | float = 0.0,
  *,
  smooth: bool = False,
) -> Float[np.ndarray, 't n']:
  """Cloud cover in [0, 1] at places in half widths of the frame.

  Args:
    sky: the clouds.
    places: latitude and longitude, in [-1, 1] within the frame.
    shift: of the clouds.
    smooth: short waves are left out, and two thirds of the change of the cover
      are known.
  """
  numbers, amplitudes, cover = sky.numbers, sky.amplitudes, sky.cover
  if smooth:
    long = np.linalg.norm(numbers, axis=-1) < 2 * np.pi / 0.9
    numbers, amplitudes = numbers[long], amplitudes[:, long]
    cover = 0.3 + (cover - 0.3) * 2 / 3
  here = np.exp(1j * (numbers @ places.T))
  moved = np.exp(-1j * ((sky.drift + shift) @ numbers.T))
  waves = ((amplitudes * moved) @ here).real
  return np.clip(cover[:, None] + waves, 0, 1)


def hours_of(count: int) -> tuple[np.ndarray, np.ndarray]:
  """(day of the year, hour in the middle) of each row."""
  times = START + np.arange(count)
  days = times.astype('datetime64[D]')
  year = days.astype('datetime64[Y]').astype('datetime64[D]')
  return (days - year).astype(int) + 1, (times - days).astype(int) + 0.5


def sun(
  place: Float[np.ndarray, '2'], count: int
) -> tuple[Float[np.ndarray, ' n'], Float[np.ndarray, ' n']]:
  """(sine of the sun's height, hour angle), hours by the sun at the centre."""
  day, hour = hours_of(count)
  latitude = np.deg2rad(place[0])
  tilt = np.deg2rad(23.44) * np.sin(2 * np.pi * (284 + day) / 365)
  angle = np.deg2rad(15 * (hour - 12) + place[1] - CENTRE[1])
  height = np.sin(latitude) * np.sin(tilt) + np.cos(latitude) * np.cos(
    tilt
  ) * np.cos(angle)
  return height, angle


def irradiance(height, cover) -> Float[np.ndarray, ' n']:
  """W/m2 on level ground: Haurwitz' clear sky, Kasten and Czeplak's clouds."""
  up = np.maximum(height, 1e-3)
  clear = np.where(height > 0, 1098 * up * np.exp(-0.057 / up), 0)
  return clear * (1 - 0.75 * cover**3.4)


def temperature(height, cover, count) -> Float[np.ndarray, ' n']:
  """Degrees Celsius: by the season, the sun and the clouds."""
  day, _ = hours_of(count)
  season = 12 + 12 * np.sin(2 * np.pi * (day - 110) / 365)
  return season + 8 * np.maximum(height, 0) * (1 - 0.5 * cover)


def plant_power(rng, place, cover) -> Float[np.ndarray, ' n']:
  """MW of a plant of its own size and orientation, with noise; at least 0."""
  height, angle = sun(place, len(cover))
  capacity, turned = rng.uniform(0.6, 1.0), rng.uniform(-0.4, 0.4)
  panel = temperature(height, cover, len(cover)) + 25 * np.maximum(height, 0)
  power = irradiance(height, cover) / 1000 * (1 + turned * np.sin(angle))
  power = capacity * power * (1 - 0.004 * (panel - 25))
  power = power * (1 + 0.05 * rng.standard_normal(len(cover)))
  return np.clip(power, 0, capacity)


def forecast(rng, sky: Sky, place, cover) -> Float[np.ndarray, 'n k']:
  """The weather forecast of `COLUMNS` for a place whose cover it has foreseen.

  All of it was made a day ahead: nothing is measured.
  """
  count = len(cover)
  height, _ = sun(place, count)
  wind = np.gradient(sky.drift, axis=0) * 300  # about km/h
  wind = wind + 2 * rng.standard_normal(wind.shape)
  warm = temperature(height, cover, count) + rng.standard_normal(count)
  humidity = 40 + 40 * cover + 5 * rng.standard_normal(count)
  columns = (
    irradiance(height, cover), cover, warm, wind[:, 1], wind[:, 0], humidity,
    np.full(count, round(place[0], 1)), np.full(count, round(place[1], 1)),
  )  # fmt: skip
  return np.stack(columns, -1)
