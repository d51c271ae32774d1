"""Squeeze-and-excitation: a weight for each channel from all positions."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxzoo.models.layers.convolution import KAIMING_OUT, global_pool


class SqueezeExcite(nn.Module):
  """x gate(fc2(activation(fc1(mean of x over positions)))).

  Hu et al., arXiv 1709.01507. The published 1x1 convolutions see one position:
  here they are dense layers. The mean is summed in float32.

  Attributes:
    squeezed: outputs of fc1.
    activation: after fc1.
    gate: after fc2.
    bias: of both.
    norm: after each of them, before its activation; None for none.
    kernel_init: of both.
    dtype: compute dtype.
  """

  squeezed: int
  activation: Callable = nn.relu
  gate: Callable = nn.sigmoid
  bias: bool = True
  norm: Any = None
  kernel_init: Any = KAIMING_OUT
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    weight = global_pool(x)
    plan = ((self.squeezed, self.activation), (x.shape[-1], self.gate))
    for i, (features, activation) in enumerate(plan, 1):
      weight = nn.Dense(
        features,
        use_bias=self.bias,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        name=f'fc{i}',
      )(weight)
      if self.norm is not None:
        weight = self.norm(dtype=self.dtype, name=f'bn{i}')(weight, train)
      weight = activation(weight)
    return x * weight[:, None, None, :]
