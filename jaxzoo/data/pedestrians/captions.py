"""Describes a person in a picture: short or long, in several styles.

A style is an order of topics and a voice. Styles in TRAIN_STYLES serve the
training and the test split; the cross set also uses the others.
"""

import numpy as np

from jaxzoo.data.pedestrians.attributes import Person
from jaxzoo.data.pedestrians.render import Shot, hidden
from jaxzoo.data.pedestrians.words import (
  a,
  choose,
  colour,
  listed,
  phrases,
  toned,
)

TRAIN_STYLES = ('top_down', 'bottom_up', 'bag_first', 'clothes_first')
CROSS_STYLES = (*TRAIN_STYLES, 'list', 'witness', 'report')

_DOWN = (
  *('hair', 'glasses', 'hat', 'headphones', 'scarf'),
  *('upper', 'sleeves', 'inner', 'lower', 'socks', 'shoes'),
  *('bag', 'item', 'absent', 'pose', 'sum'),
)
_ORDERS = {
  'top_down': _DOWN,
  'bottom_up': (
    *('shoes', 'socks', 'lower', 'upper', 'sleeves', 'inner', 'scarf'),
    *('bag', 'item', 'hair', 'glasses', 'headphones', 'hat'),
    *('absent', 'pose', 'sum'),
  ),
  'bag_first': (
    *('bag', 'item', 'upper', 'sleeves', 'inner', 'lower', 'shoes', 'socks'),
    *('scarf', 'hat', 'hair', 'glasses', 'headphones', 'absent', 'pose'),
    'sum',
  ),
  'clothes_first': (
    *('sum', 'upper', 'sleeves', 'inner', 'lower', 'shoes', 'socks'),
    *('hat', 'scarf', 'hair', 'glasses', 'headphones', 'bag', 'item'),
    *('pose', 'absent'),
  ),
  'witness': _DOWN,
  'report': _DOWN,
  'list': _DOWN,
}

# Topics that a long caption always tells when it knows them.
_CORE = (
  *('hair', 'glasses', 'hat', 'headphones', 'scarf', 'upper', 'inner'),
  *('lower', 'socks', 'shoes', 'bag', 'item'),
)

_SENTENCES = {
  'hair': (
    '{S} has {hair}.',
    '{S} has {hair}.',
    '{P} hair is {hair_like}.',
  ),
  'bald': ('{S} is bald.', '{P} head is bald, without any hair.'),
  'beard': (' {S} also has a beard.', ' A beard covers {p} chin.'),
  'glasses': (
    '{S} wears {glasses}.',
    '{S} has {glasses} on {p} face.',
    'There are {glasses} on {p} face.',
  ),
  'hat': (
    '{S} wears {hat}.',
    'On {p} head {s} wears {hat}.',
    '{P} head is covered by {hat}.',
  ),
  'headphones': (
    '{S} wears {headphones} over {p} ears.',
    'There are {headphones} on {p} ears.',
  ),
  'scarf': (
    '{S} wears {scarf} around {p} neck.',
    '{Scarf} is wrapped around {p} neck.',
  ),
  'upper': (
    '{S} is wearing {upper}.',
    '{S} is dressed in {upper}.',
    'On the upper body {s} wears {upper}.',
    '{P} upper body is covered by {upper}.',
  ),
  'inner': (
    'Under the open {upper_name} {s} wears {inner}.',
    'The {upper_name} is open and shows {inner} underneath.',
    '{Inner} can be seen under the {upper_name}.',
  ),
  'lower': (
    '{S} wears {lower}.',
    'Below {s} has {lower} on.',
    '{P} legs are covered by {lower}.',
    'On the lower body {s} is wearing {lower}.',
  ),
  'skirt': (
    '{S} wears {lower}.',
    'Below {s} has {lower} on.',
    'On the lower body {s} is wearing {lower}.',
  ),
  'bare': (
    '{P} legs are bare below the hem.',
    'Below the hem of the {upper_name} {p} legs are bare.',
  ),
  'socks': (
    '{S} wears {socks}.',
    '{Socks} can be seen above the shoes.',
  ),
  'shoes': (
    '{S} wears {shoes}.',
    '{P} shoes are {shoes}.',
    'On {p} feet {s} has {shoes}.',
    'There are {shoes} on {p} feet.',
  ),
  'backpack': (
    '{S} carries {bag} on {p} back.',
    '{S} has {bag} on {p} back.',
    '{Bag} hangs on {p} back.',
  ),
  'crossbody bag': (
    '{S} carries {bag} with a strap across {p} body.',
    '{Bag} hangs at {p} {bag_side}hip.',
  ),
  'handbag': (
    '{S} carries {bag} in {p} {bag_side}hand.',
    '{S} holds {bag} by its handle.',
  ),
  'shopping bag': (
    '{S} carries {bag} in {p} {bag_side}hand.',
    '{Bag} hangs from {p} {bag_side}hand.',
  ),
  'suitcase': (
    '{S} pulls {bag} along.',
    '{S} has {bag} at {p} {bag_side}side.',
  ),
  'item': (
    '{S} holds {item} in {p} {item_side}hand.',
    'In {p} {item_side}hand {s} has {item}.',
    '{Item} is in {p} {item_side}hand.',
  ),
}

_SLEEVES = {
  'none': ('The {upper_name} has no sleeves and leaves the arms bare.',),
  'short': (
    'The sleeves of the {upper_name} are short.',
    'It is {upper_name_a} with short sleeves, so {p} arms are bare.',
  ),
  'long': (
    'The sleeves of the {upper_name} are long.',
    'Long sleeves cover {p} arms down to the hands.',
  ),
}
_ABSENT = {
  'bag': ('{S} carries no bag.', '{S} does not have a bag with {o}.'),
  'hat': ('{S} wears no hat.', 'There is no hat on {p} head.'),
  'glasses': ('{S} wears no glasses.', '{S} does not wear glasses.'),
  'scarf': ('There is no scarf around {p} neck.',),
  'item': ('{P} hands are empty.', '{S} holds nothing in {p} hands.'),
  'pattern': (
    'The {upper_name} is plain and has no pattern on it.',
    'There is no pattern on the {upper_toned}.',
  ),
}
_OPENINGS = {
  'top_down': ('The picture shows {Who_a}.', 'This is {Who_a}.'),
  'bottom_up': ('This is {Who_a}, described from the feet up.',),
  'bag_first': ('We see {Who_a}.', 'This is {Who_a}.'),
  'clothes_first': ('In the picture there is {Who_a}.', 'Here is {Who_a}.'),
  'witness': (
    'I am looking for {Who_a}.',
    'Have you seen {Who_a}?',
    'Yesterday I met {Who_a}.',
  ),
  'report': ('The person to be found is {Who_a}.', 'Wanted: {Who_a}.'),
}
_VIEWS = {
  'front': ('from the front', 'facing the camera'),
  'back': ('from behind', 'from the back'),
  'left': ('from the side', 'in profile'),
  'right': ('from the side', 'in profile'),
}


def _known(rng, who: Person, at: Shot):
  """The person as a describer knows it, and the fields left in doubt.

  What the shot hides is mostly unknown; of the rest a little is overlooked.
  """
  doubt = {field for field in hidden(who, at) if rng.random() < 0.85}
  for field in ('shoes', 'bag', 'item', 'glasses', 'scarf', 'socks', 'beard'):
    if rng.random() < 0.04:
      doubt.add(field)
  blank = {field: '' for field in doubt if field != 'beard'}
  if 'beard' in doubt:
    blank['beard'] = False
  if 'pattern' in doubt:
    blank['pattern'] = 'plain'
  return who._replace(**blank), doubt


def _slots(rng, who, say):
  """What the sentences' braces stand for."""
  man = who.gender == 'man'
  slots = dict(say)
  slots |= {'S': 'He' if man else 'She', 's': 'he' if man else 'she'}
  slots |= {'P': 'His' if man else 'Her', 'p': 'his' if man else 'her'}
  slots |= {'o': 'him' if man else 'her', 'Who_a': a(say['who'])}
  for name in ('scarf', 'inner', 'bag', 'item', 'socks'):
    if name in say:
      slots[name.capitalize()] = say[name][0].upper() + say[name][1:]
  slots['upper_name_a'] = a(say['upper_name'])
  slots['upper_toned'] = toned(say['upper_colour'], say['upper_name'])
  for name, side in (('bag_side', who.bag_side), ('item_side', who.item_side)):
    slots[name] = f'{side} ' if side and rng.random() < 0.25 else ''
  if who.hair not in ('', 'bald'):
    tone = colour(rng, who.hair_colour)
    tied = {'ponytail': 'tied in a ponytail', 'bun': 'tied in a bun'}
    like = tied.get(who.hair, who.hair)
    slots['hair_like'] = f'{tone} and {like}'
  return slots


def _templates(topic, who):
  """The sentences that can tell a core topic, or none."""
  if topic == 'hair':
    return _SENTENCES['bald' if who.hair == 'bald' else 'hair']
  if topic == 'lower':
    if who.lower == 'bare' or 'skirt' in who.lower:
      return _SENTENCES['bare' if who.lower == 'bare' else 'skirt']
  if topic == 'bag' and who.bag:
    return _SENTENCES[who.bag]
  return _SENTENCES[topic] if getattr(who, topic) else ()


def _core_sentence(rng, topic, who):
  templates = _templates(topic, who)
  if not templates:
    return ''
  text = choose(rng, templates)
  if topic == 'inner' and who.upper == 'vest':
    text = choose(rng, (_SENTENCES['inner'][0], _SENTENCES['inner'][2]))
    text = text.replace('open ', '')
  if topic == 'hair' and who.beard:
    text += choose(rng, _SENTENCES['beard'])
  return text


def _pose(rng, who, at):
  doing = choose(rng, ('walking', 'on the move'))
  if not at.walking:
    doing = choose(rng, ('standing still', 'standing'))
  view = choose(rng, _VIEWS[at.view])
  if view.startswith('facing'):
    return f'{{S}} is {doing}, {view}.'
  return choose(
    rng,
    (
      f'{{S}} is {doing} and is seen {view}.',
      f'The picture was taken {view} while {{s}} was {doing}.',
    ),
  )


def _sum(rng, say):
  """The main colours once more."""
  main = [say['upper_colour']]
  if say.get('lower_colour', main[0]) != main[0]:
    main.append(say['lower_colour'])
  return choose(
    rng,
    (
      f'The main colors of {{p}} clothes are {listed(main)}.'
      if len(main) > 1
      else f'The main color of {{p}} clothes is {main[0]}.',
      f'{{S}} is mostly dressed in {listed(main)}.',
    ),
  )


def _extras(rng, who, at, say, doubt):
  """Sentences for filling up: [(topic, sentence)] in random order."""
  extras = [('pose', _pose(rng, who, at)), ('sum', _sum(rng, say))]
  sleeves = _SLEEVES[who.sleeves]
  if who.upper == 'vest':  # the sleeves are the shirt's
    sleeves = sleeves[1:]
  extras += [('sleeves', choose(rng, sleeves))]
  for field, sentences in _ABSENT.items():
    value = getattr(who, field)
    if field in doubt or (value and value != 'plain'):
      continue
    hands = who.bag in ('', 'backpack', 'crossbody bag')
    if field == 'item' and ('bag' in doubt or not hands):
      continue
    where = 'sleeves' if field == 'pattern' else 'absent'
    extras.append((where, choose(rng, sentences)))
  return [extras[i] for i in rng.permutation(len(extras))]


def _words(sentences):
  return sum(len(text.split()) for _, text in sentences)


def _listed_facts(rng, who, say, slots):
  """Labelled notes: [(topic, note)]."""
  labels = {
    'upper': ('Top', 'Upper body'),
    'inner': ('Underneath', 'Below it'),
    'lower': ('Bottom', 'Legs'),
    'socks': ('Socks',),
    'shoes': ('Shoes', 'Feet'),
    'bag': ('Bag', 'Luggage'),
    'item': ('In the hand', 'Hand'),
    'hat': ('Hat', 'On the head'),
    'glasses': ('Eyes', 'Face'),
    'scarf': ('Neck',),
    'headphones': ('Ears',),
  }
  hair = 'none, bald' if who.hair == 'bald' else slots['hair_like']
  beard = ', with a beard' if who.beard else ''
  told = [('hair', f'Hair: {hair}{beard}.')]
  for topic, names in labels.items():
    if topic in say:
      told.append((topic, f'{choose(rng, names)}: {say[topic]}.'))
  return told


def fine(rng: np.random.Generator, who: Person, at: Shot, style: str) -> str:
  """A long description of about 80 words."""
  who, doubt = _known(rng, who, at)
  say = phrases(rng, who)
  slots = _slots(rng, who, say)
  if style == 'list':
    opening = f'{say["who"].capitalize()}.'
    told = _listed_facts(rng, who, say, slots)
  else:
    opening = choose(rng, _OPENINGS[style]).format(**slots)
    told = [(topic, _core_sentence(rng, topic, who)) for topic in _CORE]
    told = [(topic, text.format(**slots)) for topic, text in told if text]
  target = float(np.clip(rng.normal(81, 8), 62, 104))
  count = len(opening.split()) + _words(told)
  for topic, text in _extras(rng, who, at, say, doubt):
    if count >= target - 4:
      break
    told.append((topic, text.format(**slots)))
    count += len(told[-1][1].split())
  order = _ORDERS[style]
  told.sort(key=lambda item: order.index(item[0]))
  return ' '.join([opening, *(text for _, text in told)])


def _short_facts(rng, who, say):
  """What a short caption of about 25 words tells: (worn, carried)."""
  worn = ['upper'] + (['lower'] if 'lower' in say else [])
  carried = []
  more = [t for t in ('shoes', 'bag', 'hat', 'glasses', 'item') if t in say]
  count = sum(len(say[topic].split()) for topic in ('who', *worn)) + 5
  count += len(say.get('hair', 'a bald head').split())
  for i in rng.permutation(len(more)):
    if count >= 22:
      break
    topic = more[i]
    (carried if topic in ('bag', 'item') else worn).append(topic)
    count += len(say[topic].split()) + (2 if topic in ('bag', 'item') else 1)
  carried.sort()  # the bag first
  return [say[topic] for topic in worn], [
    f'{"carries" if topic == "bag" else "holds"} {say[topic]}'
    for topic in carried
  ]


def coarse(rng: np.random.Generator, who: Person, at: Shot, style: str) -> str:
  """A short description of about 25 words."""
  who, _ = _known(rng, who, at)
  say = phrases(rng, who)
  slots = _slots(rng, who, say)
  worn, carried = _short_facts(rng, who, say)
  someone = f'{a(say["who"])} with {say.get("hair", "a bald head")}'
  wearing, tail = listed(worn), ' and '.join(carried)
  who_tail = f', who {tail}' if tail else ''
  and_tail = f', and {slots["s"]} {tail}' if tail else ''
  if style == 'bag_first' and tail:
    doing = tail.replace('carries', 'carrying').replace('holds', 'holding')
    text = f'{doing}, {someone} wears {wearing}'
  elif style in ('top_down', 'bag_first'):
    verb = choose(rng, ('wears', 'is wearing', 'is dressed in'))
    text = f'{someone} {verb} {wearing}{and_tail}'
  elif style == 'bottom_up':
    are = 'are' if len(worn) > 1 else 'is'
    text = f'{listed(worn[::-1])} {are} worn by {someone}{who_tail}'
  elif style == 'clothes_first':
    doing = 'walks along' if at.walking else 'stands still'
    and_tail = f' and {tail}' if tail else ''
    text = f'dressed in {wearing}, {someone} {doing}{and_tail}'
  elif style == 'witness':
    text = f'please help me find {someone} in {wearing}{who_tail}'
  elif style == 'report':
    text = f'wanted is {someone}, last seen in {wearing}{who_tail}'
  else:
    text = '; '.join([someone[someone.index(' ') + 1 :], *worn, *carried])
  text = text[0].upper() + text[1:] + '.'
  if len(text.split()) < 20:
    text += ' ' + _pose(rng, who, at).format(**slots)
  return text
