"""Text to text from config to pipeline: which sentences, which answers.

What a model reads is a prefix that names the task, and a sentence; what it says
is a target. All are ids of a fixed length, END after the last word, PAD behind
it; the prefix is padded in front, so that the sentence follows it at once.
"""

import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jaxzoo.data import reviews
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import text as files
from jaxzoo.data.sources.text import Texts
from jaxzoo.data.tokenizers.pieces import PieceTokenizer
from jaxzoo.data.tokenizers.words import END, PAD
from jaxzoo.errors import UserError, nearest


class Task(NamedTuple):
  """What there is to be answered.

  Attributes:
    labels: the answers; () where they are texts.
    read: of a file; None for the embedded ones.
    places: split -> file below `data.root`.
  """

  labels: tuple[str, ...]
  read: Callable | None = None
  places: dict[str, str] = {}


TASKS = {
  'reviews': Task(reviews.LABELS),
  'entities': Task(()),
  'sst2': Task(
    files.SENTIMENT,
    files.read_sst2,
    {'train': 'SST-2/train.tsv', 'dev': 'SST-2/dev.tsv'},
  ),
  'cola': Task(
    files.ACCEPTABILITY,
    files.read_cola,
    {'train': 'CoLA/train.tsv', 'dev': 'CoLA/dev.tsv'},
  ),
  'conll2003': Task(
    (),
    files.read_conll,
    {'train': 'eng.train', 'dev': 'eng.testa', 'test': 'eng.testb'},
  ),
}
# What a training record is, see `train_data`.
RECORDS = ('answers', 'denoise', 'rewrite')
TEXTS = ('task', 'general')


def make_tokenizer(config):
  """The embedded words, or `data.tokenizer`, a file of a published T5.

  Raises:
    UserError: anything wrong with it, or more ids than `vocab_size`.
  """
  path = config.data.tokenizer
  tokenizer = _pieces(path) if path else reviews.tokenizer()
  if tokenizer.vocab_size > config.vocab_size:
    raise UserError(
      f'{tokenizer!r} has {tokenizer.vocab_size} ids, more than vocab_size='
      f'{config.vocab_size}'
    )
  return tokenizer


@functools.lru_cache(maxsize=2)
def _pieces(path) -> PieceTokenizer:
  return PieceTokenizer(path)


def task_of(config) -> Task:
  """The task of `data.task`, with the labels that the config has.

  Raises:
    UserError: there is no such task, or it has other labels.
  """
  name = config.data.task
  if name not in TASKS:
    raise UserError(f'data.task: no {name!r}; ' + nearest(name, TASKS))
  labels = TASKS[name].labels
  if tuple(config.labels) != labels:
    raise UserError(
      f'labels={tuple(config.labels)}, but {name} has {labels}: set '
      f'--config.labels={labels!r}'
    )
  return TASKS[name]


def label_tokens(tokenizer, labels: Sequence[str]) -> tuple[int, ...]:
  """The first id of each label: what a decoder is asked for.

  Raises:
    UserError: two labels begin with the same.
  """
  ids = tuple(int(tokenizer.encode(label)[0]) for label in labels)
  if len(set(ids)) < len(ids):
    raise UserError(
      f'the labels {", ".join(labels)} begin with the same piece for '
      f'{tokenizer!r}: name them so that their first pieces differ'
    )
  return ids


def check_labels(config, tokenizer) -> None:
  """Raises UserError where `label_tokens` are not the labels' ids."""
  ids = label_tokens(tokenizer, config.labels)
  if tuple(config.label_tokens) != ids:
    raise UserError(
      f'label_tokens={tuple(config.label_tokens)}, but {tokenizer!r} has '
      f'{", ".join(config.labels)} as {ids}: set --config.label_tokens='
      + ','.join(map(str, ids))
    )


def open_texts(config, which: str, split: str) -> Texts:
  """The sentences of a split of the `task`, or `general` ones.

  Those that are not embedded come from `data.root` and, of the general text,
  from the file `data.general`, which has one split.

  Raises:
    UserError: anything wrong with the files.
  """
  if which not in TEXTS:
    raise UserError(f'data.text: no {which!r}; ' + nearest(which, TEXTS))
  data = config.data
  settings = reviews.Settings(**data.embedded)
  if which == 'general':
    return _general(data.general, settings, split)
  task = task_of(config)
  known = task.places if task.read else ('train', 'test')
  if split not in known:
    raise UserError(
      f'{data.task} has no split {split!r}; {nearest(split, known)}'
    )
  if task.read is None:
    return _embedded(data.task, settings, split)
  if not data.root:
    raise UserError(
      f'data.root is empty: say where {task.places[split]} lies with '
      '--config.data.root=DIR'
    )
  return _file(task.read, str(pathlib.Path(data.root) / task.places[split]))


# Sentences do not change: an evaluation and the training may share them.
@functools.lru_cache(maxsize=8)
def _general(path, settings, split):
  if path:
    return _file(files.read_lines, path)
  if split == 'test':  # others than those of the training
    settings = settings._replace(seed=settings.seed + 1, general=settings.test)
  return Texts(f'general {tuple(settings)}', reviews.load_general(settings))


@functools.lru_cache(maxsize=8)
def _embedded(task, settings, split):
  texts = reviews.load_task(task, settings, split)
  return Texts(f'{task} {tuple(settings)}, {split}', texts)


@functools.lru_cache(maxsize=8)
def _file(read, path):
  return Texts(path, read(path))


def padded(ids: Sequence[int], length: int) -> Int[np.ndarray, ' n']:
  """As many ids as fit, END, then PAD; int32."""
  row = np.full(length, PAD, np.int32)
  kept = [*ids[: length - 1], END]
  row[: len(kept)] = kept
  return row


def prefix_ids(tokenizer, prefix: str, length: int) -> Int[np.ndarray, ' n']:
  """The ids of a prefix, PAD in front of them; int32.

  Raises:
    UserError: it has more.
  """
  ids = tokenizer.encode(prefix)
  if len(ids) > length:
    raise UserError(
      f'the prefix {prefix!r} has {len(ids)} ids: raise prefix_length={length}'
    )
  return np.asarray([PAD] * (length - len(ids)) + list(ids), np.int32)


def left_out(ids: Sequence[int], mask: int, share: float, rng) -> list[int]:
  """The ids with about this share of them as `mask`, a run of them as one."""
  kept = []
  for i, drop in zip(ids, rng.random(len(ids)) < share, strict=True):
    if not drop:
      kept.append(i)
    elif not kept or kept[-1] != mask:
      kept.append(mask)
  return kept


def make_encode(config, records: str) -> Callable:
  """(record of `Texts`, rng) -> the arrays of an example, see `train_data`."""
  tokenizer, data = make_tokenizer(config), config.data
  check_labels(config, tokenizer)
  prefix, rewrite = (
    prefix_ids(tokenizer, text, config.prefix_length)
    for text in (data.prefix, data.rewrite_prefix)
  )

  def encode(record, rng):
    ids = tokenizer.encode(record['sentence'])
    seen = left_out(ids, tokenizer.mask, data.mask, rng) if data.mask else ids
    kept = {key: record[key] for key in ('corrupt',) if key in record}
    if records == 'rewrite':
      sentence = padded(seen, config.sentence_length)
      return {
        'prefix': prefix,
        'sentence': sentence,
        'rewrite': rewrite,
        **kept,
      }
    if records == 'denoise':
      first, asked, label = rewrite, ids, -1
    else:
      first, seen, label = prefix, ids, record['label']
      asked = tokenizer.encode(record['answer'])
    return {
      'prefix': first,
      'sentence': padded(seen, config.sentence_length),
      'target': padded(asked, config.target_length),
      'label': np.int32(label),
      **kept,
    }

  return encode


def train_data(config) -> Data:
  """Sentences to learn from: the training split of `data.text`.

  `data.records` says what an example has beside `prefix` and `sentence`:
  'answers', the `target` and its `label`; 'denoise', the sentence as the
  target, of which the model sees `data.mask` less; 'rewrite', the prefix
  `rewrite` that asks for another sentence, and no target.

  Raises:
    UserError: anything wrong with files, labels, lengths or the vocabulary.
  """
  data = config.data
  if data.records not in RECORDS:
    raise UserError(
      f'data.records: no {data.records!r}; ' + nearest(data.records, RECORDS)
    )
  source = open_texts(config, data.text, data.train_split)
  if data.records == 'answers' and data.text != 'task':
    raise UserError(
      f'data.text={data.text}: only those of the task have answers'
    )
  return Data(source, (make_encode(config, data.records),))


def eval_data(config, split: str) -> Data:
  """Every sentence of a split once, with its answer."""
  records = 'denoise' if config.data.records == 'denoise' else 'answers'
  which = 'general' if records == 'denoise' else 'task'
  source = open_texts(config, which, split)
  return Data(source, (make_encode(config, records),))


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  zeros = lambda *shape: np.zeros((config.batch_size, *shape), np.int32)
  batch = {
    'prefix': zeros(config.prefix_length),
    'sentence': zeros(config.sentence_length),
  }
  if config.data.records == 'rewrite':
    return {**batch, 'rewrite': zeros(config.prefix_length)}
  return {**batch, 'target': zeros(config.target_length), 'label': zeros()}
