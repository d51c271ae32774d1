"""Backgrounds, light and camera of a simulated place."""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from jaxzoo.data.pedestrians.draw import Frame, arc


class Domain(NamedTuple):
  """How pictures of one place are taken. Ranges are (low, high)."""

  backgrounds: tuple
  ground: tuple  # brightness of walls and floors, 0..255
  gain: tuple  # of the light
  cast: tuple  # strength of red and of blue, 1 is neutral
  noise: tuple  # standard deviation, 0..255
  blur: tuple  # standard deviation in pixels of a picture 192 high
  size: tuple  # height of the person over that of the picture
  occlusion: float  # chance that something covers the feet


DOMAINS = {
  'street': Domain(
    backgrounds=('flat', 'gradient', 'wall', 'street', 'park'),
    ground=(70, 215),
    gain=(0.82, 1.12),
    cast=((0.95, 1.05), (0.95, 1.05)),
    noise=(1.0, 5.0),
    blur=(0.0, 0.7),
    size=(0.86, 0.96),
    occlusion=0.08,
  ),
  'day': Domain(
    backgrounds=('street', 'park', 'wall'),
    ground=(120, 235),
    gain=(1.0, 1.25),
    cast=((1.0, 1.06), (0.9, 1.0)),
    noise=(1.0, 4.0),
    blur=(0.0, 0.8),
    size=(0.76, 0.9),
    occlusion=0.12,
  ),
  'night': Domain(
    backgrounds=('street', 'flat', 'wall'),
    ground=(25, 90),
    gain=(0.55, 0.8),
    cast=((0.95, 1.15), (0.85, 1.1)),
    noise=(4.0, 9.0),
    blur=(0.4, 1.0),
    size=(0.84, 0.96),
    occlusion=0.08,
  ),
  'indoor': Domain(
    backgrounds=('tiles', 'gradient', 'flat'),
    ground=(120, 225),
    gain=(0.8, 1.05),
    cast=((1.02, 1.12), (0.84, 0.96)),
    noise=(1.0, 5.0),
    blur=(0.0, 0.8),
    size=(0.92, 1.0),
    occlusion=0.15,
  ),
}


def _dull(rng, where, spread=22):
  """A muted colour, so that the background does not outshine the clothes."""
  value = rng.uniform(*where.ground)
  colour = np.clip(value + rng.uniform(-spread, spread, 3), 0, 255)
  return tuple(int(channel) for channel in colour)


def _two_tones(canvas, rng, where):
  """Wall and floor; returns their border, a part of the height."""
  border = rng.uniform(0.5, 0.8)
  _rectangle(canvas, 0, 0, 1, 1, _dull(rng, where))
  _rectangle(canvas, 0, border, 1, 1, _dull(rng, where))
  return border


def background(
  rng: np.random.Generator, where: Domain, height: int, width: int
) -> np.ndarray:
  """An empty scene, uint8 RGB [height, width, 3]."""
  canvas = np.empty((height, width, 3), np.uint8)
  kind = where.backgrounds[int(rng.integers(len(where.backgrounds)))]
  if kind == 'flat':
    _two_tones(canvas, rng, where)
  elif kind == 'gradient':
    ends = np.stack([_dull(rng, where, 30) for _ in range(4)])
    corners = ends.reshape(2, 2, 3).astype(np.uint8)
    canvas = cv2.resize(corners, (width, height))
  elif kind == 'wall':
    _wall(canvas, rng, where)
  elif kind == 'street':
    _street(canvas, rng, where)
  elif kind == 'park':
    _park(canvas, rng, where)
  else:
    _tiles(canvas, rng, where)
  return np.ascontiguousarray(canvas)


def _rectangle(canvas, x0, y0, x1, y1, colour):
  """Fills a part of the canvas, given in parts of its width and height."""
  height, width = canvas.shape[:2]
  start = (int(x0 * width), int(y0 * height))
  stop = (int(x1 * width) - 1, int(y1 * height) - 1)
  if stop[0] >= start[0] and stop[1] >= start[1]:
    cv2.rectangle(canvas, start, stop, colour, -1)


def _wall(canvas, rng, where):
  """A wall with windows, a door or posters."""
  border = _two_tones(canvas, rng, where)
  for _ in range(int(rng.integers(2, 6))):
    x, y = rng.uniform(-0.2, 0.9), rng.uniform(0, border - 0.15)
    w, h = rng.uniform(0.15, 0.5), rng.uniform(0.06, 0.3)
    _rectangle(canvas, x, y, x + w, min(y + h, border), _dull(rng, where))


def _street(canvas, rng, where):
  """Houses behind a pavement, a kerb and at times a crossing."""
  border = _two_tones(canvas, rng, where)
  x = -0.1
  while x < 1:
    w = rng.uniform(0.2, 0.5)
    top = rng.uniform(0.0, 0.35)
    _rectangle(canvas, x, top, x + w, border, _dull(rng, where))
    x += w
  kerb = border + rng.uniform(0.02, 0.06)
  _rectangle(canvas, 0, border, 1, kerb, _dull(rng, where, 8))
  if rng.random() < 0.4:
    light = (min(255, where.ground[1] + 10),) * 3
    for y in np.arange(kerb + 0.03, 1.0, 0.09):
      _rectangle(canvas, 0, y, 1, y + 0.04, light)


def _park(canvas, rng, where):
  """Trees and grass, in dull greens."""
  border = _two_tones(canvas, rng, where)
  red, green, blue = _dull(rng, where, 10)
  grass = (int(red * 0.8), int(green * 0.95), int(blue * 0.7))
  _rectangle(canvas, 0, border, 1, 1, grass)
  height, width = canvas.shape[:2]
  for _ in range(int(rng.integers(6, 14))):
    x, y = rng.uniform(0, width), rng.uniform(0, border * height)
    radius = int(rng.uniform(0.06, 0.2) * width)
    value = rng.uniform(*where.ground) * 0.7
    colour = (value * 0.75, value, value * 0.6)
    cv2.circle(canvas, (int(x), int(y)), radius, colour, -1)


def _tiles(canvas, rng, where):
  """An indoor wall with a lamp band over a tiled floor."""
  border = _two_tones(canvas, rng, where)
  height, width = canvas.shape[:2]
  row = int(border * height)
  joint = [value * 0.85 for value in canvas[row + 1, 0].tolist()]
  for y in np.linspace(row, height, 6)[1:]:
    cv2.line(canvas, (0, int(y)), (width, int(y)), joint, 2)
  vanish = width * rng.uniform(0.2, 0.8)
  for x in np.linspace(-1.0, 2.0, 10) * width:
    start = (int(vanish + (x - vanish) * 0.5), row)
    cv2.line(canvas, start, (int(x), height), joint, 2)
  _rectangle(canvas, 0, 0.02, 1, 0.05, (250, 246, 232))
  if rng.random() < 0.5:
    x = rng.uniform(-0.1, 0.8)
    _rectangle(canvas, x, 0.2, x + 0.3, border, _dull(rng, where))


def shadow(frame: Frame) -> None:
  """Darkens the ground under the feet."""
  points = arc((0, 0.985), (0.13, 0.02)) * frame.size + (frame.x, frame.y)
  points = np.round(points).astype(np.int32)
  low, high = points.min(0), points.max(0) + 1
  low = np.maximum(low, 0)
  region = frame.canvas[low[1] : high[1], low[0] : high[0]]
  if region.size:
    mask = np.zeros(region.shape[:2], np.uint8)
    cv2.fillPoly(mask, [points - low], 1)
    cv2.copyTo(cv2.convertScaleAbs(region, alpha=0.62), mask, region)


def obstacle(rng, canvas: np.ndarray, part: float) -> None:
  """Covers the lowest `part` of the picture: a low wall or a box."""
  colour = rng.uniform(70, 170, 3)
  _rectangle(canvas, 0, 1 - part, 1, 1, colour.tolist())
  _rectangle(canvas, 0, 1 - part, 1, 1.02 - part, (colour * 0.7).tolist())


@functools.cache
def _grain(size):
  """Normal noise to cut pieces of `size` from: quicker than fresh noise."""
  rng = np.random.default_rng(0)
  return rng.standard_normal(size + 2**18, np.float32)


def camera(rng, where: Domain, image: np.ndarray) -> np.ndarray:
  """Uneven light, colour cast, blur and noise; uint8 to uint8."""
  height, width = image.shape[:2]
  red, blue = (rng.uniform(*limits) for limits in where.cast)
  cast = np.float32((red, 1.0, blue)) * rng.uniform(*where.gain)
  field = rng.uniform(0.88, 1.08, (3, 2, 1)) * cast
  field = cv2.resize(np.float32(field), (width, height))
  image = image * field
  sigma = rng.uniform(*where.blur) * height / 192
  if sigma > 0.2:
    image = cv2.GaussianBlur(image, (0, 0), sigma)
  grain = _grain(image.size)
  start = int(rng.integers(len(grain) - image.size))
  grain = grain[start : start + image.size].reshape(image.shape)
  image += np.float32(rng.uniform(*where.noise)) * grain
  return np.clip(image + 0.5, 0, 255).astype(np.uint8)
