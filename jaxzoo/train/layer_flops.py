"""Which parameter the floating point operations of a program belong to."""

import math
from collections.abc import Callable

import jax
from jax.extend import core

from jaxzoo.train.flops import equation_flops

# Operations after which an array is still the parameter that it was.
_SAME = {
  'convert_element_type',
  'copy',
  'expand_dims',
  'reshape',
  'rev',
  'sharding_constraint',
  'squeeze',
  'transpose',
}


def flops_by_parameter(
  function: Callable, params, *arguments
) -> dict[str, int]:
  """FLOPs of the products with each parameter, as `count_flops` counts them.

  Products of two activations, and those whose parameter has been changed on
  the way, are under ''. Of a `cond` the first branch counts, of a
  `while_loop` one round.

  >>> import jax.numpy as jnp
  >>> params = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros((4, 5))}
  >>> flops_by_parameter(lambda p, x: (x @ p['a']) @ p['b'], params,
  ...                    jnp.zeros((2, 3)))
  {'a': 48, 'b': 80}

  Args:
    function: (params, *arguments) -> anything; traced, not run.
    params: arrays or abstract.
    *arguments: likewise.
  """
  jaxpr = jax.make_jaxpr(function)(params, *arguments).jaxpr
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  names = [
    jax.tree_util.keystr(path, simple=True, separator='/') for path, _ in paths
  ]
  owners = dict(zip(jaxpr.invars, names, strict=False))
  counts: dict[str, int] = {}
  _walk(jaxpr, owners, counts, 1)
  return counts


def _walk(jaxpr: core.Jaxpr, owners: dict, counts: dict, times: int) -> None:
  """Adds to `counts`; `owners` gets the variables that are parameters."""
  owner = lambda v: owners.get(v) if isinstance(v, core.Var) else None
  for equation in jaxpr.eqns:
    name, inputs = equation.primitive.name, equation.invars
    if name in ('dot_general', 'conv_general_dilated'):
      owned = [o for o in map(owner, inputs) if o is not None]
      key = owned[-1] if owned else ''
      flops = times * equation_flops(equation)
      counts[key] = counts.get(key, 0) + flops
    elif name in _SAME:
      if owner(inputs[0]) is not None:
        owners[equation.outvars[0]] = owner(inputs[0])
    else:
      _walk_inner(equation, owner, counts, times)


def _walk_inner(equation, owner, counts, times) -> None:
  """The programs inside an equation, with what they are given."""
  name, inputs = equation.primitive.name, list(equation.invars)
  inner = list(core.jaxprs_in_params(equation.params))
  if name == 'scan':
    times *= equation.params['length']
  elif name == 'cond':
    inputs, inner = inputs[1:], inner[:1]
  elif name == 'pallas_call':
    times *= math.prod(equation.params['grid_mapping'].grid)
  for jaxpr in inner:
    given = {}
    if len(jaxpr.invars) == len(inputs):
      given = {
        variable: owner(x)
        for variable, x in zip(jaxpr.invars, inputs, strict=True)
        if owner(x) is not None
      }
    _walk(jaxpr, given, counts, times)
