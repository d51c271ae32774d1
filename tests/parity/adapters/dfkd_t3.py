"""DFKD-T3's parity case: sampling and losses of generator and student."""

import jax
import jax.numpy as jnp
from thinned import named

from jaxzoo.models.distillation import dfkd_t3
from jaxzoo.models.losses.distillation import knowledge_distillation


def run(case):
  config, inputs = case.config, case.inputs
  noise = dfkd_t3.gumbel(inputs['gumbel'])

  def answers(tokens):
    h = jnp.tanh((tokens @ inputs['table_teacher']).mean(1))
    return 0.8 * h @ inputs['head_teacher'], 0.8 * h @ inputs['head_student']

  def loss(logits):
    tokens = dfkd_t3.straight_through(
      logits, noise, config['gumbel_temperature']
    )
    teacher, student = answers(tokens)
    terms = dfkd_t3.generator_terms(teacher, student)
    taught = knowledge_distillation(student, teacher, config['kd_temperature'])
    value = dfkd_t3.generator_loss(terms, **config['weights'])
    return value, (tokens, terms, taught)

  (value, (tokens, terms, taught)), grad = jax.jit(
    jax.value_and_grad(loss, has_aux=True)
  )(2 * inputs['gen_logits'])
  outputs = {
    'tokens': tokens.argmax(-1),
    **terms._asdict(),
    'total': value,
    'distillation': taught,
    'grad_gen_logits_scaled': config['grad_scale'] * grad,
  }
  return named(outputs, case.outputs)
