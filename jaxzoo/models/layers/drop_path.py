"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


class DropPath(nn.Module):
  """Drops a residual branch of single examples while training.

  An example's branch is 0 with probability `rate`, else divided by 1 - rate,
  so that its mean stays. Draws from the key collection `dropout`. (Huang et
  al. 2016, arXiv 1603.09382, a mask for each example.)

  Attributes:
    rate: in [0, 1).
  """

  rate: float = 0.0

  @nn.compact
  def __call__(
    self,
    x: PyTree,
    train: bool = False,
    rate: Float[Array, ''] | None = None,
  ) -> PyTree:
    """The branch, or what is left of it.

    Args:
      x: [b, ...]; of several arrays an example is dropped in all or in none.
      train: nothing is dropped otherwise.
      rate: in place of the attribute, where it is known only while running:
        that of a scanned block.
    """
    rate = self.rate if rate is None else rate
    if not train or (not isinstance(rate, jax.Array) and rate == 0):
      return x
    keep = 1.0 - rate
    batch = jax.tree.leaves(x)[0].shape[0]
    kept = jax.random.bernoulli(self.make_rng('dropout'), keep, (batch,))

    def drop(branch):
      chosen = kept.reshape(batch, *(1,) * (branch.ndim - 1))
      return jnp.where(chosen, branch / keep, 0).astype(branch.dtype)

    return jax.tree.map(drop, x)


def drop_path_rates(maximum: float, depth: int) -> tuple[float, ...]:
  """Linear from 0 at the first block to `maximum` at the last.

  >>> drop_path_rates(0.2, 3)
  (0.0, 0.1, 0.2)
  """
  return tuple(float(rate) for rate in np.linspace(0, maximum, depth))
