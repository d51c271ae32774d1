"""DistillVLM's parity case: its losses, their gradients, and the queue."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.distillation import distillvlm
from jaxzoo.models.losses.classification import cross_entropy
from jaxzoo.models.losses.contrastive import l2_normalize


def run(case):
  config, inputs = case.config, case.inputs
  length = inputs['student_hidden'].shape[1]
  valid = np.arange(length) < inputs['lengths'][:, None]
  queue = l2_normalize(inputs['queue'])
  projection = inputs['projection'] / np.sqrt(config['student_width'])

  def attention(logits):
    return jax.nn.softmax(jnp.where(valid[:, None, None], logits, -1e4))

  def attention_loss(logits):
    return distillvlm.attention_loss(
      attention(logits), attention(inputs['teacher_attention_logits']), valid
    )

  def hidden_loss(hidden):
    return distillvlm.hidden_loss(
      hidden @ projection.T,
      inputs['teacher_hidden'],
      valid,
      queue,
      config['temperature'],
    )

  def logit_loss(logits):
    return cross_entropy(logits, jax.nn.softmax(inputs['teacher_logits']))

  @jax.jit
  def compute(attention_logits, hidden, logits):
    values = {
      'attention': jax.value_and_grad(attention_loss)(attention_logits),
      'hidden': jax.value_and_grad(hidden_loss)(hidden),
      'logit': jax.value_and_grad(logit_loss)(logits),
    }
    after = distillvlm.enqueue_tokens(queue, inputs['teacher_hidden'], valid)
    return values, after

  values, after = compute(
    inputs['student_attention_logits'],
    inputs['student_hidden'],
    inputs['student_logits'],
  )
  outputs = {
    'attention_loss': values['attention'][0],
    'hidden_nce_loss': values['hidden'][0],
    'logit_loss': values['logit'][0],
    'grad_attention_logits': values['attention'][1],
    'grad_student_hidden': values['hidden'][1],
    'grad_student_logits': values['logit'][1],
    'queue_after': after,
  }
  return named(outputs, case.outputs)
