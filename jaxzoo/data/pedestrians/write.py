"""Writes the pictures and the annotations, on all cores."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import cv2
import numpy as np
from absl import logging

from jaxzoo.data.pedestrians.attributes import CAPTIONS, SHOTS, Person, people
from jaxzoo.data.pedestrians.captions import (
  CROSS_STYLES,
  TRAIN_STYLES,
  coarse,
  fine,
)
from jaxzoo.data.pedestrians.render import render, shot
from jaxzoo.errors import UserError

VERSION = 2  # of the pictures and captions that a seed gives
CROSS_DOMAINS = ('day', 'night', 'indoor')
_COMPLETE = 'settings.json'  # written last: marks a whole data set
_TRAIN, _TEST, _CROSS = range(3)


class Settings(NamedTuple):
  """What to generate. The same settings give the same bytes.

  `height` by `width` is the size of the pictures in pixels. `siblings` is
  the share of the identities in every split, 0..1, that have a near double:
  another identity that differs in one or two fine attributes only.
  Every picture of the training and the test split has `coarse_captions`
  short captions (about 25 words) followed by `fine_captions` long ones (about
  80 words); every picture of the cross set has `cross_captions`, short and
  long ones by turns.
  """

  seed: int = 0
  train_identities: int = 1000
  test_identities: int = 120
  cross_identities: int = 100
  images_per_identity: int = 4
  coarse_captions: int = 1
  fine_captions: int = 1
  cross_captions: int = 5
  siblings: float = 0.4
  height: int = 192
  width: int = 64
  quality: int = 90  # of the JPEG files, 1..100


_DEFAULT = Settings()


class _Picture(NamedTuple):
  """One picture to be made: `number` names its file in its data set."""

  split: int
  pid: int  # as annotated
  number: int
  person: Person
  domain: str
  key: tuple  # (seed, split, identity, shot): of its random numbers


def _shot(picture):
  rng = np.random.default_rng((SHOTS, *picture.key))
  return shot(rng, picture.domain)


def _check(settings):
  """Raises UserError for settings that make no data set."""
  least = {'seed': 0, 'test_identities': 1, 'cross_identities': 0}
  least |= {'train_identities': 1, 'images_per_identity': 1}
  least |= {'coarse_captions': 0, 'fine_captions': 0, 'cross_captions': 1}
  least |= {'height': 48, 'width': 16, 'quality': 1}
  for name, low in least.items():
    value = getattr(settings, name)
    if value != int(value) or value < low:
      raise UserError(
        f'pedestrians: {name}={value}, it must be an integer from {low} up'
      )
  if settings.quality > 100:
    raise UserError(
      f'pedestrians: quality={settings.quality}, it must be 1 to 100'
    )
  if settings.coarse_captions + settings.fine_captions < 1:
    raise UserError(
      'pedestrians: no captions; set coarse_captions or fine_captions'
    )
  if not 0 <= settings.siblings <= 1:
    raise UserError(
      f'pedestrians: siblings={settings.siblings} is a share, 0 to 1'
    )


def _pictures(settings):
  """Every picture of the data set, in the order of the annotations."""
  counts = (
    settings.train_identities,
    settings.test_identities,
    settings.cross_identities,
  )
  taken = set()
  pictures = []
  for split, count in enumerate(counts):
    who = people(settings.seed, split, count, settings.siblings, taken)
    first = settings.train_identities if split == _TEST else 0
    number = len(pictures) if split == _TEST else 0
    for i, person in enumerate(who):
      domain = 'street'
      if split == _CROSS:  # siblings, i and i + 1, in the same domain
        domain = CROSS_DOMAINS[i // 2 % len(CROSS_DOMAINS)]
      for j in range(settings.images_per_identity):
        number += 1
        key = (settings.seed, split, i, j)
        pid = first + i + 1
        pictures.append(_Picture(split, pid, number, person, domain, key))
  return pictures


def _captions(settings, picture):
  """All captions of a picture."""
  rng = np.random.default_rng((CAPTIONS, *picture.key))
  kinds = [coarse] * settings.coarse_captions + [fine] * settings.fine_captions
  styles = TRAIN_STYLES
  if picture.split == _CROSS:
    start = int(rng.integers(2))
    kinds = [
      (coarse, fine)[(start + k) % 2] for k in range(settings.cross_captions)
    ]
    styles = CROSS_STYLES
  at = _shot(picture)
  order = rng.permutation(len(styles))
  return [
    kind(rng, picture.person, at, styles[order[k % len(order)]])
    for k, kind in enumerate(kinds)
  ]


def _annotation(settings, picture):
  record = {'split': 'train' if picture.split == _TRAIN else 'test'}
  if picture.split == _CROSS:
    record = {'id': picture.pid, 'source': picture.domain, **record}
  else:
    record['id'] = picture.pid
  record['file_path'] = f'images/{picture.number}.jpg'
  record['captions'] = _captions(settings, picture)
  return record


def _folder(picture):
  return 'UFine3C' if picture.split == _CROSS else 'UFine6926'


def _write_images(root, settings, part, parts):
  """Writes every `parts`-th picture, beginning with `part`."""
  for picture in _pictures(settings)[part::parts]:
    at = _shot(picture)
    image = render(picture.person, at, settings.height, settings.width)
    options = [cv2.IMWRITE_JPEG_QUALITY, settings.quality]
    _, code = cv2.imencode('.jpg', image[..., ::-1], options)
    name = f'{picture.number}.jpg'
    (root / _folder(picture) / 'images' / name).write_bytes(code.tobytes())


def _start_workers(root, settings, workers):
  """Processes that write the pictures, a part each.

  Fresh interpreters, since a fork of a process with running threads (JAX has
  many) may hang, and a spawned pool would import the caller's main module.
  """
  package = pathlib.Path(__file__).parents[3]
  paths = [str(package), os.environ.get('PYTHONPATH', '')]
  environment = {
    **os.environ,
    'PYTHONPATH': os.pathsep.join(path for path in paths if path),
    'OMP_NUM_THREADS': '1',
  }
  code = (
    'import sys; from jaxzoo.data.pedestrians.write import work; '
    'work(*sys.argv[1:])'
  )
  arguments = [sys.executable, '-c', code, str(root), json.dumps(settings)]
  return [
    subprocess.Popen(
      [*arguments, str(part), str(workers)],
      env=environment,
      stderr=subprocess.PIPE,
      text=True,
    )
    for part in range(workers)
  ]


def work(root: str, settings: str, part: str, parts: str) -> None:
  """A worker process's share; the arguments come from its command line."""
  cv2.setNumThreads(1)
  settings = Settings(*json.loads(settings))
  _write_images(pathlib.Path(root), settings, int(part), int(parts))


def write(
  root: str | os.PathLike,
  settings: Settings = _DEFAULT,
  workers: int | None = None,
) -> None:
  """Writes the data set into the folder `root`, in the real ones' layout.

  UFine6926/ has the training and the test split, UFine3C/ the cross set;
  each holds an annotation file and images/.

  Args:
    root: folder, made when absent; files of the same names are replaced.
    settings: what to generate.
    workers: processes; by default one a core, or one for a small data set.

  Raises:
    UserError: the settings are senseless or the folder cannot be written.
  """
  _check(settings)
  root = pathlib.Path(root)
  try:
    _write(root, settings, workers)
  except OSError as error:
    raise UserError(
      f'pedestrians: cannot write to {error.filename or root}: '
      f'{error.strerror or error}; choose another folder or free some space'
    ) from error


def _write(root, settings, workers):
  pictures = _pictures(settings)
  if workers is None:
    workers = min(os.cpu_count() or 1, 1 + len(pictures) // 500)
  if not sys.executable:  # an embedded interpreter: nothing to start
    workers = 1
  (root / _COMPLETE).unlink(missing_ok=True)
  for name in ('UFine6926', 'UFine3C'):
    (root / name / 'images').mkdir(parents=True, exist_ok=True)
  running = []
  if workers > 1:
    running = _start_workers(root, settings, workers)
  else:
    _write_images(root, settings, 0, 1)
  try:
    for name in ('UFine6926', 'UFine3C'):
      records = [
        _annotation(settings, picture)
        for picture in pictures
        if _folder(picture) == name
      ]
      path = root / name / f'{name}_Annotations.json'
      path.write_text(json.dumps(records, indent=1) + '\n')
    for process in running:
      errors = process.communicate()[1]
      if process.returncode:
        reason = errors.strip().splitlines()[-1:] or ['a worker died']
        raise OSError(None, reason[0])
  finally:
    for process in running:
      process.kill()
      process.wait()
  text = json.dumps({'version': VERSION, **settings._asdict()}, indent=1)
  (root / _COMPLETE).write_text(text + '\n')


def cache_root() -> pathlib.Path:
  """$JAXZOO_DATA, or ~/.cache/jaxzoo."""
  root = os.environ.get('JAXZOO_DATA')
  return pathlib.Path(root or '~/.cache/jaxzoo').expanduser()


def _name(settings):
  key = json.dumps([VERSION, *settings])
  return 'pedestrians-' + hashlib.sha256(key.encode()).hexdigest()[:10]


def _remove_leftovers(root, name, hours=6):
  """Removes what killed processes left, once it is surely dead."""
  for path in root.glob(f'.{name}-*'):
    if time.time() - path.stat().st_mtime > hours * 3600:
      shutil.rmtree(path, ignore_errors=True)


def prepare(
  settings: Settings = _DEFAULT, root: str | os.PathLike | None = None
) -> pathlib.Path:
  """The folder of the data set, which is generated when it is not there yet.

  Generated beside its place and renamed when whole, so that neither an
  interruption nor a second process at the same time leaves half a data set.

  Args:
    settings: what to generate.
    root: parent folder; by default `cache_root()`.

  Returns:
    The folder that holds UFine6926/ and UFine3C/.

  Raises:
    UserError: the settings are senseless or the folder cannot be written.
  """
  _check(settings)
  root = cache_root() if root is None else pathlib.Path(root)
  target = root / _name(settings)
  try:
    if (target / _COMPLETE).exists():
      return target
    root.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(root, target.name)
    place = pathlib.Path(tempfile.mkdtemp(prefix=f'.{target.name}-', dir=root))
  except OSError as error:
    raise UserError(
      f'pedestrians: cannot write to {root}: {error.strerror or error}; set '
      'JAXZOO_DATA to a folder that you may write to'
    ) from error
  logging.info('pedestrians: generating %s, some seconds', target)
  try:
    write(place, settings)
    place.chmod(0o755)
    _move(place, target)
  finally:
    shutil.rmtree(place, ignore_errors=True)
  return target


def _move(place, target):
  """Renames a whole data set to its name, unless another was quicker."""
  for _ in range(2):
    try:
      place.rename(target)
      return
    except OSError:
      if (target / _COMPLETE).exists():
        return
      # Something unfinished has the name: a copy broken off, by hand.
      aside = tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent)
      target.rename(pathlib.Path(aside) / 'unfinished')
      shutil.rmtree(aside, ignore_errors=True)
  raise UserError(f'pedestrians: {target} is in the way; remove it')
