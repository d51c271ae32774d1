"""What a teacher says of every picture, from a file instead of the teacher.

The file is an array of NumPy, float16 [n, k], read where a batch needs it, with
a JSON file of the same name beside it that says of which pictures it is.
"""

import json
import os
import pathlib

import numpy as np

from jaxzoo.errors import UserError

CHANGING = ('randaugment', 'color_jitter', 'random_erase')


class Taught:
  """A source whose records have `teacher_logits`, float32 [k]."""

  def __init__(self, source, path: str | os.PathLike):
    self._source, self._path = source, pathlib.Path(path)
    self._logits = np.load(self._path, mmap_mode='r', allow_pickle=False)
    self.labels, self.names = source.labels, source.names

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> dict:
    logits = np.asarray(self._logits[i], np.float32)
    return {**self._source[i], 'teacher_logits': logits}

  def __repr__(self) -> str:
    return f'Taught({self._source!r})'

  def __reduce__(self):  # workers map the file themselves
    return Taught, (self._source, self._path)


def facts_path(path: str | os.PathLike) -> pathlib.Path:
  """The JSON beside a file of logits."""
  return pathlib.Path(path).with_suffix('.json')


def with_teacher(source, config):
  """`source` with the logits of `config.data.teacher_logits`, if there are any.

  Raises:
    UserError: no such file, one of other pictures or classes, or augmentation
      that shows the student something else than the teacher saw.
  """
  path = config.data.get('teacher_logits', '')
  if not path:
    return source
  _check_augmentation(config)
  try:
    facts = json.loads(facts_path(path).read_text())
    taught = Taught(source, path)
    n, k = taught._logits.shape
  except (OSError, ValueError) as error:
    raise UserError(
      f'data.teacher_logits={path}: {error}; python -m jaxzoo.teach writes '
      'such files'
    ) from error
  if facts.get('source') != repr(source) or n != len(source):
    raise UserError(
      f'{path} is of {n} pictures of {facts.get("source")}, this run reads '
      f'{source!r}: write it again with python -m jaxzoo.teach'
    )
  if k != config.num_classes:
    raise UserError(
      f'{path} has {k} classes, but num_classes={config.num_classes}'
    )
  return taught


def _check_augmentation(config) -> None:
  """Raises a UserError where pictures are not those that the teacher saw."""
  data, wrong = config.data, []
  if data.crop == 'random_resized':
    wrong.append("data.crop='random_resized'")
  wrong += [f'data.{name}={data[name]!r}' for name in CHANGING if data[name]]
  for name in ('mixup', 'cutmix'):
    if config.loss.get(name, 0):
      wrong.append(f'loss.{name}={config.loss[name]}')
  if wrong:
    raise UserError(
      f'data.teacher_logits are of whole pictures, and {", ".join(wrong)} '
      'shows others: leave data.teacher_logits empty, so that the teacher sees '
      "what the student sees, or turn these off (flips and data.crop='pad' "
      'may stay)'
    )
