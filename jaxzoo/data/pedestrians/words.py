"""Words for what a person looks like: noun phrases with synonyms."""

import numpy as np

from jaxzoo.data.pedestrians.attributes import Person

# The first word is said most often. Every word names one colour only.
COLOUR_WORDS = {
  'black': ('black',),
  'white': ('white',),
  'gray': ('gray', 'grey'),
  'red': ('red', 'bright red'),
  'maroon': ('maroon', 'dark red', 'burgundy'),
  'orange': ('orange',),
  'yellow': ('yellow',),
  'green': ('green',),
  'dark green': ('dark green', 'deep green'),
  'blue': ('blue', 'bright blue'),
  'navy': ('navy', 'dark blue', 'navy blue'),
  'light blue': ('light blue', 'sky blue'),
  'purple': ('purple', 'violet'),
  'pink': ('pink',),
  'brown': ('brown',),
  'beige': ('beige', 'tan'),
  'blond': ('blond', 'fair'),
  'ginger': ('ginger', 'reddish'),
}
GARMENT_WORDS = {
  't-shirt': ('t-shirt', 'tee'),
  'shirt': ('shirt', 'button-up shirt'),
  'sweater': ('sweater', 'pullover', 'jumper'),
  'hoodie': ('hoodie', 'hooded sweatshirt'),
  'jacket': ('jacket',),
  'coat': ('coat', 'long coat', 'overcoat'),
  'vest': ('vest', 'sleeveless vest'),
  'tank top': ('tank top', 'sleeveless top'),
  'dress': ('dress', 'knee-length dress'),
  'trousers': ('trousers', 'pants'),
  'jeans': ('jeans', 'denim pants'),
  'shorts': ('shorts', 'short pants'),
  'sweatpants': ('sweatpants', 'track pants'),
  'leggings': ('leggings', 'tight leggings'),
  'skirt': ('skirt', 'short skirt'),
  'long skirt': ('long skirt', 'ankle-length skirt'),
  'tights': ('tights', 'stockings'),
  'sneakers': ('sneakers', 'sports shoes', 'trainers'),
  'boots': ('boots', 'tall boots'),
  'leather shoes': ('leather shoes', 'formal shoes'),
  'sandals': ('sandals', 'open sandals'),
  'high heels': ('high heels', 'heeled shoes'),
  'cap': ('cap', 'baseball cap'),
  'beanie': ('beanie', 'knitted hat'),
  'sun hat': ('sun hat', 'wide-brimmed hat'),
  'backpack': ('backpack', 'rucksack'),
  'crossbody bag': ('crossbody bag', 'messenger bag'),
  'handbag': ('handbag', 'hand bag'),
  'shopping bag': ('shopping bag', 'paper bag'),
  'suitcase': ('suitcase', 'rolling suitcase'),
  'phone': ('phone', 'mobile phone'),
  'cup': ('cup', 'drinking cup'),
  'book': ('book',),
  'umbrella': ('umbrella', 'folded umbrella'),
  'glasses': ('glasses', 'eyeglasses'),
  'sunglasses': ('sunglasses', 'dark glasses'),
}

# Adjectives of the garments above that stand before a colour.
_FIRST = frozenset(
  ('long', 'short', 'tight', 'tall', 'open', 'formal', 'knitted', 'folded')
  + ('sleeveless', 'knee-length', 'ankle-length', 'wide-brimmed')
)


def choose(rng: np.random.Generator, options):
  """One of `options`, all equally likely."""
  return options[int(rng.integers(len(options)))]


def _said(rng, options):
  """The usual word two times in three, else a synonym."""
  if len(options) == 1 or rng.random() < 0.67:
    return options[0]
  return choose(rng, options[1:])


def colour(rng, name: str) -> str:
  return _said(rng, COLOUR_WORDS[name])


def garment(rng, name: str) -> str:
  return _said(rng, GARMENT_WORDS[name])


def toned(tone: str, name: str) -> str:
  """Colour and garment in English order: 'long red coat', 'red cap'."""
  first, _, rest = name.partition(' ')
  return f'{first} {tone} {rest}' if first in _FIRST else f'{tone} {name}'


def a(phrase: str) -> str:
  """The phrase with its indefinite article."""
  return ('an ' if phrase[0] in 'aeiou' else 'a ') + phrase


def listed(phrases: list[str]) -> str:
  """'x', 'x and y', 'x, y and z'."""
  if len(phrases) < 2:
    return ''.join(phrases)
  return ', '.join(phrases[:-1]) + ' and ' + phrases[-1]


def _who(rng, who):
  noun = {
    'man': ('man', 'man', 'male', 'gentleman'),
    'woman': ('woman', 'woman', 'female', 'lady'),
  }[who.gender]
  age = {'elderly': ('elderly', 'old')}.get(who.age, (who.age,))
  build = {
    'slim': ('slim', 'thin'),
    'average': ('',),
    'heavy': ('heavy', 'broad'),
  }[who.build]
  parts = (choose(rng, build), choose(rng, age), choose(rng, noun))
  return ' '.join(part for part in parts if part)


def _hair(rng, who):
  if who.hair in ('', 'bald'):
    return ''
  tone = colour(rng, who.hair_colour)
  if who.hair == 'ponytail':
    return f'{tone} hair in a ponytail'
  if who.hair == 'bun':
    return f'{tone} hair in a bun'
  return f'{who.hair} {tone} hair'


def _patterned(rng, tone, name, who):
  """Colour, garment and pattern: 'red t-shirt with white dots'."""
  if who.pattern == 'plain':
    return toned(tone, name)
  other = colour(rng, who.accent)
  plain = toned(tone, name)
  forms = {
    'stripes': (
      f'{plain} with {other} horizontal stripes',
      f'{tone} and {other} striped {name}',
    ),
    'vertical stripes': (
      f'{plain} with {other} vertical stripes',
      f'{plain} with narrow upright {other} stripes',
    ),
    'checks': (
      f'{tone} and {other} checked {name}',
      f'{plain} with {other} checks',
    ),
    'dots': (f'{plain} with {other} dots', f'{tone} and {other} dotted {name}'),
    'print': (
      f'{plain} with {a(other)} logo on the chest',
      f'{plain} with a round {other} print',
    ),
    'block': (
      f'{plain} with {a(other)} lower half',
      f'half {tone} and half {other} {name}',
    ),
    'sleeves': (
      f'{plain} with {other} sleeves',
      f'{other} sleeved {plain}',
    ),
  }
  return choose(rng, forms[who.pattern])


def _thing(rng, tone, name):
  return toned(colour(rng, tone), garment(rng, name))


def phrases(rng: np.random.Generator, who: Person) -> dict:
  """Noun phrases by topic; a topic is absent where there is nothing to say.

  `who`, `upper_name`, `lower_name` come without article.
  """
  say = {'who': _who(rng, who), 'hair': _hair(rng, who)}
  if who.upper:
    say['upper_name'] = garment(rng, who.upper)
    say['upper_colour'] = colour(rng, who.upper_colour)
    name, tone = say['upper_name'], say['upper_colour']
    say['upper'] = a(_patterned(rng, tone, name, who))
    say['inner'] = a(f'{colour(rng, who.inner)} shirt') if who.inner else ''
  if who.lower not in ('', 'bare'):
    say['lower_name'] = garment(rng, who.lower)
    say['lower_colour'] = colour(rng, who.lower_colour)
    lower = toned(say['lower_colour'], say['lower_name'])
    if who.side_stripe:
      lower += f' with {a(colour(rng, who.side_stripe))} side stripe'
    say['lower'] = a(lower) if 'skirt' in who.lower else lower
  if who.shoes:
    say['shoes'] = _thing(rng, who.shoes_colour, who.shoes)
  if who.socks:
    say['socks'] = f'{colour(rng, who.socks)} socks'
  if who.bag:
    say['bag'] = a(_thing(rng, who.bag_colour, who.bag))
  if who.item:
    say['item'] = a(_thing(rng, who.item_colour, who.item))
  if who.hat:
    say['hat'] = a(_thing(rng, who.hat_colour, who.hat))
  if who.glasses:
    say['glasses'] = garment(rng, who.glasses)
  if who.scarf:
    say['scarf'] = a(f'{colour(rng, who.scarf)} scarf')
  if who.headphones:
    say['headphones'] = f'{colour(rng, who.headphones)} headphones'
  return {topic: phrase for topic, phrase in say.items() if phrase}
