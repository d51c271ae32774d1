"""RandAugment (Cubuk et al., arXiv 1909.13719) in timm's parametrisation.

    rand_augment('rand-m9-mstd0.5-inc1')

Two operations of fifteen for every picture, each with probability 1/2, with a
magnitude drawn around 9 of 10. Pixels are Pillow's.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from jaxzoo.data import augment
from jaxzoo.data.augment import Picture
from jaxzoo.data.transforms import INTERPOLATIONS, Transform, filter_of
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards.card import IMAGENET_MEAN

LEVELS = 10  # the magnitude at which operations are at their strongest


class Policy(NamedTuple):
  """What 'rand-m9-n2-p0.5-mstd0.5-mmax10-inc1' says.

  Attributes:
    m: mean of the magnitude, of 10.
    n: operations a picture, drawn with replacement.
    p: probability of each being done.
    mstd: standard deviation of the magnitude; above 100: uniform in [0, m].
    mmax: largest magnitude.
    inc: 1 for operations that all grow with the magnitude; 0 for those of the
      paper, where some are weakest at 10 or in between.
  """

  m: float = 10.0
  n: int = 2
  p: float = 0.5
  mstd: float = 0.0
  mmax: float = LEVELS
  inc: int = 0


def parse(text: str) -> Policy:
  """The policy of 'rand-m9-mstd0.5-inc1'.

  >>> parse('rand-m9-mstd0.5-inc1')
  Policy(m=9.0, n=2, p=0.5, mstd=0.5, mmax=10, inc=1)

  Raises:
    UserError: not of that form, or out of range.
  """
  kind, *sections = text.split('-')
  if kind != 'rand':
    raise UserError(
      f'randaugment={text!r}: write it as in rand-m9-mstd0.5-inc1'
    )
  policy = Policy()
  for section in sections:
    match = re.fullmatch(r'([a-z]+)(\d+(?:\.\d+)?)', section)
    name = match[1] if match else section
    if not match or name not in Policy._fields:
      raise UserError(
        f'randaugment={text!r}: {section!r}; ' + nearest(name, Policy._fields)
      )
    value = int(float(match[2])) if name in ('n', 'inc') else float(match[2])
    policy = policy._replace(**{name: value})
  if not 0 <= policy.p <= 1 or policy.m > policy.mmax:
    raise UserError(
      f'randaugment={text!r}: p must be at most 1, m at most {policy.mmax:g}'
    )
  return policy


def rand_augment(
  text: str,
  interpolation: str = 'random',
  fill: Sequence[float] = IMAGENET_MEAN,
) -> Transform:
  """RandAugment as a transform.

  Args:
    text: see `parse`.
    interpolation: of geometric operations: 'bilinear', 'bicubic' or 'random'.
    fill: RGB in [0, 1] of what comes in from outside the picture.
  """
  policy = parse(text)
  filters = tuple(INTERPOLATIONS.values())
  if interpolation != 'random':
    filters = (filter_of('rand_augment', interpolation),)
  colour = tuple(min(255, round(255 * x)) for x in fill)
  operations = make_operations(bool(policy.inc))

  def transform(record, rng):
    image = record['image']
    for place in rng.integers(len(operations), size=policy.n):
      if rng.random() > policy.p:
        continue
      level = _level(policy, rng)
      resample = filters[rng.integers(len(filters))]
      image = operations[place](image, level, rng, resample, colour)
    return {**record, 'image': image}

  return transform


def _level(policy: Policy, rng) -> float:
  """A magnitude in [0, mmax]."""
  level = policy.m
  if policy.mstd > 100:
    level = rng.uniform(0, level)
  elif policy.mstd > 0:
    level = rng.normal(level, policy.mstd)
  return float(np.clip(level, 0, policy.mmax))


def make_operations(increasing: bool) -> tuple[Callable, ...]:
  """The fifteen: (image, level of 10, rng, resample, colour) -> image."""
  factor = _growing_factor if increasing else _factor
  strength = lambda most, level: int(level / LEVELS * most)

  def pixels(function):
    return lambda image, level, rng, resample, colour: function(image)

  def enhanced(function):
    return lambda image, level, rng, resample, colour: function(
      image, factor(level, rng)
    )

  def posterized(image, level, rng, resample, colour):
    bits = strength(4, level)
    return posterize(image, 4 - bits if increasing else bits)

  def solarized(image, level, rng, resample, colour):
    threshold = min(256, strength(256, level))
    return solarize(image, 256 - threshold if increasing else threshold)

  def brightened(image, level, rng, resample, colour):
    return solarize_add(image, min(128, strength(110, level)))

  def moved(matrix):
    """matrix: (amount, image) -> affine map from result to source."""
    return lambda most: (
      lambda image, level, rng, resample, colour: affine(
        image,
        matrix(_signed(level / LEVELS * most, rng), image),
        resample,
        colour,
      )
    )

  def rotated(image, level, rng, resample, colour):
    degrees = _signed(level / LEVELS * 30, rng)
    turned = Image.fromarray(image).rotate(degrees, resample, fillcolor=colour)
    return np.asarray(turned)

  return (
    pixels(autocontrast),
    pixels(equalize),
    pixels(invert),
    rotated,
    posterized,
    solarized,
    brightened,
    enhanced(augment.adjust_saturation),
    enhanced(augment.adjust_contrast),
    enhanced(augment.adjust_brightness),
    enhanced(augment.adjust_sharpness),
    moved(lambda x, image: (1, x, 0, 0, 1, 0))(0.3),
    moved(lambda x, image: (1, 0, 0, x, 1, 0))(0.3),
    moved(lambda x, image: (1, 0, x * image.shape[1], 0, 1, 0))(0.45),
    moved(lambda x, image: (1, 0, 0, 0, 1, x * image.shape[0]))(0.45),
  )


def _signed(value: float, rng) -> float:
  return -value if rng.random() > 0.5 else value


def _factor(level: float, rng) -> float:
  """0.1 at level 0, 1 (nothing happens) at 5, 1.9 at 10."""
  del rng
  return level / LEVELS * 1.8 + 0.1


def _growing_factor(level: float, rng) -> float:
  """1 at level 0, 0.1 or 1.9 at 10."""
  return max(0.1, 1 + _signed(level / LEVELS * 0.9, rng))


# Operations by a table: what each of the 256 values becomes.


def invert(image: Picture) -> Picture:
  """255 - x."""
  return 255 - image


def posterize(image: Picture, bits: int) -> Picture:
  """The upper `bits` of each value, 0 to 8."""
  return image & np.uint8(256 - 2 ** (8 - bits))


def solarize(image: Picture, threshold: int) -> Picture:
  """Values from `threshold` on are inverted."""
  values = np.arange(256)
  return _looked_up(image, np.where(values < threshold, values, 255 - values))


def solarize_add(image: Picture, amount: int, threshold: int = 128) -> Picture:
  """`amount` more for values below `threshold`."""
  values = np.arange(256)
  brighter = np.minimum(values + amount, 255)
  return _looked_up(image, np.where(values < threshold, brighter, values))


def autocontrast(image: Picture) -> Picture:
  """Each channel stretched over 0..255."""
  tables = []
  for channel in range(3):
    low, high = image[..., channel].min(), image[..., channel].max()
    table = np.arange(256.0)
    if low < high:
      scale = 255 / (float(high) - float(low))
      table = np.trunc(table * scale - float(low) * scale)
    tables.append(np.clip(table, 0, 255))
  return _looked_up(image, np.stack(tables, -1)[None])


def equalize(image: Picture) -> Picture:
  """Each channel with as uniform a histogram as a table can make it."""
  tables = []
  for channel in range(3):
    counts = np.bincount(image[..., channel].ravel(), minlength=256)
    used = counts[counts > 0]
    step = (used.sum() - used[-1]) // 255
    table = np.arange(256)
    if len(used) > 1 and step:
      below = np.concatenate([[0], np.cumsum(counts)[:-1]])
      table = (step // 2 + below) // step
    tables.append(np.clip(table, 0, 255))
  return _looked_up(image, np.stack(tables, -1)[None])


def _looked_up(image, table) -> Picture:
  """table[image], of one table [256] or one a channel [1, 256, 3]."""
  return cv2.LUT(np.ascontiguousarray(image), table.astype(np.uint8))


def affine(image: Picture, matrix, resample, colour) -> Picture:
  """The picture at (a x + b y + c, d x + e y + f), `colour` outside of it."""
  size = image.shape[1], image.shape[0]
  moved = Image.fromarray(image).transform(
    size, Image.Transform.AFFINE, matrix, resample, fillcolor=colour
  )
  return np.asarray(moved)
