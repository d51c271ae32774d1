"""Programs that run once, without compiling what is the same again and again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxzoo.platform import options_for_once, platform


def call_once(function: Callable[[], Any]) -> Any:
  """`function()`, a tree of arrays, as fast as it can be had the first time.

  An initialiser draws many arrays of few shapes. As one program each of them is
  compiled, and all are drawn at once. On a CPU the equations are evaluated one
  after the other instead: what JAX has traced once, such as a normal
  distribution of a shape, is compiled once, and nothing is kept that is not
  needed any more. Elsewhere compilation is worth its time, and it is one
  program. Numbers may differ in the last bit.

  What it gains: `python -m jaxzoo.bench.create`, docs/performance.md.
  """
  if platform() != 'cpu':
    return jax.jit(function)()
  closed, shape = jax.make_jaxpr(function, return_shape=True)()
  values = evaluate(closed, {})
  return jax.tree.unflatten(jax.tree.structure(shape), values)


def evaluate(closed: core.ClosedJaxpr, compiled: dict) -> list[jax.Array]:
  """The results of a program without arguments, equation by equation.

  Args:
    closed: the program.
    compiled: by the identity of a program inside, what calls it; filled here.
  """
  jaxpr = closed.jaxpr
  last = uses(jaxpr)
  known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
  read = lambda x: x.val if isinstance(x, core.Literal) else known[x]
  for number, equation in enumerate(jaxpr.eqns):
    if not any(x in last for x in equation.outvars):
      continue  # such as a forward pass, of which only parameters are wanted
    values = map(read, equation.invars)
    results = _function_of(equation, compiled)(*values)
    known |= zip(equation.outvars, results, strict=True)
    for x in {*filter(is_variable, equation.invars)}:
      if last[x] == number:
        known.pop(x)
  return [jnp.asarray(read(x), x.aval.dtype) for x in jaxpr.outvars]


def is_variable(x) -> bool:
  """Whether an operand has a value of its own, and is no constant."""
  return not isinstance(x, core.Literal)


def uses(jaxpr: core.Jaxpr) -> dict[core.Var, int]:
  """Variables on which a result depends, with the equation that uses them last.

  Results are used after the last equation.
  """
  last = {x: len(jaxpr.eqns) for x in jaxpr.outvars if is_variable(x)}
  for number, equation in reversed([*enumerate(jaxpr.eqns)]):
    if any(x in last for x in equation.outvars):
      for x in filter(is_variable, equation.invars):
        last.setdefault(x, number)
  return last


def _function_of(equation: core.JaxprEqn, compiled: dict) -> Callable:
  """Its operands -> a list of its results."""
  if equation.primitive.name not in ('jit', 'pjit'):
    bind = lambda *x: equation.primitive.bind(*x, **equation.params)
    multiple = equation.primitive.multiple_results
    return bind if multiple else lambda *x: [bind(*x)]
  inside = equation.params['jaxpr']
  if inside not in compiled:
    compiled[inside] = jax.jit(
      core.jaxpr_as_fun(inside), compiler_options=options_for_once('cpu')
    )
  return compiled[inside]
