"""Depth-wise convolution: every channel by itself, fast on CPUs too.

XLA's CPU compiler has no kernel for it and runs a generic loop. There the sum
over the k² taps is written out instead, as one elementwise loop, and so are its
gradients; for GPU and TPU the native convolution stays. On 8 maps of 56x56x144
that is 13 times as fast, and 53 times with both gradients (docs/performance.md:
`python -m jaxzoo.bench.formulations depthwise`).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.models.layers.dense_convolution import (
  NUMBERS,
  Form,
  pad_zeros,
  seen,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
  x: Float[Array, 'b h w c'], kernel: Float[Array, 'k l 1 c'], form: Form
) -> Float[Array, 'b h2 w2 c']:
  """y[p, c] = sum_j kernel[j, c] x[s p + d j, c], of x filled up with zeros.

  On a CPU the sum is float32 or wider whatever the dtype of x.

  Args:
    x: images, channels last.
    kernel: a filter for each channel.
    form: strides s, padding, dilation d.

  Returns:
    In the dtype of `x`.
  """
  return lax.platform_dependent(
    x,
    kernel,
    cpu=functools.partial(shifted, form=form),
    default=functools.partial(native, form=form),
  )


def native(x, kernel, form: Form):
  """XLA's convolution in groups of one channel."""
  return lax.conv_general_dilated(
    x,
    kernel.astype(x.dtype),
    form.strides,
    form.padding,
    rhs_dilation=form.dilation,
    dimension_numbers=NUMBERS,
    feature_group_count=x.shape[-1],
  )


def shifted(x, kernel, form: Form):
  """The sum over static shifts of the map, each a slice."""
  b, h, w, c = x.shape
  rows, columns = _sizes((h, w), kernel.shape[:2], form)
  # Made once: fused into the sum, what x is made of would be made k² times.
  x = lax.optimization_barrier(pad_zeros(x, form.padding))
  total = jnp.zeros((b, rows, columns, c), _wide(x))
  for i, j in itertools.product(*map(range, kernel.shape[:2])):
    part = seen(x, (i, j), (rows, columns), form)
    total += part.astype(total.dtype) * kernel[i, j, 0].astype(total.dtype)
  return total.astype(x.dtype)


def _keep(x, kernel, form):
  return depthwise(x, kernel, form), (x, kernel)


def _backward(form, kept, grad):
  x, kernel = kept
  return lax.platform_dependent(
    x,
    kernel,
    grad,
    cpu=functools.partial(_shifted_gradients, form=form),
    default=functools.partial(_native_gradients, form=form),
  )


depthwise.defvjp(_keep, _backward)


def _native_gradients(x, kernel, grad, form):
  _, pull = jax.vjp(functools.partial(native, form=form), x, kernel)
  return pull(grad)


def _shifted_gradients(x, kernel, grad, form):
  """To x a sum over shifts again; to the kernel a loop over rows.

  The k² sums over all places would be k² strided loops. Row by row, each is an
  elementwise product added to a row that stays in the cache.
  """
  return _to_input(x, kernel, grad, form), _to_kernel(x, kernel, grad, form)


def _to_input(x, kernel, grad, form):
  """The convolution of grad, its strides undone, with the kernel turned."""
  reach = [
    d * (k - 1) for d, k in zip(form.dilation, kernel.shape, strict=False)
  ]
  pads = []
  for axis in range(2):
    spread = form.strides[axis] * (grad.shape[1 + axis] - 1) + 1
    before = reach[axis] - form.padding[axis][0]
    pads.append(
      (
        before,
        x.shape[1 + axis] + reach[axis] - before - spread,
        form.strides[axis] - 1,
      )
    )
  spread = lax.pad(
    grad, jnp.zeros((), grad.dtype), [(0, 0, 0), *pads, (0, 0, 0)]
  )
  turned = kernel[::-1, ::-1]
  return shifted(spread, turned, Form(dilation=form.dilation)).astype(x.dtype)


def _to_kernel(x, kernel, grad, form):
  b, rows, columns, c = grad.shape
  x = pad_zeros(x, form.padding)
  taps = list(itertools.product(*map(range, kernel.shape[:2])))
  width = form.strides[1] * (columns - 1) + 1
  dtype = _wide(x)

  def add_row(i, sums):
    image, row = i // rows, i % rows
    cut = lambda y, r, left, size: lax.dynamic_slice(
      y, (image, r, left, 0), (1, 1, size, c)
    )[0, 0].astype(dtype)
    g = cut(grad, row, 0, columns)
    return [
      total
      + g
      * cut(
        x,
        row * form.strides[0] + m * form.dilation[0],
        n * form.dilation[1],
        width,
      )[:: form.strides[1]]
      for total, (m, n) in zip(sums, taps, strict=True)
    ]

  zeros = [jnp.zeros((columns, c), dtype) for _ in taps]
  sums = lax.fori_loop(0, b * rows, add_row, zeros)
  sums = jnp.stack([each.sum(0) for each in sums])
  return sums.reshape(kernel.shape).astype(kernel.dtype)


def _wide(x):
  return jnp.promote_types(x.dtype, jnp.float32)


def _sizes(size, kernel, form):
  return tuple(
    (n + sum(pad) - d * (k - 1) - 1) // s + 1
    for n, pad, d, k, s in zip(
      size, form.padding, form.dilation, kernel, form.strides, strict=True
    )
  )
