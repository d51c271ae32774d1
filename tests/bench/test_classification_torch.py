"""Trained by the counterpart in PyTorch, a network becomes what ours becomes.

Needs PyTorch and torchvision (`pip install -e '.[reference]'`).
"""

import json

import jax
import numpy as np
import pytest

from jaxzoo import catalog, main
from jaxzoo.bench import classification_torch
from jaxzoo.data.classification import train_data
from jaxzoo.errors import UserError

torch = pytest.importorskip('torch')
pytest.importorskip('torchvision')

STEPS = 3


def plain(name):
  """A tiny config whose recipe the counterpart has."""
  config = catalog.get_config(name)
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.1)
  config.ema = 0.0
  config.data.random_erase = 0.0
  config.epochs = STEPS / 4
  config.evals = {'test': dict(kind='classification', split='test')}
  return config


def trained(config):
  """Logits of the first batch after `STEPS` steps of ours."""
  data = train_data(config)
  system = main.create_system(config, STEPS, len(data.source) // 16)
  batches = main.make_dataset(config, data)
  batch = dict(batches[0])
  batch.pop('corrupt', None)
  state = jax.jit(system.init)(jax.random.key(config.seed), batch)
  step = jax.jit(system.step)
  for i in range(STEPS):
    each = dict(batches[i])
    each.pop('corrupt', None)
    state, _ = step(state, each)
  return batch, jax.jit(system.predict)(state, batch)['logits']


@pytest.mark.parametrize('name', ['classification:tiny', 'lightvit:tiny'])
def test_a_few_steps_give_the_same_network(name, tmp_path, monkeypatch):
  config = plain(name)
  models = []
  make = classification_torch.make_model

  def kept(config):
    models.append(make(config))
    return models[-1]

  monkeypatch.setattr(classification_torch, 'make_model', kept)
  result = classification_torch.run(config, tmp_path / 'run')
  assert result['step'] == STEPS
  assert 0 <= result['metrics']['test/top1'] <= 100
  written = json.loads((tmp_path / 'run/result.json').read_text())
  assert written['metrics'] == result['metrics']
  batch, want = trained(config)
  with torch.inference_mode():
    images = classification_torch.normalized(config, batch['image'])
    got = models[0][0](images).numpy()
  start, _ = make(config)
  with torch.inference_mode():
    before = start.eval()(images).numpy()
  moved = np.abs(np.asarray(want) - before).max()
  # Adam divides by the root of tiny squares: rounding shows after some steps.
  assert np.abs(got - np.asarray(want)).max() < 0.02 * moved


def test_other_recipes_are_refused():
  config = plain('classification:tiny')
  config.ema = 0.9
  with pytest.raises(UserError, match='ema=0.9'):
    classification_torch.check(config)
  config = catalog.get_config('cfam:tiny')
  with pytest.raises(UserError, match='written for classification'):
    classification_torch.check(config)


def test_decay_is_that_of_the_groups():
  config = plain('classification:tiny')
  tensors, factors = classification_torch.initial_tensors(config)
  assert factors.keys() < tensors.keys()
  for name, factor in factors.items():
    assert factor == float(tensors[name].ndim > 1)
