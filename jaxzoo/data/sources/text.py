"""Texts in files: GLUE's TSV, CoNLL's columns, sentences by line.

Every reader gives a tuple of `Text`: a sentence, the answer that is asked for,
and its number among the labels.
"""

import csv
import json
import os
import pathlib
from collections.abc import Sequence

from jaxzoo.data.reviews import Text
from jaxzoo.errors import UserError

SENTIMENT = ('negative', 'positive')
ACCEPTABILITY = ('unacceptable', 'acceptable')


class Texts:
  """Random access to texts: {'sentence', 'answer', 'label'}."""

  def __init__(self, name: str, texts: Sequence[Text]):
    self._name, self.texts = name, tuple(texts)

  def __len__(self) -> int:
    return len(self.texts)

  def __getitem__(self, i) -> dict:
    return self.texts[i]._asdict()

  def __repr__(self) -> str:
    return f'Texts({self._name}, {len(self)} sentences)'


def read_sst2(path: str | os.PathLike) -> tuple[Text, ...]:
  """SST-2 of GLUE: a header, columns `sentence` and `label` (0 or 1).

  Raises:
    UserError: no such file, other columns, or a line that is not so.
  """
  rows = _rows(path)
  header = next(rows, (1, []))[1]
  if not {'sentence', 'label'} <= set(header):
    raise UserError(
      f'{path}: the first line has the columns {header}, expected sentence and '
      'label, as train.tsv and dev.tsv of SST-2 have them (its test.tsv has no '
      'labels)'
    )
  sentence, label = header.index('sentence'), header.index('label')
  return _labelled(path, rows, len(header), sentence, label, SENTIMENT)


def read_cola(path: str | os.PathLike) -> tuple[Text, ...]:
  """CoLA of GLUE: source, label, mark, sentence, without a header.

  Raises:
    UserError: as of `read_sst2`.
  """
  return _labelled(path, _rows(path), 4, 3, 1, ACCEPTABILITY)


def _rows(path):
  """(number of the line, cells) of each line that is not empty."""
  with _opened(path) as file:
    # Quotation marks are text, as the files were written.
    reader = csv.reader(file, delimiter='\t', quoting=csv.QUOTE_NONE)
    try:
      for cells in reader:
        if cells:
          yield reader.line_num, cells
    except (csv.Error, UnicodeDecodeError) as error:
      raise UserError(
        f'{path}: line {reader.line_num + 1} cannot be read: {error}'
      ) from error


def _labelled(path, rows, columns, sentence, label, names):
  texts = []
  for line, cells in rows:
    if len(cells) != columns:
      raise UserError(
        f'{path}, line {line}: {len(cells)} columns separated by tabs, expected '
        f'{columns}'
      )
    if cells[label] not in ('0', '1'):
      raise UserError(
        f'{path}, line {line}: the label is {cells[label]!r}, expected 0 or 1'
      )
    number = int(cells[label])
    texts.append(Text(cells[sentence].strip(), names[number], number))
  return _some(path, texts)


def read_conll(path: str | os.PathLike) -> tuple[Text, ...]:
  """CoNLL-2003: a word and its tag in IOB a line, sentences apart by a blank.

  The answer lists the entities in their order: 'PER : U.N. official ; LOC :
  Baghdad'.

  Raises:
    UserError: no such file, or a line without a tag.
  """
  texts, words, tags = [], [], []

  def end():
    if words and words[0] != '-DOCSTART-':
      texts.append(Text(' '.join(words), _entities(words, tags)))
    words.clear()
    tags.clear()

  with _opened(path) as file:
    for line, row in enumerate(file, 1):
      cells = row.split()
      if not cells:
        end()
        continue
      tag = cells[-1]
      if len(cells) < 2 or not (tag == 'O' or tag[:2] in ('B-', 'I-')):
        raise UserError(
          f'{path}, line {line}: {row.strip()!r}; expected a word, and last on '
          'the line O, B-KIND or I-KIND'
        )
      words.append(cells[0])
      tags.append(tag)
  end()
  return _some(path, texts)


def _entities(words, tags) -> str:
  found, before = [], 'O'
  for word, tag in zip(words, tags, strict=True):
    if tag != 'O':
      # In IOB1 an entity begins with I- too, where none of its kind goes on.
      if tag[0] == 'B' or before[2:] != tag[2:]:
        found.append((tag[2:], []))
      found[-1][1].append(word)
    before = tag
  return ' ; '.join(f'{kind} : {" ".join(span)}' for kind, span in found)


def read_lines(path: str | os.PathLike) -> tuple[Text, ...]:
  """A sentence a line; of JSON lines (*.jsonl) what is `generated`, or `text`.

  Raises:
    UserError: no such file, nothing in it, or a line that is no such JSON.
  """
  texts, by_json = [], str(path).endswith('.jsonl')
  with _opened(path) as file:
    try:
      for line, row in enumerate(file, 1):
        if by_json and row.strip():
          row = _generated(path, line, row)
        if row.strip():
          texts.append(Text(row.strip()))
    except UnicodeDecodeError as error:
      raise UserError(f'{path} is no UTF-8 text: {error}') from error
  return _some(path, texts)


def _generated(path, line, row) -> str:
  try:
    record = json.loads(row)
    return str(record['generated' if 'generated' in record else 'text'])
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path}, line {line}: expected a JSON object with `generated` or `text`'
    ) from error


def _opened(path):
  try:
    return pathlib.Path(path).expanduser().open(encoding='utf-8', newline='')
  except OSError as error:
    raise UserError(f'{path} cannot be read: {error}') from error


def _some(path, texts) -> tuple[Text, ...]:
  if not texts:
    raise UserError(f'{path}: no sentence in it')
  return tuple(texts)
