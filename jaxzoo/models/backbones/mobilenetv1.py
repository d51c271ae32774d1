"""MobileNet: convolutions cut into depth-wise and point-wise ones.

Howard et al., arXiv 1704.04861, table 1. Parameter names of the checkpoints are
timm's, whose activation is ReLU6, as in TensorFlow's; the paper, and most work
on distillation, has ReLU (`activation='relu'`).
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.conv_norm import ConvNorm
from jaxzoo.models.layers.convolution import global_pool
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)
ACTIVATIONS = {'relu': nn.relu, 'relu6': nn.relu6}

PUBLISHED = {
  'MobileNet 1.0': dict(widths=(64, 128, 256, 512, 1024)),
}


class SeparableConv(nn.Module):
  """act(norm(1x1(act(norm(3x3 of every channel by itself))))).

  Attributes:
    features: channels of the result.
    stride: of the first convolution.
    activation: after both norms.
    norm: of both convolutions.
    dtype: compute dtype.
  """

  features: int
  stride: int = 1
  activation: Any = nn.relu6
  norm: Any = BatchNorm
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    make = functools.partial(
      ConvNorm, activation=self.activation, norm=self.norm, dtype=self.dtype
    )
    x = make(x.shape[-1], 3, self.stride, depthwise=True, name='depthwise')(
      x, train
    )
    return make(self.features, name='pointwise')(x, train)


class MobileNetV1(nn.Module):
  """Stages of separable convolutions.

  Attributes:
    widths: channels of each stage; the first unit of every stage but the first
      halves the map.
    depths: units of each.
    stem_width: channels of the first convolution, 3x3 with stride 2.
    activation: 'relu6' or 'relu'.
    dropout: rate before the classifier.
    num_classes: see `backbone`, as `features_only`.
    norm: of every convolution.
    remat: as in `layers/transformer.py`, per unit.
    dtype: compute dtype.
  """

  widths: tuple[int, ...]
  depths: tuple[int, ...] = (1, 2, 2, 6, 2)
  stem_width: int = 32
  activation: str = 'relu6'
  dropout: float = 0.0
  num_classes: int = 1000
  features_only: bool = False
  norm: Any = BatchNorm
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.drop = nn.Dropout(self.dropout)
    self.head = nn.Dense(
      self.num_classes, kernel_init=nn.initializers.normal(0.01)
    )

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 2, 4, 8, 16, 32."""
    unit, activation = SeparableConv, ACTIVATIONS[self.activation]
    if self.remat != 'none':
      unit = nn.remat(
        SeparableConv, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    x = ConvNorm(
      self.stem_width,
      3,
      2,
      activation=activation,
      norm=self.norm,
      dtype=self.dtype,
      name='stem',
    )(image.astype(self.dtype), train)
    maps = {}
    plan = zip(self.widths, self.depths, strict=True)
    for stage, (width, depth) in enumerate(plan, 1):
      for i in range(depth):
        x = unit(
          width,
          2 if i == 0 and stage > 1 else 1,
          activation,
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
    vector = vector.astype(jnp.float32)
    return self.head(self.drop(vector, deterministic=not train))

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
    UserError: an override that is no field of `MobileNetV1`, or no activation.
  """
  del text_length
  module = backbone.make_module(
    MobileNetV1,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  if module.activation not in ACTIVATIONS:
    raise UserError(
      f'activation: no {module.activation!r}; '
      + nearest(module.activation, ACTIVATIONS)
    )
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/stem/conv/kernel',
  )


def rows(module: MobileNetV1) -> list[Row]:
  """timm's names."""
  found = to.conv('conv_stem', 'stem/conv') + to.batch_norm('bn1', 'stem/bn')
  for stage, depth in enumerate(module.depths):
    for i in range(depth):
      theirs, ours = f'blocks.{stage}.{i}', f'stage{stage + 1}_block{i}'
      for name, number, part in (
        ('dw', 1, 'depthwise'),
        ('pw', 2, 'pointwise'),
      ):
        found += to.conv(f'{theirs}.conv_{name}', f'{ours}/{part}/conv')
        found += to.batch_norm(f'{theirs}.bn{number}', f'{ours}/{part}/bn')
  return found + to.linear('classifier', 'head')
