"""Scenes of several shapes with the class of every pixel, embedded.

Three to five of the kinds of `shapes.py` lie before a textured ground with
clutter, the later over the earlier. Colours and textures tell nothing of the
class. Numbers measured on them compare methods with each other, never with
published results.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from jaxzoo.data import shapes
from jaxzoo.errors import UserError

NAMES = ('ground', *shapes.NAMES)
SPLITS = ('train', 'test')
_FINE = 2  # pictures are drawn this much larger


class Settings(NamedTuple):
  """What to draw. The same settings give the same pictures.

  Attributes:
    seed: of everything that is random.
    train: pictures to train on.
    test: others to test on.
    size: side in pixels.
    kinds: how many of the ten kinds of shapes there are.
    turn: the most that a shape is turned to either side, in degrees.
    clutter: how much of the small things on the ground is drawn, in [0, 1].
    bright: whether shapes are always brighter than the ground.
  """

  seed: int = 0
  train: int = 1500
  test: int = 500
  size: int = 64
  kinds: int = 5
  turn: float = 180.0
  clutter: float = 1.0
  bright: bool = False


class Scene(NamedTuple):
  """A picture and its classes; class 0 is the ground, with its clutter."""

  image: UInt8[np.ndarray, 'n n 3']
  classes: UInt8[np.ndarray, 'n n']


def draw(rng: np.random.Generator, settings: Settings = Settings()) -> Scene:
  """One scene."""
  side = _FINE * settings.size
  ground = shapes.random_colour(rng)
  while settings.bright and ground.sum() > 360:  # of 720 at the most
    ground = shapes.random_colour(rng)
  canvas = shapes.texture(rng, side, ground).copy(order='C')
  shapes.clutter(canvas, rng, round(settings.clutter * rng.integers(1, 5)))
  classes = np.zeros((side, side), np.uint8)
  for _ in range(rng.integers(3, 6)):
    label = int(rng.integers(settings.kinds))
    colour = shapes.random_colour(rng)
    while not _stands_out(colour, ground, settings.bright):
      colour = shapes.random_colour(rng)
    radius = side * rng.uniform(0.12, 0.24)
    centre = rng.uniform(radius, side - radius, 2)
    turn = shapes.random_pose(rng, settings.turn)
    mask = np.zeros((side, side), np.uint8)
    contours = shapes.SHAPES[shapes.NAMES[label]]
    shapes.fill(mask, [centre + radius * c @ turn for c in contours], 1)
    np.copyto(
      canvas, shapes.texture(rng, side, colour), where=mask[..., None] > 0
    )
    classes[mask > 0] = 1 + label
  size = (settings.size, settings.size)
  small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
  small = small * rng.uniform(0.8, 1.1)
  small += rng.normal(0, rng.uniform(2, 8), small.shape)
  return Scene(
    np.clip(small, 0, 255).astype(np.uint8),
    cv2.resize(classes, size, interpolation=cv2.INTER_NEAREST),
  )


def _stands_out(colour, ground, bright):
  return np.abs(colour - ground).sum() >= 120 and (
    not bright or colour.sum() > ground.sum()
  )


@functools.lru_cache(maxsize=4)
def load(settings: Settings, split: str) -> Scene:
  """All scenes of a split, stacked; drawn once a process, in seconds.

  Raises:
    UserError: no such split, or senseless settings.
  """
  if split not in SPLITS:
    raise UserError(f'scenes: no split {split!r}; there are train and test')
  if not 1 <= settings.kinds <= len(shapes.NAMES):
    raise UserError(
      f'scenes: kinds={settings.kinds}, it must be in 1..{len(shapes.NAMES)}'
    )
  if not 0 <= settings.turn <= 180 or not 0 <= settings.clutter <= 1:
    raise UserError(
      f'scenes: turn={settings.turn} must be in [0, 180], '
      f'clutter={settings.clutter} in [0, 1]'
    )
  if min(settings.train, settings.test) < 1 or settings.size < 16:
    raise UserError(f'scenes: {settings}: too few or too small pictures')
  number = SPLITS.index(split)
  drawn = [
    draw(np.random.default_rng((settings.seed, number, i)), settings)
    for i in range(getattr(settings, split))
  ]
  return Scene(*map(np.stack, zip(*drawn, strict=True)))
