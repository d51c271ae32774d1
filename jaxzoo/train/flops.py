"""Floating point operations of a program, counted in its jaxpr.

`cost_analysis` of a compiled program counts the body of a scan once, and what
rematerialisation computes again a second time. Here scans are multiplied, and
model FLOPs never contain what a policy makes the hardware repeat.
"""

import math
from collections.abc import Callable

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from jaxzoo.system import System

# Of the backward pass: one product for the gradient of each of the two inputs
# of every product in the forward pass.
TRAINING_FACTOR = 3


def count_flops(function: Callable, *arguments) -> int:
  """FLOPs of the matrix products and convolutions of a function.

  2 for every multiply-add of a `dot_general` [.., m, k] x [.., k, n] (2mnk) or
  a convolution. Only what the results depend on counts, as a compiler removes
  the rest. The body of a scan counts as often as it runs; of the branches of a
  `cond` the most expensive counts; the body of a `while_loop`, whose number of
  rounds is not known, counts once. Elementwise operations, softmax and norms do
  not count; a mask makes no product cheaper.

  >>> import jax, jax.numpy as jnp
  >>> x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  >>> count_flops(lambda x: x @ x.T, x)
  24

  Args:
    function: to be traced by JAX; nothing is computed.
    *arguments: arrays or `jax.ShapeDtypeStruct`, or trees of them.
  """
  jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
  return _count_needed(jaxpr, [True] * len(jaxpr.outvars))


def training_flops(system: System, state, batch) -> int:
  """Model FLOPs of one training step: three times those of the loss.

  The loss's own are found by leaving out of the step what `metrics['loss']`
  does not need: gradients, optimizer, averages. That leaves out all that is
  computed twice to save memory, too. A step that tells no `loss`, because
  several players have each their own, counts as it is.

  Args:
    system: what is trained.
    state: its state, arrays or abstract.
    batch: likewise.
  """
  jaxpr, outputs = jax.make_jaxpr(system.step, return_shape=True)(state, batch)
  alone = 'loss' in outputs[1]
  after, metrics = jax.tree.map(lambda _: not alone, outputs)
  if alone:
    metrics['loss'] = True
  flops = _count_needed(jaxpr.jaxpr, jax.tree.leaves((after, metrics)))
  return (TRAINING_FACTOR if alone else 1) * flops


def _count_needed(jaxpr: core.Jaxpr, needed: list[bool]) -> int:
  """FLOPs of what those outputs depend on that are needed."""
  return _count(partial_eval.dce_jaxpr(jaxpr, needed)[0])


def _count(jaxpr: core.Jaxpr) -> int:
  return sum(equation_flops(equation) for equation in jaxpr.eqns)


def equation_flops(equation) -> int:
  """FLOPs of one equation of a jaxpr, with the programs inside it."""
  name, parameters = equation.primitive.name, equation.params
  if name == 'dot_general':
    return _dot_flops(equation)
  if name == 'conv_general_dilated':
    return _convolution_flops(equation)
  inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(parameters)]
  if name == 'cond':
    return max(inner)
  if name == 'scan':
    return parameters['length'] * sum(inner)
  if name == 'shard_map':  # its body sees the part of one device
    return _parts(parameters) * sum(inner)
  if name == 'pallas_call':
    return math.prod(parameters['grid_mapping'].grid) * sum(inner)
  return sum(inner)


def _parts(parameters) -> int:
  """Devices that each run the body of a `shard_map`."""
  # Called so since jax 0.10.
  axes = parameters.get('newly_manual_axes', parameters.get('manual_axes'))
  return math.prod(parameters['mesh'].shape[axis] for axis in axes)


def _dot_flops(equation) -> int:
  left, right = (variable.aval for variable in equation.invars)
  contracted, batched = equation.params['dimension_numbers']
  free = lambda aval, side: math.prod(
    size
    for axis, size in enumerate(aval.shape)
    if axis not in contracted[side] and axis not in batched[side]
  )
  # m n, and the sizes that both have: k and the batch.
  both = math.prod(left.shape[i] for i in (*contracted[0], *batched[0]))
  return 2 * both * free(left, 0) * free(right, 1)


def _convolution_flops(equation) -> int:
  """2 x output elements x weights that each sees.

  Of a transposed convolution, a dilated input, the inserted zeros cost nothing.
  """
  weights = equation.invars[1].aval
  numbers = equation.params['dimension_numbers']
  outputs = math.prod(equation.outvars[0].aval.shape)
  seen = math.prod(weights.shape) // weights.shape[numbers.rhs_spec[0]]
  return 2 * outputs * seen // math.prod(equation.params['lhs_dilation'])
