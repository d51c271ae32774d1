"""Shapes on a canvas, in units of the drawn person's height.

A person stands on x = 0 with the top of the head at y = 0 and the soles at
y = 1. A `Frame` says where on the canvas that is.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

_SHIFT = 4  # OpenCV's fixed point: 1/16 of a pixel


class Frame(NamedTuple):
  """A canvas and the place of the person on it."""

  canvas: np.ndarray  # uint8 [h, w, 3], RGB, drawn into
  size: float  # pixels from the top of the head to the soles
  x: float  # pixel column of the person's middle
  y: float  # pixel row of the top of the head


class Cloth(NamedTuple):
  """A colour, or a pattern in two colours."""

  colour: tuple
  pattern: str = 'plain'
  accent: tuple = ()


def _pixels(frame, points):
  points = np.asarray(points) * frame.size + (frame.x, frame.y)
  return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def darker(colour, factor=0.72):
  return tuple(int(value * factor) for value in colour)


def polygon(frame, points, colour, edge=True):
  """Fills a polygon; a darker edge parts it from what lies behind."""
  pixels = _pixels(frame, points)
  cv2.fillPoly(frame.canvas, [pixels], colour, cv2.LINE_AA, _SHIFT)
  if edge:
    shade = darker(colour)
    cv2.polylines(frame.canvas, [pixels], True, shade, 1, cv2.LINE_AA, _SHIFT)


def line(frame, points, width, colour):
  """An open line; `width` in units of the person's height."""
  pixels = _pixels(frame, points)
  width = max(1, round(width * frame.size))
  cv2.polylines(
    frame.canvas, [pixels], False, colour, width, cv2.LINE_AA, _SHIFT
  )


@functools.lru_cache(maxsize=256)
def _unit_arc(start, stop, count):
  angle = np.radians(np.linspace(start, stop, count))
  return np.stack([np.cos(angle), np.sin(angle)], -1)


def arc(centre, radii, start=0.0, stop=360.0, count=16):
  """Points on an ellipse; 0 degrees is right, 90 is down."""
  return _unit_arc(start, stop, count) * radii + centre


def ellipse(frame, centre, radii, colour, edge=True):
  polygon(frame, arc(centre, radii), colour, edge)


def limb(p, q, start, stop):
  """The outline of a tapered rod from p to q with round ends."""
  x, y = q[0] - p[0], q[1] - p[1]
  length = math.hypot(x, y) or 1.0
  x, y = x / length, y / length
  turn = np.array(((x, y), (-y, x)))
  far = _unit_arc(-90.0, 90.0, 6) @ (stop * turn) + q
  return np.concatenate([far, _unit_arc(90.0, 270.0, 6) @ (start * turn) + p])


def box(x0, y0, x1, y1, round_by=0.0):
  """A rectangle, its corners cut by `round_by`."""
  r = round_by
  if not r:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
  return np.array(
    [
      (x0 + r, y0),
      (x1 - r, y0),
      (x1, y0 + r),
      (x1, y1 - r),
      (x1 - r, y1),
      (x0 + r, y1),
      (x0, y1 - r),
      (x0, y0 + r),
    ]
  )


def _accented(pattern, u, v):
  """Where a pattern shows its second colour, at points (u, v)."""
  if pattern == 'stripes':
    return ((v % 0.058) < 0.026) & (u == u)
  if pattern == 'vertical stripes':
    return ((u % 0.042) < 0.016) & (v == v)
  if pattern == 'checks':
    return ((u % 0.056) < 0.028) ^ ((v % 0.056) < 0.028)
  if pattern == 'dots':
    row = np.floor(v / 0.036)
    across = (u + 0.021 * (row % 2)) % 0.042 - 0.021
    return across**2 + (v % 0.036 - 0.018) ** 2 < 0.0125**2
  raise ValueError(f'unknown pattern {pattern!r}')


def cloth(frame, points, stuff):
  """Fills a polygon with a cloth. 'block' changes colour at y = 0.35."""
  pattern = stuff.pattern
  polygon(frame, points, stuff.colour)
  if pattern not in ('stripes', 'vertical stripes', 'checks', 'dots', 'block'):
    return
  height, width = frame.canvas.shape[:2]
  pixels = _pixels(frame, points)
  low = np.maximum((pixels.min(0) >> _SHIFT) - 1, 0)
  high = (pixels.max(0) >> _SHIFT) + 2
  high = np.minimum(high, (width, height))
  if (high <= low).any():
    return
  mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
  cv2.fillPoly(mask, [pixels - (low << _SHIFT)], 1, cv2.LINE_8, _SHIFT)
  u = (np.arange(low[0], high[0]) + 0.5 - frame.x) / frame.size
  v = (np.arange(low[1], high[1]) + 0.5 - frame.y)[:, None] / frame.size
  if pattern == 'block':
    on = np.broadcast_to(v > 0.35, mask.shape)
  else:
    on = _accented(pattern, u[None], v)
  region = frame.canvas[low[1] : high[1], low[0] : high[0]]
  region[on & (mask > 0)] = stuff.accent
