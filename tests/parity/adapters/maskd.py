"""MasKD's parity cases: mask learning, and both losses with their masks."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.distillation import maskd
from jaxzoo.weights import rows as to


def run(case):
  if 'feature' in case.inputs:
    outputs = _mask_learning(case)
  elif case.config['variant'] == 'detection':
    outputs = _detection(case)
  else:
    outputs = _segmentation(case)
  # Names that say a stride keep the whole of what is small.
  for name in case.outputs:
    base, _, _ = name.partition('_stride97')
    if base != name and np.size(outputs[base]) <= 4000:
      outputs[name] = np.reshape(outputs[base], -1)
  return named(outputs, case.outputs)


def _module(case, prefix):
  """(module, its variables) of the tensors below a prefix."""
  config = case.config
  module = maskd.MaskModule(
    config['channels'],
    config['num_tokens'],
    weighted=config.get('weight_mask', False),
  )
  own = {k: v for k, v in case.params.items() if k.startswith(prefix)}
  return module, to.load(own, maskd.rows(module, prefix))


def _mask_learning(case):
  module, variables = _module(case, '')
  feature, cotangent = _nhwc(case.inputs['feature'], case.inputs['cotangent'])

  def objective(params):
    found = module.apply({'params': params}, feature)
    masked = maskd.masked_feature(feature, found)
    dice = maskd.dice(found.masks)
    return jnp.mean(masked * cotangent) + dice, (masked, dice)

  (value, (masked, dice)), grads = jax.jit(
    jax.value_and_grad(objective, has_aux=True)
  )(variables['params'])
  return {
    'masked': np.asarray(masked).transpose(0, 3, 1, 2),
    'dice': dice,
    'grad_token': grads['tokens'],
    'objective': value,
  }


def _detection(case):
  config, outputs, total = case.config, {}, 0.0
  for i in range(len(config['sizes'])):
    module, variables = _module(case, f'mask_modules.{i}.')
    student, teacher = _nhwc(
      case.inputs[f'student{i}'], case.inputs[f'teacher{i}']
    )

    def loss(student, teacher, variables, module=module):
      found = module.apply(variables, teacher)
      own = None
      if config['custom_mask']:
        own = module.apply(variables, student, method='masks')
      return maskd.detection_loss(student, teacher, found, own), found

    (value, found), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      student, teacher, variables
    )
    total += config['loss_weight'] * value
    outputs |= {
      f'mask{i}': found.masks,
      f'grad_student{i}_scaled': config['grad_scale']
      * config['loss_weight']
      * np.asarray(grad).transpose(0, 3, 1, 2),
    }
    if found.weights is not None:
      outputs[f'weights{i}'] = found.weights
  return outputs | {'loss': total}


def _segmentation(case):
  module, variables = _module(case, 'mask_module.')
  student, teacher = _nhwc(case.inputs['student'], 3 * case.inputs['teacher'])

  def loss(student):
    masks = module.apply(variables, teacher, method='masks')
    return maskd.segmentation_loss(student, teacher, masks)

  value, grad = jax.jit(jax.value_and_grad(loss))(student)
  scaled = case.config['grad_scale'] * np.asarray(grad).transpose(0, 3, 1, 2)
  return {'loss': value, 'grad_student_scaled': scaled.reshape(-1)}


def _nhwc(*arrays):
  return [x.transpose(0, 2, 3, 1) for x in arrays]
