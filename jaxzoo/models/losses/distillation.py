"""Losses that a student takes from a teacher's logits.

All are float32 means over the batch; no gradient goes to the teacher.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError
from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.models.losses.classification import cross_entropy


def hard_distillation(
  logits: Float[Array, 'b k'], teacher_logits: Float[Array, 'b k']
) -> Float[Array, '']:
  """Cross entropy with the teacher's most probable class as the label.

  (DeiT, arXiv 2012.12877, section 4.) Of equal teacher's logits the first.
  """
  label = jnp.argmax(jax.lax.stop_gradient(teacher_logits), axis=-1)
  return cross_entropy(logits, jax.nn.one_hot(label, logits.shape[-1]))


def soft_distillation(
  logits: Float[Array, 'b k'],
  teacher_logits: Float[Array, 'b k'],
  temperature: float = 1.0,
) -> Float[Array, '']:
  """tau² / (b k) sum p_t (log p_t - log p), p = softmax(z / tau).

  The paper (arXiv 2012.12877, section 4) has the divergence of one example; the
  released code, which we follow, divides by the number of classes too: by b k,
  not by b.
  """
  log_p = _log_softmax(logits, temperature)
  log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), temperature)
  return temperature**2 * jnp.mean(jnp.exp(log_t) * (log_t - log_p))


def knowledge_distillation(
  logits: Float[Array, '*b k'],
  teacher_logits: Float[Array, '*b k'],
  temperature: float = 4.0,
) -> Float[Array, '']:
  """tau² KL(softmax(t / tau) || softmax(z / tau)), the mean over examples.

  Hinton et al., arXiv 1503.02531: the baseline that everything else is held
  against. Of dense logits [b, h, w, k] every position is an example.
  """
  log_p = _log_softmax(logits, temperature)
  log_t = _log_softmax(jax.lax.stop_gradient(teacher_logits), temperature)
  divergence = jnp.sum(jnp.exp(log_t) * (log_t - log_p), axis=-1)
  return temperature**2 * divergence.mean()


def feature_matching(
  features: Float[Array, '*b c'], teacher_features: Float[Array, '*b c']
) -> Float[Array, '']:
  """Mean squared error of features that were brought to one shape (FitNets).

  arXiv 1412.6550; the other baseline, for hints of any layer.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  error = wide(features) - jax.lax.stop_gradient(wide(teacher_features))
  return jnp.mean(error * error)


def deit_loss(
  logits: tuple[Float[Array, 'b k'], Float[Array, 'b k']],
  teacher_logits: Float[Array, 'b k'] | None,
  targets: Float[Array, 'b k'],
  *,
  kind: str = 'hard',
  alpha: float = 0.5,
  temperature: float = 1.0,
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """(1 - alpha) CE(z, targets) + alpha distillation(z_d, teacher).

  arXiv 2012.12877, section 4. The paper's best is hard, alpha 0.5; soft was
  trained with alpha 0.1 and temperature 3.

  Args:
    logits: of the class token and of the distillation token, the pair that a
      distilled network gives in training.
    teacher_logits: of the same augmented images.
    targets: distributions over the classes, smoothed and mixed.
    kind: 'hard', 'soft', or 'none': the first term alone, its weight 1.
    alpha: weight of the teacher.
    temperature: tau, of 'soft'.

  Returns:
    The loss, and its terms by name: 'base' and 'distillation'.

  Raises:
    UserError: no such kind.
  """
  own, distilled = logits
  base = cross_entropy(own, targets)
  if kind == 'none':
    return base, {'base': base}
  if kind == 'hard':
    taught = hard_distillation(distilled, teacher_logits)
  elif kind == 'soft':
    taught = soft_distillation(distilled, teacher_logits, temperature)
  else:
    raise UserError(f"distillation {kind!r}: not 'hard', 'soft' or 'none'")
  terms = {'base': base, 'distillation': taught}
  return (1 - alpha) * base + alpha * taught, terms


def _log_softmax(logits, temperature):
  wide = logits.astype(at_least_float32(logits))
  return jax.nn.log_softmax(wide / temperature, axis=-1)
