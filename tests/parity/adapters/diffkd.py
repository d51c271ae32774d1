"""DiffKD's parity cases on this project's module and name map."""

import re

import jax
import numpy as np
from thinned import named

from jaxzoo.models.distillation import diffkd
from jaxzoo.weights import rows as to


def run(case):
  """In float64: rectifiers of small batches turn over with float32's rounding."""
  with jax.enable_x64(True):
    return named(_compute(case), case.outputs)


def _compute(case):
  config = case.config
  module = diffkd.DiffKD(
    config['student_channels'],
    config['teacher_channels'],
    kernel_size=config['kernel_size'],
    code_channels=config['ae_channels'] if config['use_ae'] else 0,
    steps=config['inference_steps'],
    timesteps=config['num_train_timesteps'],
  )
  inputs = {
    name: _wide(x.transpose(0, 2, 3, 1) if x.ndim == 4 else x)
    for name, x in case.inputs.items()
  }
  # What the notes say of the teacher: |teacher| for maps, 3 teacher for logits.
  maps = config['kernel_size'] == 3
  teacher = np.abs(inputs['teacher']) if maps else 3 * inputs['teacher']
  draws = diffkd.Draws(
    inputs['noise_student'], inputs['noise_teacher'], inputs['timesteps']
  )
  rows = diffkd.rows(module)
  variables = jax.tree.map(_wide, to.load(case.params, rows))

  def loss(params, student):
    refined, updated = module.apply(
      {**variables, 'params': params},
      student,
      teacher,
      draws,
      mutable=['batch_stats'],
    )
    return sum(refined.terms.values()), (refined, updated['batch_stats'])

  (total, (refined, stats)), (grads, grad_student) = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  )(variables['params'], inputs['student'])
  nchw = lambda x: np.asarray(x).transpose(0, 3, 1, 2)
  by_name = to.save({'params': grads, 'batch_stats': stats}, rows)
  last_norm = max(
    (name for name in case.params if re.match(r'model\.pred.*running_var', name)),
    key=_numbers,
  ) if maps else 'model.pred.1.running_var'  # fmt: skip
  outputs = {
    'gamma': refined.gamma,
    'kd_loss': refined.terms['kd'],
    'diffusion_loss': refined.terms['diffusion'],
    'total': total,
    'refined': nchw(refined.refined),
    'target': nchw(refined.target),
    'param_grad_norms': np.array(
      [np.linalg.norm(by_name[name]) for name in config['param_names']]
    ),
    'bn_running_mean_after': by_name['proj.1.running_mean'][::7],
    'bn_running_var_after_diffusion': by_name[last_norm][::7],
    'grad_student_scaled': config['grad_scale'] * nchw(grad_student),
  }
  if 'reconstruction' in refined.terms:
    outputs['reconstruction_loss'] = refined.terms['reconstruction']
  # Names that say a stride keep the whole of what is small.
  for name, value in list(outputs.items()):
    if np.size(value) <= 4000:
      outputs[f'{name}_stride97'] = np.reshape(value, -1)
  return outputs


def _wide(x):
  return x.astype(np.float64) if x.dtype.kind == 'f' else x


def _numbers(name):
  return [int(n) for n in re.findall(r'\d+', name)]
