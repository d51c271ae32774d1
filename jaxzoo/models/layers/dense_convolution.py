"""Convolution over all channels, whose gradients are fast on CPUs too.

The gradients are convolutions with the axes where the forward pass has them.
The compiler brings those of `jax.grad` into that form as well, but not inside of
loops and branches, where they are up to 30 times slower.

A map smaller than the kernel (the last ones of small pictures) it takes for the
kernel, and the kernel for the map, in a form that runs many times slower: such
maps have their zeros before they come to it. Convolutions of 1x1 are matrix
products. (What all this gains is in docs/performance.md:
`python -m jaxzoo.bench.formulations bottleneck loop small`.)
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.models.layers.dense import product

NUMBERS = ('NHWC', 'HWIO', 'NHWC')


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
  return (
    input_gradient(grad, kernel, x.shape, form),
    kernel_gradient(x, grad, kernel.shape, form),
  )


spatial.defvjp(_keep, _backward)


def input_gradient(
  grad: Float[Array, 'b h2 w2 o'],
  kernel: Float[Array, 'k l i o'],
  shape: tuple[int, int, int, int],
  form: Form,
) -> Float[Array, 'b h w i']:
  """The gradient, spread out by the strides, by the kernel turned around.

  Turning and transposing a kernel at once takes the compiler three times as
  long as transposing it: of a large kernel the maps are turned instead.

  Args:
    grad: with respect to the result.
    kernel: of the convolution.
    shape: of what was convolved.
    form: of the convolution.
  """

  def convolve(grad, kernel, padding):
    whole = Form((1, 1), padding, form.dilation)
    return _convolve(grad, kernel.swapaxes(2, 3), whole, form.strides)

  turn = lambda x, *axes: lax.rev(x, axes)
  padding = [
    (reach - before, size - 1 - spread + before)
    for before, reach, spread, size in _extents(form, kernel.shape, grad, shape)
  ]
  if kernel.size <= grad.size:
    return convolve(grad, turn(kernel, 0, 1), padding)
  padding = [(after, before) for before, after in padding]
  return turn(convolve(turn(grad, 1, 2), kernel, padding), 1, 2)


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


def kernel_gradient(
  x: Float[Array, 'b h w i'],
  grad: Float[Array, 'b h2 w2 o'],
  shape: tuple[int, int, int, int],
  form: Form,
) -> Float[Array, 'k l i o']:
  """sum_p x[s p + d j] grad[p]ᵀ of every tap j.

  A convolution over places that sums over images.

  Args:
    x: what was convolved.
    grad: with respect to the result.
    shape: of the kernel.
    form: strides s, padding, dilation d.
  """
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
