"""PyTorch's pickles, read without calling anything that they name."""

import collections
import io
import math
import pickle
import pickletools
from collections.abc import Callable

import ml_dtypes
import numpy as np

from jaxzoo.errors import UserError

_STORAGES = {
  'DoubleStorage': np.float64,
  'FloatStorage': np.float32,
  'HalfStorage': np.float16,
  'BFloat16Storage': ml_dtypes.bfloat16,
  'ComplexFloatStorage': np.complex64,
  'LongStorage': np.int64,
  'IntStorage': np.int32,
  'ShortStorage': np.int16,
  'CharStorage': np.int8,
  'ByteStorage': np.uint8,
  'BoolStorage': np.bool_,
}

# Objects and tensors visited in one archive, far beyond any real one.
_MAX_NODES = 1_000_000


class _Refused(Exception):
  """The pickle names something that no state dict needs."""


def unpickle(
  data: bytes, fetch: Callable[[str], bytes], file, *, scripted: bool = False
):
  """The object of a PyTorch pickle, tensors as numpy arrays.

  Args:
    data: the pickle.
    fetch: key -> the bytes of that storage.
    file: where it comes from, for messages.
    scripted: a TorchScript archive. Its modules become dicts of their tensors,
      under the names that torch's `state_dict()` gives them.

  Raises:
    UserError: the pickle is damaged, or names anything but containers and
      tensors. All names are looked at before the first is used.
  """
  stand_ins = _StandIns(fetch, scripted)
  try:
    _look_through(data, stand_ins)
    found = _Unpickler(io.BytesIO(data), stand_ins).load()
    return _modules_to_dicts(found, stand_ins.module) if scripted else found
  except _Refused as error:
    raise UserError(
      f'{file}: names {error}, which is neither a tensor nor a container: '
      'loading it could run code, and nothing was run. Where you trust the '
      'file, load it with torch and save only its state dict'
    ) from error
  except UserError:
    raise
  # A damaged pickle can raise anything; nothing of ours is lost by catching.
  except Exception as error:
    raise UserError(
      f'{file}: its pickle is damaged ({type(error).__name__}: {error}). '
      'Fetch it again'
    ) from error


class _Storage(collections.namedtuple('_Storage', 'dtype')):
  """Stands for torch.FloatStorage and the like."""

  __slots__ = ()


class _StandIns:
  """What each global of a pickle is answered with. Made anew for every file,
  so that no file can change what the next one finds."""

  def __init__(self, fetch, scripted):
    self.scripted = scripted
    self.fetch = fetch
    self.storages = {}

    class Module:
      """A TorchScript object: its attributes, without behaviour."""

      attributes = None

      def __setstate__(self, state):
        self.attributes = state

    self.module = Module
    self.known = {
      'collections.OrderedDict': collections.OrderedDict,
      'torch._utils._rebuild_tensor_v2': self.rebuild_tensor,
      'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    }
    for name, dtype in _STORAGES.items():
      self.known[f'torch.{name}'] = _Storage(np.dtype(dtype))
    if scripted:
      for name in ('int', 'double', 'bool', 'tensor'):
        self.known[f'torch.jit._pickle.build_{name}list'] = lambda x: list(x)
      self.known['torch.jit._pickle.restore_type_tag'] = lambda x, *_: x

  def find(self, module: str, name: str):
    if self.scripted and module.split('.')[0] == '__torch__':
      return self.module
    if f'{module}.{name}' not in self.known:
      raise _Refused(f'{module}.{name}')
    return self.known[f'{module}.{name}']

  def storage(self, identifier) -> np.ndarray:
    """The array of ('storage', type, key, device, number of elements)."""
    kind, storage, key, _, count = identifier
    if kind != 'storage' or not isinstance(storage, _Storage):
      raise ValueError(f'unknown reference {identifier!r}')
    if key not in self.storages:
      raw = self.fetch(str(key))
      size = storage.dtype.itemsize
      if len(raw) < count * size:
        raise ValueError(
          f'storage {key} has {len(raw)} of {count * size} bytes'
        )
      self.storages[key] = np.frombuffer(raw, storage.dtype, count)
    return self.storages[key]

  def rebuild_tensor(self, storage, offset, shape, strides, *_) -> np.ndarray:
    """A view of a storage; offset and strides count elements."""
    shape, strides = tuple(shape), tuple(strides)
    if not isinstance(storage, np.ndarray) or len(shape) != len(strides):
      raise ValueError('a tensor without storage, or without all its strides')
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
      raise ValueError(f'offset {offset}, shape {shape}, strides {strides}')
    if 0 in shape:
      return np.empty(shape, storage.dtype)
    last = offset + sum(
      (n - 1) * s for n, s in zip(shape, strides, strict=True)
    )
    if last >= storage.size:
      raise ValueError(
        f'a tensor reaches element {last} of a storage of {storage.size}'
      )
    # Expanded tensors (stride 0) stay views, however large they claim to be.
    if math.prod(shape) > storage.size and 0 not in strides:
      raise ValueError('a tensor larger than its storage')
    return np.lib.stride_tricks.as_strided(
      storage[offset:],
      shape,
      [s * storage.itemsize for s in strides],
      writeable=False,
    )


class _Unpickler(pickle.Unpickler):
  """Takes every global and every storage from the stand-ins."""

  def __init__(self, stream, stand_ins):
    super().__init__(stream)
    self._stand_ins = stand_ins

  def find_class(self, module, name):
    return self._stand_ins.find(module, name)

  def persistent_load(self, identifier):
    return self._stand_ins.storage(identifier)


def _look_through(data: bytes, stand_ins: _StandIns):
  """Reads the opcodes without running them: every global, every memo index.

  Globals whose names lie on the stack (protocol 4) are met by `find_class`,
  before they can be called.
  """
  largest = count = 0
  for opcode, argument, _ in pickletools.genops(data):
    count += 1
    if opcode.name in ('GLOBAL', 'INST'):
      stand_ins.find(*argument.split(' ', 1))
    elif opcode.name in ('EXT1', 'EXT2', 'EXT4'):
      raise _Refused(f'extension {argument}')
    elif opcode.name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
      largest = max(largest, argument)
  # The unpickler allocates a table of the largest index.
  if largest > 2 * count:
    raise ValueError(f'memo index {largest} among {count} opcodes')


def _modules_to_dicts(found, module: type):
  """TorchScript modules, wherever they are, as flat dicts of their tensors."""
  if isinstance(found, module):
    tensors, nodes = {}, 0
    pending = [('', found)]
    while pending:
      prefix, node = pending.pop()
      attributes = node.attributes
      for name, value in (
        attributes.items() if isinstance(attributes, dict) else ()
      ):
        nodes += 1
        if nodes > _MAX_NODES:
          raise ValueError('modules that contain each other')
        if isinstance(value, module):
          pending.append((f'{prefix}{name}.', value))
        elif isinstance(value, np.ndarray):
          tensors[f'{prefix}{name}'] = value
    return tensors
  if isinstance(found, dict):
    return {
      name: _modules_to_dicts(value, module) for name, value in found.items()
    }
  return found
