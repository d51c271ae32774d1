"""SEED's parity cases: the loss against a queue, and the queue after it."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.distillation import seed
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.models.losses.queue import Queue, enqueue


def run(case):
  # In float64: a teacher's temperature of 1e-4 multiplies rounding by 1e4.
  with jax.enable_x64(True):
    inputs = {k: np.float64(v) for k, v in case.inputs.items()}
    outputs = _run(case.config, inputs)
  return named(outputs, case.outputs)


def _run(config, inputs):
  large = _view(
    config, inputs['student'], inputs['teacher'], inputs['queue'], inputs
  )
  outputs = {
    'loss': large['loss'],
    'student_logits_first': large['logits'][:, :64],
    'teacher_prob_first': large['targets'][:, :64],
    'teacher_entropy': large['entropy'],
    'grad_student_scaled': config['grad_scale'] * large['grad'],
    'queue_ptr_after': large['queue'].position,
  }
  pointer = config['queue_ptr']
  columns = np.asarray(large['queue'].vectors).T
  outputs['queue_after_columns'] = columns[:, max(0, pointer - 2) : pointer + 4]
  if 'student_small' in inputs:
    small = _view(
      config,
      inputs['student_small'],
      inputs['teacher_small'],
      inputs['small_queue'],
      inputs,
    )
    outputs |= {
      'loss': large['loss'] + small['loss'],
      'loss_large': large['loss'],
      'loss_small': small['loss'],
      'grad_small_scaled': config['grad_scale'] * small['grad'],
      'small_queue_after': np.asarray(small['queue'].vectors).T[
        :, pointer : pointer + 3
      ],
    }
  return outputs


def _view(config, student, teacher, queue, inputs):
  """What one size of view gives; of several patches the first is enqueued."""
  teacher = teacher + 2.8 * inputs['common']
  student = student + 0.5 * teacher
  columns = queue + 2.8 * inputs['common'][:, None]
  columns = columns / np.linalg.norm(columns, axis=0)
  start = Queue(jnp.asarray(columns.T), jnp.int32(config['queue_ptr']))

  @jax.jit
  def compute(student, teacher, start):
    unit = l2_normalize(teacher)
    rows = lambda x: x.reshape(-1, x.shape[-1])

    def loss(student):
      found = seed.similarities(
        l2_normalize(rows(student)),
        rows(unit),
        start.vectors,
        student_temperature=config['student_temperature'],
        teacher_temperature=config['teacher_temperature'],
      )
      return seed.similarity_loss(found), found

    (value, found), grad = jax.value_and_grad(loss, has_aux=True)(student)
    entropy = -jnp.sum(jnp.where(found.targets > 0, found.targets
                                 * jnp.log(jnp.maximum(found.targets, 1e-300)),
                                 0.0), axis=1)  # fmt: skip
    first = unit if unit.ndim == 2 else unit[:, 0]
    return {
      'loss': value,
      'logits': found.logits,
      'targets': found.targets,
      'entropy': entropy,
      'grad': grad,
      'queue': enqueue(start, first),
    }

  return compute(student, teacher, start)
