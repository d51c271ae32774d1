"""Dilated residual convolutions, the encoder that OneNet is made of.

The temporal convolutional network of FSNet (arXiv 2202.11672), which OneNet
(arXiv 2309.12659) takes: eleven residual blocks of two convolutions, the
dilation doubled from block to block, padded with zeros on both sides. The
parameters of the convolutions of one size lie in one stack, so that what does
not depend on the series is done for all of them at once.

Where the dilation is at least the length of the series, the outer taps of a
kernel see nothing but zeros: their gradients are 0, and no forecast depends on
them. At the published sizes these are half of all parameters. They are not
stored: such a kernel has one tap.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, uniform_bias

KERNEL = 3
# Of stacks, too, whose fan-in their shape does not tell.
uniform = uniform_bias


class Convs(NamedTuple):
  """A stack of n convolutions of one size, with scales.

  y_t = scale (sum_k x_{t + k d} (kernel_k inner_k) + bias).

  Attributes:
    kernel: [n, i, k, o], the middle tap at t; k is 3 or 1.
    bias: [n, o].
    inner: [n, i, k, 1] or [n, i, 1, 1], of the kernel.
    scale: [n, o], of the result.
  """

  kernel: Float[Array, 'n i k o']
  bias: Float[Array, 'n o']
  inner: Float[Array, 'n i _ _']
  scale: Float[Array, 'n o']


class Conv(NamedTuple):
  """One convolution: y_t = after (sum_k (before x)_{t + k d} kernel_k + bias).

  Scales are multiplied into the series where that is possible: it is far smaller
  than a kernel, in the gradients as well.

  Attributes:
    kernel: [i, k, o].
    bias: [o].
    before: [i], or None for none.
    after: [o].
  """

  kernel: Float[Array, 'i k o']
  bias: Float[Array, ' o']
  before: Float[Array, ' i'] | None
  after: Float[Array, ' o']


def split(stack: Convs, sizes: Sequence[int]) -> list[Convs | None]:
  """A stack of convolutions cut into stacks; None where a size is 0.

  By one split a field, whose transpose is one concatenation: indexing would
  add up gradients, each of them a stack of zeros but for one part.
  """
  cut = [size for size in sizes if size]
  parts = zip(*(jax.lax.split(field, cut) for field in stack), strict=True)
  return [Convs(*next(parts)) if size else None for size in sizes]


def scaled(stack: Convs) -> Conv:
  """The convolutions of a stack, all fields [n, ...]."""
  kernel, bias, inner, scale = stack
  if inner.shape[2:] == (1, 1):
    return Conv(kernel, bias, inner[:, :, 0, 0], scale)
  return Conv(kernel * inner, bias, None, scale)


def unstack(stack: Conv) -> list[Conv]:
  """Each convolution of a stack."""
  n = stack.bias.shape[0]
  fields = [
    [None] * n if field is None else jax.lax.split(field, [1] * n)
    for field in stack
  ]
  return [
    jax.tree.map(lambda field: field[0], Conv(*each))
    for each in zip(*fields, strict=True)
  ]


def convolve(
  x: Float[Array, 'b t i'], conv: Conv, dilation: int
) -> Float[Array, 'b t o']:
  """The dilated convolution `conv`, zeros beyond both ends.

  One product for all taps, whose results are shifted and added. Taps that can
  see nothing but zeros are left out.
  """
  (i, size, _), length = conv.kernel.shape, x.shape[1]
  reach = min(size // 2, (length - 1) // dilation)
  first = size // 2 - reach
  kernel = conv.kernel[:, first : size - first].astype(x.dtype)
  if conv.before is not None:
    x = x * conv.before.astype(x.dtype)
  taps = jnp.split(x @ kernel.reshape(i, -1), 2 * reach + 1, axis=-1)
  y = conv.bias.astype(x.dtype)
  for k, tap in enumerate(taps):
    offset = (k - reach) * dilation
    padding = [(0, 0, 0), (-offset, offset, 0), (0, 0, 0)]
    y = y + jax.lax.pad(tap, jnp.zeros((), x.dtype), padding)
  return y * conv.after.astype(x.dtype)


def dense(features: int, fan_in: int, name: str, dtype: Any = None) -> nn.Dense:
  """A dense layer with PyTorch's initialisation."""
  return nn.Dense(
    features,
    dtype=dtype,
    kernel_init=TORCH_DEFAULT,
    bias_init=uniform(fan_in),
    name=name,
  )


class ScaledConvs(nn.Module):
  """Convolutions with learned scales and no memory, the 'TCN' of the tables.

  kernel * kernel_scale, bias * bias_scale, and 1 + output_scale times the
  result, as the reference's y + calib_f y.

  Attributes:
    layers: n, convolutions in the stack.
    features_in: i.
    features: o.
    taps: of the kernels that see anything, 3 or 1.
  """

  layers: int
  features_in: int
  features: int
  taps: int = KERNEL

  @nn.compact
  def __call__(self, online: bool = False) -> Convs:
    """The stack; it is the same online and in training."""
    del online
    n, i, o, k = self.layers, self.features_in, self.features, self.taps
    kernel = self.param('kernel', uniform(KERNEL * i), (n, i, k, o))
    bias = self.param('bias', nn.initializers.zeros, (n, o))
    kernel_scale = self.param('kernel_scale', nn.initializers.ones, (n, i, o))
    bias_scale = self.param('bias_scale', nn.initializers.zeros, (n, o))
    output_scale = self.param('output_scale', nn.initializers.ones, (n, o))
    return Convs(
      kernel, bias * bias_scale, kernel_scale[:, :, None], 1 + output_scale
    )


class Stacks(NamedTuple):
  """The convolutions of an encoder, in order.

  Attributes:
    seeing: of the blocks with three taps, [2 s, ...], or None.
    pointwise: of the blocks with one, which follow, [2 p, ...], or None.
    widen: [1, ...], the last block's first.
    final: [1, ...], its second.
  """

  seeing: Convs | None
  pointwise: Convs | None
  widen: Convs
  final: Convs


class Encoder(nn.Module):
  """Series [b, t, c] -> features, by residual blocks of dilated convolutions.

  x <- r(x) + conv(gelu(conv(gelu(x)))) with dilations 1, 2, 4, ...; r is the
  identity, and a dense layer in the last block, which widens. Dropout follows
  the last block. The blocks with one tap are one compiled loop.

  Attributes:
    last: whether only the last position is wanted. Then block i is computed
      where the last position can see it: at every 2^i-th.
    dropout: of the result, in training.
    dtype: of the computation.
  """

  last: bool = False
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b t c'], stacks: Stacks, train: bool = False
  ) -> Float[Array, 'b u f']:
    """Features at all positions, or [b, 1, f] at the last."""
    seeing, pointwise, widen, final = stacks
    width, features = widen.kernel.shape[1], widen.kernel.shape[3]
    x = x.astype(self.dtype)
    x = dense(width, x.shape[-1], 'input', self.dtype)(x)
    head = unstack(scaled(seeing)) if seeing else []
    pairs = list(zip(head[::2], head[1::2], strict=True))
    for i, pair in enumerate(pairs):
      x = x + residual(x, pair, self._dilation(i))
      x = x[:, (x.shape[1] - 1) % 2 :: 2] if self.last else x
    x = pointwise_blocks(x, pointwise) if pointwise else x
    wide = dense(features, width, 'project', self.dtype)(x)
    pair = [*unstack(scaled(widen)), *unstack(scaled(final))]
    x = wide + residual(x, pair, self._dilation(len(pairs)))
    x = x[:, -1:] if self.last else x
    return nn.Dropout(self.dropout)(x, deterministic=not train)

  def _dilation(self, i):
    """Of block i, in the positions that are left of the series."""
    return 1 if self.last else 2**i


def taps_of(block: int, length: int) -> int:
  """How many taps of the convolutions of a block see anything of a series."""
  return KERNEL if 2**block < length else 1


def seeing_blocks(depth: int, length: int) -> int:
  """How many of `depth` blocks see with their outer taps."""
  return sum(taps_of(block, length) == KERNEL for block in range(depth))


def residual(
  x: Float[Array, 'b t i'], pair: Sequence[Conv], dilation: int
) -> Float[Array, 'b t o']:
  """conv(gelu(conv(gelu(x)))) with the convolutions of `pair`."""
  for conv in pair:
    x = convolve(gelu(x), conv, dilation)
  return x


def pointwise_blocks(
  x: Float[Array, 'b t c'], stack: Convs
) -> Float[Array, 'b t c']:
  """Residual blocks whose convolutions see with their middle taps alone."""
  pairs = jax.tree.map(
    lambda field: field.reshape(-1, 2, *field.shape[1:]), scaled(stack)
  )

  def block(x, pair):
    return x + residual(x, unstack(pair), 1), None

  return jax.lax.scan(block, x, pairs)[0]
