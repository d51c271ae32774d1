"""Convolutions with PyTorch's padding, channels last, and what they are in."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxzoo.models.layers import dense_convolution
from jaxzoo.models.layers.dense_convolution import Form
from jaxzoo.models.layers.depthwise import depthwise
from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.platform import one_cpu

# Kaiming normal over the outputs with the gain of ReLU: residual and mobile
# networks. The fan of a depth-wise kernel is k² C, as PyTorch has it.
KAIMING_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# What PyTorch gives a convolution or a linear layer that nothing else is said
# of: uniform within 1 / sqrt(fan_in), for kernels. (Biases: `uniform_bias`.)
TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def uniform_bias(fan_in: int):
  """Initialiser of PyTorch's default biases: uniform within fan_in^-0.5."""
  return lambda key, shape, dtype=jnp.float32: (
    nn.initializers.uniform(2 * fan_in**-0.5)(key, shape, dtype)
    - jnp.asarray(fan_in**-0.5, dtype)
  )


def conv(
  features: int,
  kernel_size: int,
  stride: int = 1,
  *,
  name: str,
  padding: int | None = None,
  dilation: int = 1,
  groups: int = 1,
  bias: bool = False,
  kernel_init=KAIMING_OUT,
  bias_init=nn.initializers.zeros,
  dtype: Any = None,
) -> nn.Conv:
  """A square convolution whose padding is the same on both sides.

  XLA's SAME puts the odd pixel of a strided convolution on the other side than
  published networks do. Default padding: (k - 1) // 2 times the dilation.
  """
  pad = dilation * (kernel_size - 1) // 2 if padding is None else padding
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=stride,
    padding=((pad, pad), (pad, pad)),
    kernel_dilation=dilation,
    feature_group_count=groups,
    use_bias=bias,
    kernel_init=kernel_init,
    bias_init=bias_init,
    dtype=dtype,
    conv_general_dilated=convolve,
    name=name,
  )


def convolve(
  x: Float[Array, 'b h w c'],
  kernel: Float[Array, 'k l i o'],
  window_strides,
  padding,
  lhs_dilation=None,
  rhs_dilation=None,
  dimension_numbers=None,
  feature_group_count: int = 1,
  precision=None,
) -> Float[Array, 'b h2 w2 o']:
  """`lax.conv_general_dilated`, faster on CPUs where there is a way.

  For `nn.Conv(conv_general_dilated=...)`, of images with channels last and
  explicit padding, whose inputs are not dilated.
  """
  form = Form(
    tuple(window_strides),
    tuple(map(tuple, padding)),
    tuple(rhs_dilation or (1, 1)),
  )
  if kernel.shape[2:] == (1, x.shape[-1]) and feature_group_count > 1:
    return depthwise(x, kernel, form)
  if feature_group_count == 1 and one_cpu():
    return dense_convolution.convolution(x, kernel, form)
  return lax.conv_general_dilated(
    x,
    kernel,
    window_strides,
    padding,
    lhs_dilation=lhs_dilation,
    rhs_dilation=rhs_dilation,
    dimension_numbers=dimension_numbers,
    feature_group_count=feature_group_count,
    precision=precision,
  )


def largest(parts: Sequence[Float[Array, '*n']]) -> Float[Array, '*n']:
  """The largest of equal arrays, element by element; of equals the first.

  Its gradient goes to one of them, told by comparing them with each other.
  `jnp.max` compares with a result that a compiler may have rounded otherwise
  than what it computes again, and divides by the number of equals: NaN for
  none.
  """
  return functools.reduce(lambda x, y: jnp.where(x >= y, x, y), parts)


def global_pool(x: Float[Array, 'b h w c']) -> Float[Array, 'b c']:
  """Mean over all positions, summed in float32."""
  return x.mean((1, 2), dtype=at_least_float32(x)).astype(x.dtype)


def make_divisible(value: float, divisor: int = 8) -> int:
  """The nearest multiple of `divisor`, at least one, never below 0.9 `value`.

  >>> make_divisible(37), make_divisible(3), make_divisible(11.9)
  (40, 8, 16)
  """
  rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
  return rounded + divisor if rounded < 0.9 * value else rounded
