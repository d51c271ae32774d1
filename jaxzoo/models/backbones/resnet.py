"""ResNet: residual networks with batch normalisation.

He et al., arXiv 1512.03385, in the form that everyone's checkpoints have
("v1.5"): the stride of a bottleneck is on its 3x3 convolution. Parameter names
of the checkpoints are torchvision's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import (
  TORCH_DEFAULT,
  conv,
  global_pool,
  uniform_bias,
)
from jaxzoo.models.layers.norm import BatchNorm, at_least_float32
from jaxzoo.models.layers.pooling import max_pool
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Kernels shard over their output channels where that is asked for.
SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)

PUBLISHED = {
  'ResNet-18': dict(bottleneck=False, depths=(2, 2, 2, 2)),
  'ResNet-34': dict(bottleneck=False, depths=(3, 4, 6, 3)),
  'ResNet-50': dict(bottleneck=True, depths=(3, 4, 6, 3)),
  'ResNet-101': dict(bottleneck=True, depths=(3, 4, 23, 3)),
}


class ResidualBlock(nn.Module):
  """relu(shortcut(x) + branch(x)).

  The branch: 3x3 with the stride, 3x3. Of a bottleneck: 1x1 to `width`, 3x3
  with the stride, 1x1 to 4 `width`. The shortcut is the identity, or a 1x1
  convolution and a norm where stride or width differ.

  Of a compact network `kept` are the channels of each convolution, and
  `projected` says whether the shortcut is a convolution: the channels that are
  left do not tell.
  """

  width: int
  stride: int = 1
  bottleneck: bool = False
  scale_init: Any = nn.initializers.ones  # of the branch's last norm
  norm: Any = BatchNorm
  dtype: Any = None
  kept: tuple[int, ...] = ()
  projected: bool | None = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    if self.bottleneck:
      plan = ((self.width, 1), (self.width, 3), (4 * self.width, 1))
    else:
      plan = ((self.width, 3), (self.width, 3))
    projected = self.projected
    if projected is None:
      projected = self.stride > 1 or x.shape[-1] != plan[-1][0]
    if self.kept:
      sizes = (size for _, size in plan)
      plan = tuple(zip(self.kept, sizes, strict=True))
    strided = len(plan) - 1 if self.bottleneck else 1
    y = x
    for i, (features, size) in enumerate(plan, 1):
      stride = self.stride if i == strided else 1
      last = i == len(plan)
      y = conv(features, size, stride, dtype=self.dtype, name=f'conv{i}')(y)
      scale_init = self.scale_init if last else nn.initializers.ones
      y = self.norm(
        scale_init=scale_init, dtype=self.dtype, name=f'bn{i}'
      )(y, train)  # fmt: skip
      y = y if last else nn.relu(y)
    if projected:
      x = conv(
        plan[-1][0], 1, self.stride, dtype=self.dtype, name='shortcut_conv'
      )(x)
      x = self.norm(dtype=self.dtype, name='shortcut_bn')(x, train)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A residual network; maps are taken after the last ReLU of each stage.

  Attributes:
    depths: blocks of each stage; the first block of every stage but the first
      halves the map and doubles the width.
    bottleneck: blocks of three convolutions instead of two.
    width: channels of the first stage.
    num_classes: see `backbone`, as `features_only`.
    small_stem: 3x3 without stride and without pool, for CIFAR's images.
    zero_init_residual: blocks start as their shortcuts.
    norm: of every convolution: a module with `scale_init` and `dtype`.
    widths: channels that are left of a compact network, by the names of
      `channel_groups`.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype.
  """

  depths: tuple[int, ...]
  bottleneck: bool = False
  width: int = 64
  num_classes: int = 1000
  features_only: bool = False
  small_stem: bool = False
  zero_init_residual: bool = False
  norm: Any = BatchNorm
  widths: Any = ()
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    channels = self.width * 2 ** (len(self.depths) - 1)
    channels *= 4 if self.bottleneck else 1
    self.head = nn.Dense(
      self.num_classes,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(channels),
    )

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 4, 8, 16, 32 (1, 2, 4, 8 of a small stem)."""
    block = ResidualBlock
    if self.remat != 'none':
      block = nn.remat(
        ResidualBlock, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    size, stride = (3, 1) if self.small_stem else (7, 2)
    widths = dict(self.widths)
    width = widths.get('stream0', self.width)
    x = conv(width, size, stride, dtype=self.dtype, name='stem_conv')(
      image.astype(self.dtype)
    )
    x = nn.relu(self.norm(dtype=self.dtype, name='stem_bn')(x, train))
    x = x if self.small_stem else max_pool(x, 3, 2)
    self.sow('intermediates', 'stem', x)
    maps = {}
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        x = block(
          self.width * 2 ** (stage - 1),
          2 if stage > 1 and i == 0 else 1,
          self.bottleneck,
          nn.initializers.zeros
          if self.zero_init_residual
          else nn.initializers.ones,
          self.norm,
          self.dtype,
          _kept(self, stage, i, widths),
          is_projected(self, stage, i),
          name=f'stage{stage}_block{i}',
        )(x, train)
      maps[f'stage{stage}'] = x
    return Features(maps, global_pool(x))

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(at_least_float32(vector)))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


def is_projected(module: ResNet, stage: int, i: int) -> bool:
  """Whether the shortcut of a block is a convolution."""
  return i == 0 and (stage > 1 or module.bottleneck)


def stream_of(module: ResNet, stage: int) -> str:
  """The group of the channels that a stage's blocks add to."""
  return f'stream{stage if module.bottleneck else stage - 1}'


def _kept(module, stage, i, widths) -> tuple[int, ...]:
  """Channels of each convolution of a block; () of a whole network."""
  if not widths:
    return ()
  width, count = module.width * 2 ** (stage - 1), 2 + module.bottleneck
  inner = [
    widths.get(f'stage{stage}_block{i}/conv{n}', width) for n in range(1, count)
  ]
  outer = width * (4 if module.bottleneck else 1)
  return (*inner, widths.get(stream_of(module, stage), outer))


def channel_groups(module: ResNet) -> tuple[ChannelGroup, ...]:
  """Channels within blocks ('stage1_block0/conv1'), and the streams.

  'stream0' is what the stem makes, with every block that adds to it; each
  projected shortcut begins another.
  """
  inner, streams = [], {}

  def stream(name, size):
    return streams.setdefault(name, (size, [], [], []))

  _, makers, norms, readers = stream('stream0', module.width)
  makers.append(('stem_conv/kernel', 3))
  norms.append('stem_bn')
  before = 'stream0'
  for stage, depth in enumerate(module.depths, 1):
    width, count = module.width * 2 ** (stage - 1), 2 + module.bottleneck
    for i in range(depth):
      block, name = f'stage{stage}_block{i}', stream_of(module, stage)
      inner += [
        ChannelGroup(
          f'{block}/conv{n}',
          width,
          ((f'{block}/conv{n}/kernel', 3),),
          (f'{block}/bn{n}',),
          ((f'{block}/conv{n + 1}/kernel', 2, 1),),
        )
        for n in range(1, count)
      ]
      readers = streams[before][3]
      readers.append((f'{block}/conv1/kernel', 2, 1))
      outer = width * (4 if module.bottleneck else 1)
      _, makers, norms, _ = stream(name, outer)
      makers.append((f'{block}/conv{count}/kernel', 3))
      norms.append(f'{block}/bn{count}')
      if is_projected(module, stage, i):
        readers.append((f'{block}/shortcut_conv/kernel', 2, 1))
        makers.append((f'{block}/shortcut_conv/kernel', 3))
        norms.append(f'{block}/shortcut_bn')
      before = name
  if module.num_classes and not module.features_only:
    streams[before][3].append(('head/kernel', 0, 1))
  return *inner, *(
    ChannelGroup(name, size, *map(tuple, parts))
    for name, (size, *parts) in streams.items()
  )


def build(
  card: ModelCard,
  *,
  num_classes: int | None,
  in_chans: int,
  image_size: tuple[int, int],
  text_length: int,
  features_only: bool,
  dtype: Any,
  **overrides,
) -> Built:
  """A published residual network, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `ResNet`.
  """
  del text_length
  module = backbone.make_module(
    ResNet,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/stem_conv/kernel',
  )


def rows(module: ResNet) -> list[Row]:
  """torchvision's names."""
  found = [*to.conv('conv1', 'stem_conv'), *to.batch_norm('bn1', 'stem_bn')]
  for stage, depth in enumerate(module.depths, 1):
    for i in range(depth):
      theirs, ours = f'layer{stage}.{i}', f'stage{stage}_block{i}'
      for n in range(1, 4 if module.bottleneck else 3):
        found += to.conv(f'{theirs}.conv{n}', f'{ours}/conv{n}')
        found += to.batch_norm(f'{theirs}.bn{n}', f'{ours}/bn{n}')
      if i == 0 and (stage > 1 or module.bottleneck):
        found += to.conv(f'{theirs}.downsample.0', f'{ours}/shortcut_conv')
        found += to.batch_norm(f'{theirs}.downsample.1', f'{ours}/shortcut_bn')
  return found + to.linear('fc', 'head')
