"""PreActResNet: residual networks whose norms come before the convolutions.

He et al., arXiv 1603.05027, in the small form that the literature on backdoors
trains on pictures of 32 x 32 (arXiv 2202.06312): a 3x3 stem, a shortcut taken
from the normalised input, and neither norm nor activation before the mean over
positions. Parameter names of the checkpoints are those of its code.
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
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)
PUBLISHED = {'PreActResNet-18': dict(depths=(2, 2, 2, 2))}


class PreActBlock(nn.Module):
  """shortcut(x) + conv2(relu(bn2(conv1(y)))), y = relu(bn1(x)).

  The shortcut is x, or a 1x1 convolution of y where stride or width differ.
  `inner` is the number of channels between the convolutions, 0 for `width`;
  `widened` says that the width differs.
  """

  width: int
  stride: int = 1
  widened: bool = False
  inner: int = 0
  norm: Any = BatchNorm
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    layer = lambda features, size, stride, name: conv(
      features,
      size,
      stride,
      kernel_init=TORCH_DEFAULT,
      dtype=self.dtype,
      name=name,
    )
    norm = lambda name: self.norm(dtype=self.dtype, name=name)
    y = nn.relu(norm('bn1')(x, train))
    if self.stride > 1 or self.widened:
      x = layer(self.width, 1, self.stride, 'shortcut_conv')(y)
    y = layer(self.inner or self.width, 3, self.stride, 'conv1')(y)
    y = layer(self.width, 3, 1, 'conv2')(nn.relu(norm('bn2')(y, train)))
    return x + y


class PreActResNet(nn.Module):
  """Residual stages of widths w, 2 w, 4 w, ...; all but the first halve.

  Attributes:
    depths: blocks of each stage.
    width: channels of the first stage.
    num_classes: see `backbone`, as `features_only`.
    widths: of a compact network, see `channel_groups`: (group, channels) pairs
      or a mapping.
    norm: of every convolution: a module with `dtype`.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype.
  """

  depths: tuple[int, ...]
  width: int = 64
  num_classes: int = 10
  features_only: bool = False
  widths: Any = ()
  norm: Any = BatchNorm
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    channels = self.width * 2 ** (len(self.depths) - 1)
    self.head = nn.Dense(
      self.num_classes,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(channels),
    )

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 1, 2, 4, 8, each after its last block."""
    block = PreActBlock
    if self.remat != 'none':
      block = nn.remat(
        PreActBlock, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    x = conv(
      self.width,
      3,
      kernel_init=TORCH_DEFAULT,
      dtype=self.dtype,
      name='stem_conv',
    )(image.astype(self.dtype))
    widths, maps = dict(self.widths), {}
    for stage, depth in enumerate(self.depths, 1):
      for i in range(depth):
        x = block(
          self.width * 2 ** (stage - 1),
          2 if stage > 1 and i == 0 else 1,
          stage > 1 and i == 0,
          widths.get(f'stage{stage}_block{i}/conv1', 0),
          self.norm,
          self.dtype,
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


def channel_groups(module: PreActResNet) -> tuple[ChannelGroup, ...]:
  """The channels between the two convolutions of every block."""
  groups = []
  for stage, depth in enumerate(module.depths, 1):
    for i in range(depth):
      block = f'stage{stage}_block{i}'
      groups.append(
        ChannelGroup(
          f'{block}/conv1',
          module.width * 2 ** (stage - 1),
          ((f'{block}/conv1/kernel', 3),),
          (f'{block}/bn2',),
          ((f'{block}/conv2/kernel', 2, 1),),
        )
      )
  return tuple(groups)


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
  """A published network, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `PreActResNet`.
  """
  del text_length
  module = backbone.make_module(
    PreActResNet,
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


def rows(module: PreActResNet) -> list[Row]:
  """The names of the published code."""
  found = to.conv('conv1', 'stem_conv')
  for stage, depth in enumerate(module.depths, 1):
    for i in range(depth):
      theirs, ours = f'layer{stage}.{i}', f'stage{stage}_block{i}'
      for n in (1, 2):
        found += to.batch_norm(f'{theirs}.bn{n}', f'{ours}/bn{n}')
        found += to.conv(f'{theirs}.conv{n}', f'{ours}/conv{n}')
      if i == 0 and stage > 1:
        found += to.conv(f'{theirs}.shortcut.0', f'{ours}/shortcut_conv')
  return found + to.linear('linear', 'head')
