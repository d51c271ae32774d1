"""CLIP's ModifiedResNet: a three-convolution stem and an attention pool.

Source: arXiv 2103.00020, section 2.4; openai/CLIP.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.transformer import REMAT_POLICIES, Attention

# Kaiming-uniform with a = sqrt(5), what PyTorch gives a convolution.
CONV_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')

STRIDES = (1, 2, 2, 2)
EXPANSION = 4


def _pool(x, stride):
  # VALID: an odd last row or column is dropped.
  return nn.avg_pool(x, (stride, stride), strides=(stride, stride))


def _conv(features, kernel_size, name, dtype, stride=1):
  """Convolution without bias; torch's symmetric padding keeps the size."""
  pad = kernel_size // 2
  return nn.Conv(
    features,
    (kernel_size, kernel_size),
    strides=stride,
    padding=pad,
    use_bias=False,
    kernel_init=CONV_INIT,
    dtype=dtype,
    name=name,
  )


def _norm(train, name, dtype, scale_init=nn.initializers.ones):
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,  # 0.1 in torch's sense: the share of the new batch
    epsilon=1e-5,
    scale_init=scale_init,
    dtype=dtype,
    name=name,
  )


class Stem(nn.Module):
  """Three 3x3 convolutions and an average pool: to a quarter of the size."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h4 w4 o']:
    layers = ((self.width // 2, 2), (self.width // 2, 1), (self.width, 1))
    for i, (features, stride) in enumerate(layers, 1):
      x = _conv(features, 3, f'conv{i}', self.dtype, stride)(x)
      x = nn.relu(_norm(train, f'bn{i}', self.dtype)(x))
    return _pool(x, 2)


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 and a shortcut; strided by average pools, not by kernels.

  The last normalisation starts with scale 0, so that a fresh block is its
  shortcut.
  """

  width: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    conv = lambda features, size, name: _conv(features, size, name, self.dtype)
    features = EXPANSION * self.width
    y = conv(self.width, 1, 'conv1')(x)
    y = nn.relu(_norm(train, 'bn1', self.dtype)(y))
    y = conv(self.width, 3, 'conv2')(y)
    y = nn.relu(_norm(train, 'bn2', self.dtype)(y))
    if self.stride > 1:
      x, y = _pool(x, self.stride), _pool(y, self.stride)
    y = conv(features, 1, 'conv3')(y)
    y = _norm(train, 'bn3', self.dtype, nn.initializers.zeros)(y)
    if self.stride > 1 or x.shape[-1] != features:
      x = conv(features, 1, 'shortcut_conv')(x)
      x = _norm(train, 'shortcut_bn', self.dtype)(x)
    return nn.relu(x + y)


class AttentionPool(nn.Module):
  """The mean token asks, all tokens (and the mean) answer: [b,h,w,c] -> [b,D].

  The released code computes every query and keeps the first; this computes
  only that one.
  """

  num_heads: int
  output_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b d']:
    batch, height, width, channels = x.shape
    if not height * width:
      raise ValueError('the image is smaller than one token of 32 pixels')
    init = nn.initializers.normal(channels**-0.5)
    positions = self.param(
      'position_embedding', init, (1 + height * width, channels)
    )
    tokens = x.reshape(batch, height * width, channels)
    mean = tokens.astype(jnp.float32).mean(1, keepdims=True)
    tokens = jnp.concatenate([mean.astype(tokens.dtype), tokens], axis=1)
    tokens = tokens + positions.astype(tokens.dtype)
    return Attention(
      self.num_heads,
      init,
      init,
      self.dtype,
      self.output_dim,
      name='attn',
    )(tokens[:, :1], tokens)[:, 0]


class ModifiedResNet(nn.Module):
  """CLIP's residual network: image [b,h,w,3] -> features [b,D].

  Batch statistics are in the collection `batch_stats`, with torch's momentum
  0.1 and epsilon 1e-5. The pool's position table is as large as the image it
  is initialised with: 1 + floor((h+1)/32) floor((w+1)/32) rows.

  Attributes:
    width: channels after the stem; 32 times as many enter the pool.
    depth: bottlenecks of the four stages.
    num_heads: heads of the attention pool.
    output_dim: D.
    remat: as in `layers/transformer.py`, per bottleneck.
    dtype: compute dtype.
  """

  width: int
  depth: tuple[int, ...]
  num_heads: int
  output_dim: int
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w 3'], train: bool = False
  ) -> Float[Array, 'b d']:
    block = Bottleneck
    if self.remat != 'none':
      block = nn.remat(
        Bottleneck, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    x = Stem(self.width, self.dtype, name='stem')(
      image.astype(self.dtype), train
    )
    for stage, (depth, stride) in enumerate(
      zip(self.depth, STRIDES, strict=True)
    ):
      for i in range(depth):
        x = block(
          self.width * 2**stage,
          stride if i == 0 else 1,
          self.dtype,
          name=f'stage{stage + 1}_block{i}',
        )(x, train)
    return AttentionPool(
      self.num_heads, self.output_dim, self.dtype, name='attention_pool'
    )(x)
