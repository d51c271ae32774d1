"""Ten kinds of shapes, drawn: a small set of pictures to classify, embedded.

Every picture shows one shape in any pose, colour and texture, before a
textured ground with clutter, often partly hidden. Colour and texture tell
nothing of the class and the pose is free, so that the outline alone decides:
a linear model on pixels is not far above chance.

    images, labels = load(Settings(), 'train')

Numbers measured on them compare methods with each other, never with published
results.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from typing import NamedTuple

import cv2
import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8

from jaxzoo.data.pedestrians import cache_root
from jaxzoo.errors import UserError

VERSION = 1  # of the pictures that a seed gives
SPLITS = ('train', 'test')
_FINE = 2  # pictures are drawn this much larger
_SHIFT = 4  # fractional bits of OpenCV's coordinates


class Settings(NamedTuple):
  """What to draw. The same settings give the same pictures.

  Attributes:
    seed: of everything that is random.
    train: pictures to train on, in which the classes take turns.
    test: likewise, others to test on.
    size: side in pixels.
    turn: the most that a shape is turned to either side, in degrees.
    shift: how far from the middle a shape may lie, 1 being up to the border.
    clutter: how much of the small things around a shape is drawn, in [0, 1].
    hidden: share of the pictures with a bar across a part of the shape.
    texture: whether ground and shape have patterns, or one colour each.
    bright: whether the shape is always the brighter one of the two.
  """

  seed: int = 0
  train: int = 4000
  test: int = 2000
  size: int = 32
  turn: float = 180.0
  shift: float = 1.0
  clutter: float = 1.0
  hidden: float = 0.4
  texture: bool = True
  bright: bool = False


def _turns(count, radius=1.0, phase=0.0):
  """`count` points of a circle."""
  angle = 2 * np.pi * (np.arange(count) + phase) / count
  return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _star(points, inner):
  outline = np.empty((2 * points, 2))
  outline[::2], outline[1::2] = _turns(points), _turns(points, inner, 0.5)
  return outline


def _heart():
  t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
  x = 16 * np.sin(t) ** 3
  y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
  return np.stack([x, -y], -1) / 17


def _crescent():
  """The unit circle without one of 0.8 around (0.5, 0), which cut at x 0.61."""
  outer = np.linspace(np.arccos(0.61), 2 * np.pi - np.arccos(0.61), 30)
  first = np.arccos((0.61 - 0.5) / 0.8)
  inner = np.linspace(2 * np.pi - first, first, 24)
  points = lambda angle: np.stack([np.cos(angle), np.sin(angle)], -1)
  return np.concatenate([points(outer), 0.8 * points(inner) + [0.5, 0]])


# Class -> contours in the unit circle; a second contour is a hole.
SHAPES = {
  'arrow': (
    np.array(
      [
        [1, 0], [0.1, 0.8], [0.1, 0.3], [-1, 0.3],
        [-1, -0.3], [0.1, -0.3], [0.1, -0.8],
      ]
    ),
  ),
  'circle': (_turns(40),),
  'crescent': (_crescent(),),
  'cross': (
    np.array(
      [
        [1, 0.3], [0.3, 0.3], [0.3, 1], [-0.3, 1], [-0.3, 0.3], [-1, 0.3],
        [-1, -0.3], [-0.3, -0.3], [-0.3, -1], [0.3, -1], [0.3, -0.3], [1, -0.3],
      ]
    ),
  ),
  'heart': (_heart(),),
  'pentagon': (_turns(5),),
  'ring': (_turns(40), _turns(40, 0.55)),
  'square': (_turns(4),),
  'star': (_star(5, 0.42),),
  'triangle': (_turns(3),),
}  # fmt: skip
NAMES = tuple(SHAPES)


def random_pose(rng, turn=180.0):
  """A random turn, stretch and shear of the unit circle."""
  most = np.pi * turn / 180
  angle, shear = rng.uniform(-most, most), rng.uniform(-0.2, 0.2)
  turn = np.array(
    [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
  )
  stretch = np.diag([1.0, rng.uniform(0.75, 1.0)])
  return turn @ np.array([[1, shear], [0, 1]]) @ stretch


def fill(canvas, contours, colour):
  """Fills contours [n, 2] given in pixels; overlaps of two are holes."""
  fixed = [np.round(c * 2**_SHIFT).astype(np.int32) for c in contours]
  cv2.fillPoly(canvas, fixed, colour, shift=_SHIFT)


def random_colour(rng):
  """Any hue, neither black nor white."""
  hsv = np.uint8(
    [[[rng.integers(180), rng.integers(40, 230), rng.integers(60, 240)]]]
  )
  return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float32)


def texture(rng, side, colour):
  """`colour` mixed with another one in a pattern, float32 [side, side, 3]."""
  kind = rng.integers(4)
  if kind == 0:
    return np.broadcast_to(colour, (side, side, 3))
  y, x = np.mgrid[:side, :side].astype(np.float32) / side
  if kind == 3:  # blots
    coarse = rng.random((6, 6)).astype(np.float32)
    pattern = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
  else:  # stripes, checks
    angle, waves = rng.uniform(0, np.pi), rng.uniform(12, 40)
    u = np.cos(angle) * x + np.sin(angle) * y
    pattern = np.sin(waves * u + rng.uniform(0, 6))
    if kind == 2:
      v = np.cos(angle) * y - np.sin(angle) * x
      pattern = pattern * np.sin(waves * v)
    pattern = 0.5 + 0.5 * pattern
  other = np.clip(colour + rng.uniform(-60, 60, 3), 0, 255)
  return colour + pattern[..., None] * (other - colour).astype(np.float32)


def clutter(canvas, rng, count):
  """Small triangles, dots and lines."""
  side = len(canvas)
  for _ in range(count):
    colour, at = random_colour(rng).tolist(), rng.uniform(0, side, 2)
    kind, size = rng.integers(3), side * rng.uniform(0.04, 0.1)
    if kind == 0:
      fill(canvas, [at + size * _turns(3) @ random_pose(rng)], colour)
    elif kind == 1:
      cv2.circle(canvas, np.int32(at).tolist(), int(size), colour, -1)
    else:
      end = at + rng.uniform(-0.4, 0.4, 2) * side
      width = int(rng.integers(1, 2 + side // 20))
      cv2.line(
        canvas, np.int32(at).tolist(), np.int32(end).tolist(), colour, width
      )


def _hide(canvas, rng, centre, radius):
  """A bar across a part of the shape."""
  turn = random_pose(rng)
  middle = centre + rng.uniform(-0.6, 0.6, 2) * radius
  length, width = 2.5 * radius, rng.uniform(0.15, 0.35) * radius
  corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
  bar = middle + (corners * [length, width] / 2) @ turn
  fill(canvas, [bar], random_colour(rng).tolist())


def draw(
  label: int, rng: np.random.Generator, settings: Settings = Settings()
) -> UInt8[np.ndarray, 'n n 3']:
  """A picture of the class NAMES[label]."""
  size, side = settings.size, _FINE * settings.size
  pieces = lambda low, high: round(settings.clutter * rng.integers(low, high))
  paint = lambda colour: (
    texture(rng, side, colour)
    if settings.texture
    else np.broadcast_to(colour, (side, side, 3))
  )
  ground = random_colour(rng)
  colour = random_colour(rng)
  while np.abs(colour - ground).sum() < 200:
    colour = random_colour(rng)
  if settings.bright and colour.sum() < ground.sum():
    ground, colour = colour, ground
  canvas = paint(ground).copy(order='C')
  clutter(canvas, rng, pieces(1, 4))
  radius = side * rng.uniform(0.28, 0.45)
  room = settings.shift * (0.48 * side - radius)
  centre = side / 2 + rng.uniform(-1, 1, 2) * room
  mask = np.zeros((side, side), np.uint8)
  turn = random_pose(rng, settings.turn)
  contours = SHAPES[NAMES[label]]
  fill(mask, [centre + radius * c @ turn for c in contours], 1)
  np.copyto(canvas, paint(colour), where=mask[..., None] > 0)
  clutter(canvas, rng, pieces(0, 2))
  if rng.random() < settings.hidden:
    _hide(canvas, rng, centre, radius)
  small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
  if rng.random() < 0.3:
    small = cv2.GaussianBlur(small, (3, 3), 0.8)
  small = small * rng.uniform(0.7, 1.2)
  small += rng.normal(0, rng.uniform(2, 10), small.shape)
  return np.clip(small, 0, 255).astype(np.uint8)


def make(
  settings: Settings, split: str
) -> tuple[UInt8[np.ndarray, 'n s s 3'], Int32[np.ndarray, ' n']]:
  """The pictures of a split and their labels, drawn anew."""
  number = SPLITS.index(split)
  labels = np.arange(getattr(settings, split), dtype=np.int32) % len(NAMES)
  images = [
    draw(label, np.random.default_rng((settings.seed, number, i)), settings)
    for i, label in enumerate(labels)
  ]
  return np.stack(images), labels


def load(settings: Settings, split: str, root=None):
  """`make`, kept in a file below `root`, by default `cache_root()`.

  Raises:
    UserError: senseless settings, no such split, or the folder cannot be
      written.
  """
  _check(settings, split)
  root = cache_root() if root is None else root
  key = json.dumps([VERSION, split, *settings])
  digest = hashlib.sha256(key.encode()).hexdigest()[:10]
  path = root / f'shapes-{digest}.npz'
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return arrays['images'], arrays['labels']
  except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
    pass  # not there, or damaged: drawn anew
  logging.info('shapes: drawing %s, some seconds', path)
  images, labels = make(settings, split)
  try:
    root.mkdir(parents=True, exist_ok=True)
    file, part = tempfile.mkstemp(prefix=f'.{path.stem}-', dir=root)
    with os.fdopen(file, 'wb') as stream:
      np.savez(stream, images=images, labels=labels)
    os.replace(part, path)  # whole or not at all
  except OSError as error:
    raise UserError(
      f'shapes: cannot write to {root}: {error.strerror or error}; set '
      'JAXZOO_DATA to a folder that you may write to'
    ) from error
  return images, labels


def _check(settings, split):
  least = {'seed': 0, 'train': 1, 'test': 1, 'size': 8}
  for name, low in least.items():
    value = getattr(settings, name)
    if value != int(value) or value < low:
      raise UserError(
        f'shapes: {name}={value}, it must be an integer from {low} up'
      )
  most = {'turn': 180, 'shift': 1, 'clutter': 1, 'hidden': 1}
  for name, high in most.items():
    value = getattr(settings, name)
    if not 0 <= value <= high:
      raise UserError(f'shapes: {name}={value}, it must be in [0, {high}]')
  if split not in SPLITS:
    raise UserError(f'shapes: no split {split!r}; there are train and test')
