"""Draws legs, torso and arms with their clothes."""

import numpy as np

from jaxzoo.data.pedestrians import carried
from jaxzoo.data.pedestrians.draw import (
  Cloth,
  arc,
  box,
  cloth,
  darker,
  ellipse,
  limb,
  line,
  polygon,
)
from jaxzoo.data.pedestrians.pose import raised

_HEMS = {'coat': 0.73, 'dress': 0.7, 'jacket': 0.535, 'hoodie': 0.535}


# Shoes around the ankle: from the front in units of half their width and of
# their height, from the side in those of the person's height.
_SHOE_FRONT = np.array(
  [(-0.62, 0), (0.62, 0), (1, 0.8), (0.9, 1), (-0.9, 1), (-1, 0.8)]
)
_SHOE_SIDE = np.array(
  [(-0.026, 0), (0.024, 0), (0.04, 0.02), (0.072, 0.03)]
  + [(0.074, 0.044), (-0.032, 0.044), (-0.032, 0.02)]
)


def leg(frame, who, at, tones, skin, i):
  """One leg with trousers, sock and shoe."""
  hip, knee, ankle = (np.asarray(p, float) for p in at.legs[i])
  wide, kind = at.wide, who.lower
  bare = kind in ('shorts', 'skirt', 'long skirt', 'bare')
  stuff = skin if bare else tones[who.lower_colour]
  if at.view not in ('front', 'back') and i == 0:
    stuff = darker(stuff, 0.84)
  slim = 0.82 if bare or kind in ('leggings', 'tights') else 1.0
  loose = 1.12 if kind in ('sweatpants', 'trousers') else 1.0
  thigh, shin = 0.047 * wide * slim, 0.034 * wide * slim
  cuff = 0.025 * wide * slim * loose
  polygon(frame, limb(knee, ankle, shin, cuff), stuff)
  polygon(frame, limb(hip, knee, thigh, shin), stuff, edge=False)
  if who.socks and bare:
    top = knee + (ankle - knee) * 0.62
    polygon(frame, limb(top, ankle, cuff * 1.1, cuff), tones[who.socks])
  if who.shoes == 'boots':
    top = knee + (ankle - knee) * 0.55
    colour = tones[who.shoes_colour]
    polygon(frame, limb(top, ankle, shin * 0.98, cuff * 1.15), colour)
  _shoe(frame, who, at, tones, skin, ankle)
  if kind == 'shorts':
    end = hip + (knee - hip) * 0.85
    colour = tones[who.lower_colour]
    polygon(frame, limb(hip, end, thigh * 1.12, shin * 1.3), colour)
  if who.side_stripe:
    _side_stripe(frame, who, at, tones, i, (thigh, shin, cuff))


def _side_stripe(frame, who, at, tones, i, radii):
  hip, knee, ankle = (np.asarray(p, float) for p in at.legs[i])
  out = 0.0
  if at.view in ('front', 'back'):
    out = (-1 if i == 0 else 1) * 0.7
  shift = [np.array((out * radius, 0.0)) for radius in radii]
  points = [hip + (0, 0.03) + shift[0], knee + shift[1], ankle + shift[2]]
  if who.lower == 'shorts':
    points = [points[0], hip + (knee - hip) * 0.9 + shift[1] * 1.4]
  line(frame, points, 0.016, tones[who.side_stripe])


def _shoe(frame, who, at, tones, skin, ankle):
  colour, kind = tones[who.shoes_colour], who.shoes
  x, y = ankle
  sole = (236, 236, 232) if who.shoes_colour != 'white' else (120, 120, 124)
  if at.view in ('front', 'back'):
    shape = _SHOE_FRONT * (0.03, 0.046) + (x, y)
  else:
    shape = _SHOE_SIDE * (at.face, 1) + (x, y)
  (x0, _), (x1, end) = shape.min(0), shape.max(0)
  band = box(x0, end - 0.012, x1, end)
  if kind == 'sandals':
    polygon(frame, shape, skin)
    y0, y1 = y + 0.006, y + 0.026
    line(frame, [(x0 + 0.008, y0), (x1 - 0.008, y0)], 0.012, colour)
    line(frame, [(x0 + 0.004, y1), (x1 - 0.004, y1)], 0.014, colour)
    polygon(frame, band, colour, edge=False)
    return
  polygon(frame, shape, colour)
  if kind == 'sneakers':
    polygon(frame, band, sole, edge=False)
  elif kind == 'high heels' and at.view in ('left', 'right'):
    heel = x - at.face * 0.026
    line(frame, [(heel, y + 0.03), (heel, y + 0.056)], 0.012, colour)


def _torso_outline(at, hem, flare):
  top, low = at.shoulder, at.hip
  if at.view in ('front', 'back'):
    right = [(0.034, 0.165), (0.8 * top, 0.18), (top, 0.205)]
    right += [(top * 0.93, 0.28), (low * 1.0, 0.4), (low * 1.08, 0.5)]
    right += [(low * flare, hem)]
    left = [(-x, y) for x, y in reversed(right)]
    return np.array(right + left)
  front = [(0.025, 0.165), (top * 0.9, 0.23), (top, 0.29), (low, 0.42)]
  front += [(low * flare, hem)]
  back = [(-low * flare, hem), (-low, 0.45), (-top * 0.8, 0.36)]
  back += [(-top * 0.92, 0.25), (-0.03, 0.168)]
  return np.array(front + back) * (at.face, 1)


def _skirt(frame, who, at, tones):
  if who.lower not in ('skirt', 'long skirt'):
    return
  long = who.lower == 'long skirt'
  hem, flare = (0.88, 1.5) if long else (0.69, 1.35)
  if at.view in ('left', 'right'):
    flare *= 1.15
  points = [(-at.hip, 0.46), (at.hip, 0.46)]
  points += [(at.hip * flare, hem), (-at.hip * flare, hem)]
  polygon(frame, points, tones[who.lower_colour])


def torso(frame, who, at, tones, skin):
  """Neck, hips, upper garment and what shows under it."""
  _skirt(frame, who, at, tones)
  if who.lower not in ('bare', 'skirt', 'long skirt'):
    colour = tones[who.lower_colour]
    polygon(frame, box(-at.hip, 0.46, at.hip, 0.545, 0.02), colour, edge=False)
  polygon(frame, box(-0.026, 0.13, 0.026, 0.185), darker(skin, 0.88), False)
  hem = _HEMS.get(who.upper, 0.515)
  flare = {'coat': 1.4, 'dress': 1.5}.get(who.upper, 1.1)
  outline = _torso_outline(at, hem, flare)
  colour = tones[who.upper_colour]
  accent = tones[who.accent] if who.accent else ()
  cloth(frame, outline, Cloth(colour, who.pattern, accent))
  if who.upper == 'tank top' and at.view in ('front', 'back'):
    for sign in (-1, 1):
      cut = [(sign * at.shoulder * 1.02, 0.195), (sign * 0.066, 0.165)]
      cut += [(sign * 0.07, 0.24), (sign * at.shoulder * 0.97, 0.275)]
      polygon(frame, cut, skin, edge=False)
  if at.view != 'back':
    _front_details(frame, who, at, tones, skin, hem)
  if who.upper == 'hoodie':
    y = 0.175 if at.view == 'back' else 0.165
    size = (0.062, 0.03) if at.view == 'back' else (0.052, 0.02)
    shift = 0 if at.view in ('front', 'back') else -0.022 * at.face
    ellipse(frame, (shift, y), size, darker(colour, 0.86))


def _front_details(frame, who, at, tones, skin, hem):
  """Collar, buttons, pocket, print: what only the front of a garment has."""
  colour = tones[who.upper_colour]
  if who.inner:
    _inner(frame, who, at, tones, hem)
  if who.pattern == 'print':
    turned = at.view != 'front'
    centre = (at.face * 0.018 if turned else 0, 0.285)
    size = 0.024 if turned else 0.042
    ellipse(frame, centre, (size, 0.036), tones[who.accent])
  if at.view != 'front':
    return
  if who.upper in ('jacket', 'coat', 'shirt', 'vest') and not who.inner:
    edge = darker(colour, 0.6)
    if sum(colour) < 160:  # a darker line would not show
      edge = tuple(min(255, value + 60) for value in colour)
    line(frame, [(0, 0.18), (0, hem)], 0.007, edge)
  shade = darker(colour, 0.84)
  if who.upper in ('t-shirt', 'tank top', 'dress'):
    polygon(frame, arc((0, 0.162), (0.034, 0.026), 0, 180, 8), skin)
  elif who.upper in ('shirt', 'coat', 'jacket'):
    for sign in (-1, 1):
      points = [(0, 0.19), (sign * 0.036, 0.16), (sign * 0.046, 0.2)]
      polygon(frame, points, shade)
  elif who.upper == 'hoodie':
    pocket = [(-0.04, 0.4), (0.04, 0.4), (0.055, 0.47), (-0.055, 0.47)]
    polygon(frame, pocket, shade)


def _inner(frame, who, at, tones, hem):
  """The shirt that an open garment shows."""
  colour = tones[who.inner]
  low = min(hem, 0.53)
  if at.view == 'front':
    points = [(-0.032, 0.165), (0.032, 0.165)]
    points += [(at.hip * 0.5, low), (-at.hip * 0.5, low)]
  else:
    f, top = at.face, at.shoulder
    points = [(f * 0.012, 0.165), (f * top * 0.9, 0.23), (f * top, 0.29)]
    points += [(f * at.hip * 1.04, low), (f * at.hip * 0.45, low)]
  polygon(frame, points, colour)


def arm(frame, who, at, tones, skin, i):
  """One arm and what it carries."""
  shoulder, elbow, hand = (np.asarray(p, float) for p in at.arms[i])
  wide = at.wide**0.7
  colour = tones[who.upper_colour]
  accent = tones[who.accent] if who.accent else ()
  sleeve = Cloth(colour, who.pattern, accent)
  if who.upper == 'vest':
    sleeve = Cloth(tones[who.inner])
  elif who.pattern == 'sleeves':
    sleeve = Cloth(accent)
  elif who.pattern == 'block':
    sleeve = Cloth(colour)
  if at.view not in ('front', 'back') and i == 0:  # the far arm
    sleeve = sleeve._replace(colour=darker(sleeve.colour, 0.84))
  side = at.sides[i]
  carried.in_hand(frame, who, at, tones, side, hand)
  upper = limb(shoulder, elbow, 0.032 * wide, 0.026 * wide)
  lower = limb(elbow, hand, 0.025 * wide, 0.019 * wide)
  ellipse(frame, hand, (0.019, 0.021), skin)
  if who.sleeves == 'long':
    cloth(frame, lower, sleeve)
    cloth(frame, upper, sleeve)
  else:
    polygon(frame, lower, skin)
    polygon(frame, upper, skin)
    if who.sleeves == 'short':
      end = shoulder + (elbow - shoulder) * 0.62
      cloth(frame, limb(shoulder, end, 0.036 * wide, 0.034 * wide), sleeve)
  if raised(who, side) and at.view != 'back':
    carried.item(frame, who, tones, hand)
