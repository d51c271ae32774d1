"""Losses and scores of fields on a grid of latitudes and longitudes.

Fields are [..., h, w, v], latitudes from north to south, one variable a
channel. Spec baguan (arXiv 2505.13873, sections 4 and 5).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Of the surface; those of the upper air by their level, times a factor.
SURFACE_WEIGHTS = {'t2m': 0.2, 'u10': 0.15, 'v10': 0.15, 'msl': 0.15}
LEVEL_SUM = 6025  # of the 13 levels, hPa
LEVEL_FACTORS = {
  50: 0.1, 100: 0.2, 150: 0.4, 200: 3.2, 250: 0.6, 300: 0.8, 500: 1.6,
}  # fmt: skip
_UPPER = re.compile(r'[a-z]+_(\d+)')


def level_of(name: str) -> int:
  """The pressure level in hPa of a variable; 0 for one without.

  >>> level_of('z_500'), level_of('t2m')
  (500, 0)
  """
  match = _UPPER.fullmatch(name)
  return int(match[1]) if match else 0


def variable_weights(names: Sequence[str]) -> Float[np.ndarray, ' v']:
  """The weight of each variable in the loss; they add up to 1."""
  weights = []
  for name in names:
    level = level_of(name)
    own = level / LEVEL_SUM * LEVEL_FACTORS.get(level, 1.0)
    weights.append(SURFACE_WEIGHTS.get(name, own if level else 0.15))
  weights = np.asarray(weights)
  return (weights / weights.sum()).astype(np.float32)


def latitudes(rows: int) -> Float[np.ndarray, ' h']:
  """Degrees of the rows of the usual grids, from north to south.

  An odd number has both poles; 720 rows are 721 without the north pole;
  others are the centres of equal bands.
  """
  if rows == 720:
    return latitudes(721)[1:]
  if rows % 2:
    return np.linspace(90, -90, rows)
  return 90 - 180 / rows * (np.arange(rows) + 0.5)


def latitude_weights(
  degrees: Float[np.ndarray, ' h'],
) -> Float[np.ndarray, ' h']:
  """L(i) = cos(lat_i) / mean cos(lat): of the area of a row, mean 1."""
  area = np.cos(np.deg2rad(np.asarray(degrees, np.float64)))
  return (area / area.mean()).astype(np.float32)


def field_errors(
  forecast: Float[Array, '*b h w v'],
  truth: Float[Array, '*b h w v'],
  rows: Float[Array, ' h'],
  *,
  power: float = 0.5,
  squared: bool = False,
) -> Float[Array, ' v']:
  """The mean of L(i)^power |error| of each variable, or of its square.

  Args:
    forecast: of any type; the computation is in float32.
    truth: likewise.
    rows: L, see `latitude_weights`.
    power: the released code has 0.5, the paper 1.
    squared: in pre-training.
  """
  error = forecast.astype(jnp.float32) - truth.astype(jnp.float32)
  error = jnp.square(error) if squared else jnp.abs(error)
  weighted = error * (jnp.asarray(rows) ** power)[:, None, None]
  return weighted.mean(tuple(range(weighted.ndim - 1)))


class Scores(NamedTuple):
  """What RMSE and ACC are made of; those of disjoint samples add up.

  By sample, lead time and variable ([..., v]); f' and y' are anomalies of
  forecast and truth, L weights the sums marked with it.

  Attributes:
    rmse: sqrt(mean L (f - y)^2).
    fy: sum L f' y'.
    ff: sum L f'^2.
    yy: sum L y'^2.
    weighted_f: sum L f'.
    weighted_y: sum L y'.
    f: sum f'.
    y: sum y'.
    count: how many samples.
  """

  rmse: Float[Array, '*b v']
  fy: Float[Array, '*b v']
  ff: Float[Array, '*b v']
  yy: Float[Array, '*b v']
  weighted_f: Float[Array, '*b v']
  weighted_y: Float[Array, '*b v']
  f: Float[Array, '*b v']
  y: Float[Array, '*b v']
  count: Float[Array, '*b v']


def scores(
  forecast: Float[Array, '*b h w v'],
  truth: Float[Array, '*b h w v'],
  climatology: Float[Array, '*#b h w v'],
  rows: Float[Array, ' h'],
) -> Scores:
  """The scores of each sample, in the unit of its fields, float32."""
  weight = jnp.asarray(rows)[:, None, None]
  f = forecast.astype(jnp.float32) - climatology
  y = truth.astype(jnp.float32) - climatology
  mean = lambda x: x.mean((-3, -2))
  return Scores(
    rmse=jnp.sqrt(mean(weight * (f - y) ** 2)),
    fy=mean(weight * f * y),
    ff=mean(weight * f * f),
    yy=mean(weight * y * y),
    weighted_f=mean(weight * f),
    weighted_y=mean(weight * y),
    f=mean(f),
    y=mean(y),
    count=jnp.ones(f.shape[:-3] + f.shape[-1:]),
  )


def rmse_and_acc(
  total: Scores, *, centred: bool = True
) -> tuple[Float[Array, '*b v'], Float[Array, '*b v']]:
  """RMSE and anomaly correlation from summed scores.

  RMSE is the mean over the samples of each one's. ACC = sum L f'y' /
  sqrt(sum L f'^2 sum L y'^2) over all samples together.

  Args:
    total: summed over the samples.
    centred: the plain mean over samples and grid is taken off the anomalies
      first, as in the released code; the paper does not say so.
  """
  n = total.count
  fy, ff, yy = total.fy / n, total.ff / n, total.yy / n
  if centred:
    mf, my = total.f / n, total.y / n
    wf, wy = total.weighted_f / n, total.weighted_y / n
    # The mean of L is 1.
    fy = fy - mf * wy - my * wf + mf * my
    ff = ff - 2 * mf * wf + mf**2
    yy = yy - 2 * my * wy + my**2
  return total.rmse / n, fy / (ff * yy) ** 0.5
