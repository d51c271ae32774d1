"""The commands about backbones run and report; no test asserts a time."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.bench import backbones, command, create, formulations
from jaxzoo.bench.references import REFERENCES
from jaxzoo.errors import UserError
from jaxzoo.models.cards import MODELS

SMALL = ['--steps=1', '--rounds=2', '--batch_size=2', '--image_size=32']


@pytest.mark.slow
def test_both_modes_are_measured(tmp_path, capsys):
  path = tmp_path / 'result.json'
  argv = ['resnet18', '--train', '--no_torch', *SMALL, f'--json={path}']
  assert command.run(backbones.backbones, argv) == 0
  found = json.loads(path.read_text())
  assert found['batch_size'] == 2 and found['dtype'] == 'float32'
  inference, training = found['models']
  for result in (inference, training):
    assert result['parameters'] == MODELS['resnet18'].parameters
    assert 0 < result['images_per_second'] < math.inf
    assert result['compile_seconds'] > 0 and result['reference'] == ''
  assert training['gflops'] == pytest.approx(3 * inference['gflops'])
  header, rule, *rows = capsys.readouterr().out.splitlines()
  assert rule.count('|') == header.count('|')
  assert [row.count('|') for row in rows] == 2 * [header.count('|')]
  assert rows[1].startswith('| `resnet18` | training | 11,689,512 |')


@pytest.mark.slow
def test_the_reference_takes_turns():
  pytest.importorskip('torch')
  pytest.importorskip('torchvision')
  settings = backbones.Settings(2, steps=1, rounds=2, image_size=32)
  for mode in backbones.MODES:
    found = backbones.measure('resnet18', mode, settings)
    assert found['reference'] == 'torchvision:resnet18'
    assert found['ratio_min'] <= found['ratio'] <= found['ratio_max']
    assert found['reference_images_per_second'] > 0


def test_models_are_chosen_by_patterns():
  assert backbones.select(['swin_t*', 'resnet18']) == ['resnet18', 'swin_tiny']
  assert backbones.select([]) == list(MODELS)
  with pytest.raises(UserError, match='did you mean resnet50'):
    backbones.select(['resnet5'])


def test_a_training_step_changes_the_parameters_and_tells_the_loss():
  def loss(params, statistics, inputs, rng):
    return jnp.sum((params - inputs) ** 2), statistics

  step, tx = backbones.make_step(loss)
  params = jnp.ones(3)
  state = (params, {}, tx.init(params), jax.random.key(0))
  (after, *_), value = jax.jit(step)(state, jnp.zeros(3))
  assert float(value) == 3.0
  np.testing.assert_allclose(after, 1 - 2e-3)


def test_references_are_of_models_that_there_are():
  assert REFERENCES.keys() <= MODELS.keys()
  assert {x.partition(':')[0] for x in REFERENCES.values()} == {
    'timm',
    'torchvision',
  }


@pytest.mark.parametrize('name', formulations.PAIRS)
def test_formulations_compute_the_same(name):
  pair = formulations.PAIRS[name](1)
  rng = np.random.default_rng(0)
  inputs = [rng.standard_normal(x, np.float32) for x in pair.shapes]
  got, want = jax.jit(lambda *x: (pair.ours(*x), pair.plain(*x)))(*inputs)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_formulations_report_forward_and_gradient(capsys):
  argv = ['knn_mask', '--batch_size=1', '--steps=1', '--rounds=1']
  assert command.run(formulations.formulations, argv) == 0
  assert '| knn_mask | forward |' in capsys.readouterr().out
  assert command.run(formulations.formulations, ['knn']) == 2
  assert 'did you mean knn_mask' in capsys.readouterr().err


@pytest.mark.slow
def test_create_tells_time_and_memory(capsys):
  assert command.run(create.create, ['zennet_cifar10_model_size05M_res32']) == 0
  told = capsys.readouterr().out
  assert 'import jaxzoo' in told and 'create_model' in told


def test_the_largest_model_is_that_with_most_parameters():
  most = MODELS[create.largest()].parameters
  assert all(card.parameters <= most for card in MODELS.values())
