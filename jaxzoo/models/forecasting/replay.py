"""Replay of past samples: ER and DER++ for online forecasting.

Experience replay (arXiv 1811.11682) and dark experience replay (arXiv
2004.07211) as FSNet's and OneNet's tables have them: a buffer of the last
samples of the stream, of which a few are learned again in each step.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Drawn(NamedTuple):
  """Samples out of the buffer; `real` is False for places not yet filled."""

  history: Float[Array, 'r t d']
  marks: Float[Array, 'r t k']
  target: Float[Array, 'r h d']
  forecasts: Mapping[str, Float[Array, 'r h d']]
  real: Bool[Array, ' r']


class Replay(NamedTuple):
  """A buffer, first in, first out.

  Attributes:
    branches: whose forecasts are stored.
    size: samples that it holds.
    draws: of them learned in a step.
    strength: weight of their error.
    dark: weight of their distance to what was forecast when they were stored
      (DER++); 0: not counted (ER).
  """

  branches: tuple[str, ...]
  size: int = 500
  draws: int = 8
  strength: float = 0.2
  dark: float = 0.0

  def init(self, batch: Mapping) -> dict:
    """An empty buffer for samples like those of `batch`."""
    blank = lambda name: jnp.zeros((self.size, *batch[name].shape[1:]))
    return {
      'history': blank('history'),
      'marks': blank('history_marks'),
      'target': blank('target'),
      'forecasts': {name: blank('target') for name in self.branches},
      'count': jnp.int32(0),
    }

  def draw(self, buffer: Mapping, rng: jax.Array) -> Drawn:
    """`draws` different samples, as many as there are."""
    order = jax.random.uniform(rng, (self.size,))
    order = jnp.where(jnp.arange(self.size) < buffer['count'], order, -1)
    places = jax.lax.top_k(order, self.draws)[1]
    take = lambda x: x[places]
    return Drawn(
      take(buffer['history']),
      take(buffer['marks']),
      take(buffer['target']),
      jax.tree.map(take, buffer['forecasts']),
      places < buffer['count'],
    )

  def loss(self, drawn: Drawn, forecasts: Mapping) -> Float[Array, '']:
    """strength mse(y, target) + dark mse(y, what was forecast then)."""
    count = jnp.maximum(1, drawn.real.sum())

    def mean(a, b):
      each = jnp.square(a - b).mean((1, 2))
      return jnp.where(drawn.real, each, 0).sum() / count

    return sum(
      self.strength * mean(y, drawn.target)
      + self.dark * mean(y, drawn.forecasts[name])
      for name, y in forecasts.items()
    )

  def add(self, buffer: Mapping, batch: Mapping, forecasts: Mapping) -> dict:
    """The buffer with a batch's samples in the places of the oldest."""
    b = len(batch['target'])
    places = (buffer['count'] + jnp.arange(b)) % self.size
    put = lambda old, new: old.at[places].set(jax.lax.stop_gradient(new))
    return {
      'history': put(buffer['history'], batch['history']),
      'marks': put(buffer['marks'], batch['history_marks']),
      'target': put(buffer['target'], batch['target']),
      'forecasts': jax.tree.map(put, buffer['forecasts'], dict(forecasts)),
      'count': buffer['count'] + b,
    }
