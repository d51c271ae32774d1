"""PBE's parity cases on this project's network, attack, triggers, selection."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.data import triggers
from jaxzoo.models.create import build_model
from jaxzoo.models.losses.classification import cross_entropy, soft_targets
from jaxzoo.models.robustness import pbe


def run(case):
  if 'arch' in case.config:
    outputs = _attack(case)
  elif 'fractions' in case.config:
    outputs = _selection(case)
  else:
    outputs = _triggers(case)
  return named(outputs, case.outputs)


def _attack(case):
  config = case.config
  name = {'PreActResNet18': 'preact_resnet18'}[config['arch']]
  x = case.inputs['x'].transpose(0, 2, 3, 1)
  built = build_model(
    name, num_classes=config['num_classes'], image_size=x.shape[1:3]
  )
  variables = built.convert(case.params)
  targets = soft_targets(case.inputs['y'], config['num_classes'])

  @jax.jit
  def both(variables):
    def loss(image):
      logits = built.module.apply(variables, image)
      return cross_entropy(logits, targets), logits

    (value, logits), grad = jax.value_and_grad(loss, has_aux=True)(x)
    adversarial, path = pbe.pgd(
      lambda image: loss(image)[0],
      x,
      radius=config['eps'],
      step=config['step'],
      iterations=config['iterations'],
    )
    last, adversarial_logits = loss(adversarial)
    losses = jnp.append(path[1:], last)
    return value, logits, grad, adversarial, losses, adversarial_logits

  value, logits, grad, adversarial, losses, after = both(variables)
  theirs = lambda image: np.asarray(image).transpose(0, 3, 1, 2)
  return {
    'logits': logits,
    'loss': value,
    'grad_input_scaled': theirs(grad) * config['grad_scale'],
    'pgd_loss_per_iteration': losses,
    'adv_logits': after,
    'linf': np.abs(adversarial - x).max(),
    'mean_abs_perturbation': np.abs(adversarial - x).mean(),
  }


def _selection(case):
  infected = case.inputs['infected']
  current = 0.7 * infected + case.inputs['noise']
  similarity = pbe.similarity(infected, current)
  ranks = np.asarray(pbe.ranks(similarity))
  kept = {
    f'kept{round(100 * fraction)}': np.flatnonzero(
      ranks < pbe.share_of(len(infected), fraction)
    )
    for fraction in case.config['fractions']
  }
  return {'similarity': similarity, **kept}


def _triggers(case):
  config = case.config
  images = case.inputs['x'].transpose(0, 2, 3, 1)
  pattern = case.inputs['blend'].transpose(1, 2, 0)
  grid = triggers.warp_grid(
    2 * case.inputs['control'] - 1,
    config['size'],
    config['size'],
    config['warp_s'],
  )
  attacks = {
    'patch': triggers.patch,
    'blend': lambda x: triggers.blend(x, pattern, config['blend_ratio']),
    'sig': lambda x: triggers.signal(
      x, config['sig_delta'], config['sig_frequency']
    ),
    'warp': lambda x: triggers.sample(x, grid),
  }
  outputs = {
    name: np.stack([attack(x) for x in images]).transpose(0, 3, 1, 2)
    for name, attack in attacks.items()
  }
  outputs['patch'] = outputs['patch'][:, :, -4:, -4:]
  return outputs | {'warp_grid': grid[::3, ::3]}
