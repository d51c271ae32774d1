"""Convolution over all channels, whose gradients are fast on CPUs too.

XLA's CPU compiler computes the gradient with respect to a kernel as a
convolution with a kernel as large as the map, which takes several times as long
as the forward pass. Where there is much to do it is a matrix product here: of
what the kernel sees of a block of places, side by side, with the gradient there.
A block is small enough to stay in the cache of a core, and a loop adds the
products up.

Other gradients are convolutions with the axes where the forward pass has them.
The compiler brings those of `jax.grad` into that form as well, but not inside of
loops and branches, where they are up to 30 times slower.

A map smaller than the kernel (the last ones of small pictures) it takes for the
kernel, and the kernel for the map, in a form that runs many times slower: such
maps have their zeros before they come to it. (What all this gains is in
docs/performance.md: `python -m jaxzoo.bench.formulations convolution small`.)
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.models.layers.dense import over_rows, product

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
BLOCK_BYTES = 2**20  # what a block's places see; more for a larger kernel
FEWEST_PLACES = 32  # of a map; XLA's own is as fast on smaller ones
# Below this many multiply-adds the loop costs more to compile than it gains.
FEWEST_PRODUCTS = 2**22
MOST_TAPS = 49


class Form(NamedTuple):
  """Of a convolution, along both axes.

  Attributes:
    strides: (rows, columns).
    padding: ((before, after), (before, after)), zeros.
    dilation: of the kernel.
  """

  strides: tuple[int, int] = (1, 1)
  padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
  dilation: tuple[int, int] = (1, 1)


def convolution(
  x: Float[Array, 'b h w i'], kernel: Float[Array, 'k l i o'], form: Form
) -> Float[Array, 'b h2 w2 o']:
  """y[p] = sum_j x[s p + d j] kernel[j], of x filled up with zeros.

  XLA's convolution with a gradient of our own, or where nothing is beside or
  around a place (1x1) a matrix product, which unlike it is shared out among the
  cores. (It has reverse mode only; no `jax.jvp`.)

  Args:
    x: images, channels last.
    kernel: height, width, channels of x, channels of y.
    form: strides s, padding, dilation d.
  """
  if kernel.shape[:2] == (1, 1) and form.padding == ((0, 0), (0, 0)):
    x = x[:, :: form.strides[0], :: form.strides[1]]
    y = product(x.reshape(-1, x.shape[-1]), kernel[0, 0])
    return y.reshape(*x.shape[:3], -1)
  return spatial(x, kernel, form)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def spatial(x, kernel, form: Form):
  """`convolution` with any kernel."""
  return _convolve(x, kernel, form)


def native(x, kernel, form: Form):
  """XLA's convolution and gradients, as they are."""
  return lax.conv_general_dilated(
    x,
    kernel,
    form.strides,
    form.padding,
    rhs_dilation=form.dilation,
    dimension_numbers=NUMBERS,
  )


def gains(x, kernel, form: Form) -> bool:
  """Whether blocks are worth their compilation: products of some size.

  In float32; CPUs that multiply bfloat16 have kernels of their own for it.
  """
  taps = math.prod(kernel.shape[:2])
  places = math.prod(x.shape[1:3]) // math.prod(form.strides)
  products = x.shape[0] * places * math.prod(kernel.shape)
  return x.dtype == kernel.dtype == jnp.float32 and (
    taps <= MOST_TAPS
    and places >= FEWEST_PLACES
    and products >= FEWEST_PRODUCTS
  )


def _convolve(x, kernel, form: Form, spread=(1, 1)):
  """XLA's convolution of a map whose places are `spread` out by zeros.

  Padding is a part of a convolution for the compiler, unless it is kept from
  seeing that.
  """
  if math.prod(kernel.shape[:2]) > math.prod(x.shape[1:3]):
    x = lax.optimization_barrier(pad_zeros(x, form.padding, spread))
    form, spread = form._replace(padding=((0, 0), (0, 0))), (1, 1)
  return lax.conv_general_dilated(
    x,
    kernel,
    form.strides,
    form.padding,
    lhs_dilation=spread,
    rhs_dilation=form.dilation,
    dimension_numbers=NUMBERS,
  )


def _keep(x, kernel, form):
  return _convolve(x, kernel, form), (x, kernel)


def _backward(form, kept, grad):
  x, kernel = kept
  by_kernel = by_blocks if gains(x, kernel, form) else by_convolution
  return (
    input_gradient(grad, kernel, x.shape, form),
    by_kernel(x, grad, kernel.shape, form),
  )


spatial.defvjp(_keep, _backward)


def input_gradient(
  grad: Float[Array, 'b h2 w2 o'],
  kernel: Float[Array, 'k l i o'],
  shape: tuple[int, int, int, int],
  form: Form,
) -> Float[Array, 'b h w i']:
  """The gradient, spread out by the strides, by the kernel turned around.

  Args:
    grad: with respect to the result.
    kernel: of the convolution.
    shape: of what was convolved.
    form: of the convolution.
  """
  padding = [
    (reach - before, size - 1 - spread + before)
    for before, reach, spread, size in _extents(form, kernel.shape, grad, shape)
  ]
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  return _convolve(
    grad, turned, Form((1, 1), padding, form.dilation), form.strides
  )


def _extents(form: Form, kernel_shape, grad, shape):
  """(padding before, of the kernel, of the strided places, size) by axis.

  From first to last, of what is convolved (of this `shape`).
  """
  return [
    (
      form.padding[i][0],
      form.dilation[i] * (kernel_shape[i] - 1),
      form.strides[i] * (grad.shape[1 + i] - 1),
      shape[1 + i],
    )
    for i in range(2)
  ]


def by_convolution(
  x: Float[Array, 'b h w i'],
  grad: Float[Array, 'b h2 w2 o'],
  shape: tuple[int, int, int, int],
  form: Form,
) -> Float[Array, 'k l i o']:
  """As `by_blocks`, by a convolution over places that sums over images."""
  padding = [
    (before, reach + spread + 1 - size - before)
    for before, reach, spread, size in _extents(form, shape, grad, x.shape)
  ]
  found = _convolve(
    x.transpose(3, 1, 2, 0),
    grad.transpose(1, 2, 0, 3),
    Form(form.dilation, padding, form.strides),
  )
  return found.transpose(1, 2, 0, 3)


def by_blocks(
  x: Float[Array, 'b h w i'],
  grad: Float[Array, 'b h2 w2 o'],
  shape: tuple[int, int, int, int],
  form: Form,
) -> Float[Array, 'k l i o']:
  """sum_p x[s p + d j] grad[p]ᵀ of every tap j.

  Args:
    x: what was convolved.
    grad: with respect to the result.
    shape: of the kernel.
    form: strides s, padding, dilation d.
  """
  images, rows, columns, outputs = grad.shape
  x = pad_zeros(x, form.padding)
  taps = list(itertools.product(*map(range, shape[:2])))
  width = len(taps) * shape[2]

  def side_by_side(x, grad):
    """What the kernel sees of a block, at the first place of both, and grad."""
    sides = [seen(x, tap, grad.shape[1:3], form) for tap in taps]
    beside = jnp.concatenate(sides, -1).reshape(-1, width)
    return beside, grad.reshape(-1, outputs)

  # The sum is read and written for each block: no block is smaller than it.
  size = x.dtype.itemsize * width
  most = max(BLOCK_BYTES, size * outputs)
  many, tall = _block(images, rows, most // (size * columns))
  reach = form.strides[0] * (tall - 1) + form.dilation[0] * (shape[0] - 1) + 1

  def add_block(index, total):
    image, row = index // (rows // tall) * many, index % (rows // tall) * tall
    part = lax.dynamic_slice(
      x,
      (image, row * form.strides[0], 0, 0),
      (many, reach, *x.shape[2:]),
    )
    there = lax.dynamic_slice(
      grad, (image, row, 0, 0), (many, tall, columns, outputs)
    )
    found = side_by_side(part, there)
    # As `sum_outer`, but turned once, at the end.
    return total + over_rows(*(found[::-1] if turned else found))

  blocks = (images // many) * (rows // tall)
  turned = outputs < width
  size = (outputs, width) if turned else (width, outputs)
  total = lax.fori_loop(0, blocks, add_block, jnp.zeros(size, x.dtype))
  if turned:
    total = lax.optimization_barrier(total).T
  return total.reshape(shape)


def _block(images: int, rows: int, most: int) -> tuple[int, int]:
  """Images and rows of a block of `most` rows, or as near as divides."""
  tall = _divisor(rows, most)
  return (_divisor(images, most // rows) if tall == rows else 1), tall


def _divisor(number: int, most: int) -> int:
  """The largest divisor of `number` that is at most `most`, or 1."""
  fitting = range(1, min(number, most) + 1)
  return max((n for n in fitting if number % n == 0), default=1)


def pad_zeros(
  x: Float[Array, 'b h w c'], padding, spread=(1, 1)
) -> Float[Array, 'b y z c']:
  """The map with zeros around it; padding: that of `Form`.

  With a spread of (s, t) there are s - 1 zeros between rows, t - 1 between
  columns.
  """
  inside = zip(padding, spread, strict=True)
  margins = [(0, 0, 0), *((*pair, s - 1) for pair, s in inside), (0, 0, 0)]
  return lax.pad(x, jnp.zeros((), x.dtype), margins)


def seen(
  x: Float[Array, 'b h w c'], tap, size, form: Form
) -> Float[Array, 'b h2 w2 c']:
  """What one tap (i, j) of a kernel sees of a padded map, at `size` places."""
  slices = [
    slice(d * t, d * t + s * (n - 1) + 1, s)
    for t, n, d, s in zip(tap, size, form.dilation, form.strides, strict=True)
  ]
  return x[:, slices[0], slices[1]]
