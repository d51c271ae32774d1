"""ResNet's parity cases on this project's network, loss and name map."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.create import build_model
from jaxzoo.models.losses.classification import cross_entropy, soft_targets


def run(case):
  config = case.config
  built = build_model(
    config['arch'],
    num_classes=config['num_classes'],
    image_size=tuple(config['image_size']),
  )
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  if 'labels' in case.inputs:
    outputs = _training(built, case, image)
  else:
    outputs = _inference(built, case, image)
  return named(outputs, case.outputs)


def _inference(built, case, image):
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


def _training(built, case, image):
  module, config = built.module, case.config
  variables = built.convert(case.params)
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
