"""Regions, captions and questions from config to pipeline."""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxzoo.data import answers, captioned_scenes
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import regions as files
from jaxzoo.data.sources.regions import Question, Regions
from jaxzoo.data.tokenizers.wordpiece import (
  WordPieceTokenizer,
  read_vocabulary,
)
from jaxzoo.data.transforms import Transform
from jaxzoo.errors import CorruptRecord, UserError, nearest

DATASETS = ('scenes', 'files')


class Pictures(NamedTuple):
  """A split: what there is of each picture.

  Attributes:
    name: of the split, for messages.
    regions: detector -> (image -> its regions).
    captions: image -> captions.
    questions: of all pictures.
  """

  name: str
  regions: Mapping[str, Callable[[int], Regions]]
  captions: Mapping[int, tuple[str, ...]]
  questions: tuple[Question, ...]


class Records:
  """One record an entry: {'image', 'text', 'regions', ...}.

  `regions` and, where a teacher has a detector of its own features,
  `teacher_regions` are float32 [n, d]; `tags` are the names of the regions.

  Args:
    pictures: the split.
    entries: of each record, at least its `image`.
    detector: that the network sees with.
    teacher: that the teacher sees with; '' for none.

  Indexing raises CorruptRecord where regions cannot be read, or where the two
  detectors have not the same boxes in the same order.
  """

  def __init__(self, pictures, entries, detector: str, teacher: str = ''):
    self._pictures, self._entries = pictures, tuple(entries)
    self._detector, self._teacher = detector, teacher

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, i) -> dict:
    entry = self._entries[i]
    found = self._pictures.regions[self._detector](entry['image'])
    record = {**entry, 'regions': found.features, 'tags': found.tags}
    if not self._teacher:
      return record
    taught = self._pictures.regions[self._teacher](entry['image']).features
    boxes = [x[:, -files.BOX_NUMBERS :] for x in (found.features, taught)]
    if boxes[0].shape != boxes[1].shape or not np.allclose(
      *boxes, rtol=0, atol=1e-3
    ):
      raise CorruptRecord(
        f'{self._pictures.name}, picture {entry["image"]}',
        f'{self._detector!r} and {self._teacher!r} have other boxes, or in '
        'another order: a teacher sees the boxes of its student',
      )
    return {**record, 'teacher_regions': taught}

  def tags(self, i) -> tuple[str, ...]:
    """Of the picture of record i."""
    image = self._entries[i]['image']
    return self._pictures.regions[self._detector](image).tags

  def __repr__(self) -> str:
    return f'Records({self._pictures.name}, {len(self)})'


def read_pictures(config, split: str) -> Pictures:
  """A split of `data.dataset`: 'scenes' (`data.embedded`) or 'files'.

  Files lie below `data.root`: regions of the detectors that `data.regions` and
  `data.teacher_regions` name, captions in `data.captions`, questions in
  `data.questions` and `data.annotations`, in which {split} stands for the
  split; see `sources/regions.py`.

  Raises:
    UserError: anything wrong with files or settings.
  """
  data = config.data
  if data.dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {data.dataset!r}; ' + nearest(data.dataset, DATASETS)
    )
  detectors = tuple(sorted({data.regions, data.teacher_regions} - {''}))
  if data.dataset == 'scenes':
    return _scenes(tuple(sorted(data.embedded.items())), split, detectors)
  if not data.root:
    raise UserError('data.root is empty: --config.data.root=DIR')
  asks = config.task == 'vqa'
  return _files(
    str(data.root),
    split,
    detectors,
    '' if asks else data.captions,
    data.questions if asks else '',
    data.annotations if asks else '',
  )


@functools.lru_cache(maxsize=8)
def _scenes(embedded, split, detectors) -> Pictures:
  found = captioned_scenes.load(
    captioned_scenes.Settings(**dict(embedded)), split
  )
  for name in detectors:
    if name not in found.regions:
      raise UserError(
        f'data.regions: no {name!r}; ' + nearest(name, found.regions)
      )
  return Pictures(
    f'scenes, {split}',
    {name: found.regions[name].__getitem__ for name in detectors},
    dict(enumerate(found.captions)),
    found.questions,
  )


@functools.lru_cache(maxsize=4)
def _files(root, split, detectors, captions, questions, annotations):
  root = pathlib.Path(root).expanduser()
  place = lambda name: root / name.replace('{split}', split)
  return Pictures(
    f'{root}, {split}',
    {name: files.RegionFiles(root, name) for name in detectors},
    files.read_captions(place(captions), split) if captions else {},
    files.read_questions(
      place(questions), place(annotations) if annotations else None
    )
    if questions
    else (),
  )


def make_tokenizer(config) -> WordPieceTokenizer:
  """Of `data.vocab`, below `data.root`, or of the words of the scenes.

  Raises:
    UserError: the config has other sizes or special words.
  """
  data = config.data
  path = data.vocab and pathlib.Path(data.root).expanduser() / data.vocab
  tokenizer = _tokenizer(str(path))
  wanted = (config.vocab_size, tuple(config.special_ids))
  found = (tokenizer.vocab_size, tokenizer.special_ids)
  if found != wanted:
    raise UserError(
      f'the vocabulary has {found[0]} pieces with unknown, start, end and mask '
      f'at {found[1]}: set --config.vocab_size={found[0]} and '
      f'--config.special_ids={",".join(map(str, found[1]))}'
    )
  return tokenizer


@functools.lru_cache(maxsize=4)
def _tokenizer(path: str) -> WordPieceTokenizer:
  if path:
    return read_vocabulary(path)
  return WordPieceTokenizer(captioned_scenes.pieces())


def answer_vocabulary(config) -> tuple[str, ...]:
  """The answers that there are, from the training split.

  Raises:
    UserError: their number is not `num_answers`.
  """
  data = config.data
  pictures = read_pictures(config, data.train_split)
  found = _vocabulary(
    tuple(question.answers for question in pictures.questions),
    data.min_answers,
  )
  if len(found) != config.num_answers:
    raise UserError(
      f'{pictures.name} has {len(found)} answers to {data.min_answers} '
      f'questions or more, but num_answers={config.num_answers}: set '
      f'--config.num_answers={len(found)} or data.min_answers'
    )
  return found


_vocabulary = functools.lru_cache(maxsize=2)(answers.vocabulary)


# Transforms.


def encode_words(
  tokenizer: WordPieceTokenizer, text_length: int, tag_length: int
) -> Transform:
  """`words` int32 [text_length + tag_length]: the text, then the tags.

  START, text, END, padding; tags, END, padding. What does not fit is cut off.
  """
  _, start, end, _ = tokenizer.special_ids
  encode = functools.lru_cache(maxsize=2**16)(tokenizer.encode)

  def transform(record, rng):
    del rng
    text = [start, *encode(record['text'])][: text_length - 1]
    tags = [i for tag in record['tags'] for i in encode(tag)]
    words = np.zeros(text_length + tag_length, np.int32)
    words[: len(text) + 1] = [*text, end]
    tags = [*tags[: tag_length - 1], end]
    words[text_length : text_length + len(tags)] = tags
    return {**record, 'words': words}

  return transform


def pad_regions(most: int, widths: Mapping[str, int]) -> Transform:
  """Regions as [most, width], and `region_count`; those beyond are cut off.

  Args:
    most: regions of a picture.
    widths: of `regions` and `teacher_regions`.
  """

  def transform(record, rng):
    del rng
    padded = {}
    for name, width in widths.items():
      rows = record[name][:most]
      if rows.shape[1] != width:
        raise UserError(
          f'{name} have {rows.shape[1]} numbers, box included, where '
          f'data.detectors says {width}: change it'
        )
      padded[name] = np.zeros((most, width), np.float32)
      padded[name][: len(rows)] = rows
      padded['region_count'] = np.int32(len(rows))
    return {**record, **padded}

  return transform


def region_widths(data) -> dict[str, int]:
  """How many numbers a row of `regions` has, and of `teacher_regions`.

  Raises:
    UserError: `data.detectors` lacks a detector.
  """
  detectors = {
    'regions': data.regions,
    'teacher_regions': data.teacher_regions,
  }
  for field, name in detectors.items():
    if name and name not in data.detectors:
      raise UserError(
        f'data.{field}: no {name!r}; ' + nearest(name, data.detectors)
      )
  return {
    field: data.detectors[name] for field, name in detectors.items() if name
  }


def corrupt_tags(source: Records, p: float) -> Transform:
  """The tags of another picture with probability p; `match` says which."""

  def transform(record, rng):
    other = rng.random() < p
    place = int(rng.integers(len(source)))
    tags = source.tags(place) if other else record['tags']
    return {**record, 'tags': tags, 'match': np.int32(not other)}

  return transform


def mask_words(
  tokenizer: WordPieceTokenizer, p: float, text_length: int, caption: bool
) -> Transform:
  """Masks words as BERT does: `labels` has the masked ones, 0 elsewhere.

  Of those chosen 80 % become the mask, 10 % any word, 10 % stay. At least one
  is chosen. Tags of another picture stay whole: nothing tells what they were.

  Args:
    tokenizer: gives the special words.
    p: share of the words that is chosen.
    text_length: places of the text.
    caption: whether words of the text alone are chosen, and the end of the
      text is one of them: a caption has to learn where to stop.
  """
  _, start, end, mask = tokenizer.special_ids

  def transform(record, rng):
    words = record['words']
    eligible = (words != 0) & (words != start)
    in_text = np.arange(len(words)) < text_length
    if caption or not record.get('match', 1):
      eligible &= in_text
    if not caption:
      eligible &= words != end
    draw, kind = rng.random(len(words)), rng.random(len(words))
    chosen = eligible & (draw < p)
    if not chosen.any() and eligible.any():
      chosen = np.arange(len(words)) == np.where(eligible, draw, 2).argmin()
    random = rng.integers(1, tokenizer.vocab_size, len(words))
    changed = np.where(kind < 0.8, mask, np.where(kind < 0.9, random, words))
    return {
      **record,
      'words': np.where(chosen, changed, words).astype(np.int32),
      'labels': np.where(chosen, words, 0).astype(np.int32),
    }

  return transform


def score_answers(vocabulary: tuple[str, ...]) -> Transform:
  """`answers` float32 [k], from the answers that people have `given`."""
  places = {answer: i for i, answer in enumerate(vocabulary)}

  @functools.lru_cache(maxsize=2**16)  # epochs ask again
  def score(given):
    targets = answers.soft_targets(given, places)
    targets.flags.writeable = False
    return targets

  def transform(record, rng):
    del rng
    return {**record, 'answers': score(record['given'])}

  return transform


def keep(names) -> Transform:
  """The arrays that a batch has, and what the pipeline says of the record."""
  names = {*names, 'corrupt'}

  def transform(record, rng):
    del rng
    return {name: record[name] for name in record if name in names}

  return transform


# Splits.


def train_data(config) -> Data:
  """What `config.task` is trained on: a caption or a question a record.

  Raises:
    UserError: anything wrong with files, sizes or settings.
  """
  data = config.data
  pictures = read_pictures(config, data.train_split)
  if config.task == 'vqa':
    entries = question_entries(pictures)
  else:
    entries = caption_entries(pictures)
  return prepare(config, pictures, entries)


def caption_entries(pictures: Pictures) -> list[dict]:
  """One a caption."""
  return [
    {'image': image, 'text': text}
    for image, captions in pictures.captions.items()
    for text in captions
  ]


def question_entries(pictures: Pictures) -> list[dict]:
  """One a question."""
  return [
    {'image': each.image, 'text': each.text, 'given': each.answers}
    for each in pictures.questions
  ]


def prepare(config, pictures: Pictures, entries) -> Data:
  """Records of the entries, and what makes them those of the task."""
  data, tokenizer = config.data, make_tokenizer(config)
  if not entries:
    raise UserError(f'{pictures.name}: nothing for the task {config.task!r}')
  source = Records(pictures, entries, data.regions, data.teacher_regions)
  fit = pad_regions(config.num_regions, region_widths(data))
  _check_regions(source, fit)
  steps = [fit]
  if config.task == 'pretrain':
    steps.append(corrupt_tags(source, data.corrupt_tags))
  steps.append(encode_words(tokenizer, config.text_length, config.tag_length))
  if config.task == 'vqa':
    steps.append(score_answers(answer_vocabulary(config)))
  else:
    steps.append(
      mask_words(
        tokenizer,
        data.mask_words,
        config.text_length,
        caption=config.task == 'caption',
      )
    )
  return Data(source, (*steps, keep(example_batch(config))))


def _check_regions(source: Records, fit: Transform) -> None:
  """Widths of the first record that can be read, before anything runs."""
  for i in range(min(len(source), 8)):
    try:
      fit(source[i], None)
    except CorruptRecord as error:
      if i == 0:
        first = error
      continue
    return
  raise UserError(f'{source!r}: no regions can be read, the first: {first}')


def eval_data(config, split: str) -> Data:
  """Every caption or question of a split once, as in training."""
  pictures = read_pictures(config, split)
  if config.task == 'vqa':
    return prepare(config, pictures, question_entries(pictures))
  return prepare(config, pictures, caption_entries(pictures))


def picture_data(
  config, split: str
) -> tuple[Data, tuple[tuple[str, ...], ...]]:
  """Every picture of a split once, without a text, and its captions."""
  pictures = read_pictures(config, split)
  entries = [{'image': image, 'text': ''} for image in pictures.captions]
  return (
    prepare(config, pictures, entries),
    tuple(pictures.captions.values()),
  )


def example_batch(config) -> dict[str, Int32[np.ndarray, 'b ...']]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, words = config.batch_size, config.text_length + config.tag_length
  batch = {
    'words': np.zeros((b, words), np.int32),
    'region_count': np.zeros(b, np.int32),
  }
  for name, width in region_widths(config.data).items():
    batch[name] = np.zeros((b, config.num_regions, width), np.float32)
  if config.task == 'vqa':
    batch['answers'] = np.zeros((b, config.num_answers), np.float32)
  else:
    batch['labels'] = np.zeros((b, words), np.int32)
  if config.task == 'pretrain':
    batch['match'] = np.zeros(b, np.int32)
  return batch
