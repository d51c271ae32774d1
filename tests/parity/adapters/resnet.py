"""ResNet's parity cases on this project's network, loss and name map."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.create import build_model
from jaxzoo.models.losses.classification import cross_entropy, soft_targets


def run(case):
  outputs = _training(case) if 'labels' in case.inputs else _inference(case)
  return named(outputs, case.outputs)


def _build(case, **options):
  config = case.config
  return build_model(
    config['arch'],
    num_classes=config['num_classes'],
    image_size=tuple(config['image_size']),
    **options,
  )


def _image(case):
  return case.inputs['x'].transpose(0, 2, 3, 1)


def _inference(case):
  built, image = _build(case), _image(case)
  module = built.module

  @jax.jit
  def forward(variables):
    (maps, vector), inner = module.apply(
      variables, image, method='features', mutable=['intermediates']
    )
    logits = module.apply(variables, vector, method='classify')
    return maps, inner['intermediates']['stem'][0], vector, logits

  maps, stem, vector, logits = forward(built.convert(case.params))
  outputs = {
    f'layer{i}': x.transpose(0, 3, 1, 2) for i, x in enumerate(maps.values(), 1)
  }
  stem = stem.transpose(0, 3, 1, 2)
  return outputs | {'stem': stem, 'pooled': vector, 'logits': logits}


def _training(case):
  """One forward and backward pass, in float64.

  In float32 a ReLU near its kink decides otherwise than the stored run in one
  of some thousand places: the published implementation itself, run in float32,
  misses the stored gradients by three tolerances, and meets them in float64.
  """
  with jax.enable_x64(True):
    built = _build(case, dtype='float64')
    wide = lambda x: np.asarray(x, np.float64)
    variables = jax.tree.map(wide, built.convert(case.params))
    return _value_and_grad(built, case, variables)


def _value_and_grad(built, case, variables):
  module, config = built.module, case.config
  image = np.asarray(_image(case), np.float64)
  targets = soft_targets(
    case.inputs['labels'], config['num_classes'], config['label_smoothing']
  )

  @jax.jit
  def value_and_grad(variables):
    def loss(params):
      logits, updated = module.apply(
        {**variables, 'params': params}, image, True, mutable=['batch_stats']
      )
      return cross_entropy(logits, targets), (logits, updated)

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  (value, (logits, updated)), grads = value_and_grad(variables)
  outputs = {'loss': value, 'logits': logits}
  # In torch's names and layouts: gradients through the map of the parameters.
  theirs = built.export({**updated, 'params': grads})
  square = 0.0
  for name, x in theirs.items():
    if name.endswith(('running_mean', 'running_var')):
      outputs[f'new/{name}'] = x
      continue
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    square += np.sum(np.square(x, dtype=np.float64))
    outputs[f'grad_unit/{name}'] = x / rms
    outputs[f'grad_logrms/{name}'] = np.log(rms)
  return outputs | {'grad_norm': jnp.sqrt(square)}
