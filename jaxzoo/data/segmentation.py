"""Semantic segmentation from config to pipeline: a class for every pixel."""

import functools
import os
import pathlib

import numpy as np
from PIL import Image

from jaxzoo.data import scenes
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources.images import read_image
from jaxzoo.data.sources.labelled import IMAGE_SUFFIXES
from jaxzoo.data.transforms import Transform
from jaxzoo.errors import CorruptRecord, UserError, nearest

DATASETS = ('folder', 'scenes')
IGNORED = 255  # pixels that belong to no class


class Arrays:
  """Scenes in memory: {'image': uint8 [h, w, 3], 'classes': uint8 [h, w]}."""

  def __init__(self, name: str, images, classes, names):
    images.flags.writeable = classes.flags.writeable = False
    self._name, self._images, self._classes = name, images, classes
    self.names = tuple(names)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, i) -> dict:
    return {'image': self._images[i], 'classes': self._classes[i]}

  def __repr__(self) -> str:
    return f'Arrays({self._name}, {len(self)} images)'


class Files:
  """Pictures with a map of classes each, a PNG of the same size.

  Indexing raises CorruptRecord where either cannot be read or sizes differ.
  """

  def __init__(self, name: str, pairs, names):
    self._name, self._pairs, self.names = name, tuple(pairs), tuple(names)

  def __len__(self) -> int:
    return len(self._pairs)

  def __getitem__(self, i) -> dict:
    image_path, classes_path = self._pairs[i]
    image = read_image(image_path)
    try:
      with Image.open(classes_path) as opened:
        classes = np.asarray(opened)
    except (OSError, ValueError, SyntaxError) as error:
      raise CorruptRecord(classes_path, str(error)) from error
    if classes.shape != image.shape[:2] or classes.dtype != np.uint8:
      raise CorruptRecord(
        classes_path,
        f'{classes.dtype} {classes.shape} for a picture of {image.shape[:2]}: '
        'a map of classes has one channel of 8 bits',
      )
    return {'image': image, 'classes': classes}

  def __repr__(self) -> str:
    return f'Files({self._name}, {len(self)} images)'


def read_folder(root: str | os.PathLike, split: str, num_classes: int) -> Files:
  """ROOT/images/SPLIT/**/NAME.jpg with ROOT/classes/SPLIT/**/NAME.png.

  Args:
    root: the folder. Links that lead out of it are not followed.
    split: 'train', ...
    num_classes: values of the maps are below it, or 255 for no class.

  Raises:
    UserError: no such folder, or a picture without a map.
  """
  root = pathlib.Path(root).expanduser().resolve()
  images, classes = root / 'images' / split, root / 'classes' / split
  for folder in (images, classes):
    if not folder.is_dir():
      raise UserError(
        f'no folder {folder}: pictures lie in ROOT/images/{split}, their maps '
        f'of classes as PNG files of the same names in ROOT/classes/{split}'
      )
  pairs = []
  for path in sorted(images.rglob('*')):
    if path.suffix.lower() not in IMAGE_SUFFIXES:
      continue
    other = (classes / path.relative_to(images)).with_suffix('.png')
    if not other.is_file():
      raise UserError(f'{path} has no map of classes {other}')
    for each in (path, other):
      if not each.resolve().is_relative_to(root):
        raise UserError(f'{each} leads out of {root}')
    pairs.append((str(path), str(other)))
  if not pairs:
    raise UserError(f'no pictures below {images}')
  names = [str(i) for i in range(num_classes)]
  return Files(f'{root}, {split}', pairs, names)


def read_source(config, split: str):
  """A split of `data.dataset`: 'scenes' (`data.embedded`) or 'folder'.

  Raises:
    UserError: anything wrong with files or settings.
  """
  data = config.data
  if data.dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {data.dataset!r}; ' + nearest(data.dataset, DATASETS)
    )
  if data.dataset == 'folder':
    if not data.root:
      raise UserError('data.root is empty: --config.data.root=DIR')
    return read_folder(data.root, split, config.num_classes)
  return _scenes(tuple(sorted(data.embedded.items())), split)


@functools.lru_cache(maxsize=8)
def _scenes(embedded, split):
  settings = scenes.Settings(**dict(embedded))
  images, classes = scenes.load(settings, split)
  return Arrays(
    f'scenes {tuple(settings)}, {split}',
    images,
    classes,
    scenes.NAMES[: settings.kinds + 1],
  )


def random_scale_crop(
  height: int, width: int, low: float, high: float, mean
) -> Transform:
  """Resized by a factor uniform in [low, high], then a part of this size.

  What lies outside the picture has the mean colour and no class.
  """

  def transform(record, rng):
    factor = rng.uniform(low, high)
    rows, columns = (
      max(1, round(factor * n)) for n in record['image'].shape[:2]
    )
    size = (columns, rows)
    image = np.asarray(
      Image.fromarray(record['image']).resize(size, Image.Resampling.BILINEAR)
    )
    classes = np.asarray(
      Image.fromarray(record['classes']).resize(size, Image.Resampling.NEAREST)
    )
    margin = [(0, max(0, height - rows)), (0, max(0, width - columns))]
    filled = np.empty(
      (*np.add(image.shape[:2], np.sum(margin, 1)), 3), np.uint8
    )
    filled[:] = np.round(255 * np.asarray(mean))
    filled[:rows, :columns] = image
    classes = np.pad(classes, margin, constant_values=IGNORED)
    top = int(rng.integers(filled.shape[0] - height + 1))
    left = int(rng.integers(filled.shape[1] - width + 1))
    part = (slice(top, top + height), slice(left, left + width))
    return {**record, 'image': filled[part], 'classes': classes[part]}

  return transform


def flip(p: float) -> Transform:
  """Mirrored left to right with probability p, both maps."""

  def transform(record, rng):
    if rng.random() >= p:
      return record
    return {
      **record,
      'image': record['image'][:, ::-1],
      'classes': record['classes'][:, ::-1],
    }

  return transform


def whole(height: int, width: int) -> Transform:
  """The picture resized to this size; its classes too."""

  def transform(record, rng):
    del rng
    if record['image'].shape[:2] == (height, width):
      return record
    image, classes = (
      np.asarray(Image.fromarray(record[key]).resize((width, height), how))
      for key, how in (
        ('image', Image.Resampling.BILINEAR),
        ('classes', Image.Resampling.NEAREST),
      )
    )
    return {**record, 'image': image, 'classes': classes}

  return transform


def train_data(config) -> Data:
  """The training split: `data.scale` (low, high), `data.flip`."""
  height, width = config.image_size
  low, high = config.data.scale
  if not 0 < low <= high:
    raise UserError(f'data.scale={(low, high)} is no rising pair above 0')
  return Data(
    read_source(config, config.data.train_split),
    (
      random_scale_crop(height, width, low, high, config.mean),
      flip(config.data.flip),
    ),
  )


def eval_data(config, split: str) -> Data:
  """Every picture of a split once, whole."""
  return Data(read_source(config, split), (whole(*config.image_size),))


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, size = config.batch_size, tuple(config.image_size)
  return {
    'image': np.zeros((b, *size, 3), np.uint8),
    'classes': np.zeros((b, *size), np.uint8),
  }
