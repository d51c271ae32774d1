"""Augmentation of training pictures for classification.

Transforms as in `transforms.py`: uint8 [h, w, 3] in and out, pure in (record,
rng). What published recipes do with Pillow gives Pillow's pixels here.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter

from jaxzoo.data.transforms import (
  INTERPOLATIONS,
  Transform,
  check_probability,
  check_size,
  filter_of,
)
from jaxzoo.errors import UserError

Picture = UInt8[np.ndarray, 'h w 3']


def random_resized_crop(
  height: int,
  width: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
  interpolation: str = 'bilinear',
  tries: int = 10,
) -> Transform:
  """A random part of the picture, resized to [height, width].

  Its share of the area is uniform in `scale`, its width over height
  log-uniform in `ratio`, its place uniform (Szegedy et al., arXiv 1409.4842).
  A part that does not fit is drawn again, up to `tries` times; then the
  largest one in the middle is taken whose proportions are in `ratio`.

  Args:
    height: of the result.
    width: of the result.
    scale: smallest and largest share, in (0, 1].
    ratio: smallest and largest width over height.
    interpolation: 'bilinear', 'bicubic' (anti-aliased both) or 'random', one
      of the two each time.
    tries: parts drawn before giving up.
  """
  check_size('random_resized_crop', height, width)
  for name, (low, high) in (('scale', scale), ('ratio', ratio)):
    if not 0 < low <= high:
      raise UserError(
        f'random_resized_crop: {name} must be a rising pair of positive '
        f'numbers, got ({low}, {high})'
      )
  choices = tuple(INTERPOLATIONS.values())
  if interpolation != 'random':
    choices = (filter_of('random_resized_crop', interpolation),)

  def transform(record, rng):
    image = record['image']
    top, left, rows, columns = _part(*image.shape[:2], scale, ratio, tries, rng)
    part = image[top : top + rows, left : left + columns]
    resample = choices[rng.integers(len(choices))]
    if part.shape[:2] != (height, width):
      part = np.asarray(Image.fromarray(part).resize((width, height), resample))
    return {**record, 'image': part}

  return transform


def _part(rows, columns, scale, ratio, tries, rng):
  """(top, left, height, width) of a random part of a picture."""
  for _ in range(tries):
    pixels = rows * columns * rng.uniform(*scale)
    shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    width = round(math.sqrt(pixels * shape))
    height = round(math.sqrt(pixels / shape))
    if 0 < width <= columns and 0 < height <= rows:
      top = int(rng.integers(0, rows - height + 1))
      left = int(rng.integers(0, columns - width + 1))
      return top, left, height, width
  height, width = rows, columns
  if columns / rows < ratio[0]:
    height = min(rows, round(columns / ratio[0]))
  elif columns / rows > ratio[1]:
    width = min(columns, round(rows * ratio[1]))
  return (rows - height) // 2, (columns - width) // 2, height, width


def noise(mean: Sequence[float], std: Sequence[float]):
  """A value for `random_erase`: N(0, 1) in every normalised pixel.

  The pixel mode of timm, which erases after normalisation: 255 (mean + std n)
  cut off at 0 and 255, as no picture has values beyond.
  """
  mean, std = np.asarray(mean), np.asarray(std)

  def fill(height, width, rng):
    values = mean + std * rng.standard_normal((height, width, 3))
    return np.clip(np.round(255 * values), 0, 255).astype(np.uint8)

  return fill


def color_jitter(
  brightness: float = 0.0,
  contrast: float = 0.0,
  saturation: float = 0.0,
  hue: float = 0.0,
  p: float = 1.0,
) -> Transform:
  """Brightness, contrast, saturation and hue, in random order.

  The first three by factors uniform in [max(0, 1 - x), 1 + x], the hue by a
  shift uniform in [-x, x] of the circle.

  Args:
    brightness: x of it.
    contrast: likewise.
    saturation: likewise.
    hue: likewise, at most 0.5.
    p: probability of changing anything.
  """
  check_probability('color_jitter', p)
  factors = {
    adjust_brightness: brightness,
    adjust_contrast: contrast,
    adjust_saturation: saturation,
  }
  if min(*factors.values(), hue) < 0 or hue > 0.5:
    raise UserError(
      'color_jitter: strengths must not be negative, and hue at most 0.5; got '
      f'{brightness}, {contrast}, {saturation} and {hue}'
    )

  def transform(record, rng):
    if rng.random() >= p:
      return record
    image = record['image']
    steps = [
      (adjust, rng.uniform(max(0.0, 1 - x), 1 + x))
      for adjust, x in factors.items()
      if x
    ]
    if hue:
      steps.append((adjust_hue, rng.uniform(-hue, hue)))
    for place in rng.permutation(len(steps)):
      adjust, amount = steps[place]
      image = adjust(image, amount)
    return {**record, 'image': image}

  return transform


def grayscale(channels: int = 3, p: float = 1.0) -> Transform:
  """The luma of the picture, in 1 channel or repeated in 3, with probability p.

  With one channel p must be 1.
  """
  check_probability('grayscale', p)
  if channels not in (1, 3) or (channels == 1 and p < 1):
    raise UserError(f'grayscale: channels={channels} with p={p}')

  def transform(record, rng):
    if rng.random() >= p:
      return record
    gray = luma(record['image'])[..., None]
    return {**record, 'image': np.repeat(gray, channels, axis=-1)}

  return transform


def gaussian_blur(
  sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5
) -> Transform:
  """Blurred with a standard deviation uniform in `sigma` pixels.

  Pillow's approximation, which contrastive recipes have used since SimCLR.
  """
  check_probability('gaussian_blur', p)
  if not 0 <= sigma[0] <= sigma[1]:
    raise UserError(
      f'gaussian_blur: sigma={sigma} is no rising pair of numbers from 0'
    )

  def transform(record, rng):
    if rng.random() >= p:
      return record
    radius = rng.uniform(*sigma)
    image = Image.fromarray(record['image'])
    blurred = image.filter(ImageFilter.GaussianBlur(radius))
    return {**record, 'image': np.asarray(blurred)}

  return transform


# Pixel operations. A factor of 1 leaves the picture as it is.


def luma(image: Picture) -> UInt8[np.ndarray, 'h w']:
  """ITU-R 601: 0.299 R + 0.587 G + 0.114 B, in 16 fixed bits as Pillow."""
  red, green, blue = np.moveaxis(image.astype(np.int32), -1, 0)
  sums = 19595 * red + 38470 * green + 7471 * blue
  return ((sums + 0x8000) >> 16).astype(np.uint8)


def blend(start, image: Picture, factor: float) -> Picture:
  """start + factor (image - start), cut off at 0 and 255, rounded down."""
  start = np.asarray(start, np.float32)
  mixed = start + np.float32(factor) * (image.astype(np.float32) - start)
  return np.clip(mixed, 0, 255).astype(np.uint8)


def adjust_brightness(image: Picture, factor: float) -> Picture:
  """From black at 0 towards brighter than it is."""
  return blend(0, image, factor)


def adjust_contrast(image: Picture, factor: float) -> Picture:
  """From the grey of the mean luma at 0 towards more contrast."""
  return blend(int(luma(image).mean() + 0.5), image, factor)


def adjust_saturation(image: Picture, factor: float) -> Picture:
  """From grey at 0 towards stronger colours."""
  return blend(luma(image)[..., None], image, factor)


def adjust_sharpness(image: Picture, factor: float) -> Picture:
  """From slightly smoothed at 0 towards sharper; the border stays."""
  kernel = np.ones((3, 3), np.float32)
  kernel[1, 1] = 5
  smooth = image.copy()
  if min(image.shape[:2]) > 2:
    inner = cv2.filter2D(np.ascontiguousarray(image), -1, kernel / 13)
    smooth[1:-1, 1:-1] = inner[1:-1, 1:-1]
  return blend(smooth, image, factor)


def adjust_hue(image: Picture, shift: float) -> Picture:
  """Turns the circle of hues by `shift`, 1 being all of it."""
  hue, saturation, value = Image.fromarray(image).convert('HSV').split()
  turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)  # wraps round
  bands = (Image.fromarray(turned), saturation, value)
  return np.asarray(Image.merge('HSV', bands).convert('RGB'))
