"""Programs that run once: what they give, compile and keep."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxzoo import once


def draw():
  """Arrays of two shapes, and what nobody asks for."""
  keys = jax.random.split(jax.random.key(0), 4)
  tables = [jax.random.normal(key, (4, 3)) for key in keys[:3]]
  unused = jax.pure_callback(_never, jax.ShapeDtypeStruct((), 'float32'))
  kernel = 0.1 * jax.random.uniform(keys[3], (5,))
  del unused
  return {'tables': tables, 'kernel': kernel, 'scale': jnp.ones(2), 'zero': 0.0}


def _never():
  raise AssertionError('nobody asked')


def test_it_gives_what_the_compiled_program_gives():
  got, want = once.call_once(draw), jax.jit(draw)()
  assert jax.tree.structure(got) == jax.tree.structure(want)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want
  )
  assert {type(x) for x in jax.tree.leaves(got)} == {type(jnp.ones(()))}


def test_what_is_the_same_is_compiled_once():
  compiled = {}
  once.evaluate(jax.make_jaxpr(draw)(), compiled)
  shapes = [
    inside.out_avals[0].shape for inside in compiled if inside.out_avals
  ]
  assert shapes.count((4, 3)) == 1
  assert shapes.count((5,)) == 1


def test_a_value_is_kept_until_its_last_use_and_results_to_the_end():
  def program():
    a = jnp.arange(3)
    b = a + 1
    jnp.sin(b)
    return b, a * b

  jaxpr = jax.make_jaxpr(program)().jaxpr
  last = once.uses(jaxpr)
  names = [equation.primitive.name for equation in jaxpr.eqns]
  assert 'sin' in names
  a, b = (jaxpr.eqns[i].outvars[0] for i in range(2))
  assert last[a] == names.index('mul')
  assert last[b] == len(names)
  assert jaxpr.eqns[names.index('sin')].outvars[0] not in last
  assert all(isinstance(x, core.Var) for x in last)
