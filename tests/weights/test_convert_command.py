"""`python -m jaxzoo.weights convert`: one checkpoint into another file."""

import jax
import numpy as np
import pytest

from jaxzoo.models.backbones import clip
from jaxzoo.weights.__main__ import main
from jaxzoo.weights.clip import export_clip
from jaxzoo.weights.readers import read_state_dict
from jaxzoo.weights.writers import write_safetensors


@pytest.fixture
def openai(tmp_path):
  """A residual CLIP in half precision, with a buffer that is no parameter."""
  towers = clip.Towers('resnet', 8, (1, 1, 1, 1), 4, 32, 64, 2, 1, 50, 16)
  shapes = jax.eval_shape(
    clip.Clip(towers).init,
    jax.random.key(0),
    np.zeros((1, 64, 64, 3)),
    np.zeros((1, 9), int),
  )
  rng = np.random.default_rng(0)
  tree = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float16), dict(shapes)
  )
  tensors = export_clip(tree['params'], tree['batch_stats'])
  tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
  path = tmp_path / 'old.safetensors'
  write_safetensors(path, {**tensors, 'context_length': np.int64(9)})
  return path


def test_every_array_is_kept_as_it_is(openai, tmp_path, capsys):
  new = tmp_path / 'new.safetensors'
  assert main(['convert', str(openai), str(new)]) == 0
  old, found = read_state_dict(openai), read_state_dict(new)
  assert sorted(old) == sorted(found)
  for name, array in old.items():
    assert array.dtype == found[name].dtype
    np.testing.assert_array_equal(array, found[name])
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == len(old) + 1
  assert f'{len(old)} arrays' in lines[-1]


def test_clip_gets_openai_s_names_and_loses_buffers(openai, tmp_path):
  new = tmp_path / 'new.safetensors'
  assert main(['convert', str(openai), str(new), '--names=openai']) == 0
  old, found = read_state_dict(openai), read_state_dict(new)
  assert old.keys() - found.keys() == {'context_length'}
  for name, array in found.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, old[name].astype(np.float32))


def test_a_mistake_is_explained_and_nothing_overwritten(
  openai, tmp_path, capsys
):
  before = openai.read_bytes()
  other = tmp_path / 'other.safetensors'
  write_safetensors(other, {'weight': np.zeros(3)})
  for arguments, message in (
    ([openai, openai], 'exists'),
    ([openai, tmp_path / 'new.pt'], 'must end in .safetensors'),
    ([openai, tmp_path / 'no/new.safetensors'], 'there is no folder'),
    ([tmp_path / 'gone.pt', tmp_path / 'new.safetensors'], 'no such file'),
    ([other, tmp_path / 'new.safetensors', '--names=openai'], 'not a CLIP'),
  ):
    assert main(['convert', *map(str, arguments)]) == 2
    assert message in capsys.readouterr().err
  assert openai.read_bytes() == before
  assert not (tmp_path / 'new.safetensors').exists()
