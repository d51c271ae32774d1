"""Answers to questions on pictures: when two are the same, and their scores.

The rules of VQA v2 (visualqa.org, arXiv 1612.00837), as arXiv 2111.08896 uses
them.
"""

import collections
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

NUMBERS = {
  word: str(number)
  for number, word in enumerate(
    'zero one two three four five six seven eight nine ten'.split()
  )
} | {'none': '0'}
ARTICLES = ('a', 'an', 'the')
# Written without their apostrophe they are no other word.
_CONTRACTIONS = (
  "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't "
  "haven't he'd he's how'd how's I'd I'm I've isn't it'd it'll let's ma'am "
  "mightn't might've mustn't must've needn't not've o'clock oughtn't shan't "
  "she's should've shouldn't somebody's someone's that's there'd there're "
  "there's they'd they'll they're they've wasn't we've weren't what'll what're "
  "what's what've when's where'd where's where've who'd who'll who's who've "
  "why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
).lower()
CONTRACTIONS = {word.replace("'", ''): word for word in _CONTRACTIONS.split()}
_PUNCTUATION = re.compile(r'[;/\[\]"{}()=+\\_<>@`,?!-]')


def normalize(answer: str) -> str:
  """An answer as it is compared with others.

  Lower case; commas between digits and full stops that are no decimal point
  go, other punctuation too (inside of a word it becomes a space; apostrophes
  and colons stay); number words become digits, articles go, and contractions
  get their apostrophe.

  >>> normalize('The two dogs.'), normalize('dont'), normalize('1,000')
  ('2 dogs', "don't", '1000')
  """
  text = re.sub(r'\s+', ' ', answer).strip().lower()
  text = re.sub(r'(?<=\d),(?=\d)', '', text)
  text = re.sub(r'(?<!\d)\.|\.(?!\d)', '', text)
  beside = (
    rf'(?:(?<=\s)|^){_PUNCTUATION.pattern}|{_PUNCTUATION.pattern}(?=\s|$)'
  )
  text = _PUNCTUATION.sub(' ', re.sub(beside, '', text))
  words = [NUMBERS.get(word, word) for word in text.split()]
  return ' '.join(
    CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES
  )


def agreement(matches, people: int = 10):
  """The accuracy of an answer that `matches` of the people have given.

  The mean over the subsets of all people but one of min(1, matches / 3): 0.3,
  0.6, 0.9, 1 for 1, 2, 3, 4 of ten.
  """
  matches = np.asarray(matches)
  score = lambda count: np.minimum(count / 3, 1)
  return (
    matches * score(matches - 1) + (people - matches) * score(matches)
  ) / max(people, 1)


def vocabulary(answers: Sequence[Sequence[str]], least: int) -> tuple[str, ...]:
  """The answers that at least `least` questions have as their first choice.

  Normalised; the most frequent first, then in alphabetical order. The first
  choice is the answer that most people gave.
  """
  counts = collections.Counter(
    collections.Counter(map(normalize, given)).most_common(1)[0][0]
    for given in answers
    if given
  )
  kept = [(answer, n) for answer, n in counts.items() if n >= least]
  return tuple(a for a, _ in sorted(kept, key=lambda pair: (-pair[1], pair[0])))


def soft_targets(
  given: Sequence[str], places: dict[str, int]
) -> Float32[np.ndarray, ' k']:
  """The agreement of each answer of the vocabulary.

  Args:
    given: the answers of the people.
    places: answer -> its place in the vocabulary.
  """
  targets = np.zeros(len(places), np.float32)
  for answer, matches in collections.Counter(map(normalize, given)).items():
    if answer in places:
      targets[places[answer]] = agreement(matches, len(given))
  return targets
