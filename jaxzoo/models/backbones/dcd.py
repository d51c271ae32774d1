"""DCD: ResNet and MobileNetV2 of dynamic convolutions with few parameters.

Li et al., arXiv 2103.08756 (ICLR 2021): the kernels of a layer depend on the
image through a scale of the output channels and a small matrix between the
channels of a latent space, see `layers/dynamic_convolution.py`. The classifier
is dynamic too. Sizes and parameter names are those of the released code.

The networks lie under `head` and `latent` where they classify: what knows the
number of classes, and what does not, which weights of other classes keep.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import (
  conv,
  global_pool,
  make_divisible,
  uniform_bias,
)
from jaxzoo.models.layers.dynamic_convolution import (
  DynamicConv,
  DynamicHead,
  DynamicLatent,
)
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.pooling import max_pool
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Static kernels shard over their output channels; what is dynamic belongs to
# an example and goes with the batch.
SHARDING = ((r'(^|/)head/(cls|p|scale)/kernel$', (None, 'tensor')),)
HEAD = r'^(params|batch_stats)/(head|latent)/'
# MobileNetV2's linear layers.
SMALL = nn.initializers.normal(0.01)

PUBLISHED = {
  'ResNet-18': dict(bottleneck=False, depths=(2, 2, 2, 2)),
  'ResNet-34': dict(bottleneck=False, depths=(3, 4, 6, 3)),
  'ResNet-50': dict(bottleneck=True, depths=(3, 4, 6, 3), dropout=0.1),
  'ResNet-101': dict(bottleneck=True, depths=(3, 4, 23, 3)),
  'ResNet-152': dict(bottleneck=True, depths=(3, 8, 36, 3)),
  'MobileNetV2 x1.0': dict(width=1.0, dropout=0.2),
  'MobileNetV2 x0.75': dict(width=0.75, dropout=0.2),
  'MobileNetV2 x0.5': dict(width=0.5, dropout=0.2),
  'MobileNetV2 x0.35': dict(width=0.35, dropout=0.2),
}
# Of MobileNetV2: expansion, channels, blocks, stride of the first.
STAGES = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


def residual_sizes(channels: int, bottleneck: bool) -> dict[str, Any]:
  """Sizes of a dynamic convolution of `channels` inputs in a ResNet."""
  summary = channels if bottleneck else 4 * channels
  latent = int(summary**0.5)
  return dict(
    latent=latent,
    squeeze=max(4, max(summary, latent**2) // 16),
    quadrants=not bottleneck,
  )


def mobile_sizes(channels: int, features: int, squeeze: int) -> dict[str, Any]:
  """Sizes of a dynamic 1x1 convolution in MobileNetV2.

  One that widens sees the four quarters of the map; the square of the latent
  width is at most twice the length of what the context sees.
  """
  quadrants = channels < features
  summary = 4 * channels if quadrants else channels
  reduction = 8 if quadrants else 2
  narrowed = lambda: min(summary // reduction, features // reduction)
  while narrowed() ** 2 > 2 * summary:
    reduction *= 2
  latent = max(4, narrowed())
  return dict(
    latent=latent,
    squeeze=max(4, max(summary, latent**2) // squeeze),
    quadrants=quadrants,
  )


class DynamicResidualBlock(nn.Module):
  """A block of `resnet` whose branch is of dynamic convolutions."""

  width: int
  stride: int = 1
  bottleneck: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    if self.bottleneck:
      plan = ((self.width, 1), (self.width, 3), (4 * self.width, 1))
    else:
      plan = ((self.width, 3), (self.width, 3))
    strided = len(plan) - 1 if self.bottleneck else 1
    y = x
    for i, (features, size) in enumerate(plan, 1):
      y = DynamicConv(
        features,
        size,
        self.stride if i == strided else 1,
        **residual_sizes(y.shape[-1], self.bottleneck),
        dtype=self.dtype,
        name=f'conv{i}',
      )(y, train)
      y = BatchNorm(dtype=self.dtype, name=f'bn{i}')(y, train)
      y = y if i == len(plan) else nn.relu(y)
    if self.stride > 1 or x.shape[-1] != plan[-1][0]:
      x = conv(
        plan[-1][0], 1, self.stride, dtype=self.dtype, name='shortcut_conv'
      )(x)
      x = BatchNorm(dtype=self.dtype, name='shortcut_bn')(x, train)
    return nn.relu(x + y)


class InvertedResidual(nn.Module):
  """MobileNetV2's block: 1x1 to `hidden`, 3x3 depth-wise, 1x1 to `features`.

  Both 1x1 are dynamic. A block that does not widen has no first one, and its
  second is static. The input is added where stride and channels allow.
  """

  features: int
  expansion: int
  stride: int
  squeeze: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    norm = lambda name, y: BatchNorm(dtype=self.dtype, name=name)(y, train)
    dynamic = lambda features, name, y: DynamicConv(
      features,
      **mobile_sizes(y.shape[-1], features, self.squeeze),
      kernel_init=SMALL,
      dtype=self.dtype,
      name=name,
    )(y, train)
    hidden, y = self.expansion * x.shape[-1], x
    if self.expansion > 1:
      y = nn.relu6(norm('expand_bn', dynamic(hidden, 'expand', y)))
    y = conv(
      hidden, 3, self.stride, groups=hidden, dtype=self.dtype, name='depthwise'
    )(y)
    y = nn.relu6(norm('depthwise_bn', y))
    if self.expansion > 1:
      y = dynamic(self.features, 'project', y)
    else:
      y = conv(self.features, 1, dtype=self.dtype, name='project')(y)
    y = norm('project_bn', y)
    return x + y if self.stride == 1 and x.shape == y.shape else y


class DcdResNet(nn.Module):
  """`resnet.ResNet` of dynamic convolutions; maps as there.

  Attributes:
    depths: blocks of each stage.
    bottleneck: blocks of three convolutions instead of two.
    width: channels of the first stage.
    num_classes: see `backbone`, as `features_only`.
    small_stem: as in `resnet.ResNet`, for images of CIFAR's size.
    dropout: of the vector that the classifier takes.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype; the classifier is float32.
  """

  depths: tuple[int, ...]
  bottleneck: bool = False
  width: int = 64
  num_classes: int = 1000
  features_only: bool = False
  small_stem: bool = False
  dropout: float = 0.0
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    channels = self.width * 2 ** (len(self.depths) - 1)
    channels *= 4 if self.bottleneck else 1
    self.latent = DynamicLatent()
    self.head = DynamicHead(self.num_classes, bias_init=uniform_bias(channels))
    self.drop = nn.Dropout(self.dropout)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 4, 8, 16, 32 (1, 2, 4, 8 of a small stem)."""
    block = _remat(DynamicResidualBlock, self.remat)
    size, stride = (3, 1) if self.small_stem else (7, 2)
    x = conv(self.width, size, stride, dtype=self.dtype, name='stem_conv')(
      image.astype(self.dtype)
    )
    x = nn.relu(BatchNorm(dtype=self.dtype, name='stem_bn')(x, train))
    x = x if self.small_stem else max_pool(x, 3, 2)
    maps = {}
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        x = block(
          self.width * 2 ** (stage - 1),
          2 if stage > 1 and i == 0 else 1,
          self.bottleneck,
          self.dtype,
          name=f'stage{stage}_block{i}',
        )(x, train)
      maps[f'stage{stage}'] = x
    return Features(maps, global_pool(x))

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    vector = self.drop(vector.astype(jnp.float32), deterministic=not train)
    return self.head(vector, *self.latent(vector, train))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


class DcdMobileNetV2(nn.Module):
  """MobileNetV2 (arXiv 1801.04381) of dynamic 1x1 convolutions.

  Maps are the outputs of the last block of each resolution, without activation
  as everything between blocks.

  Attributes:
    width: multiplier of all channels but the last layer's 1280, which only
      widens.
    squeeze: divisor of the contexts' widths.
    num_classes: see `backbone`, as `features_only`.
    dropout: of the vector that the classifier takes.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype; the classifier is float32.
  """

  width: float = 1.0
  squeeze: int = 16
  num_classes: int = 1000
  features_only: bool = False
  dropout: float = 0.0
  remat: str = 'none'
  dtype: Any = jnp.float32

  def channels(self, published: int) -> int:
    """Channels of a layer at this width."""
    return make_divisible(published * self.width, 4 if self.width == 0.1 else 8)

  def plan(self) -> list[tuple[int, int, int]]:
    """(expansion, channels, stride) of every block."""
    return [
      (expansion, self.channels(features), stride if i == 0 else 1)
      for expansion, features, depth, stride in STAGES
      for i in range(depth)
    ]

  def setup(self):
    self.latent = DynamicLatent(kernel_init=SMALL)
    self.head = DynamicHead(self.num_classes, kernel_init=SMALL)
    self.drop = nn.Dropout(self.dropout)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 2, 4, 8, 16, 32."""
    block = _remat(InvertedResidual, self.remat)
    layer = lambda x, features, size, stride, name: nn.relu6(
      BatchNorm(dtype=self.dtype, name=f'{name}_bn')(
        conv(features, size, stride, dtype=self.dtype, name=f'{name}_conv')(x),
        train,
      )
    )
    x = layer(image.astype(self.dtype), self.channels(32), 3, 2, 'stem')
    maps, plan = {}, self.plan()
    for i, (expansion, features, stride) in enumerate(plan):
      x = block(
        features,
        expansion,
        stride,
        self.squeeze,
        self.dtype,
        name=f'block{i}',
      )(x, train)
      if i + 1 == len(plan) or plan[i + 1][2] > 1:
        maps[f'stage{len(maps) + 1}'] = x
    last = self.channels(1280) if self.width > 1 else 1280
    return Features(maps, global_pool(layer(x, last, 1, 1, 'last')))

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    vector = self.drop(vector.astype(jnp.float32), deterministic=not train)
    return self.head(vector, *self.latent(vector, train))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


def _remat(block: type, policy: str) -> type:
  if policy == 'none':
    return block
  return nn.remat(block, policy=REMAT_POLICIES[policy], static_argnums=(2,))


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
  """A dynamic network, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of its module.
  """
  del text_length
  residual = card.variant.startswith('ResNet')
  module = backbone.make_module(
    DcdResNet if residual else DcdMobileNetV2,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  # The classifier follows a dropout in its nn.Sequential where there is one.
  place = f'classifier.{int(module.dropout > 0)}'
  rows = residual_rows if residual else mobile_rows
  return backbone.built(
    module,
    [*rows(module), *_classifier_rows(place)],
    image_size=image_size,
    in_chans=in_chans,
    stem='params/stem_conv/kernel',
    head=HEAD,
    canonical=lambda state_dict: _move_classifier(state_dict, place),
  )


def _move_classifier(state_dict: Mapping, place: str) -> dict:
  """Brings `classifier.0.` and `classifier.1.` to `place`."""
  spellings = ('classifier.0.', 'classifier.1.')
  return {
    f'{place}.{name[len(spellings[0]) :]}'
    if name.startswith(spellings)
    else name: x
    for name, x in state_dict.items()
  }


def residual_rows(module: DcdResNet) -> list[Row]:
  """The released code's names of a ResNet, without its classifier."""
  found = [*to.conv('conv1', 'stem_conv'), *to.batch_norm('bn1', 'stem_bn')]
  for stage, depth in enumerate(module.depths, 1):
    for i in range(depth):
      theirs, ours = f'layer{stage}.{i}', f'stage{stage}_block{i}'
      for n in range(1, 4 if module.bottleneck else 3):
        found += _dynamic_rows(f'{theirs}.conv{n}', f'{ours}/conv{n}', '')
        found += to.batch_norm(f'{theirs}.bn{n}', f'{ours}/bn{n}')
      if i == 0 and (stage > 1 or module.bottleneck):
        found += to.conv(f'{theirs}.downsample.0', f'{ours}/shortcut_conv')
        found += to.batch_norm(f'{theirs}.downsample.1', f'{ours}/shortcut_bn')
  return found


def mobile_rows(module: DcdMobileNetV2) -> list[Row]:
  """The released code's names of a MobileNetV2, without its classifier."""
  found = [
    *to.conv('features.0.0', 'stem_conv'),
    *to.batch_norm('features.0.1', 'stem_bn'),
    *to.conv('conv.0', 'last_conv'),
    *to.batch_norm('conv.1', 'last_bn'),
  ]
  for i, (expansion, _, _) in enumerate(module.plan()):
    theirs, ours = f'features.{i + 1}.conv', f'block{i}'
    # Activations count in their nn.Sequential.
    first = 3 if expansion > 1 else 0
    found += to.conv(f'{theirs}.{first}', f'{ours}/depthwise')
    found += to.batch_norm(f'{theirs}.{first + 1}', f'{ours}/depthwise_bn')
    found += to.batch_norm(f'{theirs}.{first + 4}', f'{ours}/project_bn')
    project = f'{theirs}.{first + 3}'
    if expansion == 1:
      found += to.conv(project, f'{ours}/project')
      continue
    found += _dynamic_rows(project, f'{ours}/project', 'conv_')
    found += _dynamic_rows(f'{theirs}.0', f'{ours}/expand', 'conv_')
    found += to.batch_norm(f'{theirs}.1', f'{ours}/expand_bn')
  return found


def _dynamic_rows(theirs: str, ours: str, prefix: str) -> list[Row]:
  return [
    *to.conv(f'{theirs}.conv', f'{ours}/conv'),
    *to.conv(f'{theirs}.{prefix}q', f'{ours}/q'),
    *to.conv(f'{theirs}.{prefix}p', f'{ours}/p'),
    *_context_rows(theirs, ours),
    *to.linear(f'{theirs}.fc_scale', f'{ours}/scale', bias=False),
  ]


def _context_rows(theirs: str, ours: str) -> list[Row]:
  linear = lambda name, path: to.linear(
    f'{theirs}.{name}', f'{ours}/{path}', bias=False
  )
  return [
    *linear('fc.0', 'context/squeeze'),
    *linear('fc.1.fc.0', 'context/gate'),
    *linear('fc_phi', 'phi'),
    *to.batch_norm(f'{theirs}.bn1', f'{ours}/bn1'),
    *to.batch_norm(f'{theirs}.bn2', f'{ours}/bn2'),
  ]


def _classifier_rows(theirs: str) -> list[Row]:
  return [
    *to.linear(f'{theirs}.cls', 'head/cls'),
    *to.linear(f'{theirs}.cls_q', 'latent/q', bias=False),
    *to.linear(f'{theirs}.cls_p', 'head/p', bias=False),
    *_context_rows(theirs, 'latent'),
    *to.linear(f'{theirs}.fc_scale', 'head/scale', bias=False),
  ]
