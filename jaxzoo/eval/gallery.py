"""Galleries: folders of images as vectors, on disk, and as pictures of hits."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Float, Int, UInt8
from PIL import Image

from jaxzoo.data.sources.images import read_image
from jaxzoo.errors import CorruptRecord, UserError
from jaxzoo.eval import pictures

IMAGE_SUFFIXES = (
  '.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip


class Hit(NamedTuple):
  """One image that was found.

  Attributes:
    rank: from 1.
    score: cosine of image and query, in [-1, 1].
    path: of the image.
  """

  rank: int
  score: float
  path: str


class Gallery(NamedTuple):
  """Images as vectors, for any number of searches.

  Attributes:
    paths: of the images that could be read.
    embeddings: a row for each, of length 1.
    stamps: size and time of change of each file, which tell whether it is
      still the one that was embedded.
    unreadable: paths of the other images.
    model: what made the embeddings, in words.
    digest: the same, exactly.
  """

  paths: tuple[str, ...]
  embeddings: Float[np.ndarray, 'n d']
  stamps: Int[np.ndarray, 'n 2']
  unreadable: tuple[str, ...]
  model: str
  digest: str

  def save(self, path) -> None:
    """Writes an .npz file, without pickles; it appears whole or not at all."""
    text = {
      'paths': '\0'.join(self.paths),
      'unreadable': '\0'.join(self.unreadable),
      'model': self.model,
      'digest': self.digest,
    }
    # Names of files are bytes: not all of them are text.
    text = {k: np.frombuffer(os.fsencode(v), np.uint8) for k, v in text.items()}
    path = epath.Path(path)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    try:
      with part.open('wb') as file:
        np.savez(file, embeddings=self.embeddings, stamps=self.stamps, **text)
      part.replace(path)
    except OSError as error:
      raise UserError(f'{path} cannot be written: {error}') from error
    finally:
      part.unlink(missing_ok=True)

  @classmethod
  def load(cls, path) -> 'Gallery':
    """What `save` wrote; a UserError for anything else."""
    try:
      with (
        epath.Path(path).open('rb') as file,
        np.load(file, allow_pickle=False) as arrays,
      ):
        text = {
          name: os.fsdecode(arrays[name].tobytes())
          for name in ('paths', 'unreadable', 'model', 'digest')
        }
        embeddings, stamps = arrays['embeddings'], arrays['stamps']
    except FileNotFoundError as error:
      raise UserError(f'no index {path}') from error
    except Exception as error:  # what numpy, zipfile and zlib raise of damage
      raise UserError(
        f'{path} is no index of a gallery, or damaged: remove it, or give '
        'another'
      ) from error
    paths = _split(text['paths'])
    if not len(paths) == len(embeddings) == len(stamps):
      raise UserError(f'{path} is damaged: its arrays differ in length')
    return cls(
      paths,
      embeddings,
      stamps,
      _split(text['unreadable']),
      text['model'],
      text['digest'],
    )


def list_images(folder) -> tuple[str, ...]:
  """Paths of all images in a folder and the folders in it, sorted.

  Told by the end of the name; hidden files and folders are left out.

  Raises:
    UserError: no such folder, or no image in it.
  """
  folder = os.path.expanduser(os.fspath(folder))
  if not os.path.isdir(folder):
    raise UserError(f'no folder {folder}')

  def report(error):
    logging.warning('folder left out: %s', error)

  found, others = [], 0
  for place, folders, files in os.walk(folder, onerror=report):
    folders[:] = [name for name in folders if not name.startswith('.')]
    for name in files:
      if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.'):
        found.append(os.path.join(place, name))
      else:
        others += 1
  if not found:
    raise UserError(
      f'no images in {folder} ({others} other files): expected '
      + ' '.join(IMAGE_SUFFIXES)
    )
  return tuple(sorted(found))


def stamp(path: str) -> tuple[int, int]:
  """Size and time of change of a file; another file has others."""
  try:
    info = os.stat(path)
  except OSError:
    return -1, -1
  return info.st_size, info.st_mtime_ns


class Files:
  """A source of pictures by path."""

  def __init__(self, paths: Sequence[str]):
    self._paths = paths

  def __len__(self):
    return len(self._paths)

  def __repr__(self):
    return f'{len(self)} images'

  def __getitem__(self, i):
    return {'image': read_image(self._paths[i])}


def readable(path: str) -> bool:
  """Whether a file can be decoded."""
  try:
    read_image(path)
  except CorruptRecord:
    return False
  return True


def draw(caption: str, hits: Sequence[Hit]) -> UInt8[np.ndarray, 'h w 3']:
  """A sheet with the caption and the images found, best first, with scores."""
  height, space = 150, 1040
  rows, left = [], 0
  for hit in hits:
    image = _thumbnail(hit.path, height)
    if image.shape[1] + 20 > left:
      rows.append(([], []))
      left = space
    left -= image.shape[1] + 20
    rows[-1][0].append(image)
    rows[-1][1].append(f'{hit.rank}: {hit.score:.3f}')
  return pictures.retrieval_sheet(
    [
      pictures.Ranking('' if i else caption, images, labels=labels)
      for i, (images, labels) in enumerate(rows)
    ],
    height=height,
  )


def _thumbnail(path: str, height: int) -> np.ndarray:
  """The picture at a height, padded with grey to 2 : 1 where it is wider."""
  try:
    image = Image.fromarray(read_image(path))
  except CorruptRecord:  # it was there when it was embedded
    image = Image.new('RGB', (1, 3))
  scale = min(height / image.height, 2 * height / image.width)
  # No narrower than its label.
  size = [max(1, round(side * scale)) for side in image.size]
  sheet = Image.new('RGB', (max(50, size[0]), height), (220, 220, 220))
  sheet.paste(
    image.resize(size), ((sheet.width - size[0]) // 2, (height - size[1]) // 2)
  )
  return np.asarray(sheet)


def _split(text: str) -> tuple[str, ...]:
  return tuple(text.split('\0')) if text else ()
