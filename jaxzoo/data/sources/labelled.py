"""Pictures with a class each: folders, arrays in memory, CIFAR, digits, TFDS.

Every source is random access to {'image': uint8 [h, w, 3], 'label': int32} and
has `names`, those of the classes, and `labels`, int32 [n], without decoding.
"""

import importlib
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from jaxzoo.data.sources.images import decode_image, read_image
from jaxzoo.errors import UserError, nearest

IMAGE_SUFFIXES = (
  '.bmp', '.gif', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp',
)  # fmt: skip


class Arrays:
  """Pictures that are in memory."""

  def __init__(
    self,
    name: str,
    images: UInt8[np.ndarray, 'n h w 3'],
    labels: Int32[np.ndarray, ' n'],
    names: Sequence[str],
  ):
    images.flags.writeable = False
    self._name, self._images = name, images
    self.labels, self.names = labels.astype(np.int32), tuple(names)

  def __len__(self) -> int:
    return len(self._images)

  def __getitem__(self, i) -> dict:
    return {'image': self._images[i], 'label': self.labels[i]}

  def __repr__(self) -> str:
    return f'Arrays({self._name}, {len(self)} images)'


class Files:
  """Pictures by path.

  Args:
    name: of the data set, for messages.
    paths: of the pictures.
    labels: of each.
    names: of the classes.
    cache: keep decoded pictures in memory after the first read, one copy a
      worker process; they are read-only.

  Indexing raises CorruptRecord where the picture cannot be read.
  """

  def __init__(
    self,
    name: str,
    paths: Sequence[str],
    labels: Int32[np.ndarray, ' n'],
    names: Sequence[str],
    cache: bool = False,
  ):
    self._name, self._paths = name, tuple(paths)
    self.labels, self.names = np.asarray(labels, np.int32), tuple(names)
    self._kept = {} if cache else None

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, i) -> dict:
    i = range(len(self))[i]  # negative and numpy indices to one key
    return {'image': self._image(i), 'label': self.labels[i]}

  def _image(self, i):
    if self._kept is None:
      return read_image(self._paths[i])
    if i not in self._kept:
      image = read_image(self._paths[i])
      image.flags.writeable = False
      self._kept.setdefault(i, image)  # two threads: one result is kept
    return self._kept[i]

  def __repr__(self) -> str:
    return f'Files({self._name}, {len(self)} images)'

  def __reduce__(self):  # workers get the paths and fill their own memory
    cache = self._kept is not None
    return Files, (self._name, self._paths, self.labels, self.names, cache)


def read_folder(
  root: str | os.PathLike, split: str, train: str = 'train', cache=False
) -> Files:
  """The pictures in ROOT/SPLIT/CLASS/, as ImageNet and many others lie.

  Classes are the sorted names of the folders of the training split, whatever
  of them another split has. Pictures lie directly in the folder of their class
  or in folders below it.

  Args:
    root: folder with the splits.
    split: its folder in it.
    train: the folder of the training split.
    cache: see `Files`.

  Raises:
    UserError: no such folder, no class or no picture in it, or a class that
      the training split does not have.
  """
  root = pathlib.Path(root).expanduser()
  expected = f'expected {root}/{split}/CLASS/*.jpg'
  if not root.is_dir():
    raise UserError(f'no folder {root}: {expected}')
  names = _folders(root / train)
  here = _folders(root / split)
  if not here:
    raise UserError(
      f'no folders of classes in {root / split}: {expected}; {root} has '
      + (', '.join(_folders(root)[:8]) or 'no folders')
    )
  unknown = sorted(set(here) - set(names))
  if unknown:
    raise UserError(
      f'{root / split} has the class {unknown[0]!r}, which {root / train} '
      'does not have; ' + nearest(unknown[0], names)
    )
  paths, labels = [], []
  for label, name in enumerate(names):
    found = sorted(_images_below(root / split / name))
    paths += found
    labels += [label] * len(found)
  if not paths:
    raise UserError(
      f'no images in the {len(here)} folders of {root / split}: {expected} '
      '(or ' + ' '.join(IMAGE_SUFFIXES) + ')'
    )
  return Files(f'{root}, {split}', paths, labels, names, cache)


def read_pictures(root: str | os.PathLike, split: str, cache=False) -> Files:
  """All pictures below ROOT/SPLIT, whatever the folders in between.

  For what learns without labels: all have the label 0, of a class `''`.

  Args:
    root: folder with the splits.
    split: its folder in it.
    cache: see `Files`.

  Raises:
    UserError: no such folder, or no picture below it.
  """
  root = pathlib.Path(root).expanduser()
  place = root / split
  if not place.is_dir():
    raise UserError(
      f'no folder {place}; {root} has '
      + (', '.join(_folders(root)[:8]) or 'no folders')
    )
  paths = sorted(_images_below(place))
  if not paths:
    raise UserError(
      f'no images below {place} (' + ' '.join(IMAGE_SUFFIXES) + ')'
    )
  labels = np.zeros(len(paths), np.int32)
  return Files(f'{root}, {split}', paths, labels, ('',), cache)


def _folders(place: pathlib.Path) -> list[str]:
  if not place.is_dir():
    return []
  return sorted(
    entry.name
    for entry in os.scandir(place)
    if entry.is_dir() and not entry.name.startswith('.')
  )


def _images_below(folder):
  for place, folders, files in os.walk(folder):
    folders[:] = [name for name in folders if not name.startswith('.')]
    for name in files:
      if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.'):
        yield os.path.join(place, name)


# CIFAR's binary form: labels, then 32 x 32 pixels of red, of green, of blue.
CIFAR = {
  'cifar10': (
    'cifar-10-batches-bin',
    {
      'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
      'test': ['test_batch.bin'],
    },
    'batches.meta.txt',
    1,
  ),
  'cifar100': (
    'cifar-100-binary',
    {'train': ['train.bin'], 'test': ['test.bin']},
    'fine_label_names.txt',
    2,  # coarse, fine
  ),
}
_PIXELS = 32 * 32 * 3


def read_cifar(dataset: str, root: str | os.PathLike, split: str) -> Arrays:
  """CIFAR-10 or CIFAR-100 (Krizhevsky 2009) in its 'binary version'.

  The files for Python are pickles, which may run code: those are not read.

  Args:
    dataset: 'cifar10' or 'cifar100'.
    root: the folder with cifar-10-batches-bin or cifar-100-binary.
    split: 'train' or 'test'.

  Raises:
    UserError: missing or damaged files.
  """
  folder, files, meta, labels = CIFAR[dataset]
  place = pathlib.Path(root).expanduser() / folder
  if split not in files:
    raise UserError(f'{dataset} has no split {split!r}: train and test')
  expected = f'expected {", ".join([*files[split], meta])} in {place}'
  rows = []
  for name in files[split]:
    data = _read_bytes(place / name, expected)
    if not data or len(data) % (labels + _PIXELS):
      raise UserError(f'{place / name} is damaged: {len(data):,} bytes')
    rows.append(np.frombuffer(data, np.uint8).reshape(-1, labels + _PIXELS))
  rows = np.concatenate(rows)
  text = _read_bytes(place / meta, expected).decode('utf-8', 'replace')
  names = text.split()
  found = rows[:, labels - 1].astype(np.int32)
  if found.max() >= len(names):
    raise UserError(
      f'{place} is damaged: label {found.max()} of {len(names)} classes'
    )
  images = rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return Arrays(
    f'{dataset}, {split}', np.ascontiguousarray(images), found, names
  )


def _read_bytes(path, expected) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise UserError(
      f'cannot read {path} ({error.strerror or error}): {expected}; '
      'the binary version of https://www.cs.toronto.edu/~kriz/cifar.html'
    ) from error


def read_digits(split: str) -> Arrays:
  """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, offline.

  Every fifth is for 'test', the rest for 'train' (chosen here; the data set
  has no split of its own). A part of one is written as TFDS does: 'train[:200]',
  'train[200:]'.
  """
  try:
    datasets = importlib.import_module('sklearn.datasets')
  except ImportError as error:
    raise UserError(
      'the digits come with scikit-learn: pip install "jaxzoo[sklearn]"'
    ) from error
  match = re.fullmatch(r'(train|test)(?:\[(\d*):(\d*)\])?', split)
  if not match:
    raise UserError(
      f'digits have no split {split!r}: train and test, or a part of them, as '
      'in train[:200]'
    )
  digits = datasets.load_digits()
  chosen = (np.arange(len(digits.target)) % 5 == 4) == (match[1] == 'test')
  first, last = (int(x) if x else None for x in match.groups()[1:])
  chosen = np.flatnonzero(chosen)[first:last]
  if not len(chosen):
    raise UserError(f'digits: {split} is empty')
  gray = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
  return Arrays(
    f'digits, {split}',
    np.repeat(gray[..., None], 3, axis=-1),
    digits.target[chosen].astype(np.int32),
    [str(i) for i in range(10)],
  )


class Tfds:
  """A data set of TensorFlow Datasets, prepared as array records.

  Args:
    name: 'imagenet2012', 'cifar10', 'NAME/CONFIG:VERSION'.
    split: as TFDS writes it: 'validation', 'train[:90%]'.
    root: `data_dir`; '' for TFDS's own.

  Raises:
    UserError: TFDS is not installed, or the data set not there.
  """

  def __init__(self, name: str, split: str, root: str = ''):
    try:
      tfds = importlib.import_module('tensorflow_datasets')
    except ImportError as error:
      raise UserError(
        f'{name} is read through TFDS: pip install "jaxzoo[tfds]"'
      ) from error
    self._arguments = (name, split, root)
    data_dir = os.path.expanduser(root) or None
    try:
      builder = tfds.builder(name, data_dir=data_dir)
      # Left as bytes: decoded here, where damage is told by its place.
      self._records = builder.as_data_source(
        split=split, decoders={'image': tfds.decode.SkipDecoding()}
      )
    except Exception as error:  # what TFDS raises, it does not say
      raise UserError(
        f'TFDS cannot open {name}, split {split} ({error}): prepare it with '
        f'tfds build {name} --file_format=array_record'
        + (f' --data_dir={data_dir}' if data_dir else '')
      ) from error
    self.names = tuple(builder.info.features['label'].names)
    self._labels = None

  @property
  def labels(self) -> Int32[np.ndarray, ' n']:
    """Of all records, each read once without decoding its picture."""
    if self._labels is None:
      labels = (self._records[i]['label'] for i in range(len(self)))
      self._labels = np.fromiter(labels, np.int32, len(self))
    return self._labels

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i) -> dict:
    record = self._records[int(i)]
    name, split, _ = self._arguments
    image = decode_image(record['image'], f'{name}, {split}, record {i}')
    return {'image': image, 'label': np.int32(record['label'])}

  def __repr__(self) -> str:
    name, split, _ = self._arguments
    return f'Tfds({name}, {split}, {len(self)} images)'

  def __reduce__(self):
    return Tfds, self._arguments
