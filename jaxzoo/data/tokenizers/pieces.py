"""SentencePiece vocabularies of published T5 checkpoints.

`tokenizer.json`, as the Hugging Face hub has it, is read by `tokenizers`;
`spiece.model`, the original, by `sentencepiece` (the extra `text`).
"""

import os
import pathlib
from collections.abc import Sequence

from jaxzoo.errors import UserError


class PieceTokenizer:
  """Texts -> ids of pieces of words.

  The file is read at once, and again by every worker process.

  Attributes:
    vocab_size: ids that there are, `<extra_id_0>` to `<extra_id_99>` included.
    mask: `<extra_id_0>`, which stands for words left out.
  """

  def __init__(self, path: str | os.PathLike):
    """Reads tokenizer.json or spiece.model.

    Raises:
      UserError: there is no such file, it is neither, or what reads it is not
        installed.
    """
    self._path = pathlib.Path(path).expanduser()
    if not self._path.is_file():
      raise UserError(
        f'data.tokenizer: no file {self._path}; give the tokenizer.json or the '
        'spiece.model of the checkpoint'
      )
    read = _read_json if self._path.suffix == '.json' else _read_model
    self._encode, self._decode, size = read(self._path)
    # spiece.model has the pieces alone; the marks come behind them, backwards.
    self.vocab_size = size if self._path.suffix == '.json' else size + 100
    self.mask = self.vocab_size - 1

  def __repr__(self):
    return f'PieceTokenizer({self._path})'

  def __reduce__(self):
    return PieceTokenizer, (self._path,)

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without END."""
    return self._encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """The text up to the first END; padding and marks are left out."""
    kept = []
    for i in map(int, ids):
      if i == 1:
        break
      if 0 < i < self.vocab_size - 100:
        kept.append(i)
    return self._decode(kept)


def _read_json(path):
  import tokenizers

  try:
    model = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # the library raises this class itself
    raise UserError(f'{path}: no tokenizer of `tokenizers`: {error}') from error
  return (
    lambda text: model.encode(text, add_special_tokens=False).ids,
    model.decode,
    model.get_vocab_size(),
  )


def _read_model(path):
  try:
    import sentencepiece
  except ImportError as error:
    raise UserError(
      f"{path} needs sentencepiece: pip install 'jaxzoo[text]', or give the "
      'tokenizer.json of the checkpoint'
    ) from error
  try:
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
  except (OSError, RuntimeError) as error:
    raise UserError(f'{path}: no SentencePiece model: {error}') from error
  return model.encode, model.decode, model.get_piece_size()
