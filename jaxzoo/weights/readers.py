"""State dicts from files: safetensors, PyTorch's archives, .npz, Orbax.

A PyTorch archive is a pickle, and a pickle can name any function to be called.
Here nothing that a file names is ever imported or called: the few names that a
state dict needs are answered by inert stand-ins, any other is an error.
"""

import io
import json
import math
import os
import zipfile

import ml_dtypes
import numpy as np
from etils import epath

from jaxzoo.errors import UserError
from jaxzoo.weights import hub, orbax
from jaxzoo.weights.unpickling import unpickle

_SAFETENSORS_DTYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'F8_E4M3': ml_dtypes.float8_e4m3fn,
  'F8_E5M2': ml_dtypes.float8_e5m2,
  'C64': np.complex64,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
}

# Bytes; the format's own bound. Headers of real files are far smaller.
_MAX_HEADER = 100_000_000

# What training scripts wrap a state dict in.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')


def read_state_dict(
  path: str | os.PathLike, *, half_to_float: bool = False
) -> dict[str, np.ndarray]:
  """The tensors of a checkpoint by name, in the file's own layout.

  The format is told by the content: safetensors, a zip archive of PyTorch
  (`torch.save` since 1.6, and TorchScript, whose code is not read), or of
  arrays (`np.savez`, not compressed: published JAX checkpoints); a folder of
  Orbax is known by its files, and gives paths (`weights/orbax.py`). A state
  dict under 'state_dict', 'model_state_dict' or 'model' is taken out, and the
  'module.' in front of all names of a data-parallel run is stripped. Other
  content (optimizer, epoch) is left out.

  Args:
    path: a file, a folder with model.safetensors or pytorch_model.bin, a folder
      of Orbax or the work directory of a run; also gs://...,
      hf://ORG/NAME[/FILE] or ORG/NAME of the Hugging Face hub.
    half_to_float: cast float16 and bfloat16 to float32.

  Returns:
    name -> array. The arrays may be read-only, and views of the file.

  Raises:
    UserError: there is no such file, it is damaged or truncated, or it names
      anything that is not a tensor or a container.
  """
  folder = orbax.find(path)
  if folder is not None:
    return orbax.read(folder)
  file = hub.find(path)
  head = _head(file)
  if head[:2] == b'PK':
    found = _read_archive(file)
  elif _is_pickle(head):
    raise UserError(
      f'{file}: a pickle in the format of PyTorch before 1.6, which is not '
      'read because it may run code. Where you trust it, convert it with\n'
      "  torch.save(torch.load('old.pt', weights_only=True), 'new.pt')"
    )
  else:
    found = _read_safetensors(file)
  tensors = _state_dict(found, file)
  if half_to_float:
    half = (np.float16, ml_dtypes.bfloat16)
    tensors = {
      name: value.astype(np.float32) if value.dtype in half else value
      for name, value in tensors.items()
    }
  return tensors


def _head(file: epath.Path) -> bytes:
  try:
    with file.open('rb') as stream:
      return stream.read(16)
  except OSError as error:
    raise UserError(f'{file}: cannot be read: {error}') from error


def _is_pickle(head: bytes) -> bool:
  """A binary pickle; a safetensors file begins with a length, then '{'."""
  return head[:1] == b'\x80' and head[8:9] != b'{'


def _state_dict(found, file) -> dict[str, np.ndarray]:
  """Takes the state dict out of its wrappers, of which there may be two."""
  for _ in range(2):
    for key in _WRAPPERS:
      if isinstance(found, dict) and isinstance(found.get(key), dict):
        found = found[key]
        break
  tensors = {}
  if isinstance(found, dict):
    tensors = {
      name: value
      for name, value in found.items()
      if isinstance(name, str) and isinstance(value, np.ndarray)
    }
  if not tensors:
    keys = ', '.join(map(str, found)) if isinstance(found, dict) else 'nothing'
    raise UserError(
      f'{file}: no tensors by name in it, but {keys[:200] or "nothing"}; '
      'expected a state dict'
    )
  if all(name.startswith('module.') for name in tensors):
    tensors = {
      name.removeprefix('module.'): value for name, value in tensors.items()
    }
  return tensors


def _is_local(file: epath.Path) -> bool:
  return '://' not in os.fspath(file)


def _read_safetensors(file: epath.Path) -> dict[str, np.ndarray]:
  """Views of the file (memory-mapped where it is local)."""
  if not _is_local(file):
    data = np.frombuffer(file.read_bytes(), np.uint8)
  elif os.path.getsize(file) < 8:
    data = np.empty(0, np.uint8)
  else:
    data = np.memmap(file, np.uint8, mode='r')
  bad = lambda reason: UserError(
    f'{file}: {reason}; the file is damaged, cut short, or neither safetensors '
    'nor a PyTorch archive. Fetch it again'
  )
  if data.size < 8:
    raise bad(f'only {data.size} bytes')
  length = int.from_bytes(data[:8].tobytes(), 'little')
  if length > min(_MAX_HEADER, data.size - 8):
    raise bad(
      f'a safetensors header of {length} bytes in a file of {data.size}'
    )
  try:
    header = json.loads(data[8 : 8 + length].tobytes())
  except (ValueError, RecursionError) as error:
    raise bad(f'the safetensors header is not JSON ({error})') from error
  if not isinstance(header, dict):
    raise bad('the safetensors header is not a JSON object')
  header.pop('__metadata__', None)
  body = data[8 + length :]
  tensors = {}
  for name, entry in header.items():
    try:
      tensors[name] = _safetensor(body, entry)
    except (KeyError, TypeError, ValueError) as error:
      raise bad(f'tensor {name!r}: {error}') from error
  return tensors


def _safetensor(body: np.ndarray, entry: dict) -> np.ndarray:
  """One tensor of a header's entry; ValueError where the entry cannot be."""
  dtype, shape = entry['dtype'], entry['shape']
  first, last = entry['data_offsets']
  if dtype not in _SAFETENSORS_DTYPES:
    raise ValueError(f'unknown dtype {dtype!r}')
  dtype = np.dtype(_SAFETENSORS_DTYPES[dtype])
  if not all(type(n) is int and n >= 0 for n in [*shape, first, last]):
    raise ValueError('sizes that are no natural numbers')
  count = math.prod(shape)
  if not first <= last <= body.size or last - first != count * dtype.itemsize:
    raise ValueError(
      f'bytes {first} to {last} of {body.size} do not hold {dtype} {shape}'
    )
  if not count:
    return np.empty(shape, dtype)
  return np.frombuffer(body, dtype, count, first).reshape(shape)


def _read_archive(file: epath.Path):
  """The object pickled in a PyTorch archive, with tensors as numpy arrays."""
  stream = file.open('rb') if _is_local(file) else io.BytesIO(file.read_bytes())
  try:
    with stream, zipfile.ZipFile(stream) as archive:
      size = stream.seek(0, os.SEEK_END)
      return _read_zip(archive, size, file)
  # What zipfile raises for damage of one kind or another.
  except (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
  ) as error:
    raise UserError(
      f'{file}: {error}; the archive is damaged or cut short. Fetch it again'
    ) from error


def _read_zip(archive: zipfile.ZipFile, size: int, file):
  """`_read_archive` of the open archive, a file of `size` bytes."""
  entries = {info.filename: info for info in archive.infolist()}
  for name in entries:
    parts = name.replace('\\', '/').split('/')
    if name.startswith(('/', '\\')) or '..' in parts or ':' in parts[0]:
      raise UserError(f'{file}: refused, an entry is named {name!r}')
  if entries and all(name.endswith('.npy') for name in entries):
    return {
      name.removesuffix('.npy'): _read_npy(archive, info, size, file)
      for name, info in entries.items()
    }
  roots = [
    name.removesuffix('/data.pkl')
    for name in entries
    if name.count('/') == 1 and name.endswith('/data.pkl')
  ]
  if len(roots) != 1:
    raise UserError(
      f'{file}: a zip archive that is no PyTorch checkpoint: {len(roots)} '
      'entries data.pkl in it'
    )
  root = roots[0]

  def read(key: str) -> bytes:
    name = f'{root}/{key}'
    if name not in entries:
      raise UserError(f'{file}: damaged, entry {name} is missing')
    # torch stores what is read here; compressed, it could be a bomb. (It does
    # compress TorchScript's code, which is not read.)
    if entries[name].compress_type != zipfile.ZIP_STORED:
      raise UserError(
        f'{file}: entry {name} is compressed, so torch did not write this '
        'archive; expected a checkpoint saved by torch.save'
      )
    if entries[name].file_size > size:
      raise zipfile.BadZipFile(f'entry {name} is larger than the file')
    return archive.read(name)

  if f'{root}/byteorder' in entries and read('byteorder') != b'little':
    raise UserError(
      f'{file}: saved on a big-endian machine, which is not read; convert it '
      'to safetensors'
    )
  scripted = any(name.startswith(f'{root}/code/') for name in entries)
  return unpickle(
    read('data.pkl'), lambda key: read(f'data/{key}'), file, scripted=scripted
  )


def _read_npy(archive, info: zipfile.ZipInfo, size: int, file) -> np.ndarray:
  """One array of a .npz archive of `size` bytes; pickled objects are refused."""
  if info.compress_type != zipfile.ZIP_STORED:
    raise UserError(
      f'{file}: entry {info.filename} is compressed; save it with np.savez'
    )
  if info.file_size > size:
    raise zipfile.BadZipFile(f'entry {info.filename} is larger than the file')
  value = np.lib.format.read_array(
    io.BytesIO(archive.read(info)), allow_pickle=False
  )
  # NumPy, which does not know bfloat16, stores it as two bytes of anything.
  return value.view(ml_dtypes.bfloat16) if value.dtype == 'V2' else value
