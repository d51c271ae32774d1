"""One system's training steps, ours and PyTorch's, from the same parameters."""

import jax
import numpy as np

from jaxzoo import catalog, main
from jaxzoo.bench import towers_torch
from jaxzoo.weights import layout


def small(name, **fields):
  """A published recipe at a constant rate, narrow, and two layers deep."""
  config = catalog.get_config(name)
  config.towers.update(
    image_width=32,
    image_depth=2,
    image_heads=2,
    patch_size=16,
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
    **fields,
  )
  config.optim.update(lr=1e-2, warmup_epochs=0.0, schedule='constant')
  return config


def torch_steps(
  model,
  optimizer,
  convert,
  config,
  batch,
  steps,
  train_step=towers_torch.train_step,
):
  """Metrics of each step, and the parameters before and after, as ours."""
  tensors = lambda: {k: v.numpy().copy() for k, v in model.state_dict().items()}
  before = convert(tensors(), config)
  batch = towers_torch.to_device(batch, device='cpu')
  history = [train_step(model, optimizer, batch) for _ in range(steps)]
  after = convert(tensors(), config)
  metrics = [{k: float(v.detach()) for k, v in m.items()} for m in history]
  return metrics, before, after


def jax_steps(config, batch, params, steps):
  """Metrics of each step from `params`, and the parameters after the last."""
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


def assert_same_updates(ours, theirs, before):
  """That both sets of parameters have moved by the same, from `before`."""
  start, moved = layout.flatten(before), layout.flatten(theirs)
  for path, x in layout.flatten(ours).items():
    change = moved[path] - start[path]
    # The biases of keys change no softmax: their gradients are rounding alone.
    bound = 2e-3 * np.abs(change).max() + 2e-5
    assert np.abs(change).max() > 100 * bound / 2 or 'key/bias' in path, path
    np.testing.assert_allclose(
      x - start[path], change, atol=bound, err_msg=path
    )
