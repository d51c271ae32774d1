"""Names and places of Baguan's variables, and their fixed codes (spec baguan)."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxzoo.models.losses.weather import level_of

CONSTANTS = (
  'land_sea_mask',
  'geopotential_at_surface',
  'angle_of_sub_gridscale_orography',
  'anisotropy_of_sub_gridscale_orography',
  'lake_cover',
  'soil_type',
)
SURFACE = ('u10', 'v10', 't2m', 'msl')
UPPER = ('z', 'q', 't', 'u', 'v')
LEVELS = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
# As data has them, and as tables of the network have them.
DYNAMIC = (*SURFACE, *(f'{v}_{level}' for v in UPPER for level in LEVELS))
VARIABLES = (
  *CONSTANTS,
  *(f'{v}_{level}' for level in LEVELS for v in UPPER),
  *SURFACE,
)


def internal_order(names: Sequence[str]) -> tuple[str, ...]:
  """Constants, then the upper air level by level, then the surface.

  >>> internal_order(['t2m', 'z_850', 'u_500', 'z_500', 'lake_cover'])
  ('lake_cover', 'z_500', 'u_500', 'z_850', 't2m')
  """
  place = {name: i for i, name in enumerate(VARIABLES)}
  upper = {name: i for i, name in enumerate(UPPER)}

  def key(name):
    level = level_of(name)
    if level:
      return 1, level, upper.get(name.rpartition('_')[0], len(UPPER)), name
    known = place.get(name, len(VARIABLES))
    return 0 if name in CONSTANTS else 2, 0, known, name

  return tuple(sorted(names, key=key))


def sincos(places: Float[np.ndarray, ' n'], width: int) -> np.ndarray:
  """Sines, then cosines, of p 10000^(-k / (width / 2)); [n, width]."""
  rates = 10000.0 ** (-np.arange(width // 2) / (width // 2))
  angle = np.asarray(places, np.float64)[:, None] * rates
  return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


def grid_sincos(grid: tuple[int, int], width: int) -> np.ndarray:
  """The code of the column, then that of the row, half the width each."""
  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  halves = [sincos(column, width // 2), sincos(row, width // 2)]
  return np.concatenate(halves, 1)


def height_index(name: str) -> int:
  """hPa / 25 + 1; 0 at the surface, for constants and at 1000 hPa."""
  level = level_of(name)
  return level // 25 + 1 if 0 < level < 1000 else 0


def volume_sincos(
  grid: tuple[int, int], heights: Sequence[int], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """A code of (row, column, height), as a sum of two.

  Each axis has c = 2 ceil(width / 6) numbers, sine and cosine of
  p 10000^(-k / c), k = 0, 2, ..., in turn; all are cut to the width.

  Returns:
    [n, width] of the patches, whose last part is 0, and [heights, width],
    whose first is.
  """
  c = 2 * math.ceil(width / 6)
  rates = 10000.0 ** (-np.arange(0, c, 2) / c)

  def code(places):
    angle = np.asarray(places, np.float64)[:, None] * rates
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(-1, c)

  row, column = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
  patch = np.concatenate([code(row), code(column), np.zeros((len(row), c))], 1)
  high = np.concatenate([np.zeros((len(heights), 2 * c)), code(heights)], 1)
  cut = lambda x: x[:, :width].astype(np.float32)
  return cut(patch), cut(high)


def to_patches(
  field: Float[Array, 'b h w v'], patch: int
) -> Float[Array, 'b n v p']:
  """Patches row by row; the points of each row by row, for each variable."""
  b, h, w, v = field.shape
  x = field.reshape(b, h // patch, patch, w // patch, patch, v)
  x = x.transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, h // patch * (w // patch), v, patch * patch)


def from_patches(
  patches: Float[Array, 'b n v p'], grid: tuple[int, int], patch: int
) -> Float[Array, 'b h w v']:
  """`to_patches` undone."""
  b, _, v, _ = patches.shape
  x = patches.reshape(b, *grid, v, patch, patch).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, grid[0] * patch, grid[1] * patch, v)


def lead_code(lead: Float[Array, ' b'], width: int = 256) -> Array:
  """Cosines, then sines, of lead 10000^(-k / (width / 2)); [b, width]."""
  rates = 10000.0 ** (-jnp.arange(width // 2) / (width // 2))
  angle = lead.astype(jnp.float32)[:, None] * rates
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], 1)
