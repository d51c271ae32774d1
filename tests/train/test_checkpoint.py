"""What is saved comes back bit for bit, and damage never goes unnoticed."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.errors import UserError
from jaxzoo.system import State
from jaxzoo.train import checkpoint
from jaxzoo.train import mesh as meshes
from jaxzoo.train.checkpoint import Checkpoints


def make_state(step=1, width=512):
  """Every kind of leaf that a state may have; w is large enough to be cut."""
  key = jax.random.fold_in(jax.random.key(0), step)
  w = jax.random.normal(key, (64, width))
  masks = {'w': w > 0, 'odd': w[:3, :5] > 0}
  tx = optax.adam(0.1)
  return State(
    jnp.int32(step),
    jax.random.key(step),
    {'w': w, 'blocks': [w[0], {'half': w[:3].astype(jnp.bfloat16)}]},
    tx.init({'w': w}),
    {'queue': jnp.arange(5), 'clients': jax.random.split(key, 3), 'none': ()}
    | {'masks': masks, 'flag': w[0, 0] > 0},
  )


def raw(state):
  """Every leaf as numpy bytes, keys included."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return [
    np.asarray(jax.random.key_data(x) if is_key(x) else x)
    for x in jax.tree.leaves(state)
  ]


def assert_same(got, want):
  assert jax.tree.structure(got) == jax.tree.structure(want)
  for a, b in zip(raw(got), raw(want), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


def target(state, shape=None, count=1):
  """The abstract state and its shardings on a mesh of `count` devices."""
  mesh = meshes.make_mesh(shape or dict(data=-1), jax.devices()[:count])
  abstract = jax.eval_shape(lambda: state)
  return abstract, meshes.infer_shardings(abstract, mesh)


def write(folder, steps, **options):
  with_metrics = options.pop('metrics', {})
  checkpoints = Checkpoints(folder, **options)
  for step in steps:
    checkpoints.save(
      make_state(step), {'data': {'next': step}}, with_metrics.get(step)
    )
  checkpoints.close()


def restore(folder, state=None, **mesh):
  checkpoints = Checkpoints(folder)
  try:
    state = make_state() if state is None else state
    return checkpoints.restore(*target(state, **mesh))
  finally:
    checkpoints.close()


def largest(folder):
  files = [path for path in folder.rglob('*') if path.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


# Round trips.


def test_state_comes_back_bit_for_bit_with_its_meta(tmp_path):
  write(tmp_path, [7])
  restored = restore(tmp_path)
  assert_same(restored.state, make_state(7))
  assert restored.meta == {'data': {'next': 7}}


def test_restored_keys_draw_the_same_numbers(tmp_path):
  write(tmp_path, [7])
  got, want = restore(tmp_path).state.rng, make_state(7).rng
  assert jax.random.uniform(got) == jax.random.uniform(want)


def test_relative_folder_is_one_below_the_current(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write('runs/a/checkpoints', [1])
  assert (tmp_path / 'runs/a/checkpoints/1').is_dir()
  assert restore('runs/a/checkpoints').state.step == 1


def test_empty_folder_gives_none(tmp_path):
  assert restore(tmp_path / 'new') is None


def test_save_copies_before_the_state_is_donated(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  state, want = make_state(1), raw(make_state(1))
  checkpoints.save(state, {})
  jax.tree.map(lambda x: x.delete(), state)  # as the next step does
  checkpoints.close()
  for a, b in zip(raw(restore(tmp_path).state), want, strict=True):
    np.testing.assert_array_equal(a, b)


def test_step_that_is_saved_already_is_left_alone(tmp_path):
  write(tmp_path, [1])
  before = (tmp_path / '1/manifest.json').stat().st_mtime_ns
  write(tmp_path, [1])
  assert (tmp_path / '1/manifest.json').stat().st_mtime_ns == before


MESHES = [
  (dict(fsdp=8), 8, dict(fsdp=4), 4),
  (dict(data=2, fsdp=4), 8, None, 1),
  (None, 1, dict(data=2, fsdp=2, tensor=2), 8),
]


@pytest.mark.parametrize('wrote, writers, reads, readers', MESHES)
def test_state_moves_to_another_mesh(tmp_path, wrote, writers, reads, readers):
  state = make_state(3)
  _, shardings = target(state, wrote, writers)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(jax.device_put(state, shardings), {})
  checkpoints.close()
  restored = restore(tmp_path, shape=reads, count=readers).state
  assert_same(restored, state)
  _, want = target(state, reads, readers)
  for leaf, sharding in zip(
    jax.tree.leaves(restored), jax.tree.leaves(want), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  w = restored.params['w']
  cut = (reads or {}).get('fsdp', 1)
  assert w.addressable_shards[0].data.size == w.size // cut


def test_masks_are_written_as_bits(tmp_path):
  write(tmp_path, [1])
  arrays = json.loads((tmp_path / '1/meta/metadata').read_text())['arrays']
  assert arrays['extra/masks/w'] == 'uint8[64, 64]'
  assert arrays['extra/masks/odd'] == 'uint8[3, 1]'
  assert arrays['extra/flag'] == 'bool[]'


# Which ones stay.


def test_newest_and_every_kth_stay(tmp_path):
  write(tmp_path, range(1, 8), keep=2, keep_every=3)
  assert Checkpoints(tmp_path).steps() == [3, 6, 7]


@pytest.mark.parametrize('mode, best', [('max', 2), ('min', 3)])
def test_best_stays(tmp_path, mode, best):
  values = {1: 5.0, 2: 9.0, 3: 1.0, 4: 6.0, 5: 7.0}
  metrics = {step: {'test/R@1': value} for step, value in values.items()}
  metrics[6] = metrics[7] = None  # saved without an evaluation
  write(tmp_path, range(1, 8), metrics=metrics, best='test/R@1', best_mode=mode)
  assert Checkpoints(tmp_path).steps() == [best, 6, 7]


def test_fewer_than_two_is_an_error(tmp_path):
  with pytest.raises(UserError, match='checkpoint.keep=1'):
    Checkpoints(tmp_path, keep=1)


# Damage.


def flip(folder):
  path = largest(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(folder):
  path = largest(folder)
  path.write_bytes(path.read_bytes()[:-100])


def remove_file(folder):
  largest(folder).unlink()


def remove_state(folder):
  shutil.rmtree(folder / 'state')


def remove_everything(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def break_meta(folder):
  path = folder / 'meta' / 'metadata'
  path.write_text(path.read_text()[:-5])


def break_manifest(folder):
  path = folder / 'manifest.json'
  path.write_text(path.read_text()[:-5])


def remove_manifest_and_truncate(folder):
  (folder / 'manifest.json').unlink()
  largest(folder).write_bytes(b'')


DAMAGES = (
  flip,
  truncate,
  remove_file,
  remove_state,
  remove_everything,
  break_meta,
  break_manifest,
  remove_manifest_and_truncate,
)


@pytest.mark.parametrize('damage', DAMAGES)
def test_damaged_newest_falls_back_and_is_kept_aside(tmp_path, damage, caplog):
  write(tmp_path, [1, 2])
  damage(tmp_path / '2')
  restored = restore(tmp_path)
  assert_same(restored.state, make_state(1))
  assert restored.meta == {'data': {'next': 1}}
  assert (tmp_path / '2.bad').is_dir() and not (tmp_path / '2').exists()
  errors = [r.getMessage() for r in caplog.records if r.levelname == 'ERROR']
  assert f'checkpoint {tmp_path / "2"} is damaged: ' in errors[0]
  assert f'moved to {tmp_path / "2.bad"}' in errors[1]
  # And the step can be reached and saved again.
  write(tmp_path, [2])
  assert restore(tmp_path).state.step == 2


def test_message_names_the_damaged_file(tmp_path, caplog):
  write(tmp_path, [1, 2])
  name = str(largest(tmp_path / '2').relative_to(tmp_path / '2'))
  flip(tmp_path / '2')
  restore(tmp_path)
  assert f'{name} has changed since it was written' in caplog.text


def test_missing_manifest_is_accepted_with_a_warning(tmp_path, caplog):
  write(tmp_path, [1, 2])
  (tmp_path / '2/manifest.json').unlink()
  assert restore(tmp_path).state.step == 2
  assert 'no manifest' in caplog.text


def test_unfinished_save_is_passed_over(tmp_path):
  write(tmp_path, [1, 2])
  shutil.copytree(tmp_path / '2', tmp_path / '3.orbax-checkpoint-tmp')
  assert restore(tmp_path).state.step == 2
  write(tmp_path, [3])
  assert restore(tmp_path).state.step == 3


def test_all_damaged_is_an_error_until_the_user_decides(tmp_path):
  write(tmp_path, [1, 2])
  flip(tmp_path / '1')
  truncate(tmp_path / '2')
  for _ in range(2):  # starting anew by itself would hide the loss
    with pytest.raises(UserError, match='every checkpoint.*damaged.*remove'):
      restore(tmp_path)
  assert (tmp_path / '1.bad').is_dir() and (tmp_path / '2.bad').is_dir()


def test_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
  write(tmp_path, [1, 2])

  def fail(*args):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(Checkpoints, '_read', fail)
  with pytest.raises(jax.errors.JaxRuntimeError):
    restore(tmp_path)
  assert (tmp_path / '2').is_dir()


def test_unverified_read_sees_no_flipped_bit(tmp_path):
  # What the manifest is for: orbax alone restores wrong values in silence.
  write(tmp_path, [1, 2])
  flip(tmp_path / '2')
  checkpoints = Checkpoints(tmp_path, verify=False)
  restored = checkpoints.restore(*target(make_state()))
  checkpoints.close()
  assert restored.state.step == 2


# Other states.


def test_other_shapes_are_an_error_that_names_the_arrays(tmp_path):
  write(tmp_path, [1, 2])
  with pytest.raises(UserError) as error:
    restore(tmp_path, make_state(width=256))
  text = str(error.value)
  assert 'params/w: stored float32[64, 512], expected float32[64, 256]' in text
  assert str(tmp_path / '2') in text and '--workdir' in text
  assert 'params/blocks/1/half' in text
  assert (tmp_path / '2').is_dir(), 'a sound checkpoint must stay'


def test_other_names_and_types_are_an_error(tmp_path):
  write(tmp_path, [1])
  state = make_state()
  fewer = state._replace(extra={})
  with pytest.raises(UserError, match='extra/queue: stored int32.*nothing'):
    restore(tmp_path, fewer)
  half = state._replace(params=jax.tree.map(jnp.bfloat16, state.params))
  with pytest.raises(UserError, match='params/w: stored float32.*bfloat16'):
    restore(tmp_path, half)


def test_long_lists_of_differences_are_cut():
  stored = {f'a{i}': 'float32[1]' for i in range(20)}
  text = checkpoint._differences(stored, {}, most=3)
  assert text.splitlines()[3:] == ['  and 17 more']


# Configurations.


def test_config_changes_names_every_field_that_differs():
  stored = {'a': 1, 'optim': {'lr': 1.0, 'groups': [['b', {'lr': 2}]]}, 'x': {}}
  current = {'a': 1, 'optim': {'lr': 2.0, 'groups': []}, 'y': None, 'z': 3}
  assert checkpoint.config_changes(stored, current) == [
    "optim.groups: [['b', {'lr': 2}]] -> []",
    'optim.lr: 1.0 -> 2.0',
    'x: {} -> None',
    'z: None -> 3',
  ]
  assert checkpoint.config_changes(stored, stored) == []
