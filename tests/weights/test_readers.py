"""Checkpoints of every kind are read right, and bad ones are refused."""

import collections
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxzoo.errors import UserError
from jaxzoo.weights import hub
from jaxzoo.weights.readers import read_state_dict
from jaxzoo.weights.writers import write_safetensors

STORAGES = {
  np.dtype(np.float32): 'FloatStorage',
  np.dtype(np.float16): 'HalfStorage',
  np.dtype(np.int64): 'LongStorage',
  np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
}


class Global:
  """Pickled as the name of something that need not exist here."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Call:
  """Pickled as a call of a global."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments


class Module:
  """Pickled as an object of a TorchScript class."""

  def __init__(self, class_name, /, **attributes):
    self.class_name, self.attributes = class_name, attributes


class Tensor(
  collections.namedtuple('Tensor', 'key storage offset shape strides')
):
  """A tensor of a storage, as torch pickles it."""


class TorchPickler(pickle._Pickler):
  """Writes what torch writes, without torch."""

  def __init__(self, stream):
    super().__init__(stream, protocol=2)

  def persistent_id(self, value):
    if not isinstance(value, np.ndarray):
      return None
    key = next(k for k, x in self.storages.items() if x is value)
    kind = Global('torch', STORAGES[value.dtype])
    return ('storage', kind, key, 'cpu', value.size)

  storages: dict

  def save(self, value, save_persistent_id=True):
    if isinstance(value, Global):
      self.write(f'c{value.module}\n{value.name}\n'.encode())
    elif isinstance(value, Call):
      self.save(value.function)
      self.save(value.arguments)
      self.write(pickle.REDUCE)
    elif isinstance(value, Tensor):
      self.storages.setdefault(value.key, value.storage)
      self.save(
        Call(
          Global('torch._utils', '_rebuild_tensor_v2'),
          self.storages[value.key],
          value.offset,
          value.shape,
          value.strides,
          False,
          Call(Global('collections', 'OrderedDict')),
        )
      )
    elif isinstance(value, Module):
      self.save(Global('__torch__.net', value.class_name))
      self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
      self.save(value.attributes)
      self.write(pickle.BUILD)
    else:
      super().save(value, save_persistent_id)


def archive(path, content, *, drop=(), extra=(), method=zipfile.ZIP_STORED):
  """Writes a PyTorch archive of `content`; `extra` entries (name, bytes)."""
  stream = io.BytesIO()
  pickler = TorchPickler(stream)
  pickler.storages = {}
  pickler.dump(content)
  entries = {'net/data.pkl': stream.getvalue(), 'net/version': b'3\n'}
  for key, storage in pickler.storages.items():
    entries[f'net/data/{key}'] = storage.tobytes()
  with zipfile.ZipFile(path, 'w', method) as out:
    for name, data in [*entries.items(), *extra]:
      if name not in drop:
        out.writestr(name, data)
  return path


def whole(array, key='0'):
  """The tensor that is all of a storage."""
  array = np.asarray(array, order='C')
  strides = tuple(s // array.itemsize for s in array.strides)
  return Tensor(key, array.reshape(-1), 0, array.shape, strides)


def same(got, want):
  assert got.keys() == want.keys()
  for name, value in want.items():
    assert got[name].dtype == value.dtype, name
    assert got[name].shape == value.shape, name
    np.testing.assert_array_equal(got[name], value)


@pytest.fixture
def weights():
  rng = np.random.default_rng(0)
  return {
    'a.weight': rng.normal(size=(3, 4)).astype(np.float32),
    'a.bias': rng.normal(size=4).astype(ml_dtypes.bfloat16),
    'half': rng.normal(size=(2, 2)).astype(np.float16),
    'steps': np.array(7, np.int64),
  }


@pytest.fixture
def tensors(weights):
  return {
    name: whole(value, str(i))
    for i, (name, value) in enumerate(weights.items())
  }


def test_archive_gives_names_dtypes_and_values(tmp_path, weights, tensors):
  path = archive(tmp_path / 'a.pt', collections.OrderedDict(tensors))
  same(read_state_dict(path), weights)


def test_safetensors_gives_names_dtypes_and_values(tmp_path, weights):
  path = tmp_path / 'a.safetensors'
  write_safetensors(path, weights, {'format': 'pt'})
  same(read_state_dict(path), weights)
  same(safetensors.numpy.load_file(path), weights)
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_writing_any_memory_layout_keeps_the_values(tmp_path, weights):
  turned = {'t': weights['a.weight'].T, 's': weights['a.weight'][:, ::2]}
  write_safetensors(tmp_path / 'a', turned)
  same(read_state_dict(tmp_path / 'a'), turned)


def test_half_precision_is_cast_on_request_and_integers_are_not(
  tmp_path, weights, tensors
):
  got = read_state_dict(archive(tmp_path / 'a.pt', tensors), half_to_float=True)
  same(
    got,
    {
      name: value if name == 'steps' else value.astype(np.float32)
      for name, value in weights.items()
    },
  )


def test_strides_and_offsets_are_honoured(tmp_path):
  storage = np.arange(24, dtype=np.float32)
  path = archive(
    tmp_path / 'a.pt',
    {
      'transposed': Tensor('0', storage, 0, (4, 6), (1, 4)),
      'column': Tensor('0', storage, 2, (6,), (4,)),
      'expanded': Tensor('0', storage, 5, (3, 2), (0, 1)),
      'scalar': Tensor('0', storage, 23, (), ()),
      'empty': Tensor('0', storage, 0, (0, 3), (3, 1)),
    },
  )
  same(
    read_state_dict(path),
    {
      'transposed': storage.reshape(6, 4).T,
      'column': storage.reshape(6, 4)[:, 2],
      'expanded': np.array([[5, 6]] * 3, np.float32),
      'scalar': np.array(23, np.float32),
      'empty': np.empty((0, 3), np.float32),
    },
  )


@pytest.mark.parametrize(
  ('offset', 'shape', 'strides'),
  [
    (0, (25,), (1,)),
    (1, (24,), (1,)),
    (0, (2, 2), (23, 2)),
    (-1, (2,), (1,)),
    (3, (2,), (-1,)),
    (0, (10, 10), (1, 1)),
    (0, (2, 3), (1,)),
    (0, (2.0,), (1,)),
  ],
)
def test_tensor_outside_its_storage_is_refused(
  tmp_path, offset, shape, strides
):
  storage = np.arange(24, dtype=np.float32)
  bad = Tensor('0', storage, offset, shape, strides)
  with pytest.raises(UserError, match='damaged'):
    read_state_dict(archive(tmp_path / 'a.pt', {'x': bad}))


@pytest.mark.parametrize('wrapper', ['state_dict', 'model', 'model_state_dict'])
def test_wrappers_and_parallel_prefix_are_taken_off(
  tmp_path, weights, tensors, wrapper
):
  wrapped = {f'module.{name}': value for name, value in tensors.items()}
  path = archive(tmp_path / 'a.pt', {wrapper: wrapped, 'epoch': 3})
  same(read_state_dict(path), weights)


def test_module_prefix_of_some_names_stays(tmp_path, tensors):
  content = {'module.x': tensors['a.weight'], 'y': tensors['half']}
  got = read_state_dict(archive(tmp_path / 'a.pt', content))
  assert got.keys() == {'module.x', 'y'}


def test_torchscript_modules_flatten_to_state_dict_names(
  tmp_path, weights, tensors
):
  block = Module(
    'Block', weight=tensors['a.weight'], training=False, name='block'
  )
  net = Module(
    'Net',
    training=True,
    a=Module('Linear', weight=tensors['a.weight'], bias=tensors['a.bias']),
    layers=Module('Sequential', **{'0': block, '1': block}),
    sizes=Call(Global('torch.jit._pickle', 'build_intlist'), [1, 2]),
    half=tensors['half'],
  )
  path = archive(tmp_path / 'a.pt', net)
  with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as out:
    out.writestr('net/code/__torch__/net.py', 'boom(' * 1000)
  same(
    read_state_dict(path),
    {
      'half': weights['half'],
      'a.weight': weights['a.weight'],
      'a.bias': weights['a.bias'],
      'layers.0.weight': weights['a.weight'],
      'layers.1.weight': weights['a.weight'],
    },
  )


def test_torchscript_names_outside_torchscript_are_refused(tmp_path, tensors):
  net = Module('Net', half=tensors['half'])
  with pytest.raises(UserError, match=r'__torch__\.net\.Net'):
    read_state_dict(archive(tmp_path / 'a.pt', net))


def attacks(marker):
  shell = f'touch {marker}'
  return {
    'posix.system': Call(Global('posix', 'system'), shell),
    'builtins.eval': Call(
      Global('builtins', 'eval'), f'open({str(marker)!r}, "w")'
    ),
    'builtins.getattr': Call(
      Global('builtins', 'getattr'), Global('os', 'path'), 'join'
    ),
    'os.path': Call(Global('os', 'path'), shell),
    'torch.load': Call(Global('torch', 'load'), shell),
    'collections.OrderedDict.fromkeys': Call(
      Global('collections', 'OrderedDict.fromkeys'), shell
    ),
    'subprocess.Popen': Call(Global('subprocess', 'Popen'), [shell]),
  }


@pytest.mark.parametrize('name', list(attacks('')))
@pytest.mark.parametrize('scripted', [False, True])
def test_foreign_global_is_named_and_nothing_runs(
  tmp_path, tensors, name, scripted
):
  marker = tmp_path / 'marker'
  path = archive(
    tmp_path / 'a.pt',
    {**tensors, 'attack': attacks(marker)[name]},
    extra=[('net/code/x.py', b'')] if scripted else (),
  )
  with pytest.raises(UserError) as error:
    read_state_dict(path)
  expected = {'builtins.getattr': 'os.path'}.get(name, name)
  assert any(n in str(error.value) for n in (name, expected))
  assert str(path) in str(error.value)
  assert not marker.exists()


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_pickle_of_an_object_that_runs_code_does_not_run(tmp_path, protocol):
  marker = tmp_path / 'marker'

  class Attack:
    def __reduce__(self):
      return os.system, (f'touch {marker}',)

  path = tmp_path / 'a.pt'
  with zipfile.ZipFile(path, 'w') as out:
    out.writestr('net/data.pkl', pickle.dumps({'x': Attack()}, protocol))
  with pytest.raises(UserError, match='system'):
    read_state_dict(path)
  assert not marker.exists()


def test_foreign_global_is_not_even_imported(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'side_effect.py').write_text('raise SystemExit("imported")')
  path = archive(tmp_path / 'a.pt', {'x': Global('side_effect', 'f')})
  with pytest.raises(UserError, match=r'side_effect\.f'):
    read_state_dict(path)
  assert 'side_effect' not in sys.modules


def test_a_file_cannot_change_what_the_next_one_is_answered(
  tmp_path, weights, tensors
):
  stream = io.BytesIO()
  stream.write(b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n')
  stream.write(pickle.dumps({'__doc__': 'x', 'y': 1}, 2)[2:-1] + b'b.')
  path = tmp_path / 'bad.pt'
  with zipfile.ZipFile(path, 'w') as out:
    out.writestr('net/data.pkl', stream.getvalue())
  with pytest.raises(UserError):
    read_state_dict(path)
  same(read_state_dict(archive(tmp_path / 'a.pt', tensors)), weights)


def test_old_pickles_are_refused_with_a_way_out(tmp_path):
  marker = tmp_path / 'marker'
  call = Call(Global('posix', 'system'), f'touch {marker}')
  stream = io.BytesIO()
  pickler = TorchPickler(stream)
  pickler.dump(call)
  path = tmp_path / 'old.pt'
  path.write_bytes(stream.getvalue())
  with pytest.raises(UserError, match='weights_only=True'):
    read_state_dict(path)
  assert not marker.exists()


@pytest.mark.parametrize('name', ['../evil', '/etc/evil', 'net/../../evil'])
def test_entries_that_leave_the_archive_are_refused(tmp_path, tensors, name):
  path = archive(tmp_path / 'a.pt', tensors, extra=[(name, b'')])
  with pytest.raises(UserError, match='evil'):
    read_state_dict(path)


def test_compressed_archives_are_refused(tmp_path, tensors):
  path = archive(tmp_path / 'a.pt', tensors, method=zipfile.ZIP_DEFLATED)
  with pytest.raises(UserError, match='compressed'):
    read_state_dict(path)


def test_missing_storage_is_named(tmp_path, tensors):
  path = archive(tmp_path / 'a.pt', tensors, drop=['net/data/0'])
  with pytest.raises(UserError, match='net/data/0'):
    read_state_dict(path)


def test_other_zip_is_no_checkpoint(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('x.txt', 'no tensors')
  with pytest.raises(UserError, match='no PyTorch checkpoint'):
    read_state_dict(tmp_path / 'a.zip')


def test_no_tensors_says_what_is_there(tmp_path):
  path = archive(tmp_path / 'a.pt', {'epoch': 3, 'lr': 0.1})
  with pytest.raises(UserError, match='epoch, lr'):
    read_state_dict(path)


def test_wrapper_that_holds_itself_ends(tmp_path):
  content = {}
  content['model'] = content
  with pytest.raises(UserError, match='no tensors'):
    read_state_dict(archive(tmp_path / 'a.pt', content))


@pytest.mark.parametrize('kind', ['archive', 'safetensors'])
def test_truncated_anywhere_is_a_clear_error(tmp_path, weights, tensors, kind):
  path = tmp_path / 'a'
  if kind == 'archive':
    archive(path, tensors)
  else:
    write_safetensors(path, weights)
  data = path.read_bytes()
  for size in [0, 1, 7, 8, 9, *range(20, len(data), 37), len(data) - 1]:
    path.write_bytes(data[:size])
    with pytest.raises(UserError, match='a: '):
      read_state_dict(path)


def test_flipped_bytes_give_values_or_a_clear_error(tmp_path, tensors):
  path = archive(tmp_path / 'a.pt', tensors)
  data = path.read_bytes()
  for position in range(0, len(data), 11):
    broken = bytearray(data)
    broken[position] ^= 0x55
    path.write_bytes(broken)
    try:
      read_state_dict(path)
    except UserError:
      pass


def test_huge_memo_index_is_refused_before_it_allocates(tmp_path):
  path = tmp_path / 'a.pt'
  data = b'\x80\x02}r' + struct.pack('<I', 2**31) + b'.'
  with zipfile.ZipFile(path, 'w') as out:
    out.writestr('net/data.pkl', data)
  with pytest.raises(UserError, match='memo index'):
    read_state_dict(path)


@pytest.mark.parametrize(
  ('entry', 'reason'),
  [
    ({'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}, 'do not hold'),
    ({'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}, 'do not hold'),
    ({'dtype': 'F32', 'shape': [2], 'data_offsets': [8, 0]}, 'do not hold'),
    ({'dtype': 'F32', 'shape': [-2], 'data_offsets': [0, 8]}, 'natural'),
    ({'dtype': 'F3', 'shape': [2], 'data_offsets': [0, 8]}, 'F3'),
    ({'dtype': 'F32', 'shape': [2]}, 'data_offsets'),
    ([], 'damaged'),
  ],
)
def test_impossible_safetensors_entry_is_refused(tmp_path, entry, reason):
  header = json.dumps({'x': entry}).encode()
  path = tmp_path / 'a.safetensors'
  path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(8))
  with pytest.raises(UserError, match=reason):
    read_state_dict(path)


@pytest.mark.parametrize('length', [2**63, 100_000_001, 9])
def test_safetensors_header_longer_than_the_file_is_refused(tmp_path, length):
  path = tmp_path / 'a.safetensors'
  path.write_bytes(struct.pack('<Q', length) + b'{}' + bytes(6))
  with pytest.raises(UserError, match=f'header of {length} bytes'):
    read_state_dict(path)


def test_missing_file_is_named(tmp_path):
  with pytest.raises(UserError, match='none.safetensors: no such file'):
    read_state_dict(tmp_path / 'none.safetensors')


def test_folder_is_searched_for_weights(tmp_path, weights, tensors):
  with pytest.raises(UserError, match='model.safetensors or pytorch_model.bin'):
    read_state_dict(tmp_path)
  archive(tmp_path / 'pytorch_model.bin', tensors)
  same(read_state_dict(tmp_path), weights)


def fake_hub(monkeypatch, found):
  """A huggingface_hub that has the files `found` and no network."""
  errors = types.ModuleType('huggingface_hub.errors')
  errors.EntryNotFoundError = type('EntryNotFoundError', (Exception,), {})
  errors.LocalEntryNotFoundError = type(
    'LocalEntryNotFoundError', (errors.EntryNotFoundError,), {}
  )
  asked = []
  module = types.ModuleType('huggingface_hub')
  module.errors = errors

  def hf_hub_download(repo, name, revision=None, local_files_only=False):
    asked.append((name, local_files_only))
    if (repo, name, revision) not in found:
      raise errors.LocalEntryNotFoundError(f'404 {name}')
    return found[repo, name, revision]

  module.hf_hub_download = hf_hub_download
  monkeypatch.setitem(sys.modules, 'huggingface_hub', module)
  monkeypatch.setitem(sys.modules, 'huggingface_hub.errors', errors)
  return asked


@pytest.mark.parametrize(
  ('path', 'asked'),
  [
    ('openai/clip', ('openai/clip', 'pytorch_model.bin', None)),
    ('hf://openai/clip', ('openai/clip', 'pytorch_model.bin', None)),
    ('hf://a/b/c/d.pt', ('a/b', 'c/d.pt', None)),
    ('hf://a/b@main/d.pt', ('a/b', 'd.pt', 'main')),
  ],
)
def test_hub_names(tmp_path, monkeypatch, weights, tensors, path, asked):
  monkeypatch.chdir(tmp_path)
  file = archive(tmp_path / 'cached', tensors)
  fake_hub(monkeypatch, {asked: str(file)})
  same(read_state_dict(path), weights)
  with pytest.raises(UserError, match='other/one.*404'):
    read_state_dict('other/one')


def test_hub_is_asked_over_the_network_once_when_there_is_none(
  tmp_path, monkeypatch, tensors, weights
):
  monkeypatch.chdir(tmp_path)
  file = archive(tmp_path / 'cached', tensors)
  asked = fake_hub(monkeypatch, {('a/b', 'pytorch_model.bin', None): str(file)})
  same(read_state_dict('a/b'), weights)
  assert asked == [('model.safetensors', False), ('pytorch_model.bin', True)]


def test_hub_without_its_library_says_what_to_install(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(UserError, match=r"pip install 'jaxzoo\[hub\]'"):
    read_state_dict('openai/clip-vit-base-patch32')


@pytest.mark.parametrize('path', ['hf://', 'hf://one', 'hf:///a/b'])
def test_misspelt_hub_names_are_explained(path):
  with pytest.raises(UserError, match='expected hf://ORG/NAME'):
    hub.find(path)


def test_torch_itself_agrees(tmp_path):
  torch = pytest.importorskip('torch')
  layer = torch.nn.Linear(3, 4).to(torch.bfloat16)
  content = {'state_dict': layer.state_dict(), 'epoch': 1}
  content['state_dict']['turned'] = torch.arange(6.0).reshape(2, 3).T
  torch.save(content, tmp_path / 'a.pt')
  got = read_state_dict(tmp_path / 'a.pt')
  for name, value in content['state_dict'].items():
    np.testing.assert_array_equal(
      got[name].astype(np.float32), value.float().numpy()
    )


def test_torchscript_of_torch_itself_agrees(tmp_path):
  torch = pytest.importorskip('torch')
  net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
  torch.jit.save(torch.jit.script(net.half()), tmp_path / 'a.pt')
  got = read_state_dict(tmp_path / 'a.pt')
  want = {name: x.numpy() for name, x in net.state_dict().items()}
  same(got, want)


def test_arrays_of_an_npz_come_under_their_names(tmp_path):
  arrays = {
    'Transformer/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
    'half': np.ones(4, ml_dtypes.bfloat16),
  }
  np.savez(tmp_path / 'a.npz', **arrays)
  same(read_state_dict(tmp_path / 'a.npz'), arrays)


def test_npz_with_pickled_objects_or_compressed_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', x=np.array([{}], object))
  with pytest.raises(UserError, match='allow_pickle'):
    read_state_dict(tmp_path / 'a.npz')
  np.savez_compressed(tmp_path / 'b.npz', x=np.zeros(9))
  with pytest.raises(UserError, match='np.savez'):
    read_state_dict(tmp_path / 'b.npz')


def test_npz_cut_short_is_an_error(tmp_path):
  np.savez(tmp_path / 'a.npz', x=np.zeros(99))
  whole = (tmp_path / 'a.npz').read_bytes()
  (tmp_path / 'a.npz').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match='damaged'):
    read_state_dict(tmp_path / 'a.npz')
