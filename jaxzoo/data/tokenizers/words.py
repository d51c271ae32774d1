"""Words of a fixed vocabulary as ids, in the manner of T5's special ids."""

import re
from collections.abc import Sequence

PAD, END, UNKNOWN, MASK = range(4)
SPECIAL = ('<pad>', '</s>', '<unk>', '<extra_id_0>')
_PIECES = re.compile(r'<extra_id_0>|\w+|[^\w\s]')


class WordTokenizer:
  """Lower-case words and punctuation -> ids; what is not listed is UNKNOWN.

  >>> tokenizer = WordTokenizer(['good', 'film', '.'])
  >>> tokenizer.encode('Good film!')
  [4, 5, 2]
  >>> tokenizer.decode([4, 5, 6, 1, 0])
  'good film .'

  Attributes:
    vocab_size: ids that there are.
    mask: the id that stands for a word left out.
  """

  mask = MASK

  def __init__(self, words: Sequence[str]):
    """Of words in the order of their ids, which begin behind the special."""
    self._words = (*SPECIAL, *words)
    self._ids = {word: i for i, word in enumerate(self._words)}
    if len(self._ids) != len(self._words):
      raise ValueError('a word of the vocabulary is listed twice')
    self.vocab_size = len(self._words)

  def __repr__(self):
    return f'WordTokenizer({self.vocab_size} words)'

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without END."""
    pieces = _PIECES.findall(text.lower())
    return [self._ids.get(piece, UNKNOWN) for piece in pieces]

  def decode(self, ids: Sequence[int]) -> str:
    """The text up to the first END, a space between words, no padding."""
    words = []
    for i in ids:
      if i == END:
        break
      if i != PAD:
        words.append(self._words[i] if 0 <= i < self.vocab_size else '<unk>')
    return ' '.join(words)
