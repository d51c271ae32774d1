"""DIST's parity cases: both relations, their gradient, and the KL baseline."""

import jax
import numpy as np
from thinned import named

from jaxzoo.models.distillation.dist import dist_loss
from jaxzoo.models.losses.distillation import knowledge_distillation


def run(case):
  config = case.config
  dense = case.inputs['student'].ndim == 4
  last = lambda x: np.moveaxis(x, 1, -1) if dense else x
  first = lambda x: np.moveaxis(x, -1, 1) if dense else x
  student = config['logit_scale'] * last(case.inputs['student'])
  teacher = (
    0.6 * config['logit_scale'] * last(case.inputs['teacher']) + 0.5 * student
  )

  def loss(student):
    return dist_loss(
      student,
      teacher,
      beta=config['beta'],
      gamma=config['gamma'],
      temperature=config['tau'],
    )

  @jax.jit
  def compute(student):
    (value, terms), grad = jax.value_and_grad(loss, has_aux=True)(student)
    return value, terms, grad, knowledge_distillation(student, teacher, 4.0)

  value, terms, grad, kl = compute(student)
  outputs = {
    'loss': value,
    'inter': terms.inter,
    'intra': terms.intra,
    'grad_student': first(np.asarray(grad)),
    'kl_tau4': kl,
  }
  return named(outputs, case.outputs)
