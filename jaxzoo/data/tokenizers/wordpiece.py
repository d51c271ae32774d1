"""BERT's WordPiece: text to ids and back, with any vocabulary.

Source: arXiv 1810.04805 and google-research/bert, whose ids these are with the
published `vocab.txt` (a piece a line).
"""

import os
import pathlib
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from jaxzoo.errors import UserError

PAD, UNKNOWN, START, END, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'
SPECIAL = (PAD, UNKNOWN, START, END, MASK)


class WordPieceTokenizer:
  """Lower-case text -> ids of pieces, without special words around them.

  Accents are dropped, punctuation stands alone, and a word is cut into the
  longest pieces of the vocabulary, of which those after the first begin with
  '##'. Threads may share one, and it crosses into worker processes.

  Attributes:
    special_ids: of unknown, start, end and mask; padding is 0.
    vocab_size: pieces.

  Raises:
    UserError: a special word is missing, a piece comes twice, or padding is
      not the first.
  """

  def __init__(self, pieces: Iterable[str], name: str = 'the vocabulary'):
    pieces = list(pieces)
    table = {piece: i for i, piece in enumerate(pieces)}
    missing = [word for word in SPECIAL if word not in table]
    if missing:
      raise UserError(f'{name} has no {", ".join(missing)}')
    if len(table) < len(pieces):
      raise UserError(f'{name} has a piece twice')
    if table[PAD]:
      raise UserError(f'{name}: {PAD} must be the first piece')
    self.vocab_size = len(pieces)
    self.special_ids = tuple(table[word] for word in SPECIAL[1:])
    self._tokenizer = tokenizers.Tokenizer(
      models.WordPiece(table, unk_token=UNKNOWN, max_input_chars_per_word=100)
    )
    self._tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    self._tokenizer.decoder = decoders.WordPiece()
    self._ignored = {table[word] for word in SPECIAL} - {table[END]}
    self._end = table[END]

  def encode(self, text: str) -> list[int]:
    """The ids of a text."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids up to the first end; special words are left out."""
    ids = [int(i) for i in ids]
    if self._end in ids:
      ids = ids[: ids.index(self._end)]
    kept = [i for i in ids if i not in self._ignored]
    return self._tokenizer.decode(kept)


def read_vocabulary(path: str | os.PathLike) -> WordPieceTokenizer:
  """The tokenizer of a `vocab.txt`.

  Raises:
    UserError: it cannot be read, or see `WordPieceTokenizer`.
  """
  path = pathlib.Path(path).expanduser()
  try:
    pieces = path.read_text('utf-8').splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"data.vocab: {path} cannot be read ({error}): give BERT's vocab.txt, a "
      'piece a line'
    ) from error
  return WordPieceTokenizer(pieces, str(path))
