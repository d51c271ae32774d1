"""Where a checkpoint lies: a file, a folder, a bucket, the Hugging Face hub."""

import os
import re

from etils import epath

from jaxzoo.errors import UserError

# What a folder or a repository is searched for, in this order.
_FILES = ('model.safetensors', 'pytorch_model.bin')

_HUB = re.compile(
  r'hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?'
)
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_SUFFIXES = ('.safetensors', '.pt', '.pth', '.bin', '.ckpt', '.npz')


def find(path: str | os.PathLike) -> epath.Path:
  """The file that `path` means, downloaded if it is on the hub.

  Args:
    path: a file; a folder with model.safetensors or pytorch_model.bin in it;
      either under gs://; hf://ORG/NAME[@REVISION][/FILE]; or ORG/NAME, where
      no such folder exists.

  Raises:
    UserError: there is nothing, or the hub cannot be reached.
  """
  text = os.fspath(path)
  if text.startswith('hf://'):
    match = _HUB.fullmatch(text)
    if not match:
      raise UserError(
        f'{text}: expected hf://ORG/NAME, hf://ORG/NAME/FILE or '
        'hf://ORG/NAME@REVISION/FILE'
      )
    return _download(match['repo'], match['file'], match['revision'])
  place = epath.Path(text).expanduser()
  try:
    is_folder, exists = place.is_dir(), place.exists()
  except Exception as error:  # each kind of remote storage has its own
    raise UserError(f'{text}: cannot be reached: {error}') from error
  if is_folder:
    for name in _FILES:
      if (place / name).exists():
        return place / name
    raise UserError(
      f'{text}: a folder without {" or ".join(_FILES)}; name the file'
    )
  if exists:
    return place
  if _HUB_ID.fullmatch(text) and not text.endswith(_SUFFIXES):
    return _download(text, None, None)
  raise UserError(f'{text}: no such file; expected a checkpoint')


def _download(repo: str, file: str | None, revision: str | None) -> epath.Path:
  """The file in the hub's local cache, downloaded when it is not there."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise UserError(
      f'{repo}: no such folder here, and reading from the Hugging Face hub '
      "needs huggingface_hub: pip install 'jaxzoo[hub]'"
    ) from error
  reason, offline = None, False
  for name in [file] if file else _FILES:
    try:
      return epath.Path(
        huggingface_hub.hf_hub_download(
          repo, name, revision=revision, local_files_only=offline
        )
      )
    except errors.EntryNotFoundError as error:
      # Without a network it has tried long enough: the cache alone from now.
      offline = isinstance(error, errors.LocalEntryNotFoundError)
      reason = reason or error
    except Exception as error:  # network, permission, spelling: all theirs
      reason = error
      break
  first_line = str(reason).strip().split('\n')[0]
  raise UserError(
    f'{repo}: no such file or folder here, and not to be had from the Hugging '
    f'Face hub ({type(reason).__name__}: {first_line}). Check the name, or '
    'download the file and give its path'
  ) from reason
