"""Draws bags and the things that hands hold."""

from jaxzoo.data.pedestrians.draw import (
  arc,
  box,
  darker,
  ellipse,
  limb,
  line,
  polygon,
)


def in_hand(frame, who, at, tones, side, hand):
  """What hangs from a hand: a bag, a suitcase, a closed umbrella."""
  x, y = hand
  if who.item == 'umbrella' and who.item_side == side:
    colour = tones[who.item_colour]
    tip = (x + 0.02 * at.face, y + 0.3)
    polygon(frame, limb((x, y + 0.03), tip, 0.022, 0.006), colour)
    line(frame, [(x, y - 0.025), (x, y + 0.03)], 0.01, (60, 44, 32))
  if who.bag_side != side or who.bag == 'crossbody bag':
    return
  colour = tones[who.bag_colour]
  if who.bag == 'handbag':
    line(frame, arc((x, y + 0.055), (0.03, 0.05), 180, 360, 8), 0.01, colour)
    points = [(x - 0.042, y + 0.055), (x + 0.042, y + 0.055)]
    points += [(x + 0.054, y + 0.14), (x - 0.054, y + 0.14)]
    polygon(frame, points, colour)
    line(frame, points[:2], 0.01, darker(colour, 0.6))
  elif who.bag == 'shopping bag':
    line(frame, arc((x, y + 0.06), (0.02, 0.055), 180, 360, 8), 0.007, colour)
    polygon(frame, box(x - 0.05, y + 0.06, x + 0.05, y + 0.22), colour)
    ellipse(frame, (x, y + 0.14), (0.02, 0.024), darker(colour, 0.6), False)
  elif who.bag == 'suitcase':
    back = x - at.face * (0.05 if at.view in ('left', 'right') else 0)
    line(frame, [(x, y), (back, 0.7)], 0.012, (90, 90, 96))
    polygon(frame, box(back - 0.06, 0.7, back + 0.06, 0.955, 0.012), colour)
    for shift in (-0.03, 0.0, 0.03):
      points = [(back + shift, 0.72), (back + shift, 0.94)]
      line(frame, points, 0.005, darker(colour, 0.65))
    for shift in (-0.045, 0.045):
      ellipse(frame, (back + shift, 0.967), (0.011, 0.013), (30, 30, 30))


def item(frame, who, tones, hand):
  x, y = hand
  colour = tones[who.item_colour]
  if who.item == 'phone':
    polygon(frame, box(x - 0.016, y - 0.045, x + 0.016, y + 0.012), colour)
  elif who.item == 'cup':
    points = [(x - 0.02, y - 0.042), (x + 0.02, y - 0.042)]
    points += [(x + 0.014, y + 0.018), (x - 0.014, y + 0.018)]
    polygon(frame, points, colour)
    line(frame, points[:2], 0.01, (70, 56, 46))
  else:
    polygon(frame, box(x - 0.036, y - 0.05, x + 0.036, y + 0.024), colour)
    line(
      frame, [(x - 0.03, y - 0.045), (x - 0.03, y + 0.02)], 0.008, (240,) * 3
    )


def backpack(frame, colour, at):
  if at.view == 'front':
    half = at.shoulder * 0.98
    polygon(frame, box(-half, 0.17, half, 0.42, 0.03), darker(colour, 0.8))
  elif at.view == 'back':
    half = min(at.shoulder * 0.82, 0.082)
    polygon(frame, box(-half, 0.19, half, 0.43, 0.025), colour)
    pocket = box(-half * 0.7, 0.32, half * 0.7, 0.41, 0.012)
    polygon(frame, pocket, darker(colour, 0.82))
    line(frame, [(-0.018, 0.19), (0, 0.175), (0.018, 0.19)], 0.01, colour)
  else:
    x0, x1 = sorted((-at.face * 0.02, -at.face * (at.shoulder + 0.085)))
    polygon(frame, box(x0, 0.19, x1, 0.425, 0.028), colour)
    x0, x1 = sorted(
      (-at.face * (at.shoulder + 0.06), -at.face * (at.shoulder + 0.105))
    )
    polygon(frame, box(x0, 0.31, x1, 0.41, 0.012), darker(colour, 0.82))


def straps(frame, colour, at):
  if at.view == 'front':
    for sign in (-1, 1):
      x = sign * at.shoulder * 0.66
      points = [(x, 0.178), (x * 1.04, 0.28), (sign * at.shoulder * 0.9, 0.36)]
      line(frame, points, 0.022, colour)
  else:
    f, top = at.face, at.shoulder
    points = [(-f * top * 0.5, 0.185), (f * top * 0.5, 0.22)]
    points += [(f * top * 0.5, 0.3), (-f * top * 0.6, 0.37)]
    line(frame, points, 0.02, colour)


def crossbody(frame, who, at, tones):
  colour = tones[who.bag_colour]
  sign = 1 if at.sides[1] == who.bag_side else -1
  if at.view in ('front', 'back'):
    x = sign * (at.hip + 0.012)
    strap = [(-sign * at.shoulder * 0.6, 0.178), (x, 0.45)]
    line(frame, strap, 0.014, colour)
    polygon(frame, box(x - 0.046, 0.44, x + 0.046, 0.53, 0.01), colour)
    line(frame, [(x - 0.042, 0.468), (x + 0.042, 0.468)], 0.008, darker(colour))
  elif sign > 0:  # on the near side
    line(frame, [(0, 0.175), (-at.face * 0.01, 0.45)], 0.014, colour)
    x = -at.face * 0.012
    polygon(frame, box(x - 0.052, 0.445, x + 0.052, 0.54, 0.01), colour)
    line(frame, [(x - 0.046, 0.474), (x + 0.046, 0.474)], 0.008, darker(colour))
  else:
    strap = [(0.0, 0.175), (at.face * at.shoulder, 0.33)]
    line(frame, strap, 0.014, colour)
