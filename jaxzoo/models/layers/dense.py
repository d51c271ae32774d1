"""The product of dense layers, whose gradients are fast on CPUs too."""

import math

import jax
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.platform import one_cpu


def dot_general(x, kernel, dimension_numbers, precision=None, **options):
  """`lax.dot_general` for `nn.Dense` and `nn.DenseGeneral`.

  On one CPU device a product of the last axes of x with the first ones of the
  kernel, which is all that they ask for without batch axes, is `product`.
  """
  (of_x, of_kernel), _ = dimension_numbers
  count = len(of_x)
  last = tuple(range(x.ndim - count, x.ndim))
  if not (
    one_cpu()
    and x.dtype == kernel.dtype
    and dimension_numbers == ((last, tuple(range(count))), ((), ()))
  ):
    return lax.dot_general(x, kernel, dimension_numbers, precision, **options)
  inputs = math.prod(kernel.shape[:count])
  y = product(x.reshape(-1, inputs), kernel.reshape(inputs, -1))
  return y.reshape(*x.shape[: -len(of_x)], *kernel.shape[count:])


@jax.custom_vjp
def product(
  x: Float[Array, 'n i'], kernel: Float[Array, 'i o']
) -> Float[Array, 'n o']:
  """x kernel, with the gradient of the kernel from the narrower side.

  XLA's CPU compiler multiplies a narrow matrix by a wide one a fifth faster
  than the other way around, and by neither of them turned around; left to
  itself it copies gradients to turn them. (Reverse mode only.)
  """
  return x @ kernel


def _backward(kept, grad):
  x, kernel = kept
  over_rows = (((0,), (0,)), ((), ()))
  if x.shape[1] <= grad.shape[1]:
    by_kernel = lax.dot_general(x, grad, over_rows)
  else:
    # Kept apart, or the compiler makes one product of it and the transposition.
    by_kernel = lax.dot_general(grad, x, over_rows)
    by_kernel = lax.optimization_barrier(by_kernel).T
  return grad @ kernel.T, by_kernel


product.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _backward)
