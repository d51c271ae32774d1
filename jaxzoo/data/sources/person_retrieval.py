"""Text-based person retrieval: pictures of persons with written descriptions.

Reads UFine6926 and UFine3C (Zuo et al. 2024), CUHK-PEDES (Li et al. 2017),
ICFG-PEDES (Ding et al. 2021) and RSTPReid (Zhu et al. 2021) as published: a
JSON list with one object an image, and a folder of images.

  split = read_split('cuhk_pedes', '/data', 'train')
  pairs = Pairs(split)  # pairs[0]: {'image', 'caption', 'pid'}
"""

import json
import os
import pathlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from jaxzoo.data.sources.images import read_image, safe_join
from jaxzoo.errors import UserError, nearest

SPLITS = ('train', 'val', 'test')


class Dataset(NamedTuple):
  """Where a data set lies below the root, and how its objects are spelled.

  Attributes:
    annotations: the JSON file.
    images: the folder that the objects' paths start from.
    path_key: the key of an object that holds its path.
    first_id: the smallest identity number of the training split.
  """

  annotations: str
  images: str
  path_key: str
  first_id: int


DATASETS = {
  'ufine6926': Dataset(
    'UFine6926/UFine6926_Annotations.json', 'UFine6926', 'file_path', 1
  ),
  'ufine3c': Dataset(
    'UFine3C/UFine3C_Annotations.json', 'UFine3C', 'file_path', 1
  ),
  'cuhk_pedes': Dataset(
    'CUHK-PEDES/reid_raw.json', 'CUHK-PEDES/imgs', 'file_path', 1
  ),
  'icfg_pedes': Dataset(
    'ICFG-PEDES/ICFG-PEDES.json', 'ICFG-PEDES/imgs', 'file_path', 0
  ),
  'rstpreid': Dataset(
    'RSTPReid/data_captions.json', 'RSTPReid/imgs', 'img_path', 0
  ),
}


class Split(NamedTuple):
  """One split of a data set, images not yet read.

  Attributes:
    name: a key of `DATASETS`.
    split: 'train', 'val' or 'test'.
    image_paths: G absolute paths, each image once, in the file's order.
    image_pids: [G] identities; 0..C-1 in training, elsewhere as in the file.
    captions: Q captions, those of one image one after another.
    caption_images: [Q] which image a caption describes.
    caption_pids: [Q] that image's identity.
  """

  name: str
  split: str
  image_paths: tuple[str, ...]
  image_pids: Int32[np.ndarray, ' g']
  captions: tuple[str, ...]
  caption_images: Int32[np.ndarray, ' q']
  caption_pids: Int32[np.ndarray, ' q']


def read_split(dataset: str, root, split: str) -> Split:
  """Reads the annotations of one split.

  Training identities become 0..C-1 (files that start at 1 are shifted). Those
  of other splits stay as they are: only their equality matters, and they may
  coincide with shifted training ones.

  Args:
    dataset: a key of `DATASETS`.
    root: the folder that holds the data sets' folders.
    split: 'train', 'val' or 'test'; not every data set has all three.

  Raises:
    UserError: unknown data set or split, missing or malformed files, a path
      that leaves the image folder, gaps in the training identities, or none of
      a sample of the images existing.
  """
  if dataset not in DATASETS:
    known = nearest(dataset.lower().replace('-', '_'), DATASETS)
    raise UserError(f'unknown data set {dataset!r}: {known}')
  if split not in SPLITS:
    raise UserError(f'unknown split {split!r}: {nearest(split, SPLITS)}')
  layout = DATASETS[dataset]
  root = pathlib.Path(root).expanduser()
  objects = _read_json(_annotation_file(dataset, root))
  where = root / layout.annotations
  chosen = _choose(objects, split, where)
  result = _collect(chosen, dataset, split, root)
  if split == 'train':
    result = _number_from_zero(result, layout.first_id, where)
  _check_some_exist(result, root)
  return result


class Pairs:
  """One record a caption: {'image', 'caption', 'pid'}, for training.

  Args:
    split: what `read_split` gives.
    decode: False gives 'path' in place of 'image' and reads no picture.
    cache_images: keep decoded pictures in memory after the first read, one copy
      a worker process: for small data (10,000 pictures of 384 x 128 are
      1.5 GB). Cached arrays are read-only.

  Indexing raises CorruptRecord where the picture cannot be read.
  """

  def __init__(
    self, split: Split, decode: bool = True, cache_images: bool = False
  ):
    self._split = split
    self._decode = decode
    self._images = _Images(split.image_paths, cache_images)

  def __len__(self) -> int:
    return len(self._split.captions)

  def __getitem__(self, i) -> dict:
    image = self._split.caption_images[i]
    record = {
      'caption': self._split.captions[i],
      'pid': self._split.caption_pids[i],
    }
    if self._decode:
      return {'image': self._images[image], **record}
    return {'path': self._split.image_paths[image], **record}

  def __repr__(self) -> str:
    return _describe(self, self._split)


class Gallery:
  """One record an image: {'image', 'pid'}, for evaluation.

  `cache_images` as in `Pairs`. Indexing raises CorruptRecord where the picture
  cannot be read.
  """

  def __init__(self, split: Split, cache_images: bool = False):
    self._split = split
    self._images = _Images(split.image_paths, cache_images)

  def __len__(self) -> int:
    return len(self._split.image_paths)

  def __getitem__(self, i) -> dict:
    return {'image': self._images[i], 'pid': self._split.image_pids[i]}

  def __repr__(self) -> str:
    return _describe(self, self._split)


class Queries:
  """One record a caption: {'caption', 'pid'}, for evaluation."""

  def __init__(self, split: Split):
    self._split = split

  def __len__(self) -> int:
    return len(self._split.captions)

  def __getitem__(self, i) -> dict:
    return {
      'caption': self._split.captions[i],
      'pid': self._split.caption_pids[i],
    }

  def __repr__(self) -> str:
    return _describe(self, self._split)


class _Images:
  """Decoded images by index, kept after the first read if asked.

  Two threads that miss at once both decode; `setdefault` keeps one result.
  """

  def __init__(self, paths: tuple[str, ...], cache: bool):
    self._paths = paths
    self._kept = {} if cache else None

  def __getitem__(self, i) -> np.ndarray:
    i = range(len(self._paths))[i]  # negative and numpy indices to one key
    if self._kept is None:
      return read_image(self._paths[i])
    if i not in self._kept:
      image = read_image(self._paths[i])
      image.flags.writeable = False
      self._kept.setdefault(i, image)
    return self._kept[i]

  def __reduce__(self):  # workers get the paths and fill their own memory
    return _Images, (self._paths, self._kept is not None)


def _describe(source, split: Split) -> str:
  # Stable between runs: grain compares it when a data iterator is restored.
  return (
    f'{type(source).__name__}({split.name}, {split.split}, '
    f'{len(split.image_paths)} images, {len(split.captions)} captions)'
  )


def _layout_text(dataset: str, root) -> str:
  layout = DATASETS[dataset]
  return (
    f'expected {root / layout.annotations} and the images below '
    f'{root / layout.images}'
  )


def _annotation_file(dataset: str, root: pathlib.Path) -> pathlib.Path:
  path = root / DATASETS[dataset].annotations
  expected = _layout_text(dataset, root)
  if not root.is_dir():
    raise UserError(f'no folder {root}: {expected}')
  if path.is_file():
    return path
  if (root / path.name).is_file():
    raise UserError(
      f'{root} is the folder of the data set itself; give the one that holds '
      f'it as a folder named {path.parent.name!r}: {expected}'
    )
  found = sorted(p.name for p in path.parent.glob('*.json'))
  hint = f'; found there: {", ".join(found[:5])}' if found else ''
  raise UserError(f'no annotation file {path}{hint}: {expected}')


def _read_json(path: pathlib.Path) -> list:
  try:
    objects = json.loads(path.read_bytes().decode('utf-8-sig'))
  except json.JSONDecodeError as error:
    raise UserError(
      f'{path} is not valid JSON: line {error.lineno}, column {error.colno}: '
      f'{error.msg}; download it again'
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(
      f'{path} is not UTF-8 text (byte {error.start}); download it again'
    ) from error
  except RecursionError as error:
    raise UserError(f'{path}: lists nested too deeply') from error
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  if not isinstance(objects, list):
    raise UserError(
      f'{path} must hold a list with one object an image, not {_kind(objects)}'
    )
  return objects


def _choose(objects: list, split: str, where) -> dict[int, dict]:
  """The objects of a split, by their index in the file."""
  for index, each in enumerate(objects):
    if not isinstance(each, dict):
      raise UserError(f'{where}, object {index}: {_kind(each)}, not an object')
    if each.get('split') not in SPLITS:
      raise UserError(
        f"{where}, object {index}: key 'split' must be one of "
        f'{", ".join(SPLITS)}, got {_got(each, "split")}'
      )
  chosen = {i: each for i, each in enumerate(objects) if each['split'] == split}
  if not chosen:
    present = [s for s in SPLITS if any(o['split'] == s for o in objects)]
    raise UserError(
      f'{where} has no split {split!r}; it has: '
      f'{", ".join(present) or "no images at all"}'
    )
  return chosen


def _collect(chosen: dict[int, dict], dataset: str, split: str, root) -> Split:
  layout = DATASETS[dataset]
  where, folder = root / layout.annotations, root / layout.images
  pids, captions = {}, {}  # by path: an image may be listed more than once
  parents = {}
  for index, each in chosen.items():
    try:
      path, pid, sentences = _fields(each, layout.path_key)
      path = _image_path(folder, path, parents)
      if pids.setdefault(path, pid) != pid:
        raise UserError(f'{path} was listed before with id {pids[path]}')
    except UserError as error:
      raise UserError(f'{where}, object {index}: {error}') from error
    captions.setdefault(path, []).extend(sentences)
  counts = [len(captions[path]) for path in pids]
  caption_images = np.repeat(np.arange(len(pids), dtype=np.int32), counts)
  image_pids = np.asarray(list(pids.values()), np.int32)
  return Split(
    name=dataset,
    split=split,
    image_paths=tuple(pids),
    image_pids=image_pids,
    captions=tuple(text for path in pids for text in captions[path]),
    caption_images=caption_images,
    caption_pids=image_pids[caption_images],
  )


def _image_path(folder, path: str, parents: dict[str, str]) -> str:
  """`safe_join`, but each parent folder is resolved only once."""
  parent, name = os.path.split(path)
  if name in ('', '.', '..'):
    return str(safe_join(folder, path))
  if parent not in parents:
    parents[parent] = str(safe_join(folder, parent))
  joined = os.path.join(parents[parent], name)
  return str(safe_join(folder, path)) if os.path.islink(joined) else joined


def _fields(each: dict, path_key: str) -> tuple[str, int, list[str]]:
  path, pid = each.get(path_key), each.get('id')
  sentences = each.get('captions')
  if not isinstance(path, str) or not path or '\0' in path:
    raise UserError(
      f'key {path_key!r} must be a path, got {_got(each, path_key)}'
    )
  if type(pid) is not int or not 0 <= pid < 2**31:  # bool is an int too
    raise UserError(
      f"key 'id' must be a whole number from 0, got {_got(each, 'id')}"
    )
  if not isinstance(sentences, list) or not sentences:
    raise UserError(
      "key 'captions' must be a list of one or more strings, got "
      f'{_got(each, "captions")}'
    )
  for number, sentence in enumerate(sentences):
    if not isinstance(sentence, str) or not sentence.strip():
      raise UserError(
        f"key 'captions', entry {number} must be a string that is not empty, "
        f'got {sentence!r:.60}'
      )
    if not sentence.isascii() and _has_surrogates(sentence):
      raise UserError(
        f"key 'captions', entry {number} is not valid Unicode: {sentence!r:.60}"
      )
  return path, pid, sentences


def _number_from_zero(split: Split, first_id: int, where) -> Split:
  present = set(split.image_pids.tolist())
  expected = range(first_id, first_id + len(present))
  missing = [pid for pid in expected if pid not in present]
  if missing:
    shown = ', '.join(map(str, missing[:5])) + ', ...' * (len(missing) > 5)
    raise UserError(
      f'{where}: the {len(present)} training ids must be {expected.start}..'
      f'{expected.stop - 1} without gaps; missing {shown} (the ids found are '
      f'{min(present)}..{max(present)}). Use the released file, or renumber '
      f'the training ids from {first_id}'
    )
  return split._replace(
    image_pids=split.image_pids - np.int32(first_id),
    caption_pids=split.caption_pids - np.int32(first_id),
  )


def _check_some_exist(split: Split, root, count: int = 16) -> None:
  """A wrong root fails at once, not image after image."""
  picked = np.linspace(0, len(split.image_paths) - 1, count).astype(int)
  paths = [pathlib.Path(split.image_paths[i]) for i in dict.fromkeys(picked)]
  if not any(path.is_file() for path in paths):
    raise UserError(
      f'none of the {len(paths)} images looked for exists, the first is '
      f'{paths[0]}: {_layout_text(split.name, root)}'
    )


def _has_surrogates(text: str) -> bool:
  return any(0xD800 <= ord(character) < 0xE000 for character in text)


def _got(each: dict, key: str) -> str:
  return f'{each[key]!r:.60}' if key in each else 'no such key'


def _kind(value) -> str:
  return {
    dict: 'an object',
    list: 'a list',
    str: 'a string',
    type(None): 'null',
    bool: 'a truth value',
  }.get(type(value), 'a number')
