"""Decompositions wait for each other: at once they can block all threads."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.compress.methods import chex
from jaxzoo.compress.methods.rank import rank_gradients
from jaxzoo.compress.turns import after

DECOMPOSITIONS = ('eigh', 'svd', 'qr')


def decomposes(equation) -> bool:
  """Whether a decomposition is an equation or anywhere inside of it."""
  return equation.primitive.name in DECOMPOSITIONS or any(
    decomposes(each)
    for jaxpr in core.jaxprs_in_params(equation.params)
    for each in jaxpr.eqns
  )


def out_of_turn(function, *arguments) -> tuple[int, list]:
  """(decompositions, those that need no result of the one before)."""
  needed, count, free = {}, 0, []
  for equation in jax.make_jaxpr(function)(*arguments).jaxpr.eqns:
    inputs = [x for x in equation.invars if not isinstance(x, core.Literal)]
    before = set().union(*(needed.get(x, set()) for x in inputs))
    if decomposes(equation):
      if count and count - 1 not in before:
        free.append(equation)
      before = before | {count}
      count += 1
    needed |= {x: before for x in equation.outvars}
  return count, free


def test_rank_losses_of_several_shapes_are_found_in_turn():
  kernels = [jnp.ones((3, 3, 4, n)) for n in (6, 8, 10)]
  count, free = out_of_turn(lambda k: rank_gradients(k, 0.1), kernels)
  assert count == 3 and not free


def test_layers_of_several_shapes_are_explored_in_turn():
  names = ('a', 'b', 'c')
  groups = [ChannelGroup(n, 8, ((f'{n}/kernel', 1),)) for n in names]
  leaves = {
    f'{name}/kernel': jnp.ones((rows, 8))
    for name, rows in zip(names, (9, 10, 11), strict=True)
  }
  masks = {name: jnp.ones(8, bool) for name in names}
  numbers = chex.Numbers(jnp.full(3, 4), jnp.full(3, 1))
  count, free = out_of_turn(
    functools.partial(chex.explore, groups),
    *(leaves, leaves, masks, numbers, jax.random.key(0)),
  )
  # Of a layer, once for the scores and once for the distances: QR and SVD.
  assert count == 3 * 4 and not free


def test_what_waits_stays_as_it_is():
  x = jnp.float32([1.5, -0.0, -2e-30])
  for earlier in (jnp.zeros(2), jnp.full(2, np.inf), jnp.full(2, np.nan)):
    np.testing.assert_array_equal(jax.jit(after)(x, earlier), x)
