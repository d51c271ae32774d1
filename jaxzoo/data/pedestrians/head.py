"""Draws the head: hair, face, hat, glasses, scarf, headphones."""

from jaxzoo.data.pedestrians.draw import (
  arc,
  box,
  darker,
  ellipse,
  limb,
  line,
  polygon,
)


def scarf(frame, colour, at):
  centre = 0.0 if at.view in ('front', 'back') else 0.006 * at.face
  wide = 0.056 if at.view in ('front', 'back') else 0.048
  ellipse(frame, (centre, 0.166), (wide, 0.026), colour)
  if at.view != 'back':
    x = centre + 0.022 * at.face
    polygon(frame, limb((x, 0.17), (x + 0.006, 0.29), 0.017, 0.02), colour)


def hair_behind(frame, who, hair):
  """Loose hair behind the neck and the shoulders, seen from the front."""
  shade = darker(hair, 0.85)
  if who.hair == 'long':
    polygon(frame, box(-0.066, 0.04, 0.066, 0.28, 0.03), shade)
  elif who.hair == 'shoulder-length':
    polygon(frame, box(-0.066, 0.04, 0.066, 0.175, 0.03), shade)
  elif who.hair == 'curly':
    ellipse(frame, (0, 0.062), (0.08, 0.078), shade)


def head(frame, who, at, skin, hair, tones):
  """The head with hair and everything that is worn on it."""
  if at.view == 'front':
    _front(frame, who, skin, hair)
  elif at.view == 'back':
    _back(frame, who, skin, hair)
  else:
    _profile(frame, who, at.face, skin, hair)
  if who.hat:
    _hat(frame, who, at, tones[who.hat_colour])
  if who.headphones:
    _headphones(frame, at, tones[who.headphones])


def _front(frame, who, skin, hair):
  ellipse(frame, (0, 0.082), (0.05, 0.066), skin)
  for sign in (-1, 1):
    ellipse(frame, (sign * 0.02, 0.08), (0.007, 0.006), (40, 32, 30), False)
  if who.beard:
    chin = arc((0, 0.092), (0.047, 0.06), 5, 175, 12)
    inner = arc((0, 0.094), (0.027, 0.018), 180, 360, 8)
    polygon(frame, [*chin, *inner], hair, edge=False)
  line(frame, [(-0.014, 0.118), (0.014, 0.118)], 0.006, (168, 76, 76))
  if who.hair == 'bald':
    pass
  elif who.hair == 'curly':
    crown = arc((0, 0.05), (0.07, 0.066), 168, 372, 14)
    polygon(frame, [*crown, (0.035, 0.056), (-0.035, 0.056)], hair)
  else:
    crown = arc((0, 0.068), (0.055, 0.07), 170, 370, 14)
    fringe = [(0.044, 0.07), (0.034, 0.046), (-0.02, 0.04), (-0.045, 0.072)]
    polygon(frame, [*crown, *fringe], hair)
  if who.hair in ('long', 'shoulder-length'):
    low = 0.25 if who.hair == 'long' else 0.165
    for sign in (-1, 1):
      lock = limb((sign * 0.052, 0.06), (sign * 0.058, low), 0.014, 0.015)
      polygon(frame, lock, hair, edge=False)
  elif who.hair == 'bun':
    ellipse(frame, (0, -0.008), (0.028, 0.024), hair)
  elif who.hair == 'ponytail':
    tail = limb((0.052, 0.06), (0.07, 0.17), 0.016, 0.012)
    polygon(frame, tail, hair)
  if who.glasses:
    _glasses(frame, who.glasses, ((-0.021, 0.08), (0.021, 0.08)), 0.0)


def _glasses(frame, kind, centres, face):
  """One or two lenses; in profile the temple runs back to the ear."""
  dark = (18, 18, 22)
  for x, y in centres:
    outline = arc((x, y), (0.018, 0.014), count=12)
    if kind == 'sunglasses':
      polygon(frame, outline, dark, edge=False)
    else:
      polygon(frame, outline, (206, 224, 236), edge=False)
      line(frame, [*outline, outline[0]], 0.007, dark)
  if face:
    x, y = centres[0]
    line(frame, [(x, y), (x - face * 0.05, y - 0.006)], 0.008, dark)
  else:
    line(frame, [(-0.048, 0.076), (0.048, 0.076)], 0.006, dark)


def _back(frame, who, skin, hair):
  ellipse(frame, (0, 0.082), (0.05, 0.066), skin)
  if who.hair == 'bald':
    return
  if who.hair == 'curly':
    ellipse(frame, (0, 0.066), (0.08, 0.078), hair)
    return
  if who.hair in ('long', 'shoulder-length'):
    low = 0.28 if who.hair == 'long' else 0.175
    ellipse(frame, (0, 0.068), (0.056, 0.07), hair)
    polygon(frame, box(-0.06, 0.06, 0.06, low, 0.018), hair, edge=False)
    return
  crown = arc((0, 0.068), (0.055, 0.07), 165, 375, 14)
  polygon(frame, [*crown, (0.034, 0.132), (-0.034, 0.132)], hair)
  if who.hair == 'ponytail':
    polygon(frame, limb((0, 0.06), (0, 0.215), 0.022, 0.014), hair)
    line(frame, [(-0.018, 0.062), (0.018, 0.062)], 0.012, darker(hair, 0.5))
  elif who.hair == 'bun':
    ellipse(frame, (0, 0.01), (0.032, 0.03), hair)
    ellipse(frame, (0, 0.01), (0.018, 0.016), darker(hair, 0.85))


def _profile(frame, who, face, skin, hair):
  f = face
  if who.hair in ('long', 'shoulder-length'):
    low = 0.28 if who.hair == 'long' else 0.175
    x0, x1 = sorted((-f * 0.064, -f * 0.004))
    polygon(frame, box(x0, 0.05, x1, low, 0.016), darker(hair, 0.9))
  elif who.hair == 'ponytail':
    points = [(-f * 0.05, 0.045), (-f * 0.092, 0.1), (-f * 0.086, 0.2)]
    line(frame, points, 0.034, darker(hair, 0.9))
  elif who.hair == 'bun':
    ellipse(frame, (-f * 0.056, 0.03), (0.03, 0.028), hair)
  elif who.hair == 'curly':
    ellipse(frame, (-f * 0.012, 0.062), (0.074, 0.072), darker(hair, 0.9))
  nose = [(f * 0.044, 0.074), (f * 0.064, 0.096), (f * 0.044, 0.1)]
  ellipse(frame, (0, 0.082), (0.052, 0.066), skin)
  polygon(frame, nose, skin, edge=False)
  ellipse(frame, (f * 0.034, 0.078), (0.006, 0.006), (40, 32, 30), False)
  line(frame, [(f * 0.03, 0.118), (f * 0.045, 0.117)], 0.006, (168, 76, 76))
  if who.beard:
    points = [(-f * 0.012, 0.09), (f * 0.006, 0.1), (f * 0.024, 0.108)]
    points += [(f * 0.05, 0.108), (f * 0.042, 0.138), (f * 0.02, 0.152)]
    polygon(frame, [*points, (-f * 0.014, 0.128)], hair, edge=False)
  if who.hair != 'bald':
    start, stop = (180, 330) if f > 0 else (210, 360)
    crown = arc((0, 0.068), (0.058, 0.072), start, stop, 14)
    nape = [(f * 0.02, 0.056), (-f * 0.004, 0.06), (-f * 0.01, 0.1)]
    nape += [(-f * 0.02, 0.134), (-f * 0.048, 0.12)]
    order = crown if f > 0 else crown[::-1]
    polygon(frame, [*order, *nape], hair)
  ear = (-f * 0.004, 0.085)
  if who.hair not in ('long', 'shoulder-length', 'curly'):
    ellipse(frame, ear, (0.01, 0.015), darker(skin, 0.9), edge=False)
  if who.glasses:
    _glasses(frame, who.glasses, ((f * 0.036, 0.079),), f)


def _hat(frame, who, at, colour):
  f = at.face if at.view in ('left', 'right') else 0
  dark = darker(colour, 0.8)
  crown = arc((0, 0.05), (0.06, 0.062), 180, 360, 14)
  if who.hat == 'sun hat':
    polygon(frame, arc((0, 0.046), (0.05, 0.06), 180, 360, 12), colour)
    ellipse(frame, (0, 0.05), (0.104, 0.02), colour)
    line(frame, [(-0.048, 0.036), (0.048, 0.036)], 0.012, dark)
    return
  polygon(frame, crown, colour)
  if who.hat == 'beanie':
    polygon(frame, box(-0.062, 0.034, 0.062, 0.06, 0.006), dark)
    ellipse(frame, (0, -0.012), (0.016, 0.014), dark)
  elif f:
    x0, x1 = sorted((f * 0.02, f * 0.112))
    polygon(frame, box(x0, 0.042, x1, 0.058, 0.005), dark)
  elif at.view == 'front':
    ellipse(frame, (0, 0.054), (0.054, 0.014), dark)


def _headphones(frame, at, colour):
  if at.view in ('front', 'back'):
    band = arc((0, 0.07), (0.062, 0.08), 185, 355, 12)
    line(frame, band, 0.014, colour)
    for sign in (-1, 1):
      ellipse(frame, (sign * 0.058, 0.086), (0.015, 0.024), colour)
  else:
    line(frame, [(-0.004, 0.08), (0.0, -0.006)], 0.014, colour)
    ellipse(frame, (-0.004, 0.086), (0.022, 0.026), colour)
