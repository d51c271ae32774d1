"""ViT's and DeiT's parity cases on this project's network, losses, name map."""

import jax
from plain_transformer import build, outputs
from thinned import named

from jaxzoo.models.losses.distillation import deit_loss


def run(case):
  if 'distillation_type' in case.config:
    return _distillation(case)
  built = build(case.config['arch'], case.config)
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  found = jax.jit(
    lambda variables: built.module.apply(variables, image, method=outputs)
  )(built.convert(case.params))
  return named(found, case.outputs)


def _distillation(case):
  config, inputs = case.config, case.inputs

  @jax.jit
  def value_and_grad(own, distilled):
    targets = jax.nn.softmax(3 * inputs['target_scores'], axis=-1)
    loss = lambda pair: deit_loss(
      pair,
      inputs['teacher_logits'],
      targets,
      kind=config['distillation_type'],
      alpha=config['alpha'],
      temperature=config['tau'],
    )
    return jax.value_and_grad(loss, has_aux=True)((own, distilled))

  (loss, terms), grads = value_and_grad(
    inputs['logits_cls'], inputs['logits_dist']
  )
  found = {'loss': loss, 'base_loss': terms['base']}
  # The soft term is a mean over the classes, too: its gradient is stored times
  # their number.
  soft = config['distillation_type'] == 'soft'
  scales = {'cls': 1, 'dist': config['num_classes'] if soft else 1}
  for (name, scale), grad in zip(scales.items(), grads, strict=True):
    found[f'grad_logits_{name}_x_batch'] = grad * config['batch'] * scale
  return named(found, case.outputs)
