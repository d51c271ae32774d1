"""Representations by a linear classifier on frozen vectors.

Multinomial logistic regression to its optimum by L-BFGS on the whole training
split: nothing is random, and nothing but the strength of the regularisation is
to be chosen, which a held-out part of the training split decides (Radford et
al., arXiv 2103.00020, appendix A.3).
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.data import classification as data
from jaxzoo.errors import UserError
from jaxzoo.eval import classification
from jaxzoo.eval.evaluator import Evaluation
from jaxzoo.eval.knn import subset

STRENGTHS = tuple(10.0**p for p in range(-6, 3))
HELD_OUT = 5  # every fifth of a class


class Probe(NamedTuple):
  """A linear classifier of standardised vectors.

  Attributes:
    mean: of the training vectors.
    scale: 1 over their standard deviation.
    kernel: [d, classes].
    bias: [classes].
  """

  mean: Float[np.ndarray, ' d']
  scale: Float[np.ndarray, ' d']
  kernel: Float[np.ndarray, 'd k']
  bias: Float[np.ndarray, ' k']

  def logits(self, vectors: Float[np.ndarray, 'n d']):
    """Of each class, [n, classes]."""
    standard = (vectors - self.mean) * self.scale
    return standard @ self.kernel + self.bias


def objective(
  weights: dict,
  vectors: Float[Array, 'n d'],
  labels: Int[Array, ' n'],
  strength,
) -> Float[Array, '']:
  """mean_i -log softmax(x_i W + b)_y + strength / 2 |W|^2."""
  logits = vectors @ weights['kernel'] + weights['bias']
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return loss.mean() + 0.5 * strength * jnp.sum(weights['kernel'] ** 2)


@functools.partial(jax.jit, static_argnames=('steps',))
def _minimum(weights, vectors, labels, strength, tolerance, steps):
  tx = optax.lbfgs()
  value_of = lambda weights: objective(weights, vectors, labels, strength)
  value_and_grad = optax.value_and_grad_from_state(value_of)

  def more(carry):
    _, _, norm, step = carry
    return (step < steps) & (norm > tolerance)

  def move(carry):
    weights, state, _, step = carry
    value, grad = value_and_grad(weights, state=state)
    updates, state = tx.update(
      grad, state, weights, value=value, grad=grad, value_fn=value_of
    )
    weights = optax.apply_updates(weights, updates)
    return weights, state, optax.tree.norm(grad, ord=jnp.inf), step + 1

  start = (weights, tx.init(weights), jnp.inf, 0)
  return jax.lax.while_loop(more, move, start)[0]


def fit(
  vectors: Float[np.ndarray, 'n d'],
  labels: Int[np.ndarray, ' n'],
  classes: int,
  strength: float,
  *,
  start: Probe | None = None,
  tolerance: float = 1e-5,
  steps: int = 500,
) -> Probe:
  """The minimum of `objective` on standardised vectors.

  Args:
    vectors: of the training pictures.
    labels: of them.
    classes: how many there are.
    strength: of the L2 penalty on the kernel; the bias has none.
    start: where to begin, of other vectors or another strength.
    tolerance: largest entry of the gradient at the end.
    steps: at most.
  """
  mean = vectors.mean(0)
  # A dimension that is the same for all tells nothing: it becomes 0.
  spread = vectors.std(0)
  scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0)
  weights = {
    'kernel': np.zeros((vectors.shape[1], classes), np.float32),
    'bias': np.zeros(classes, np.float32),
  }
  if start is not None:
    weights = {'kernel': start.kernel, 'bias': start.bias}
  standard = ((vectors - mean) * scale).astype(np.float32)
  found = jax.device_get(
    _minimum(weights, standard, labels, np.float32(strength), tolerance, steps)
  )
  return Probe(mean, scale, found['kernel'], found['bias'])


def held_out(labels: Int[np.ndarray, ' n'], every: int = HELD_OUT):
  """True for every `every`-th example of each class, bool [n]."""
  chosen = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    chosen[np.flatnonzero(labels == label)[every - 1 :: every]] = True
  return chosen


def choose_strength(
  vectors: Float[np.ndarray, 'n d'],
  labels: Int[np.ndarray, ' n'],
  classes: int,
  strengths: Sequence[float] = STRENGTHS,
) -> float:
  """That of the smallest loss on the held-out examples, fitted on the rest.

  From the strongest to the weakest, each fit beginning at the one before.
  """
  out = held_out(labels)
  probe, losses = None, {}
  for strength in sorted(strengths, reverse=True):
    probe = fit(vectors[~out], labels[~out], classes, strength, start=probe)
    total = classification.sums(probe.logits(vectors[out]), labels[out])
    losses[strength] = classification.metrics(total)['nll']
  return min(losses, key=losses.get)


def make_evaluator(
  config,
  *,
  split: str = 'test',
  strengths: Sequence[float] = STRENGTHS,
  limit: int = 0,
):
  """An evaluator that trains on the training split and tests on `split`.

  Args:
    config: of the run; `data.train_split` is what the classifier learns from.
    split: that is classified.
    strengths: of the L2 penalty, one of which is chosen.
    limit: pictures of the training split, spread evenly over it; 0: all.

  Returns:
    predict -> Evaluation with top1 and top5 in percent, and the strength as its
    logarithm.
  """
  strengths = tuple(strengths)
  if not strengths or min(strengths) <= 0:
    raise UserError(f'linear probe: strengths={strengths} must be positive')
  shown, steps = data.eval_data(config, config.data.train_split)
  shown = subset(shown, limit)
  source = data.read_source(config, split)
  classes = len(source.names)

  def evaluate(predict) -> Evaluation:
    seen, asked = predict(shown, steps), predict(source, steps)
    vectors, labels = seen.outputs['vector'][seen.mask], shown.labels[seen.mask]
    strength = choose_strength(vectors, labels, classes, strengths)
    probe = fit(vectors, labels, classes, strength)
    total = classification.sums(
      probe.logits(asked.outputs['vector']), source.labels, asked.mask
    )
    values = classification.metrics(total)
    kept = ['top1'] + ['top5'] * (classes > 5)
    return Evaluation(
      {name: values[name] for name in kept}
      | {'log10_l2': float(np.log10(strength))}
    )

  return evaluate
