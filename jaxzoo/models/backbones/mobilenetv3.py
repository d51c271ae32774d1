"""MobileNetV3, large and small: searched inverted residuals.

Howard et al., arXiv 1905.02244, tables 1 and 2. Squeeze-and-excitation comes
after the activation of the depth-wise convolution, is as wide as a quarter of
that convolution and ends in a hard sigmoid; late blocks have hard swish.
Parameter names of the checkpoints are torchvision's, as is the batch norm:
epsilon 1e-3, of which a batch moves the running statistics by 0.01.
"""

import functools

import flax.linen as nn

from jaxzoo.models.backbones import mobile
from jaxzoo.models.backbones.mobile import Block, MobileNet
from jaxzoo.models.layers.convolution import make_divisible
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.squeeze_excite import SqueezeExcite
from jaxzoo.weights.rows import Row

SHARDING = mobile.SHARDING
channel_groups = mobile.channel_groups

# Kernel, expanded channels, channels, squeeze-and-excitation, activation
# (RE: ReLU, HS: hard swish), stride.
_LARGE = """
  3  16  16 -  RE 1
  3  64  24 -  RE 2
  3  72  24 -  RE 1
  5  72  40 SE RE 2
  5 120  40 SE RE 1
  5 120  40 SE RE 1
  3 240  80 -  HS 2
  3 200  80 -  HS 1
  3 184  80 -  HS 1
  3 184  80 -  HS 1
  3 480 112 SE HS 1
  3 672 112 SE HS 1
  5 672 160 SE HS 2
  5 960 160 SE HS 1
  5 960 160 SE HS 1
"""
_SMALL = """
  3  16  16 SE RE 2
  3  72  24 -  RE 2
  3  88  24 -  RE 1
  5  96  40 SE HS 2
  5 240  40 SE HS 1
  5 240  40 SE HS 1
  5 120  48 SE HS 1
  5 144  48 SE HS 1
  5 288  96 SE HS 2
  5 576  96 SE HS 1
  5 576  96 SE HS 1
"""


def _sizes(table, last_width, hidden_width):
  blocks = []
  for line in table.strip().splitlines():
    kernel, expanded, features, excite, activation, stride = line.split()
    blocks.append(
      Block(
        int(kernel),
        int(expanded),
        int(features),
        int(stride),
        make_divisible(int(expanded) / 4) if excite == 'SE' else 0,
        nn.relu if activation == 'RE' else nn.hard_swish,
      )
    )
  return dict(
    blocks=tuple(blocks),
    stem_width=16,
    last_width=last_width,
    hidden_width=hidden_width,
    activation=nn.hard_swish,
    excite=functools.partial(SqueezeExcite, gate=nn.hard_sigmoid),
    norm=functools.partial(BatchNorm, momentum=0.01, epsilon=1e-3),
  )


PUBLISHED = {
  'MobileNetV3-Large': _sizes(_LARGE, 960, 1280),
  'MobileNetV3-Small': _sizes(_SMALL, 576, 1024),
}


def rows(module: MobileNet) -> list[Row]:
  """torchvision's names."""
  depth = len(module.blocks)
  return mobile.named_rows(
    module,
    [f'features.{i}.block' for i in range(1, depth + 1)],
    last=f'features.{depth + 1}',
    hidden='classifier.0',
    head='classifier.3',
  )


build = functools.partial(mobile.build, PUBLISHED, rows)
