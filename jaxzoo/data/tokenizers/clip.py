"""CLIP's byte-level BPE: captions to ids and back.

Source: arXiv 2103.00020, section 2.4, and openai/CLIP, whose ids these are.
The merges (`clip_merges.txt.gz`, MIT, see LICENSE-CLIP) are lines 2 to 48,895
of its vocabulary file, the ones that it uses.
"""

import functools
import gzip
import html
import threading
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
import regex
import tokenizers
from jaxtyping import Int

from jaxzoo.errors import UserError

try:
  import ftfy
except ImportError:  # the optional dependency jaxzoo[text]
  ftfy = None

START = 49406
END = 49407
MASK = 49405  # with `mask_token` only; otherwise the word 'jekyll'

VOCAB_SIZE = 49408

# Contractions, words, SINGLE digits, and runs of everything else. The special
# tokens are split off where this pattern meets them, as in the original.
_PIECES = (
  r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)  # fmt: skip

_END_OF_WORD = '</w>'


class _Vocabulary(NamedTuple):
  """What is made once for a process and shared by all tokenizers in it."""

  bpe: tokenizers.Tokenizer
  pattern: regex.Pattern
  special: dict[str, int]
  symbols: list[str]
  bytes: dict[str, int]


_lock = threading.Lock()


def clean(caption: str) -> str:
  """The caption as the splitter wants it.

  Mended (`ftfy.fix_text`: mojibake, ligatures, curly quotes, full-width
  letters, composed accents), HTML entities resolved twice, white space
  collapsed, lower case. Without ftfy the first step is left out: the ids of
  plain, well-formed text in straight quotes are the same.
  """
  if ftfy is not None:
    caption = ftfy.fix_text(caption)
  caption = html.unescape(html.unescape(caption)).strip()
  return regex.sub(r'\s+', ' ', caption).strip().lower()


class ClipTokenizer:
  """Captions -> token ids; 49,408 of them.

  The vocabulary is read at the first use and shared by every tokenizer of the
  process. Pickles carry only the option, so a tokenizer crosses into worker
  processes; threads may share one.

  Attributes:
    mask_token: id 49405 is the token `<|mask|>` of masked language modelling
      (IRRA, arXiv 2303.12501) in place of the word 'jekyll', which is then
      spelled with smaller pieces.
    vocab_size: 49,408.
  """

  vocab_size = VOCAB_SIZE

  def __init__(self, mask_token: bool = False):
    self.mask_token = mask_token

  def __repr__(self):
    return f'ClipTokenizer(mask_token={self.mask_token})'

  def __call__(
    self, caption: str, length: int, truncate: bool = True
  ) -> Int[np.ndarray, ' length']:
    """START, the caption's ids, END, then zeros; int32 [length].

    Args:
      caption: any text, also the empty one.
      length: of the result, at least 2.
      truncate: a caption that does not fit keeps its first ids, with END in
        the last place.

    Raises:
      UserError: the caption does not fit, and `truncate` is False.
    """
    if length < 2:
      raise ValueError(f'length {length} has no room for START and END')
    ids = [START, *self.encode(caption), END]
    if len(ids) > length:
      if not truncate:
        raise UserError(
          f'a caption of {len(ids)} ids does not fit in {length}: raise the '
          f'text length or truncate ({caption[:60]!r}...)'
        )
      ids = [*ids[: length - 1], END]
    padded = np.zeros(length, np.int32)
    padded[: len(ids)] = ids
    return padded

  def encode(self, caption: str) -> list[int]:
    """The caption's ids, without START and END."""
    vocabulary = _vocabulary(self.mask_token)
    pieces = vocabulary.pattern.findall(clean(caption))
    ids, run = [], []
    for piece in pieces:
      if piece in vocabulary.special:
        ids += _encode(vocabulary.bpe, run)
        ids.append(vocabulary.special[piece])
        run = []
      else:
        run.append(piece)
    return ids + _encode(vocabulary.bpe, run)

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids: each word followed by a space.

    Starts are left out, and what lies from the first END on. Bytes that are
    no UTF-8 become U+FFFD.

    Raises:
      ValueError: an id is not in 0..49,407.
    """
    vocabulary = _vocabulary(self.mask_token)
    symbols = []
    for i in ids:
      if i == END:
        break
      if not 0 <= i < VOCAB_SIZE:
        raise ValueError(f'id {i} is not in 0..{VOCAB_SIZE - 1}')
      if i != START:
        symbols.append(vocabulary.symbols[i])
    raw = bytes(vocabulary.bytes[symbol] for symbol in ''.join(symbols))
    text = raw.decode('utf-8', errors='replace')
    return text.replace(_END_OF_WORD, ' ')


def _encode(bpe, pieces):
  if not pieces:
    return []
  return bpe.encode(pieces, is_pretokenized=True).ids


def _vocabulary(mask_token: bool) -> _Vocabulary:
  with _lock:
    return _load(bool(mask_token))


@functools.cache
def _load(mask_token: bool) -> _Vocabulary:
  """Reads the merges and builds the vocabulary; about a quarter second."""
  packed = resources.files(__package__).joinpath('clip_merges.txt.gz')
  lines = gzip.decompress(packed.read_bytes()).decode('utf-8').splitlines()
  merges = [tuple(line.split(' ')) for line in lines]
  special = {'<|startoftext|>': START, '<|endoftext|>': END}
  if mask_token:
    merges.pop()
    special['<|mask|>'] = MASK
  alphabet = _byte_symbols()
  symbols = [*alphabet, *(symbol + _END_OF_WORD for symbol in alphabet)]
  symbols += [a + b for a, b in merges]
  symbols += sorted(special, key=special.get)
  bpe = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={symbol: i for i, symbol in enumerate(symbols)},
      merges=merges,
      end_of_word_suffix=_END_OF_WORD,
    )
  )
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  pattern = '|'.join([*map(regex.escape, special), _PIECES])
  return _Vocabulary(
    bpe,
    regex.compile(pattern, regex.IGNORECASE),
    special,
    symbols,
    alphabet,
  )


def _byte_symbols() -> dict[str, int]:
  """Printable character -> byte, in the order of the vocabulary (GPT-2's).

  The bytes that are printable in Latin-1 stand for themselves and come first;
  the other 68 are U+0100 and up.
  """
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printable]
  table = {chr(byte): byte for byte in printable}
  return table | {chr(256 + k): byte for k, byte in enumerate(others)}
