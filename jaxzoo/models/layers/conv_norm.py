"""A convolution with its norm, and how the one is folded into the other."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxzoo.models.layers.convolution import KAIMING_OUT, conv
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.weights import layout


class ConvNorm(nn.Module):
  """activation(norm(conv(x))); parameters under `conv` and `bn`.

  Attributes:
    features: channels of the result.
    kernel_size: of the square kernel.
    stride: of both axes.
    depthwise: every channel by itself; `features` are those of the input.
    activation: None for none.
    bias: of the convolution, which a norm makes superfluous.
    norm: a module with `dtype`; None for none.
    kernel_init: of the kernel [k, k, in, features].
    dtype: compute dtype.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  depthwise: bool = False
  activation: Callable | None = None
  bias: bool = False
  norm: Any = BatchNorm
  kernel_init: Any = KAIMING_OUT
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    x = conv(
      self.features,
      self.kernel_size,
      self.stride,
      groups=self.features if self.depthwise else 1,
      bias=self.bias,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='conv',
    )(x)
    if self.norm is not None:
      x = self.norm(dtype=self.dtype, name='bn')(x, train)
    return x if self.activation is None else self.activation(x)


_KERNEL = re.compile(r'params/(?P<owner>(.*/)?[^/]*(conv|fc)[^/]*)/kernel')


def fold_batch_norms(variables: Mapping, epsilon: float) -> dict:
  """Batch norms into the convolutions before them, for inference.

  norm(conv(x)) is a convolution: with f = scale / sqrt(var + epsilon) its
  kernel is f kernel, its bias f (bias - mean) + the norm's bias. Which norm
  follows which convolution (or dense layer) the names tell: `conv` or `fc` of
  the one is `bn` in the other, beside it (`stem_conv` and `stem_bn`, `fc1` and
  `bn1`). Other norms stay.

  Args:
    variables: 'params' and 'batch_stats', scanned or not; arrays of NumPy or
      of JAX.
    epsilon: of the norms.

  Returns:
    New variables, for a network of the same names that has biases in place of
    these norms.
  """
  flat = layout.flatten(variables)
  for path in list(flat):
    match = _KERNEL.fullmatch(path)
    if match is None:
      continue
    owner = match['owner']
    norm = re.sub(r'(conv|fc)(?=[^/]*$)', 'bn', owner)
    parts = (
      f'params/{norm}/scale',
      f'params/{norm}/bias',
      f'batch_stats/{norm}/mean',
      f'batch_stats/{norm}/var',
    )
    if not all(part in flat for part in parts):
      continue
    scale, shift, mean, var = (flat.pop(part) for part in parts)
    factor = scale / (var + epsilon) ** 0.5
    kernel = flat[path]
    # The axes between those that scanned layers are stacked on and the outputs.
    ones = (1,) * (kernel.ndim - factor.ndim)
    spread = factor.reshape(*factor.shape[:-1], *ones, factor.shape[-1])
    flat[path] = kernel * spread
    bias = flat.get(f'params/{owner}/bias', 0)
    flat[f'params/{owner}/bias'] = factor * (bias - mean) + shift
  return layout.unflatten(flat)
