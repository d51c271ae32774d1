"""Decompositions of matrices, one after the other."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def after(x: Float[Array, '...'], earlier: Shaped[Array, '...']) -> Array:
  """`x` as it is, but not before `earlier` has been computed.

  On CPUs a decomposition of several matrices waits for threads of the pool in
  which it runs itself. As many at a time as there are threads wait forever, so
  that decompositions that do not need each other's results must be put in
  order. (An optimization barrier orders nothing there: it is gone before the
  program runs.)

  Args:
    x: what is decomposed.
    earlier: a result of the decomposition before.
  """
  value = jnp.ravel(earlier)[0].astype(jnp.float32)
  # 0 of every number, which compilers do not see.
  zero = jnp.where(jnp.isnan(value), 0, jnp.minimum(value * value, 0))
  return x + zero.astype(x.dtype)
