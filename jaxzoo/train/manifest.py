"""Hashes of the files of a checkpoint: a flipped bit is noticed."""

import hashlib
import json

from absl import logging
from etils import epath

MANIFEST = 'manifest.json'


def _files(folder: epath.Path) -> list[epath.Path]:
  """Every file below `folder`, sorted; `rglob` is refused on buckets."""
  found = []
  for path in sorted(folder.iterdir()):
    found += _files(path) if path.is_dir() else [path]
  return found


def _hash(path: epath.Path) -> str:
  digest = hashlib.blake2b(digest_size=16)
  with path.open('rb') as file:
    while block := file.read(2**22):
      digest.update(block)
  return digest.hexdigest()


def write_manifest(folder: epath.Path) -> None:
  """Writes size and hash of every file in the folders of `folder` beside them.

  Files directly in `folder` are left out: they are orbax's notes on the commit,
  which it completes afterwards.
  """
  files = {
    str(path.relative_to(folder)): [path.stat().length, _hash(path)]
    for item in sorted(folder.iterdir())
    if item.is_dir()
    for path in _files(item)
  }
  partial = folder / (MANIFEST + '.tmp')
  partial.write_text(json.dumps(files, indent=1))
  partial.replace(folder / MANIFEST)


def check_manifest(folder: epath.Path) -> None:
  """Raises ValueError naming the first file that differs from the manifest.

  A checkpoint without one (the process died between commit and manifest) is
  accepted with a warning: orbax found it complete.
  """
  path = folder / MANIFEST
  if not path.exists():
    logging.warning('checkpoint %s has no manifest: not verified', folder)
    return
  for name, (size, digest) in json.loads(path.read_text()).items():
    file = folder / name
    if not file.exists():
      raise ValueError(f'{name} is missing')
    if file.stat().length != size:
      raise ValueError(
        f'{name} has {file.stat().length} bytes instead of {size}'
      )
    if _hash(file) != digest:
      raise ValueError(f'{name} has changed since it was written')
