"""Scenes of coloured shapes with captions, questions and two detectors.

A few shapes stand on a grid before a grey ground. Of each scene there
are captions, questions with the answers of ten people, and the regions that two
detectors find in it: a strong one, with fine features and the right names, and
a weak one, which sees a smaller, noisy picture, misses shapes, invents some and
confuses names. Numbers measured on them compare methods with each other, never
with published results.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from jaxzoo.data import shapes
from jaxzoo.data.sources.regions import Question, Regions, with_box_numbers
from jaxzoo.data.tokenizers import wordpiece
from jaxzoo.errors import UserError

SPLITS = ('train', 'test')
COLOURS = {
  'red': (220, 40, 40),
  'orange': (235, 140, 30),
  'yellow': (225, 215, 50),
  'green': (60, 180, 60),
  'blue': (50, 80, 220),
  'purple': (150, 60, 190),
}
KINDS = ('circle', 'square', 'triangle', 'star', 'cross', 'heart')
COLUMNS, ROWS = ('left', 'middle', 'right'), ('top', 'middle', 'bottom')
NUMBERS = ('zero', 'one', 'two', 'three', 'four', 'five')
# Side of the crops that the detectors look at.
FINE, COARSE = 10, 4
REGION_DIM = {
  'strong': FINE**2 + 9,
  'adapted': FINE**2 + 9,
  'weak': COARSE**2 + 9,
}


class Settings(NamedTuple):
  """What to draw. The same settings give the same scenes.

  Attributes:
    seed: of everything that is random.
    train: scenes to train on.
    test: others to test on.
    asked: of those to train on, how many have questions.
    size: side in pixels; the weak detector sees half.
    most: shapes of a scene, which has at least two.
    kinds: of shapes.
    colours: of shapes.
    captions: of a scene.
    questions: of a scene.
    noise: standard deviation of the weak detector's pixels, in [0, 255].
    confused: share of the names that the weak detector draws at random.
  """

  seed: int = 0
  train: int = 2000
  test: int = 400
  asked: int = 500
  size: int = 64
  most: int = 5
  kinds: int = 6
  colours: int = 6
  captions: int = 3
  questions: int = 4
  noise: float = 50.0
  confused: float = 0.3


class Thing(NamedTuple):
  """A shape of a scene: names, place on the grid, box in [0, 1]."""

  kind: str
  colour: str
  column: int
  row: int
  box: tuple[float, float, float, float]  # left, top, right, bottom


class Scenes(NamedTuple):
  """A split.

  Attributes:
    pictures: of the scenes.
    regions: detector -> what it finds in each scene. 'adapted' are the strong
      detector's features of the weak one's boxes, with the weak one's names.
    captions: of each scene.
    questions: of all scenes that are asked about.
  """

  pictures: UInt8[np.ndarray, 'n s s 3']
  regions: dict[str, tuple[Regions, ...]]
  captions: tuple[tuple[str, ...], ...]
  questions: tuple[Question, ...]


def place_things(rng, settings: Settings) -> list[Thing]:
  """Two shapes or more in different cells of the grid."""
  things = []
  for cell in rng.permutation(9)[: rng.integers(2, settings.most + 1)]:
    column, row = int(cell % 3), int(cell // 3)
    radius = rng.uniform(0.1, 0.15)
    x, y = (np.array([column, row]) + 0.5) / 3 + rng.uniform(-0.02, 0.02, 2)
    things.append(
      Thing(
        KINDS[rng.integers(settings.kinds)],
        tuple(COLOURS)[rng.integers(settings.colours)],
        column,
        row,
        (x - radius, y - radius, x + radius, y + radius),
      )
    )
  return things


def draw(rng, things, size: int) -> UInt8[np.ndarray, 's s 3']:
  """The picture of a scene."""
  side = 2 * size
  canvas = np.full((side, side, 3), rng.uniform(90, 170), np.float32)
  canvas += rng.normal(0, 6, (side, side, 1))
  for thing in things:
    left, top, right, bottom = side * np.array(thing.box)
    centre, radius = np.array([left + right, top + bottom]) / 2, right - left
    turn = shapes.random_pose(rng, 12.0)
    mask = np.zeros((side, side), np.uint8)
    contours = shapes.SHAPES[thing.kind]
    shapes.fill(mask, [centre + radius / 2 * c @ turn for c in contours], 1)
    colour = np.array(COLOURS[thing.colour]) + rng.normal(0, 8, 3)
    canvas[mask > 0] = colour
  canvas = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
  return np.clip(canvas, 0, 255).astype(np.uint8)


def features_of(
  picture: UInt8[np.ndarray, 's s 3'], boxes, side: int
) -> Float32[np.ndarray, 'n d']:
  """What is coloured in a box, cell by cell; its colour; the six numbers.

  The cells of a grid of `side` x `side` have the saturation there; the colour
  is the mean over the box, by saturation. All are about 0, and scaled so that
  the cells together say about as much as the colour does.
  """
  size = len(picture)
  rows = []
  for box in boxes:
    left, top, right, bottom = box
    x0, y0 = (int(np.clip(v * size, 0, size - 2)) for v in (left, top))
    x1 = int(np.clip(round(right * size), x0 + 2, size))
    y1 = int(np.clip(round(bottom * size), y0 + 2, size))
    crop = picture[y0:y1, x0:x1].astype(np.float32) / 255
    saturation = crop.max(-1) - crop.min(-1)
    weight = saturation / max(saturation.sum(), 1e-6)
    colour = (crop * weight[..., None]).sum((0, 1))
    cells = cv2.resize(saturation, (side, side), interpolation=cv2.INTER_AREA)
    cells = (cells.ravel() - 0.5) * COARSE / side
    rows.append(np.concatenate([cells, 2 * (colour - 0.5)]))
  features = np.reshape(rows, (len(boxes), side**2 + 3))
  return with_box_numbers(features, np.reshape(boxes, (len(boxes), 4)))


def detect(rng, picture, things, settings: Settings) -> dict[str, Regions]:
  """The regions of both detectors, and of the adapted one."""
  found = [things[i] for i in rng.permutation(len(things))]
  fine = features_of(picture, [thing.box for thing in found], FINE)
  strong = Regions(fine, tuple(thing.kind for thing in found))
  boxes, tags = [], []
  for i in rng.permutation(len(things)):
    box = np.array(things[i].box)
    shaken = box + rng.normal(0, 0.08, 4) * (box[2] - box[0])
    random = KINDS[rng.integers(settings.kinds)]
    confused, missed = rng.random(2) < (settings.confused, 0.05)
    if missed and len(things) > 1:
      continue
    boxes.append(np.clip(shaken, 0, 1))
    tags.append(random if confused else things[i].kind)
  if not boxes or rng.random() < 0.3:  # of nothing
    left, top = rng.uniform(0, 0.75, 2)
    boxes.append([left, top, left + 0.25, top + 0.25])
    tags.append(KINDS[rng.integers(settings.kinds)])
  half = settings.size // 2
  small = cv2.resize(picture, (half, half), interpolation=cv2.INTER_AREA)
  small = small + rng.normal(0, settings.noise, small.shape)
  small = np.clip(small, 0, 255).astype(np.uint8)
  return {
    'strong': strong,
    'weak': Regions(features_of(small, boxes, COARSE), tuple(tags)),
    'adapted': Regions(features_of(picture, boxes, FINE), tuple(tags)),
  }


def describe(rng, things) -> str:
  """A caption of one or two shapes."""
  a, b = (things[i] for i in rng.permutation(len(things))[:2])
  article = lambda word: 'an' if word[0] in 'aeiou' else 'a'
  name = lambda thing: f'{article(thing.colour)} {thing.colour} {thing.kind}'
  kind = rng.integers(3)
  if kind == 0:
    count = NUMBERS[len(things)]
    return f'one of the {count} shapes is {name(a)}'
  if kind == 1:
    return f'{name(a)} at the {ROWS[a.row]} {COLUMNS[a.column]}'
  if a.column != b.column:
    where = 'left of' if a.column < b.column else 'right of'
  else:
    where = 'above' if a.row < b.row else 'below'
  return f'{name(a)} {where} {name(b)}'


def ask(rng, things, settings: Settings) -> tuple[str, str, str]:
  """(question, answer, kind): on one shape, or on whether and how many."""
  pick = lambda rows: rows[rng.integers(len(rows))]
  once = lambda field: [
    thing
    for thing in things
    if [getattr(each, field) for each in things].count(getattr(thing, field))
    == 1
  ]
  kind = rng.integers(6)
  if kind == 0 and once('kind'):
    thing = pick(once('kind'))
    return f'what colour is the {thing.kind}', thing.colour, 'other'
  if kind == 1 and once('colour'):
    thing = pick(once('colour'))
    return f'what is the {thing.colour} shape', thing.kind, 'other'
  if kind == 2 and once('kind'):
    thing = pick(once('kind'))
    return f'where is the {thing.kind}', COLUMNS[thing.column], 'other'
  if kind in (3, 4):
    field = 'kind' if kind == 3 else 'colour'
    known = KINDS[: settings.kinds], tuple(COLOURS)[: settings.colours]
    there = {getattr(thing, field) for thing in things}
    away = [name for name in known[kind - 3] if name not in there]
    yes = not away or rng.random() < 0.5
    name = pick(sorted(there) if yes else away)
    article = 'an' if name[0] in 'aeiou' else 'a'
    noun = name if kind == 3 else f'{name} shape'
    return f'is there {article} {noun}', 'yes' if yes else 'no', 'yes/no'
  return 'how many shapes are there', str(len(things)), 'number'


def people(rng, answer: str, settings: Settings) -> tuple[str, ...]:
  """Ten answers, of which one in ten is another of the same sort."""
  sorts = (
    tuple(COLOURS)[: settings.colours],
    KINDS[: settings.kinds],
    COLUMNS,
    ('yes', 'no'),
    tuple(map(str, range(2, settings.most + 1))),
  )
  sort = next(sort for sort in sorts if answer in sort)
  return tuple(
    sort[rng.integers(len(sort))] if rng.random() < 0.1 else answer
    for _ in range(10)
  )


def pieces() -> tuple[str, ...]:
  """The vocabulary of captions, questions and names."""
  words = {*COLOURS, *KINDS, *COLUMNS, *ROWS, *NUMBERS}
  words |= set(
    'a above an are at below colour how is left many of one right shape '
    'shapes the there what where'.split()
  )
  return (*wordpiece.SPECIAL, *sorted(words))


@functools.lru_cache(maxsize=4)
def load(settings: Settings, split: str) -> Scenes:
  """A split; drawn once a process, in seconds.

  Raises:
    UserError: no such split, or senseless settings.
  """
  _check(settings, split)
  number, count = SPLITS.index(split), getattr(settings, split)
  asked = settings.asked if split == 'train' else count
  pictures, regions, captions, questions = [], [], [], []
  for i in range(count):
    rng = np.random.default_rng((settings.seed, number, i))
    things = place_things(rng, settings)
    pictures.append(draw(rng, things, settings.size))
    regions.append(detect(rng, pictures[-1], things, settings))
    captions.append(
      tuple(describe(rng, things) for _ in range(settings.captions))
    )
    for _ in range(settings.questions if i < asked else 0):
      text, answer, kind = ask(rng, things, settings)
      answers = people(rng, answer, settings)
      questions.append(Question(i, text, answers, kind, len(questions)))
  return Scenes(
    np.stack(pictures),
    {name: tuple(each[name] for each in regions) for name in REGION_DIM},
    tuple(captions),
    tuple(questions),
  )


def _check(settings: Settings, split: str) -> None:
  if split not in SPLITS:
    raise UserError(f'scenes: no split {split!r}; there are train and test')
  least = dict(train=1, test=1, asked=1, size=16, captions=1, questions=1)
  for name, low in least.items():
    if getattr(settings, name) < low:
      raise UserError(
        f'scenes: {name}={getattr(settings, name)}, it must be at least {low}'
      )
  most = dict(kinds=len(KINDS), colours=len(COLOURS), most=len(NUMBERS) - 1)
  for name, high in most.items():
    if not 2 <= getattr(settings, name) <= high:
      raise UserError(
        f'scenes: {name}={getattr(settings, name)}, it must be in 2..{high}'
      )
