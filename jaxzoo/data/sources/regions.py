"""Regions of pictures, captions and questions as files.

Regions: `ROOT/regions/DETECTOR/IMAGE.npz`, IMAGE being the number that the
annotations have, with three arrays:

    features  float32 [n, d]   of each region, by falling confidence
    boxes     float32 [n, 4]   left, top, right, bottom, in shares of the picture
    tags      text [n]         names of the regions, `np.array(['dog', 'sofa'])`

Captions: Karpathy's `dataset_coco.json`, {images: [{cocoid, split, sentences:
[{raw}]}]}. Questions: the files of VQA v2, {questions: [{question_id, image_id,
question}]} and {annotations: [{question_id, answer_type, answers: [{answer}]}]}.
"""

import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from jaxzoo.errors import CorruptRecord, UserError

BOX_NUMBERS = 6
MAX_REGIONS = 4096  # more are no detector's


class Regions(NamedTuple):
  """What a detector finds, by falling confidence.

  Attributes:
    features: of each region, its box among them: left, top, right, bottom,
      width, height in shares of the picture, the last six columns.
    tags: names of the regions.
  """

  features: Float32[np.ndarray, 'n d']
  tags: tuple[str, ...]


class Question(NamedTuple):
  """A question on a picture.

  Attributes:
    image: which picture.
    text: the question.
    answers: of ten people; none where they are not public.
    kind: 'yes/no', 'number' or 'other'.
    number: of the question, as results name it.
  """

  image: int
  text: str
  answers: tuple[str, ...]
  kind: str
  number: int


class RegionFiles:
  """The regions that a detector has found, read when they are asked for.

  Args:
    root: the data set's folder.
    detector: its folder below ROOT/regions.

  Raises:
    UserError: there is no such folder.
  """

  def __init__(self, root: str | os.PathLike, detector: str):
    self._folder = pathlib.Path(root).expanduser() / 'regions' / detector
    if not detector or not self._folder.is_dir():
      raise UserError(
        f'no folder {self._folder}: the regions of a detector lie in '
        'ROOT/regions/DETECTOR/IMAGE.npz, see data.regions'
      )

  def __call__(self, image: int) -> Regions:
    """Of a picture; CorruptRecord where the file is not what it should be."""
    path = self._folder / f'{image}.npz'
    try:
      # Never unpickled: an array of objects is an error.
      with np.load(path, allow_pickle=False) as arrays:
        features, boxes, tags = (
          np.asarray(arrays[name]) for name in ('features', 'boxes', 'tags')
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
      raise CorruptRecord(path, str(error)) from error
    except (zipfile.BadZipFile, zlib.error) as error:
      raise CorruptRecord(path, f'no npz file: {error}') from error
    count = len(features) if features.ndim == 2 else -1
    if not 0 <= count <= MAX_REGIONS:
      raise CorruptRecord(path, f'features {features.shape}: expected [n, d]')
    if boxes.shape != (count, 4) or tags.shape != (count,):
      raise CorruptRecord(
        path,
        f'features {features.shape}, boxes {boxes.shape}, tags {tags.shape}: '
        'expected [n, d], [n, 4] and [n]',
      )
    if tags.dtype.kind != 'U' or features.dtype.kind != 'f':
      raise CorruptRecord(
        path, f'features {features.dtype}, tags {tags.dtype}: floats and text'
      )
    if not (np.isfinite(features).all() and np.isfinite(boxes).all()):
      raise CorruptRecord(path, 'features or boxes are not finite')
    if count and not (-0.01 <= boxes.min() and boxes.max() <= 1.01):
      raise CorruptRecord(path, 'boxes must be shares of the picture, in 0..1')
    return Regions(with_box_numbers(features, boxes), tuple(tags.tolist()))

  def __repr__(self) -> str:
    return f'RegionFiles({self._folder})'


def with_box_numbers(features, boxes) -> Float32[np.ndarray, 'n d']:
  """Features and the six numbers of each box."""
  sides = boxes[:, 2:] - boxes[:, :2]
  return np.concatenate([features, boxes, sides], axis=1, dtype=np.float32)


def read_captions(
  path: str | os.PathLike, split: str
) -> dict[int, tuple[str, ...]]:
  """image -> captions, of a split of a file in Karpathy's format.

  The split 'train' has what the file calls 'restval' too, as is usual.

  Raises:
    UserError: the file cannot be read, or has nothing of the split.
  """
  found, splits = {}, set()
  wanted = {split, 'restval'} if split == 'train' else {split}
  for entry in _entries(path, 'images'):
    try:
      splits.add(entry['split'])
      if entry['split'] in wanted:
        captions = tuple(str(each['raw']) for each in entry['sentences'])
        found[int(entry['cocoid'])] = captions
    except (KeyError, TypeError, ValueError) as error:
      raise UserError(
        f'{path}: an entry of `images` lacks or misspells {error}: expected '
        'cocoid, split and sentences [{raw}]'
      ) from error
  found = {image: captions for image, captions in found.items() if captions}
  if not found:
    raise UserError(
      f'{path} has no captions of {split!r}; there are '
      + ', '.join(sorted(map(str, splits)))
    )
  return found


def read_questions(
  questions: str | os.PathLike, annotations: str | os.PathLike | None
) -> tuple[Question, ...]:
  """The questions of a pair of files of VQA v2.

  Args:
    questions: `v2_OpenEnded_mscoco_{split}_questions.json`.
    annotations: `v2_mscoco_{split}_annotations.json`; None for a split whose
      answers are not public.

  Raises:
    UserError: a file cannot be read, or a question has no answers.
  """
  answers: Mapping = {}
  try:
    if annotations is not None:
      answers = {
        int(entry['question_id']): (
          tuple(str(each['answer']) for each in entry['answers']),
          str(entry['answer_type']),
        )
        for entry in _entries(annotations, 'annotations')
      }
    asked = [
      (int(entry['question_id']), int(entry['image_id']), entry['question'])
      for entry in _entries(questions, 'questions')
    ]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'{questions} or {annotations}: an entry lacks or misspells {error}: '
      'expected question_id, image_id, question; and question_id, answer_type, '
      'answers [{answer}]'
    ) from error
  lost = [n for n, *_ in asked if answers and n not in answers]
  if lost:
    raise UserError(
      f'{annotations} has no answers to {len(lost)} questions of {questions}, '
      f'the first {lost[0]}'
    )
  return tuple(
    Question(image, str(text), *answers.get(n, ((), 'other')), n)
    for n, image, text in asked
  )


def _entries(path, key: str) -> list:
  """The list that a JSON object has under `key`."""
  path = pathlib.Path(path).expanduser()
  try:
    found = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as error:
    raise UserError(f'{path} cannot be read: {error}') from error
  if not isinstance(found, dict) or not isinstance(found.get(key), list):
    raise UserError(f'{path} is no JSON object with a list {key!r}')
  return found[key]
