"""People: what they look like and wear, drawn at random, with near doubles."""

from typing import NamedTuple

import numpy as np

# Colours of clothes and things, RGB. Far enough apart to be told apart in a
# small picture under changing light.
COLOURS = {
  'black': (30, 30, 34),
  'white': (240, 240, 238),
  'gray': (136, 138, 142),
  'red': (205, 34, 40),
  'maroon': (112, 20, 40),
  'orange': (240, 128, 28),
  'yellow': (246, 214, 52),
  'green': (44, 150, 66),
  'dark green': (30, 78, 52),
  'blue': (36, 92, 206),
  'navy': (28, 38, 92),
  'light blue': (140, 192, 238),
  'purple': (124, 58, 164),
  'pink': (246, 152, 188),
  'brown': (112, 70, 38),
  'beige': (216, 192, 150),
}
HAIR_COLOURS = {
  'black': (26, 22, 22),
  'brown': (92, 58, 34),
  'blond': (222, 186, 106),
  'ginger': (180, 84, 36),
  'gray': (158, 158, 160),
  'white': (228, 228, 226),
}
SKINS = ((250, 216, 190), (232, 190, 156), (190, 136, 98), (118, 78, 54))


# What a random generator is for: the first word of its seed, so that people,
# shots and captions of the same numbers do not depend on each other.
PEOPLE, SHOTS, CAPTIONS = 1, 2, 3


class Person(NamedTuple):
  """One identity. '' means that the person has no such thing."""

  gender: str  # man, woman
  age: str  # young, middle-aged, elderly
  build: str  # slim, average, heavy
  skin: int  # index into SKINS; never described
  shade: int  # seed of the small colour differences; never described
  hair: str  # bald, short, curly, shoulder-length, long, ponytail, bun
  hair_colour: str
  beard: bool
  glasses: str  # '', glasses, sunglasses
  hat: str  # '', cap, beanie, sun hat
  hat_colour: str
  scarf: str  # its colour
  headphones: str  # their colour
  upper: str  # a key of UPPERS
  upper_colour: str
  pattern: str  # plain, stripes, vertical stripes, checks, dots, print, ...
  accent: str  # the pattern's colour, '' when plain
  sleeves: str  # none, short, long
  inner: str  # colour of the shirt under an open jacket, coat or vest
  lower: str  # trousers, jeans, ..., or tights, bare under a dress
  lower_colour: str
  side_stripe: str  # colour of the stripe along the trouser leg
  shoes: str  # sneakers, boots, leather shoes, sandals, high heels
  shoes_colour: str
  socks: str  # their colour, where legs are bare
  bag: str  # '', backpack, crossbody bag, handbag, shopping bag, suitcase
  bag_colour: str
  bag_side: str  # the person's left or right
  item: str  # '', phone, cup, book, umbrella, held in one hand
  item_colour: str
  item_side: str


# Patterns by garment, the likelier ones more than once.
UPPERS = {
  't-shirt': (
    *('plain',) * 4,
    *('stripes',) * 2,
    *('print',) * 2,
    'dots',
    'block',
    'sleeves',
  ),
  'shirt': (*('plain',) * 3, *('checks',) * 2, 'vertical stripes', 'dots'),
  'sweater': (*('plain',) * 3, *('stripes',) * 2, 'block', 'checks'),
  'hoodie': (*('plain',) * 3, *('print',) * 2, 'block', 'sleeves'),
  'jacket': (*('plain',) * 4, *('sleeves',) * 2, 'block'),
  'coat': (*('plain',) * 4, 'checks'),
  'vest': ('plain', 'plain', 'block'),
  'tank top': ('plain', 'plain', 'stripes', 'print'),
  'dress': (*('plain',) * 3, *('dots',) * 2, 'stripes', 'checks'),
}
_UPPER_WEIGHTS = {
  'man': (6, 5, 3, 4, 5, 2, 2, 1, 0),
  'woman': (5, 3, 4, 2, 4, 3, 1, 1, 5),
}
_CLOTH = tuple(COLOURS)
# Quiet colours are commoner on legs, feet and bags.
_LOWER_COLOURS = (
  *('black',) * 3,
  *('gray', 'navy', 'blue', 'beige', 'brown', 'white') * 2,
  *('red', 'green', 'dark green', 'maroon', 'pink', 'purple', 'light blue'),
)
_JEANS_COLOURS = ('blue', 'navy', 'light blue', 'black', 'gray')
_SHOES_COLOURS = (
  *('black', 'white') * 3,
  *('brown', 'gray', 'red', 'blue', 'yellow', 'pink', 'green', 'orange'),
)
_LEATHER_COLOURS = ('black', 'black', 'brown', 'brown', 'beige', 'maroon')
_BAG_COLOURS = (
  *('black', 'brown') * 2,
  *('gray', 'red', 'blue', 'navy', 'green', 'yellow', 'pink', 'white'),
  *('beige', 'orange', 'purple', 'light blue'),
)
BARE_LEGS = ('shorts', 'skirt', 'bare')


def _choose(rng, options):
  return options[int(rng.integers(len(options)))]


def _maybe(rng, chance, options):
  """One of `options` with the given chance, else ''."""
  return _choose(rng, options) if rng.random() < chance else ''


def _other(rng, options, *taken):
  return _choose(rng, [o for o in options if o not in taken])


def _head(rng, gender, age):
  """Hair, beard, glasses and what is worn on the head and the neck."""
  old = age == 'elderly'
  if gender == 'man':
    styles = ('short',) * 6 + ('curly', 'bald', 'bald', 'shoulder-length')
  else:
    styles = ('long', 'long', 'ponytail', 'ponytail', 'bun', 'short', 'curly')
    styles += ('shoulder-length', 'shoulder-length')
  hat = _maybe(rng, 0.25, ('cap', 'cap', 'beanie', 'sun hat'))
  if hat:  # the crown is covered: no style that needs it
    styles = tuple(s for s in styles if s not in ('bun', 'curly', 'bald'))
  hair = _choose(rng, styles)
  tones = ('gray', 'white') if old else ('black', 'brown', 'blond')
  tones = tones * 3 + (() if old else ('ginger', 'black', 'brown'))
  return {
    'hair': hair,
    'hair_colour': '' if hair == 'bald' else _choose(rng, tones),
    'beard': bool(gender == 'man' and rng.random() < 0.3),
    'glasses': _maybe(rng, 0.32, ('glasses', 'glasses', 'sunglasses')),
    'hat': hat,
    'hat_colour': _choose(rng, _CLOTH) if hat else '',
    'scarf': _maybe(rng, 0.14, _CLOTH),
    'headphones': ''
    if hat
    else _maybe(rng, 0.1, ('black', 'white', 'red', 'blue')),
  }


def _upper(rng, gender):
  """The upper garment, its pattern, and the shirt that shows under it."""
  weights = np.asarray(_UPPER_WEIGHTS[gender], float)
  kinds = tuple(UPPERS)
  kind = kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
  colour = _choose(rng, _CLOTH)
  pattern = _choose(rng, UPPERS[kind])
  inner = ''
  if kind == 'vest' or (kind in ('jacket', 'coat') and rng.random() < 0.5):
    inner = _other(rng, _CLOTH, colour)
  sleeves = {'t-shirt': 'short', 'tank top': 'none'}.get(kind, 'long')
  if kind in ('shirt', 'dress'):
    sleeves = _choose(rng, ('short', 'long'))
  return {
    'upper': kind,
    'upper_colour': colour,
    'pattern': pattern,
    'accent': '' if pattern == 'plain' else _accent(rng, colour, inner),
    'sleeves': sleeves,
    'inner': inner,
  }


def _accent(rng, colour, *taken):
  """A pattern colour that stands out from `colour`."""
  near = [
    name
    for name in _CLOTH
    if np.abs(np.subtract(COLOURS[name], COLOURS[colour])).sum() < 170
  ]
  return _other(rng, _CLOTH, *near, *taken)


def _lower(rng, gender, upper):
  """What covers the legs and the feet."""
  if upper == 'dress':
    kind = _choose(rng, ('bare', 'bare', 'tights'))
  else:
    kinds = ('trousers',) * 4 + ('jeans',) * 4 + ('shorts',) * 3
    kinds += ('sweatpants',) * 2
    if gender == 'woman':
      kinds = ('trousers', 'jeans', 'jeans', 'shorts', 'leggings')
      kinds += ('skirt', 'skirt', 'long skirt')
    kind = _choose(rng, kinds)
  options = {'jeans': _JEANS_COLOURS, 'tights': ('black', 'gray', 'white')}
  colour = _choose(rng, options.get(kind, _LOWER_COLOURS))
  shoes = ('sneakers',) * 4 + ('boots',) * 2 + ('leather shoes', 'sandals')
  if gender == 'woman':
    shoes = (
      *('sneakers',) * 4,
      *('boots', 'high heels') * 2,
      'sandals',
    )
  shoes = _choose(rng, shoes)
  striped = kind in ('sweatpants', 'leggings', 'shorts')
  leather = shoes in ('boots', 'leather shoes', 'sandals')
  return {
    'lower': kind,
    'lower_colour': '' if kind == 'bare' else colour,
    'side_stripe': (
      _accent(rng, colour) if striped and rng.random() < 0.35 else ''
    ),
    'shoes': shoes,
    'shoes_colour': _choose(
      rng, _LEATHER_COLOURS if leather else _SHOES_COLOURS
    ),
    'socks': _socks(rng, kind, shoes),
  }


def _socks(rng, lower, shoes):
  if lower not in BARE_LEGS or shoes not in ('sneakers', 'leather shoes'):
    return ''
  return _maybe(rng, 0.6, ('white', 'white', 'black', 'gray', 'red', 'yellow'))


def _carried(rng, gender):
  """A bag and a thing in the other hand."""
  kinds = ('backpack',) * 4 + ('crossbody bag',) * 3
  kinds += ('handbag',) * (4 if gender == 'woman' else 1)
  kinds += ('shopping bag',) * 2 + ('suitcase',)
  bag = _maybe(rng, 0.65, kinds)
  side = _choose(rng, ('left', 'right'))
  item = _maybe(rng, 0.35, ('phone', 'cup', 'book', 'umbrella'))
  other = 'left' if side == 'right' else 'right'
  return {
    'bag': bag,
    'bag_colour': _choose(rng, _BAG_COLOURS) if bag else '',
    'bag_side': side if bag and bag != 'backpack' else '',
    'item': item,
    'item_colour': _item_colour(rng, item),
    'item_side': other if item else '',
  }


def _item_colour(rng, item):
  options = {
    '': ('',),
    'phone': ('black', 'white'),
    'cup': ('white', 'red', 'green', 'yellow'),
    'book': ('red', 'blue', 'green', 'brown', 'yellow'),
    'umbrella': _BAG_COLOURS,
  }
  return _choose(rng, options[item])


def person(rng: np.random.Generator) -> Person:
  """Draws one identity."""
  gender = _choose(rng, ('man', 'woman'))
  age = _choose(rng, ('young',) * 5 + ('middle-aged',) * 3 + ('elderly',) * 2)
  upper = _upper(rng, gender)
  return Person(
    gender=gender,
    age=age,
    build=_choose(rng, ('slim', 'average', 'average', 'heavy')),
    skin=int(rng.integers(len(SKINS))),
    shade=int(rng.integers(2**31)),
    **_head(rng, gender, age),
    **upper,
    **_lower(rng, gender, upper['upper']),
    **_carried(rng, gender),
  )


def _change(rng, who, what):
  """Another value for one fine attribute of `who`."""
  if what == 'shoes_colour':
    return {what: _other(rng, _SHOES_COLOURS[4:], who.shoes_colour)}
  if what == 'bag':
    if who.bag and rng.random() < 0.3:
      return {'bag': '', 'bag_colour': '', 'bag_side': ''}
    kinds = ('backpack', 'crossbody bag', 'shopping bag')
    bag = _other(rng, kinds, who.bag)
    free = 'left' if who.item_side == 'right' else 'right'
    side = '' if bag == 'backpack' else who.bag_side or free
    colour = who.bag_colour or _choose(rng, _BAG_COLOURS)
    return {'bag': bag, 'bag_colour': colour, 'bag_side': side}
  if what == 'bag_colour':
    return {what: _other(rng, _BAG_COLOURS, who.bag_colour)}
  if what == 'pattern':
    pattern = _other(rng, UPPERS[who.upper], who.pattern)
    accent = who.accent or _accent(rng, who.upper_colour, who.inner)
    return {what: pattern, 'accent': '' if pattern == 'plain' else accent}
  if what == 'accent':
    taken = (who.accent, who.inner)
    return {what: _accent(rng, who.upper_colour, *taken)}
  if what == 'inner':
    return {what: _other(rng, _CLOTH, who.inner, who.upper_colour, who.accent)}
  if what == 'scarf':
    return {what: '' if who.scarf else _choose(rng, _CLOTH)}
  if what == 'hat_colour':
    return {what: _other(rng, _CLOTH, who.hat_colour)}
  return {what: '' if who.glasses else 'glasses'}


def sibling(rng: np.random.Generator, who: Person) -> Person:
  """A near double of `who`: one or two fine attributes differ.

  Sex, build, hair, the garments and their main colours stay; the colour of
  the shoes, the bag, the pattern, the shirt underneath, the scarf, the hat's
  colour or the glasses change.
  """
  fine = ['shoes_colour', 'shoes_colour', 'bag', 'bag', 'scarf', 'glasses']
  fine += ['pattern'] * (2 if len(set(UPPERS[who.upper])) > 1 else 0)
  fine += ['bag_colour'] * (2 if who.bag else 0)
  fine += ['accent'] * (2 if who.accent else 0)
  fine += ['inner'] if who.inner else []
  fine += ['hat_colour'] if who.hat else []
  group = {'bag_colour': 'bag', 'accent': 'pattern'}
  for _ in range(int(rng.integers(1, 3))):
    what = _choose(rng, fine)
    who = who._replace(**_change(rng, who, what))
    what = group.get(what, what)
    fine = [name for name in fine if group.get(name, name) != what]
  return who


def described(who: Person) -> Person:
  """`who` without what no caption tells: the key of an identity."""
  return who._replace(skin=0, shade=0, bag_side='', item_side='')


def people(
  seed: int, split: int, count: int, siblings: float, taken: set
) -> list[Person]:
  """The identities of one split, no two of them described alike.

  Person i is drawn from [PEOPLE, seed, split, i]. Persons 1, 3, 5, ... are, with the
  chance `siblings`, near doubles of the person before. So that share of the
  identities has a double.

  Args:
    seed: of the data set.
    split: number of the split.
    count: of identities.
    siblings: share in 0..1.
    taken: descriptions already given away; the new ones are added to it.
  """
  result = []
  for i in range(count):
    for attempt in range(1000):
      rng = np.random.default_rng([PEOPLE, seed, split, i, attempt])
      double = i % 2 == 1 and rng.random() < siblings
      who = sibling(rng, result[-1]) if double else person(rng)
      if described(who) not in taken:
        break
    taken.add(described(who))
    result.append(who)
  return result
