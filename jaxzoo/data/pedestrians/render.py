"""Renders one shot of a person: pose, scene, light and camera."""

from typing import NamedTuple

import cv2
import numpy as np

from jaxzoo.data.pedestrians import body, carried, head, scene
from jaxzoo.data.pedestrians.attributes import (
  COLOURS,
  HAIR_COLOURS,
  SKINS,
  Person,
)
from jaxzoo.data.pedestrians.draw import Frame
from jaxzoo.data.pedestrians.pose import Pose, pose, raised

_SUPERSAMPLE = 2


class Shot(NamedTuple):
  """One picture of a person."""

  view: str  # front, back, left, right (the side that is seen)
  walking: bool
  stride: float  # -1..1
  lift: float  # 0..1, how high a hand holds its thing
  size: float  # height of the person over the height of the picture
  x: float  # middle of the person over the width of the picture
  bottom: float  # row of the soles over the height of the picture
  hidden_below: float  # part of the picture's height covered from below
  domain: str  # a key of scene.DOMAINS
  seed: int  # of the background, the light and the noise


def shot(rng: np.random.Generator, domain: str = 'street') -> Shot:
  """Draws view, pose, place and scene."""
  where = scene.DOMAINS[domain]
  walking = rng.random() < 0.6
  stride = rng.uniform(0.45, 1.0) if walking else rng.uniform(0.0, 0.2)
  size = rng.uniform(*where.size)
  occluded = rng.random() < where.occlusion
  views = ('front', 'back', 'left', 'right')
  return Shot(
    view=views[int(rng.choice(4, p=(0.4, 0.2, 0.2, 0.2)))],
    walking=bool(walking),
    stride=float(stride * rng.choice((-1, 1))),
    lift=float(rng.uniform(0, 1)),
    size=float(size),
    x=float(0.5 + rng.uniform(-0.05, 0.05)),
    bottom=float(size + (1 - size) * rng.uniform(0.3, 1.0)),
    hidden_below=float(rng.uniform(0.1, 0.22)) if occluded else 0.0,
    domain=domain,
    seed=int(rng.integers(2**31)),
  )


def palette(who: Person) -> dict:
  """This person's shade of every colour: name -> RGB."""
  rng = np.random.default_rng(who.shade)
  names = tuple(COLOURS)
  base = np.array([COLOURS[name] for name in names], float)
  gain = rng.uniform(0.9, 1.08, (len(names), 1))
  base = base * gain + rng.uniform(-7, 7, base.shape)
  base = np.clip(base, 0, 255).astype(int).tolist()
  return {name: tuple(value) for name, value in zip(names, base, strict=True)}


def figure(frame: Frame, who: Person, at: Pose) -> None:
  """Draws the person into the frame, from what is behind to what is near."""
  tones = palette(who)
  skin = SKINS[who.skin]
  hair = HAIR_COLOURS.get(who.hair_colour, (70, 56, 48))
  frontal = at.view in ('front', 'back')
  if at.view == 'front':
    head.hair_behind(frame, who, hair)
  if who.bag == 'backpack' and at.view != 'back':
    carried.backpack(frame, tones[who.bag_colour], at)
  # Arms in front of the chest are behind it when seen from the back.
  behind = [0] if not frontal else []
  if at.view == 'back':
    behind = [i for i in (0, 1) if raised(who, at.sides[i])]
  for i in behind:
    body.arm(frame, who, at, tones, skin, i)
  for i in (0, 1):
    body.leg(frame, who, at, tones, skin, i)
  body.torso(frame, who, at, tones, skin)
  if who.bag == 'crossbody bag':
    carried.crossbody(frame, who, at, tones)
  for i in (0, 1):
    if i not in behind:
      body.arm(frame, who, at, tones, skin, i)
  if who.bag == 'backpack':
    if at.view == 'back':
      carried.backpack(frame, tones[who.bag_colour], at)
    else:
      carried.straps(frame, tones[who.bag_colour], at)
  if who.scarf and at.view != 'back':
    head.scarf(frame, tones[who.scarf], at)
  head.head(frame, who, at, skin, hair, tones)
  if who.scarf and at.view == 'back':
    head.scarf(frame, tones[who.scarf], at)


def render(who: Person, at: Shot, height: int, width: int) -> np.ndarray:
  """The picture, uint8 RGB [height, width, 3].

  Drawn at twice the size and averaged; OpenCV's drawing and filters used
  here give the same pixels for any number of threads.
  """
  rng = np.random.default_rng(at.seed)
  where = scene.DOMAINS[at.domain]
  high, wide = _SUPERSAMPLE * height, _SUPERSAMPLE * width
  canvas = scene.background(rng, where, high, wide)
  frame = Frame(
    canvas, at.size * high, at.x * wide, (at.bottom - at.size) * high
  )
  scene.shadow(frame)
  joints = pose(who, at.view, at.stride, at.lift)
  figure(frame, who, joints)
  if at.hidden_below:
    scene.obstacle(rng, canvas, at.hidden_below)
  small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
  return scene.camera(rng, where, small)


def feet_hidden(at: Shot) -> bool:
  """Whether something covers the shoes."""
  return at.hidden_below > 1 - at.bottom + 0.03


def hidden(who: Person, at: Shot) -> frozenset:
  """The fields of the person that this shot does not show."""
  result = set()
  if at.view == 'back':
    result |= {'glasses', 'beard'}
    if who.upper != 'vest':  # a vest's shirt shows on the arms
      result.add('inner')
    if who.pattern == 'print':
      result.add('pattern')
    if who.item != 'umbrella':
      result.add('item')
  far = {'left': 'right', 'right': 'left'}.get(at.view)
  if far and who.bag_side == far and who.bag != 'suitcase':
    result.add('bag')
  if far and who.item_side == far and who.item == 'umbrella':
    result.add('item')
  if feet_hidden(at):
    result |= {'shoes', 'socks'}
  return frozenset(result)
