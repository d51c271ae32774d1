"""ShuffleNetV2: units that work on half of the channels, then mix the halves.

Ma et al., arXiv 1807.11164, figure 3 (c, d) and table 5. Parameter names of
the checkpoints are torchvision's.

The shuffle after a unit puts the channels of its two halves alternately. Here
it is one stack of the halves on a new last axis, in place of a concatenation
and a transpose of its result: a single copy, which XLA fuses with the norm
before it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.conv_norm import ConvNorm
from jaxzoo.models.layers.convolution import (
  TORCH_DEFAULT,
  global_pool,
  uniform_bias,
)
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.pooling import max_pool
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)

PUBLISHED = {
  'ShuffleNetV2 0.5x': dict(widths=(48, 96, 192), last_width=1024),
  'ShuffleNetV2 1x': dict(widths=(116, 232, 464), last_width=1024),
  'ShuffleNetV2 1.5x': dict(widths=(176, 352, 704), last_width=1024),
  'ShuffleNetV2 2x': dict(widths=(244, 488, 976), last_width=2048),
}


def interleave(
  a: Float[Array, '*b c'], b: Float[Array, '*b c']
) -> Float[Array, '*b d']:
  """a0 b0 a1 b1 ...: the channel shuffle of two groups."""
  return jnp.stack([a, b], -1).reshape(*a.shape[:-1], -1)


class ShuffleUnit(nn.Module):
  """interleave(x1, branch(x2)) of the halves of x.

  The branch: 1x1, 3x3 of every channel by itself, 1x1. With a stride both
  sides take all of x, and the first has a branch too: 3x3 of every channel,
  1x1.

  Attributes:
    features: channels of the result.
    stride: 1 or 2.
    norm: of the convolutions.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  norm: Any = BatchNorm
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    half = self.features // 2
    make = functools.partial(
      ConvNorm, norm=self.norm, kernel_init=TORCH_DEFAULT, dtype=self.dtype
    )

    def pointwise(name, x):
      return make(half, activation=nn.relu, name=name)(x, train)

    def depthwise(name, x):
      return make(x.shape[-1], 3, self.stride, depthwise=True, name=name)(
        x, train
      )

    if self.stride == 1:
      kept, x = jnp.split(x, 2, axis=-1)
    else:
      kept = pointwise('side_conv', depthwise('side_depthwise', x))
    x = depthwise('depthwise', pointwise('conv1', x))
    return interleave(kept, pointwise('conv2', x))


class ShuffleNetV2(nn.Module):
  """Stages of shuffle units.

  Attributes:
    widths: channels of stages 2, 3, ...; the first unit of each halves the
      map.
    last_width: channels of the last convolution, 1x1.
    depths: units of each stage.
    stem_width: channels of the first convolution, 3x3 with stride 2, which a
      max pool follows.
    num_classes: see `backbone`, as `features_only`.
    norm: of every convolution.
    remat: as in `layers/transformer.py`, per unit.
    dtype: compute dtype.
  """

  widths: tuple[int, ...]
  last_width: int
  depths: tuple[int, ...] = (4, 8, 4)
  stem_width: int = 24
  num_classes: int = 1000
  features_only: bool = False
  norm: Any = BatchNorm
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.head = nn.Dense(
      self.num_classes,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(self.last_width),
    )

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 4, 8, 16, 32; the first is the pooled stem.

    The last convolution belongs to the vector, not to the maps.
    """
    unit = ShuffleUnit
    if self.remat != 'none':
      unit = nn.remat(
        ShuffleUnit, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    make = functools.partial(
      ConvNorm,
      activation=nn.relu,
      norm=self.norm,
      kernel_init=TORCH_DEFAULT,
      dtype=self.dtype,
    )
    x = make(self.stem_width, 3, 2, name='stem')(
      image.astype(self.dtype), train
    )
    maps = {'stage1': max_pool(x, 3, 2)}
    x = maps['stage1']
    plan = zip(self.widths, self.depths, strict=True)
    for stage, (width, depth) in enumerate(plan, 2):
      for i in range(depth):
        x = unit(
          width,
          2 if i == 0 else 1,
          self.norm,
          self.dtype,
          name=f'stage{stage}_block{i}',
        )(x, train)
      maps[f'stage{stage}'] = x
    x = make(self.last_width, name='last')(x, train)
    return Features(maps, global_pool(x))

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(jnp.float32))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


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
    UserError: an override that is no field of `ShuffleNetV2`.
  """
  del text_length
  module = backbone.make_module(
    ShuffleNetV2,
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
    stem='params/stem/conv/kernel',
  )


# Number of each convolution in torchvision's two branches of a unit.
_BRANCHES = (
  ('branch1.0', 'branch1.1', 'side_depthwise'),
  ('branch1.2', 'branch1.3', 'side_conv'),
  ('branch2.0', 'branch2.1', 'conv1'),
  ('branch2.3', 'branch2.4', 'depthwise'),
  ('branch2.5', 'branch2.6', 'conv2'),
)


def rows(module: ShuffleNetV2) -> list[Row]:
  """torchvision's names."""
  parts = [('conv1.0', 'conv1.1', 'stem'), ('conv5.0', 'conv5.1', 'last')]
  for stage, depth in enumerate(module.depths, 2):
    for i in range(depth):
      parts += [
        (
          f'stage{stage}.{i}.{conv}',
          f'stage{stage}.{i}.{norm}',
          f'stage{stage}_block{i}/{ours}',
        )
        for conv, norm, ours in _BRANCHES
        if i == 0 or 'side' not in ours
      ]
  found = []
  for conv, norm, ours in parts:
    found += to.conv(conv, f'{ours}/conv') + to.batch_norm(norm, f'{ours}/bn')
  return found + to.linear('fc', 'head')
