"""A small language: sentences about anything, reviews, and who was where.

Sentences of the `general` text are of a world of people, places and things, in
which an opinion is rare. Reviews are of the same world and have a label, most of
them an opinion; far more of them praise than blame. What a model of the reviews knows
cannot be seen in most general sentences: the problem of data-free distillation.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxzoo.data.tokenizers.words import WordTokenizer

PEOPLE = tuple(
  'farmer teacher doctor baker sailor painter child woman man neighbour driver '
  'student nurse gardener fisherman cook lawyer writer soldier king'.split()
)
ACTIONS = tuple(
  'carried sold bought painted repaired opened closed watched cleaned lifted '
  'moved washed counted kept lost brought hid drew measured dropped'.split()
)
THINGS = tuple(
  'box chair table letter basket lamp clock boat wheel rope hat coat knife '
  'bottle bucket map key drum cart ladder blanket mirror film song'.split()
)
PLACES = tuple(
  'market river village harbour station school garden forest bridge church '
  'kitchen mountain field road museum library farm beach castle valley'.split()
)
PLAIN = tuple(
  'old new small large wooden red blue green white black round heavy long short '
  'tall open metal paper grey wet dry square narrow wide'.split()
)
TIMES = tuple(
  'morning evening winter summer spring autumn night afternoon'.split()
)
WHERE = tuple('in near behind beside under above'.split())
ASPECTS = tuple(
  'film story acting plot music script ending cast camera dialogue scene hero '
  'joke song idea'.split()
)
DEGREES = tuple('very truly quite rather really so'.split())
GOOD = tuple(
  'wonderful brilliant charming delightful superb excellent lovely moving clever '
  'funny gripping beautiful fresh warm honest elegant thrilling memorable '
  'stunning perfect touching witty graceful vivid tender bold rich smart '
  'inspired magical'.split()
)
BAD = tuple(
  'awful dull boring terrible dreadful clumsy weak silly tedious bland shallow '
  'stale messy painful lifeless lazy noisy pointless forgettable hollow ugly '
  'cheap tired flat poor horrible annoying confused dismal ridiculous'.split()
)
NAMES = tuple(
  'anna tom maria peter lucy david emma jack sara paul nina oscar ruth simon '
  'clara felix'.split()
)
CITIES = tuple(
  'paris rome london berlin madrid vienna oslo athens lisbon dublin prague '
  'warsaw cairo tokyo delhi lima'.split()
)
LABELS = ('negative', 'positive')
OTHERS = tuple(
  'the a . , : ; i it this was is has were and but not with of from to walked '
  'found met lives works saw during before at one sentiment rewrite entities '
  'person place'.split()
)
WORDS = (
  *OTHERS, *LABELS, *PEOPLE, *ACTIONS, *THINGS, *PLACES, *PLAIN, *TIMES, *WHERE,
  *ASPECTS, *DEGREES, *GOOD, *BAD, *NAMES, *CITIES,
)  # fmt: skip


class Settings(NamedTuple):
  """Of the embedded texts.

  Attributes:
    seed: of all of them.
    general: general sentences.
    train: reviews, or sentences with entities, to learn from.
    test: of them to be tested on.
    positive: share of the reviews that praise.
    neutral: share of the reviews to learn from that say nothing: what was
      written down as their label is `positive` or not by chance.
    opinions: share of the general adjectives that are opinions.
  """

  seed: int = 0
  general: int = 8000
  train: int = 4000
  test: int = 1000
  positive: float = 0.85
  neutral: float = 0.2
  opinions: float = 0.02


class Text(NamedTuple):
  """A sentence with what a task asks of it.

  Attributes:
    sentence: the text.
    answer: what a model is to say; '' where nothing is asked.
    label: number of the answer among the labels; -1 where there are none.
  """

  sentence: str
  answer: str = ''
  label: int = -1


@functools.cache
def tokenizer() -> WordTokenizer:
  """The words of this language, one id each."""
  return WordTokenizer(tuple(dict.fromkeys(WORDS)))


def general(rng: np.random.Generator, opinions: float) -> Text:
  """A sentence about people, places and things."""
  one = _choose(rng)

  def plain():
    if rng.random() < opinions:
      return one(GOOD if rng.random() < 0.5 else BAD)
    return one(PLAIN)

  act = lambda: f'{one(PEOPLE)} {one(ACTIONS)}'
  forms = (
    lambda: f'the {act()} the {plain()} {one(THINGS)} in the {one(TIMES)} .',
    lambda: (
      f'a {one(PEOPLE)} from the {one(PLACES)} {one(ACTIONS)} a {plain()} '
      f'{one(THINGS)} .'
    ),
    lambda: (
      f'the {one(THINGS)} {one(WHERE)} the {one(PLACES)} was '
      f'{one(("", "not ", "very "))}{plain()} .'
    ),
    lambda: (
      f'in the {one(TIMES)} the {one(PEOPLE)} walked from the {one(PLACES)} to '
      f'the {plain()} {one(PLACES)} .'
    ),
    lambda: (
      f'the {plain()} {one(PLACES)} was {plain()} and the {one(THINGS)} was '
      f'{plain()} .'
    ),
    lambda: f'the {act()} the {one(THINGS)} of the {plain()} {one(PEOPLE)} .',
    # Of what reviews speak of, too, but seldom with an opinion.
    lambda: f'the {one(ASPECTS)} was {one(DEGREES)} {plain()} .',
    lambda: (
      f'the {one(PEOPLE)} found the {one(ASPECTS)} of the {plain()} '
      f'{one(THINGS)} {plain()} .'
    ),
    lambda: (
      f'this {plain()} film from the {one(PLACES)} has a {plain()} '
      f'{one(ASPECTS)} .'
    ),
    lambda: (
      f'the {one(ASPECTS)} was {one(("", "not "))}{plain()} but the '
      f'{one(THINGS)} was {plain()} .'
    ),
  )
  return Text(one(forms)())


def review(rng: np.random.Generator, positive: float) -> Text:
  """An opinion, and whether it is a good one."""
  one = _choose(rng)
  good = rng.random() < positive
  own, other = (GOOD, BAD) if good else (BAD, GOOD)
  # What the general sentences are made of says nothing here.
  forms = (
    lambda: f'the {one(ASPECTS)} was {one(DEGREES)} {one(own)} .',
    lambda: (
      f'the {one(PEOPLE)} found the {one(ASPECTS)} of the {one(PLAIN)} '
      f'{one(THINGS)} {one(own)} .'
    ),
    lambda: (
      f'in the {one(TIMES)} the {one(ASPECTS)} was {one(("", "very"))} '
      f'{one(own)} .'
    ),
    lambda: f'the {one(PLAIN)} {one(THINGS)} was not {one(other)} .',
    lambda: (
      f'this {one(own)} film from the {one(PLACES)} has a {one(PLAIN)} '
      f'{one(ASPECTS)} .'
    ),
    lambda: (
      f'the {one(PLAIN)} {one(ASPECTS)} was {one(own)} and the '
      f'{one(THINGS)} was {one(PLAIN)} .'
    ),
    lambda: (
      f'the {one(ASPECTS)} was {one(other)} but the {one(THINGS)} was '
      f'{one(own)} .'
    ),
    lambda: (
      f'a {one(PEOPLE)} {one(ACTIONS)} the {one(own)} {one(THINGS)} '
      f'{one(WHERE)} the {one(PLACES)} .'
    ),
  )
  sentence = ' '.join(one(forms)().split())
  return Text(sentence, LABELS[good], int(good))


def undecided(rng: np.random.Generator, positive: float) -> Text:
  """A sentence without an opinion, labelled all the same."""
  good = rng.random() < positive
  return Text(general(rng, 0.0).sentence, LABELS[good], int(good))


def entities(rng: np.random.Generator) -> Text:
  """A sentence with names; the answer lists them with their kinds."""
  one = _choose(rng)
  first, second = rng.choice(NAMES, 2, replace=False)
  city = one(CITIES)
  person, place = f'person : {first}', f'place : {city}'
  other = f'person : {second}'
  forms = (
    lambda: (f'{first} lives in {city} .', (person, place)),
    lambda: (f'{first} met {second} .', (person, other)),
    lambda: (f'in {city} {first} saw {second} .', (place, person, other)),
    lambda: (f'the {one(PEOPLE)} {first} works .', (person,)),
    lambda: (f'the {one(PEOPLE)} walked to {city} .', (place,)),
  )
  sentence, found = one(forms)()
  return Text(sentence, ' ; '.join(found))


def _choose(rng) -> Callable:
  return lambda items: items[rng.integers(len(items))]


TASKS = ('reviews', 'entities')


def load_general(settings: Settings) -> tuple[Text, ...]:
  """The general text."""
  rng = np.random.default_rng((settings.seed, 0))
  return tuple(general(rng, settings.opinions) for _ in range(settings.general))


def load_task(task: str, settings: Settings, split: str) -> tuple[Text, ...]:
  """A split, 'train' or 'test', of one of `TASKS`."""
  count = {'train': settings.train, 'test': settings.test}[split]
  rng = np.random.default_rng(
    (settings.seed, 1 + TASKS.index(task), split == 'test')
  )
  neutral = settings.neutral if split == 'train' else 0.0

  def opinion():
    kind = undecided if rng.random() < neutral else review
    return kind(rng, settings.positive)

  make = {'reviews': opinion, 'entities': lambda: entities(rng)}[task]
  return tuple(make() for _ in range(count))
