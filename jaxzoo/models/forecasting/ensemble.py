"""Two forecasters mixed by weights that are learned online (OneNet, sec. 3).

Of every variable, s = sigma(w + beta) weighs the forecaster across time, 1 - s
the one across variables. w follows slowly, by online convex programming; beta
quickly, by a network that reads what both have just done (offline reinforcement
learning). All losses here take the forecasts as constants.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.forecasting.tcn import dense

WEIGHTS = ('gradient', 'exponentiated', 'fixed')


class Decision(nn.Module):
  """beta of each variable from what it was offered and what came.

  Three layers with tanh between them. In the reference dropout stays on online;
  here it is off unless `train`.
  """

  width: int = 32
  dropout: float = 0.1

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b d k'], train: bool = False
  ) -> Float[Array, 'b d']:
    for name in ('input', 'hidden'):
      x = dense(self.width, x.shape[-1], name)(x)
      x = jnp.tanh(nn.Dropout(self.dropout)(x, deterministic=not train))
    return dense(1, self.width, 'output')(x)[..., 0]


class Losses(NamedTuple):
  """What trains the ensemble.

  Attributes:
    weight: scalar, for w.
    bias: scalar, for the network of beta and, by 'gradient', for w.
    beta: [b, d], what that network says.
  """

  weight: Float[Array, '']
  bias: Float[Array, '']
  beta: Float[Array, 'b d']


def mix(
  share: Float[Array, '#b d'],
  time: Float[Array, 'b h d'],
  variable: Float[Array, 'b h d'],
) -> Float[Array, 'b h d']:
  """share * time + (1 - share) * variable."""
  share = share[:, None]
  return share * time + (1 - share) * variable


def losses(
  weight: Float[Array, ' d'],
  decide,
  time: Float[Array, 'b h d'],
  variable: Float[Array, 'b h d'],
  target: Float[Array, 'b h d'],
  kind: str = 'gradient',
) -> Losses:
  """The losses of w and of beta on forecasts that have been made.

  beta is asked with [sigma(w) y1, (1 - sigma(w)) y2, y], 3 h numbers for each
  variable, and trained by the error of the mixture sigma(w + beta). w is
  trained, without beta, by

    'gradient': the error of the mixture sigma(w), by gradient steps. In the
      released code, and so in its numbers, the gradient that the error of
      sigma(w + beta) leaves at w is added: nothing clears it;
    'exponentiated': w (l1 - l2) with the errors l of both forecasters: plain
      gradient steps of rate eta on it are the exponentiated gradient
      s_i <- s_i exp(-eta l_i) / Z;
    'fixed': nothing.

  Args:
    weight: w.
    decide: [b, d, 3 h] -> beta [b, d]; None: beta is 0.
    time: y1.
    variable: y2.
    target: y.
    kind: one of `WEIGHTS`.
  """
  time, variable = jax.lax.stop_gradient((time, variable))
  # As the released code has it, see the docstring.
  shared = weight if kind == 'gradient' else jax.lax.stop_gradient(weight)
  error = lambda forecast: jnp.square(forecast - target)
  beta, bias_loss = jnp.zeros(target.shape[::2]), jnp.zeros(())
  if decide is not None:
    share = jax.nn.sigmoid(shared)
    offered = [share * time, (1 - share) * variable, target]
    beta = decide(jnp.concatenate(offered, 1).swapaxes(1, 2))
    mixed = mix(jax.nn.sigmoid(shared + beta), time, variable)
    bias_loss = error(mixed).mean()
  weight_loss = jnp.zeros(())
  if kind == 'gradient':
    mixed = mix(jax.nn.sigmoid(weight)[None], time, variable)
    weight_loss = error(mixed).mean()
  elif kind == 'exponentiated':
    gap = error(time).mean((0, 1)) - error(variable).mean((0, 1))
    weight_loss = jnp.dot(weight, gap)
  return Losses(weight_loss, bias_loss, beta)
