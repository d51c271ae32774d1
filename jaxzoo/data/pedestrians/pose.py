"""Where a walking person's joints are, from the front, the back or a side."""

from typing import NamedTuple

import numpy as np

from jaxzoo.data.pedestrians.attributes import Person

_WIDTHS = {'slim': 0.84, 'average': 1.0, 'heavy': 1.26}


class Pose(NamedTuple):
  """Where the joints are. Index 0 is drawn first (the far one in profile)."""

  view: str  # front, back, left, right
  face: int  # in profile: -1 looks to the picture's left, else 1
  wide: float  # of the body, 1 on average
  shoulder: float  # half width of the shoulders as seen
  hip: float  # half width of the hips as seen
  arms: tuple  # two of (shoulder, elbow, hand)
  legs: tuple  # two of (hip, knee, ankle)
  sides: tuple  # of the two arms, the person's 'left' and 'right'


def raised(who: Person, side: str) -> bool:
  """Whether the hand of that side is held up with something in it."""
  return who.item_side == side and who.item in ('phone', 'cup', 'book')


def pose(who: Person, view: str, stride: float, lift: float) -> Pose:
  """The joints of a walking person.

  Args:
    who: whose build and hands matter.
    view: front, back, left (the left side is seen) or right.
    stride: -1..1, which foot is in front and how far.
    lift: 0..1, how high a hand with a phone, a cup or a book is held.
  """
  # The side to the picture's left, or away from the viewer, comes first.
  wide = _WIDTHS[who.build]
  frontal = view in ('front', 'back')
  face = -1 if view == 'left' else 1
  slender = 0.92 if who.gender == 'woman' else 1.0
  shoulder = (0.1 if frontal else 0.058) * wide * slender
  hip = (0.078 if frontal else 0.056) * wide
  if frontal:
    sides = ('right', 'left') if view == 'front' else ('left', 'right')
    limbs = _frontal(who, wide, shoulder, stride, lift, sides)
  else:
    sides = ('right', 'left') if view == 'left' else ('left', 'right')
    limbs = _profile(who, wide, face, stride, lift, sides)
  return Pose(view, face, wide, shoulder, hip, *limbs, sides)


def _frontal(who, wide, shoulder, stride, lift, sides):
  arms, legs = [], []
  for sign, side in zip((-1, 1), sides, strict=True):
    step = sign * stride
    x = sign * (shoulder - 0.014)
    if raised(who, side):
      hand = (sign * 0.045, 0.33 - 0.1 * lift)
      arm = ((x, 0.2), (sign * (shoulder + 0.026), 0.335), hand)
    else:
      out = sign * (shoulder + 0.018 + 0.012 * abs(stride))
      arm = ((x, 0.2), (out, 0.335), (out * 0.99, 0.465 - 0.012 * step))
    arms.append(arm)
    hip = sign * 0.04 * wide
    ankle = 0.948 + 0.014 * min(step, 0.4) + (0.03 * step if step < 0 else 0)
    legs.append(((hip, 0.5), (hip * 1.1, 0.735), (hip * 1.15, ankle)))
  return tuple(arms), tuple(legs)


def _profile(who, wide, face, stride, lift, sides):
  arms, legs = [], []
  for sign, side in zip((-1, 1), sides, strict=True):
    angle = 0.42 * sign * stride * face
    hip = np.array((0.0, 0.5))
    knee = hip + 0.238 * np.array((np.sin(angle), np.cos(angle)))
    behind = angle * face < 0
    shin = angle - face * (0.35 * abs(stride) if behind else 0.06)
    ankle = knee + 0.212 * np.array((np.sin(shin), np.cos(shin)))
    legs.append((hip, knee, ankle))
    shoulder = np.array((-0.006 * face, 0.205))
    swing = -0.75 * angle
    elbow = shoulder + 0.135 * np.array((np.sin(swing), np.cos(swing)))
    if raised(who, side):
      elbow = shoulder + (-0.01 * face, 0.13)
      hand = elbow + np.array((face * 0.1, -0.02 - 0.075 * lift))
    else:
      bend = swing + 0.25 * face
      hand = elbow + 0.125 * np.array((np.sin(bend), np.cos(bend)))
    arms.append((shoulder, elbow, hand))
  return tuple(arms), tuple(legs)
