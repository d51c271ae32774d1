"""MobileNetV2: inverted residuals with linear bottlenecks.

Sandler et al., arXiv 1801.04381, table 2. Parameter names of the checkpoints
are torchvision's.
"""

import functools

from jaxzoo.models.backbones import mobile
from jaxzoo.models.backbones.mobile import Block, MobileNet
from jaxzoo.weights.rows import Row

SHARDING = mobile.SHARDING
channel_groups = mobile.channel_groups

# Expansion, channels, blocks, stride of the first.
_TABLE = (
  (1, 16, 1, 1),
  (6, 24, 2, 2),
  (6, 32, 3, 2),
  (6, 64, 4, 2),
  (6, 96, 3, 1),
  (6, 160, 3, 2),
  (6, 320, 1, 1),
)


def _blocks(inputs=32):
  blocks = []
  for expansion, features, repeats, stride in _TABLE:
    for i in range(repeats):
      blocks.append(
        Block(3, expansion * inputs, features, stride if i == 0 else 1)
      )
      inputs = features
  return tuple(blocks)


PUBLISHED = {
  'MobileNetV2': dict(blocks=_blocks(), stem_width=32, last_width=1280)
}


def rows(module: MobileNet) -> list[Row]:
  """torchvision's names."""
  depth = len(module.blocks)
  return mobile.named_rows(
    module,
    [f'features.{i}.conv' for i in range(1, depth + 1)],
    last=f'features.{depth + 1}',
    head='classifier.1',
    split_projection=True,
  )


build = functools.partial(mobile.build, PUBLISHED, rows)
