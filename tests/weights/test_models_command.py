"""`convert --model` and `export`: into our paths and back, nothing lost."""

import jax
import numpy as np
import pytest

from jaxzoo.models.create import build_model, load_weights
from jaxzoo.weights import layout, orbax
from jaxzoo.weights.__main__ import main
from jaxzoo.weights.merge import merge
from jaxzoo.weights.readers import read_state_dict
from jaxzoo.weights.writers import write_safetensors

# One of each kind of name map; convolutions and norms, and fused projections.
NAMES = ('mobilenet_v3_small', 'deit_tiny_distilled_patch16_224')


def published(name, **options):
  """A state dict as it is published, of random numbers."""
  built = build_model(name, **options)
  blank = [np.zeros(x.shape, x.dtype) for x in built.inputs]
  shapes = jax.eval_shape(built.module.init, jax.random.key(0), *blank)
  rng = np.random.default_rng(0)
  draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)
  return built.export(jax.tree.map(draw, dict(shapes)))


def assert_same(got, want):
  assert sorted(got) == sorted(want)
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)


@pytest.fixture(scope='module')
def state_dicts():
  return {name: published(name) for name in NAMES}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['ours.safetensors', 'folder'])
def test_round_trip_is_exact(name, kind, state_dicts, tmp_path, capsys):
  theirs, ours, back = (
    str(tmp_path / x) for x in ('theirs.safetensors', kind, 'back.safetensors')
  )
  buffer = {'num_batches_tracked': np.int64(3)}  # which nothing reads
  write_safetensors(theirs, state_dicts[name] | buffer)
  assert main(['convert', '--model', name, theirs, ours]) == 0
  told = capsys.readouterr().out
  assert ' 0 missing, 0 unexpected, 0 misshapen' in told
  assert all(path.startswith(('params/', 'batch_stats/'))
             for path in read_state_dict(ours))  # fmt: skip
  assert main(['export', '--model', name, ours, back]) == 0
  assert_same(read_state_dict(back), state_dicts[name])
  # The API reads either, and gives what the published file gives.
  want = layout.flatten(load_weights(name, theirs))
  assert_same(layout.flatten(load_weights(name, ours)), want)


def test_npz_and_other_sizes_are_converted(state_dicts, tmp_path):
  name, ours = 'mobilenet_v3_small', str(tmp_path / 'ours.safetensors')
  np.savez(tmp_path / 'theirs.npz', **state_dicts[name])
  source = str(tmp_path / 'theirs.npz')
  options = ['--model', name, '--in_chans=1']
  assert main(['convert', *options, source, ours]) == 0
  stem = read_state_dict(ours)['params/stem/conv/kernel']
  want = state_dicts[name]['features.0.0.weight'].sum(1)[:, None]
  np.testing.assert_allclose(stem, want.transpose(2, 3, 1, 0), rtol=1e-5)
  back = str(tmp_path / 'back.safetensors')
  assert main(['export', *options, ours, back]) == 0
  np.testing.assert_array_equal(
    read_state_dict(back)['features.0.0.weight'], stem.transpose(3, 2, 0, 1)
  )


def test_what_does_not_fit_is_listed(state_dicts, tmp_path, capsys):
  name = 'mobilenet_v3_small'
  tensors = dict(state_dicts[name], extra=np.zeros(2, np.float32))
  del tensors['features.0.1.bias']
  tensors['classifier.3.bias'] = np.zeros(7, np.float32)
  source, target = tmp_path / 'theirs.safetensors', tmp_path / 'ours'
  write_safetensors(source, tensors)
  argv = ['convert', '--model', name, str(source), str(target)]
  assert main(argv) == 2
  told = capsys.readouterr().err
  for path in ('params/stem/bn/bias', 'extra', 'params/head/bias'):
    assert path in told
  assert not target.exists()
  assert main([*argv, '--partial']) == 0
  told = capsys.readouterr().out.splitlines()
  assert 'missing    params/stem/bn/bias' in told
  assert 'unexpected extra' in told
  assert 'misshapen  params/head/bias' in told
  found = read_state_dict(target)
  assert 'params/stem/bn/scale' in found
  assert not {'params/stem/bn/bias', 'params/head/bias'} & found.keys()


def test_scanned_blocks_of_ours_load_into_unrolled_ones(state_dicts, tmp_path):
  name = 'deit_tiny_distilled_patch16_224'
  theirs = tmp_path / 'theirs.safetensors'
  write_safetensors(theirs, state_dicts[name])
  scanned = load_weights(name, theirs, scan=True)
  folder = tmp_path / 'scanned'
  orbax.write(folder, scanned)
  got = layout.flatten(load_weights(name, folder))
  assert_same(got, layout.flatten(load_weights(name, theirs)))


def test_of_a_run_the_averaged_parameters_are_read(tmp_path):
  from jaxzoo.system import State
  from jaxzoo.train.checkpoint import Checkpoints

  array = lambda x: jax.numpy.full(3, float(x))
  for step in (1, 2):
    checkpoints = Checkpoints(tmp_path / 'checkpoints')
    checkpoints.save(
      State(
        jax.numpy.int32(step),
        jax.random.key(0),
        {'a': array(step)},
        (array(8), {'a': array(9)}),
        {'batch_stats': {'b': array(3)}, 'ema': {'a': array(10 + step)}},
      ),
      {'data': {}},
    )
    checkpoints.close()
  want = {'params/a': np.full(3, 12.0), 'batch_stats/b': np.full(3, 3.0)}
  for place in (tmp_path, tmp_path / 'checkpoints', tmp_path / 'checkpoints/2'):
    assert_same(read_state_dict(place), want)
  damaged = tmp_path / 'checkpoints/2/state/_METADATA'
  damaged.write_text('{')
  assert main(['convert', str(tmp_path), str(tmp_path / 'x.safetensors')]) == 2


@pytest.mark.slow
def test_an_exported_run_is_what_it_has_trained(tmp_path, capsys):
  from jaxzoo import catalog
  from jaxzoo import main as jaxzoo_main

  config = catalog.get_config('classification:tiny')
  config.epochs, config.evals = 0.25, {}
  config.checkpoint.best = ''
  jaxzoo_main.train(config, tmp_path / 'run')
  out = str(tmp_path / 'theirs.safetensors')
  assert main(['export', str(tmp_path / 'run'), out]) == 0
  tensors = read_state_dict(out)
  built = jaxzoo_main.catalog.load('classification').make_backbone(config)
  ours = read_state_dict(tmp_path / 'run')
  assert_same(tensors, built.export(layout.unflatten(ours)))
  assert tensors['layer1.0.conv1.weight'].shape == (8, 8, 3, 3)
  # And they begin another run.
  shapes = layout.unflatten(
    {k: jax.ShapeDtypeStruct(x.shape, x.dtype) for k, x in ours.items()}
  )
  assert_same(layout.flatten(merge(shapes, built.convert(tensors))[0]), ours)
  capsys.readouterr()
  assert main(['export', str(tmp_path), out, '--force']) == 2
  assert 'no run in' in capsys.readouterr().err


def test_places_that_are_taken_are_left_alone(tmp_path, capsys):
  argv = ['convert', '--model', 'resnet18', 'x.pth']
  (tmp_path / 'there').mkdir()
  for target, message in (
    (tmp_path / 'there', 'exists'),
    (tmp_path / 'new.pt', 'or have no ending'),
    (tmp_path / 'no/new', 'there is no folder'),
  ):
    assert main([*argv, str(target), '--force']) == 2
    assert message in capsys.readouterr().err
