"""Dynamic convolution by matrix decomposition (DCD, arXiv 2103.08756).

W(x) = Lambda(x) W0 + P Phi(x) Qᵀ: a static kernel whose output channels are
scaled for each example, and a path of low rank whose small [l, l] matrix, which
fuses the channels of the latent space, is predicted for each example.

No kernel is built for an example: both paths are ordinary convolutions of the
whole batch, and Phi(x) is a batched matrix product on the latent map between
them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv
from jaxzoo.models.layers.norm import BatchNorm


def double_hard_sigmoid(x: Float[Array, '...']) -> Float[Array, '...']:
  """H(x) = relu6(x + 3) / 3, in [0, 2]: twice the usual hard sigmoid."""
  return nn.relu6(x + 3) / 3


def quadrant_means(x: Float[Array, 'b h w c']) -> Float[Array, 'b 4c']:
  """Means over the four quarters of a map, float32: c * 4 + 2 * row + column.

  Halves of an odd side share the middle, as PyTorch's adaptive pooling has it.
  """

  def halves(x, axis):
    side = x.shape[axis]
    parts = (
      jax.lax.slice_in_dim(x, 0, (side + 1) // 2, axis=axis),
      jax.lax.slice_in_dim(x, side // 2, side, axis=axis),
    )
    return jnp.stack([part.mean(axis, dtype=jnp.float32) for part in parts], -1)

  # [b, w, c, rows], then [b, c, rows, columns].
  return halves(halves(x, 1), 1).reshape(x.shape[0], -1)


class Context(nn.Module):
  """y * H(U y) with y = V s: what an example says of its own kernels.

  Attributes:
    width: of y.
    kernel_init: of both matrices; neither has a bias.
  """

  width: int
  kernel_init: Any = TORCH_DEFAULT

  @nn.compact
  def __call__(self, summary: Float[Array, 'b s']) -> Float[Array, 'b y']:
    """Float32, as `summary` is."""
    linear = lambda name: nn.Dense(
      self.width, use_bias=False, kernel_init=self.kernel_init, name=name
    )
    y = linear('squeeze')(summary)
    return y * double_hard_sigmoid(linear('gate')(y))


def fuse(
  phi: Float[Array, 'b l*l'], z: Float[Array, 'b *hw l']
) -> Float[Array, 'b *hw l']:
  """Phi z at every position, with Phi the rows of `phi` one after another."""
  latent = z.shape[-1]
  phi = phi.astype(z.dtype).reshape(-1, latent, latent)
  return jnp.einsum('blm,b...m->b...l', phi, z)


class DynamicConv(nn.Module):
  """H(S y) * (W0 * x) + P (z + BN2(Phi(y) z)) with z = BN1(Q * x).

  y is the context of the map's means. The fusion has an identity path that the
  paper writes into Phi; the form is that of the released code (spec dcd).

  Attributes:
    features: output channels.
    kernel_size: of W0; Q and P are 1x1.
    stride: of W0 and of Q.
    latent: channels l of z.
    squeeze: width of the context.
    quadrants: the context sees the means of four quarters, not of the whole.
    kernel_init: of the linear layers of the context.
    dtype: of the convolutions; the context is float32.
  """

  features: int
  kernel_size: int = 1
  stride: int = 1
  latent: int = 4
  squeeze: int = 4
  quadrants: bool = False
  kernel_init: Any = TORCH_DEFAULT
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    if self.quadrants:
      summary = quadrant_means(x)
    else:
      summary = x.mean((1, 2), dtype=jnp.float32)
    y = Context(self.squeeze, self.kernel_init, name='context')(summary)
    linear = lambda features, name: nn.Dense(
      features, use_bias=False, kernel_init=self.kernel_init, name=name
    )
    scale = double_hard_sigmoid(linear(self.features, 'scale')(y))
    phi = linear(self.latent**2, 'phi')(y)

    static = conv(
      self.features,
      self.kernel_size,
      self.stride,
      dtype=self.dtype,
      name='conv',
    )(x)
    static = static * scale.astype(static.dtype)[:, None, None]
    z = conv(self.latent, 1, self.stride, dtype=self.dtype, name='q')(x)
    z = BatchNorm(dtype=self.dtype, name='bn1')(z, train)
    z = z + BatchNorm(dtype=self.dtype, name='bn2')(fuse(phi, z), train)
    return static + conv(self.features, 1, dtype=self.dtype, name='p')(z)


class DynamicLatent(nn.Module):
  """The half of a dynamic classifier that knows no classes: y and z.

  z = BN1(Q f), then z + BN2(Phi(y) z), float32. It is apart from
  `DynamicHead` so that weights of other classes keep it.

  Attributes:
    width: of both.
    kernel_init: of the linear layers.
  """

  width: int = 32
  kernel_init: Any = TORCH_DEFAULT

  @nn.compact
  def __call__(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> tuple[Float[Array, 'b l'], Float[Array, 'b l']]:
    linear = lambda features, name: nn.Dense(
      features, use_bias=False, kernel_init=self.kernel_init, name=name
    )
    y = Context(self.width, self.kernel_init, name='context')(vector)
    phi = linear(self.width**2, 'phi')(y)
    z = BatchNorm(name='bn1')(linear(self.width, 'q')(vector), train)
    return y, z + BatchNorm(name='bn2')(fuse(phi, z), train)


class DynamicHead(nn.Module):
  """The half of a dynamic classifier that makes logits: H(S y) (W0 f) + P z.

  Attributes:
    num_classes: k.
    kernel_init: of the linear layers.
    bias_init: of W0's bias, the only one.
  """

  num_classes: int
  kernel_init: Any = TORCH_DEFAULT
  bias_init: Any = nn.initializers.zeros

  @nn.compact
  def __call__(
    self,
    vector: Float[Array, 'b d'],
    context: Float[Array, 'b l'],
    latent: Float[Array, 'b l'],
  ) -> Float[Array, 'b k']:
    linear = lambda name: nn.Dense(
      self.num_classes, use_bias=False, kernel_init=self.kernel_init, name=name
    )
    scale = double_hard_sigmoid(linear('scale')(context))
    static = nn.Dense(
      self.num_classes,
      kernel_init=self.kernel_init,
      bias_init=self.bias_init,
      name='cls',
    )(vector)
    return scale * static + linear('p')(latent)
