"""The step in PyTorch is the step that ours is compared with.

Needs PyTorch (`pip install -e '.[torch]'`); skipped where it is missing.
"""

import jax
import numpy as np
import pytest

from jaxzoo import catalog, main
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.torch_process import TorchProcess, sizes_of
from jaxzoo.models.retrieval import irra
from jaxzoo.weights import layout

torch = pytest.importorskip('torch')
irra_torch = pytest.importorskip('jaxzoo.bench.irra_torch')


def small(**loss):
  """The published recipe, narrow, and two layers deep."""
  config = catalog.get_config('irra:cuhk_pedes')
  config.towers.update(
    image_width=32,
    image_depth=2,
    image_heads=2,
    text_width=32,
    text_depth=2,
    text_heads=2,
    output_dim=32,
  )
  config.update(
    dtype='float32',
    batch_size=4,
    image_size=(48, 32),
    text_length=16,
    num_classes=7,
    cross_modal_depth=2,
  )
  config.loss.update(mlm_budget=16, **loss)
  config.optim.update(lr=1e-2, warmup_epochs=0.0)
  return config


def torch_steps(config, batch, lean, steps):
  """Metrics of each step, and the parameters before and after, as ours."""
  torch.manual_seed(0)
  model = irra_torch.Irra(sizes_of(config), lean)
  optimizer = irra_torch.make_optimizer(model)
  tensors = lambda: {k: v.numpy().copy() for k, v in model.state_dict().items()}
  before = irra.convert(tensors(), config)
  history = [
    irra_torch.train_step(
      model, optimizer, irra_torch.to_device(batch, device='cpu')
    )
    for _ in range(steps)
  ]
  after = irra.convert(tensors(), config)
  metrics = [{k: float(v.detach()) for k, v in m.items()} for m in history]
  return metrics, before, after


def jax_steps(config, batch, params, steps):
  system = main.create_system(config, total_steps=100, steps_per_epoch=100)
  shapes = jax.eval_shape(system.init, jax.random.key(0), batch)
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.opt)
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    lambda x: x.shape, shapes.params
  )
  state = shapes._replace(
    step=np.int32(0), rng=jax.random.key(0), params=params, opt=state
  )
  step, history = jax.jit(system.step), []
  for _ in range(steps):
    state, metrics = step(state, batch)
    history.append(jax.device_get(metrics))
  return history, jax.device_get(state.params)


@pytest.mark.slow
@pytest.mark.parametrize('lean', [False, True])
@pytest.mark.parametrize('mask_retrieval_text', [False, True])
def test_losses_and_updates_are_those_of_our_system(lean, mask_retrieval_text):
  config = small(mask_retrieval_text=mask_retrieval_text)
  batch = synthetic_batch(config)
  want, before, after = torch_steps(config, batch, lean, steps=3)
  got, params = jax_steps(config, batch, before, steps=3)
  for ours, theirs in zip(got, want, strict=True):
    for name in ('sdm', 'id', 'mlm'):
      np.testing.assert_allclose(
        ours[f'loss_{name}'], theirs[name], rtol=1e-4, err_msg=name
      )
    assert ours['mlm_accuracy'] == pytest.approx(theirs['mlm_accuracy'])
  start = layout.flatten(before)
  moved = layout.flatten(after)
  for path, x in layout.flatten(params).items():
    change = moved[path] - start[path]
    # The biases of keys change no softmax: their gradients are rounding alone.
    bound = 2e-3 * np.abs(change).max() + 2e-5
    assert np.abs(change).max() > 100 * bound / 2 or 'key/bias' in path, path
    np.testing.assert_allclose(
      x - start[path], change, atol=bound, err_msg=path
    )


@pytest.mark.slow
def test_lean_step_drops_masks_beyond_the_budget_as_ours_does():
  config = small()
  batch = synthetic_batch(config)
  batch['mlm_labels'][:] = np.where(batch['text'] > 0, batch['text'], 0)
  config.loss.mlm_budget = 3
  want, before, _ = torch_steps(config, batch, lean=True, steps=1)
  got, _ = jax_steps(config, batch, before, steps=1)
  np.testing.assert_allclose(got[0]['loss_mlm'], want[0]['mlm'], rtol=1e-4)
  whole, _, _ = torch_steps(config, batch, lean=False, steps=1)
  assert abs(whole[0]['mlm'] - want[0]['mlm']) > 1e-3


def test_process_runs_the_steps_that_it_is_asked_for():
  config = small()
  process = TorchProcess(
    'jaxzoo.bench.irra_torch:make',
    sizes_of(config),
    True,
    synthetic_batch(config),
  )
  try:
    assert process.told['parameters'] > 0
    assert len(process.run(2)) == 2 and len(process.run(1)) == 1
    assert process.told['memory_gib'] > 0
  finally:
    process.close()
