"""Max pooling whose gradient is fast on CPUs too.

XLA's CPU compiler finds the largest element of every window once more in the
backward pass, with its place in all four axes, in a generic loop. Here the
forward pass keeps which one it was, and the backward pass is elementwise:
14 times as fast on 8 maps of 112x112x64 (docs/performance.md:
`python -m jaxzoo.bench.formulations pooling`).
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.models.layers.dense_convolution import Form, seen
from jaxzoo.platform import one_cpu


def max_pool(
  x: Float[Array, 'b h w c'], size: int, stride: int, padding: int | None = None
) -> Float[Array, 'b h2 w2 c']:
  """Maximum over squares; what lies outside the map never wins.

  The gradient goes to the first of equals.

  Args:
    x: maps, channels last.
    size: side of the squares.
    stride: from one to the next.
    padding: on each side; default: half the size.
  """
  pad = size // 2 if padding is None else padding
  pool = by_slices if one_cpu() else native
  return pool(x, size, stride, pad)


def native(x, size: int, stride: int, pad: int):
  """XLA's pooling and its gradient."""
  return nn.max_pool(
    x, (size, size), (stride, stride), ((pad, pad), (pad, pad))
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def by_slices(x, size: int, stride: int, pad: int):
  """As the largest of what each place of a square sees. (No `jax.jvp`.)"""
  return functools.reduce(jnp.maximum, _slices(x, size, stride, pad))


def _slices(x, size, stride, pad):
  """What each of the size² places of a square sees, row by row."""
  low = jnp.array(-jnp.inf, x.dtype)
  x = lax.pad(x, low, ((0, 0, 0), (pad, pad, 0), (pad, pad, 0), (0, 0, 0)))
  shape = [(n - size) // stride + 1 for n in x.shape[1:3]]
  places = itertools.product(range(size), repeat=2)
  return [seen(x, place, shape, Form((stride, stride))) for place in places]


def _forward(x, size, stride, pad):
  # A loop writes down what it finds; without one the compiler would find which
  # place it was again in the backward pass, for every square that has the place.
  count = 2 if len(x) % 2 == 0 else len(x)
  parts = x.reshape(count, -1, *x.shape[1:])
  found = lax.map(lambda part: _largest(part, size, stride, pad), parts)
  y, first = (a.reshape(len(x), *a.shape[2:]) for a in found)
  return y, (first, jnp.zeros((*x.shape[1:3], 0)))  # for its shape


def _largest(x, size, stride, pad):
  """The largest of each square and the first place that has it."""
  parts = _slices(x, size, stride, pad)
  y = functools.reduce(jnp.maximum, parts)
  first = jnp.zeros(y.shape, jnp.uint8)
  for index, part in reversed(list(enumerate(parts))):
    first = jnp.where(part == y, jnp.uint8(index), first)
  return y, first


def _backward(size, stride, pad, kept, grad):
  """Places of the map come from few places of the squares, by their remainder.

  Those that are a + s r in a row, r = 0, 1, ..., are at a, a + s, ... in the
  squares r, r - 1, ...
  """
  first, height, width = kept[0], *kept[1].shape[:2]
  rows, columns = (-(-(n + 2 * pad) // stride) for n in (height, width))

  def of_remainders(a, b):
    total = jnp.zeros((len(grad), rows, columns, grad.shape[-1]), grad.dtype)
    for i, j in itertools.product(
      range(a, size, stride), range(b, size, stride)
    ):
      there = jnp.where(first == i * size + j, grad, 0)
      up, left = i // stride, j // stride
      down, right = (
        rows - up - grad.shape[1],
        columns - left - grad.shape[2],
      )
      margins = ((0, 0, 0), (up, down, 0), (left, right, 0), (0, 0, 0))
      total += lax.pad(there, jnp.zeros((), grad.dtype), margins)
    return total

  parts = jnp.stack(
    [
      jnp.stack([of_remainders(a, b) for b in range(stride)], 3)
      for a in range(stride)
    ],
    2,
  )  # [b, rows, a, columns, b, c]
  whole = parts.reshape(len(grad), rows * stride, columns * stride, -1)
  return (whole[:, pad : pad + height, pad : pad + width],)


by_slices.defvjp(_forward, _backward)
