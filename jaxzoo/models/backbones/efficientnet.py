"""EfficientNet-B0: inverted residuals with squeeze-and-excitation and SiLU.

Tan and Le, arXiv 1905.11946, table 1. Squeeze-and-excitation squeezes to a
quarter of the channels that the block takes, not of those within. Parameter
names of the checkpoints are torchvision's, as is the batch norm (epsilon 1e-5;
the original has 1e-3, and the padding of TensorFlow).
"""

import functools
import itertools

import flax.linen as nn

from jaxzoo.models.backbones import mobile
from jaxzoo.models.backbones.mobile import Block, MobileNet
from jaxzoo.models.layers.squeeze_excite import SqueezeExcite
from jaxzoo.weights.rows import Row

SHARDING = mobile.SHARDING
channel_groups = mobile.channel_groups

# Expansion, kernel, stride of the first block, channels, blocks.
_TABLE = (
  (1, 3, 1, 16, 1),
  (6, 3, 2, 24, 2),
  (6, 5, 2, 40, 2),
  (6, 3, 2, 80, 3),
  (6, 5, 1, 112, 3),
  (6, 5, 2, 192, 4),
  (6, 3, 1, 320, 1),
)


def _blocks(inputs=32):
  blocks = []
  for expansion, kernel, stride, features, repeats in _TABLE:
    for i in range(repeats):
      blocks.append(
        Block(
          kernel,
          expansion * inputs,
          features,
          stride if i == 0 else 1,
          max(1, inputs // 4),
          nn.silu,
        )
      )
      inputs = features
  return tuple(blocks)


PUBLISHED = {
  'EfficientNet-B0': dict(
    blocks=_blocks(),
    stem_width=32,
    last_width=1280,
    activation=nn.silu,
    excite=functools.partial(SqueezeExcite, activation=nn.silu),
    drop_path_rate=0.2,
    # Uniform within classes^-0.5.
    head_init=nn.initializers.variance_scaling(1 / 3, 'fan_out', 'uniform'),
  )
}


def stages(module: MobileNet) -> list[int]:
  """How many blocks each of torchvision's stages has: those of one width."""
  widths = (block.features for block in module.blocks)
  return [len(list(group)) for _, group in itertools.groupby(widths)]


def rows(module: MobileNet) -> list[Row]:
  """torchvision's names."""
  depths = stages(module)
  return mobile.named_rows(
    module,
    [
      f'features.{stage}.{i}.block'
      for stage, depth in enumerate(depths, 1)
      for i in range(depth)
    ],
    last=f'features.{len(depths) + 1}',
    head='classifier.1',
  )


build = functools.partial(mobile.build, PUBLISHED, rows)
