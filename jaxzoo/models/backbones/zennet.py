"""ZenNet: networks of the search space of Zen-NAS, from a structure string.

Lin et al., arXiv 2102.01063. Names of the checkpoints are those of
idstcv/ZenNAS, and what follows is its code's. The grammar is `structure.py`'s;
the blocks, each of n layers with b channels within, mean:

  SuperConvKkBNRELU(in, out, stride, n)     kxk
  SuperResKkKk(in, out, stride, b, n)       one residual unit: kxk to b, kxk
  SuperResK1KkK1(in, out, stride, b, n)     two units: 1x1 to b, kxk, 1x1
  SuperResIDWEeKk(in, out, stride, b, n)    two units, the first to b channels:
                                            1x1 to e times those that the unit
                                            gives, kxk of each channel, 1x1

The widest layers of the last kind are multiples of 8. A stride is that of the
first kxk. A ReLU follows every sum; squeeze-and-excitation, where there is one,
comes before the last convolution of a unit, squeezes to a quarter of what it
sees and has norms.
The first unit of a super block has a projection even where shapes agree, other
units where they do not; it is a 1x1 convolution with a bias, and a norm. Batch
norms have the epsilon 1e-3.

The published sizes of the 400M and 600M models are those without
squeeze-and-excitation, which the released ones have. They are tested on images
cut to 320x320 (12 ms: 380x380) and then resized to 224x224, bilinearly.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.backbones.structure import (
  Block,
  Conv,
  ResidualUnit,
  SuperBlock,
  Unit,
  built,
  conv_norm_rows,
  last_maps,
  layer_names,
  parse,
)
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import global_pool
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)

_STRUCTURES = {
  'ZenNet-400M-SE': 'SuperConvK3BNRELU(3,16,2,1)'
  'SuperResIDWE1K7(16,40,2,40,1)SuperResIDWE1K7(40,64,2,64,1)'
  'SuperResIDWE4K7(64,96,2,96,5)SuperResIDWE2K7(96,224,2,224,5)'
  'SuperConvK1BNRELU(224,2048,1,1)',
  'ZenNet-600M-SE': 'SuperConvK3BNRELU(3,24,2,1)'
  'SuperResIDWE1K7(24,48,2,48,1)SuperResIDWE2K7(48,72,2,72,1)'
  'SuperResIDWE6K7(72,96,2,88,5)SuperResIDWE4K7(96,192,2,168,5)'
  'SuperConvK1BNRELU(192,2048,1,1)',
  'ZenNet-900M-SE': 'SuperConvK3BNRELU(3,16,2,1)'
  'SuperResIDWE1K7(16,48,2,72,1)SuperResIDWE2K7(48,72,2,64,3)'
  'SuperResIDWE2K7(72,152,2,144,3)SuperResIDWE2K7(152,360,2,352,4)'
  'SuperResIDWE4K7(360,288,1,264,3)SuperConvK1BNRELU(288,2048,1,1)',
  'ZenNet-0.1ms': 'SuperConvK3BNRELU(3,24,2,1)'
  'SuperResK3K3(24,32,2,64,1)SuperResK5K5(32,64,2,32,1)'
  'SuperResK5K5(64,168,2,96,1)SuperResK1K5K1(168,320,1,120,1)'
  'SuperResK1K5K1(320,640,2,304,3)SuperResK1K5K1(640,512,1,384,1)'
  'SuperConvK1BNRELU(512,2384,1,1)',
  'ZenNet-0.2ms': 'SuperConvK3BNRELU(3,24,2,1)'
  'SuperResK1K5K1(24,32,2,32,1)SuperResK1K7K1(32,104,2,64,1)'
  'SuperResK1K5K1(104,512,2,160,1)SuperResK1K5K1(512,344,1,192,1)'
  'SuperResK1K5K1(344,688,2,320,4)SuperResK1K5K1(688,680,1,304,3)'
  'SuperConvK1BNRELU(680,2552,1,1)',
  'ZenNet-0.3ms': 'SuperConvK3BNRELU(3,24,2,1)'
  'SuperResK1K5K1(24,64,2,32,1)SuperResK1K3K1(64,128,2,128,1)'
  'SuperResK1K7K1(128,432,2,128,1)SuperResK1K5K1(432,272,1,160,1)'
  'SuperResK1K5K1(272,848,2,384,4)SuperResK1K5K1(848,848,1,320,3)'
  'SuperResK1K5K1(848,456,1,320,3)SuperConvK1BNRELU(456,6704,1,1)',
  'ZenNet-0.5ms': 'SuperConvK3BNRELU(3,8,2,1)'
  'SuperResK1K7K1(8,64,2,32,1)SuperResK1K3K1(64,152,2,128,1)'
  'SuperResK1K5K1(152,640,2,192,4)SuperResK1K5K1(640,640,1,192,2)'
  'SuperResK1K5K1(640,1536,2,384,4)SuperResK1K5K1(1536,816,1,384,3)'
  'SuperResK1K5K1(816,816,1,384,3)SuperConvK1BNRELU(816,5304,1,1)',
  'ZenNet-0.8ms': 'SuperConvK3BNRELU(3,16,2,1)'
  'SuperResK1K5K1(16,64,2,64,1)SuperResK1K3K1(64,240,2,128,2)'
  'SuperResK1K7K1(240,640,2,160,3)SuperResK1K7K1(640,768,1,192,4)'
  'SuperResK1K5K1(768,1536,2,384,5)SuperResK1K5K1(1536,1536,1,384,3)'
  'SuperResK1K5K1(1536,2304,1,384,5)SuperConvK1BNRELU(2304,4912,1,1)',
  'ZenNet-1.2ms': 'SuperConvK3BNRELU(3,32,2,1)'
  'SuperResK1K5K1(32,80,2,32,1)SuperResK1K7K1(80,432,2,128,5)'
  'SuperResK1K7K1(432,640,2,192,3)SuperResK1K7K1(640,1008,1,160,5)'
  'SuperResK1K7K1(1008,976,1,160,4)SuperResK1K5K1(976,2304,2,384,5)'
  'SuperResK1K5K1(2304,2496,1,384,5)SuperConvK1BNRELU(2496,3072,1,1)',
  'ZenNet-0.5M': 'SuperConvK3BNRELU(3,64,1,1)'
  'SuperResK1K5K1(64,168,1,16,3)SuperResK1K3K1(168,80,2,32,4)'
  'SuperResK1K5K1(80,112,2,16,3)SuperResK1K5K1(112,144,1,24,3)'
  'SuperResK1K3K1(144,32,2,40,1)SuperConvK1BNRELU(32,512,1,1)',
  'ZenNet-1.0M': 'SuperConvK3BNRELU(3,88,1,1)'
  'SuperResK1K7K1(88,120,1,16,1)SuperResK1K7K1(120,192,2,16,3)'
  'SuperResK1K5K1(192,224,1,24,4)SuperResK1K5K1(224,96,2,24,2)'
  'SuperResK1K3K1(96,168,2,40,3)SuperResK1K3K1(168,112,1,48,3)'
  'SuperConvK1BNRELU(112,512,1,1)',
  'ZenNet-2.0M': 'SuperConvK3BNRELU(3,32,1,1)'
  'SuperResK1K5K1(32,120,1,40,1)SuperResK1K5K1(120,176,2,32,3)'
  'SuperResK1K7K1(176,272,1,24,3)SuperResK1K3K1(272,176,1,56,3)'
  'SuperResK1K3K1(176,176,1,64,4)SuperResK1K5K1(176,216,2,40,2)'
  'SuperResK1K3K1(216,72,2,56,2)SuperConvK1BNRELU(72,512,1,1)',
}
PUBLISHED = {
  name: dict(structure=structure, use_se=name.endswith('SE'))
  for name, structure in _STRUCTURES.items()
}

_RES = 'inputs outputs stride bottleneck repeats'
SIGNATURES = {
  **{
    f'SuperConvK{k}BNRELU': 'inputs outputs stride repeats'
    for k in (1, 3, 5, 7)
  },
  **{f'SuperResK{k}K{k}': _RES for k in (3, 5, 7)},
  **{f'SuperResK1K{k}K1': _RES for k in (3, 5, 7)},
  **{f'SuperResIDWE{e}K{k}': _RES for e in (1, 2, 4, 6) for k in (3, 5, 7)},
}
_NUMBERS = re.compile(r'\d')

# Xavier normal with the gain of the released code, for every layer.
INIT = nn.initializers.variance_scaling(3.26033**2, 'fan_avg', 'normal')


@functools.cache
def blocks_of(structure: str) -> tuple[Block, ...]:
  """The blocks of a structure string in ZenNet's dialect.

  Raises:
    UserError: it is none; the message points at the place.
  """
  return parse(structure, SIGNATURES)


def layers_of(
  block: Block, use_se: bool = False
) -> tuple[tuple[Unit, ...], ...]:
  """The layers of a super block, one or two units each."""
  return tuple(
    _layer(block, use_se, block.inputs, block.stride, True)
    if i == 0
    else _layer(block, use_se, block.outputs, 1, False)
    for i in range(block.repeats)
  )


def round8(x: float) -> int:
  """The nearest multiple of 8, of two the one divisible by 16; at least 8."""
  return max(8, round(x / 8) * 8)


def _layer(block, use_se, inputs, stride, first):
  out, b = block.outputs, block.bottleneck
  digits = [int(digit) for digit in _NUMBERS.findall(block.name)]
  unit = functools.partial(_unit, use_se)
  if block.name.startswith('SuperConv'):
    return (Unit((Conv(out, digits[0], stride),), residual=False),)
  if block.name.startswith('SuperResIDW'):
    e, k = digits
    narrow, wide = round8(b * e), round8(out * e)
    return (
      unit(
        inputs,
        (Conv(narrow), Conv(narrow, k, stride, True), Conv(b)),
        project=first,
      ),
      unit(b, (Conv(wide), Conv(wide, k, 1, True), Conv(out))),
    )
  if len(digits) == 2:
    k = digits[0]
    return (unit(inputs, (Conv(b, k, stride), Conv(out, k)), project=first),)
  k = digits[1]
  return (
    unit(inputs, (Conv(b), Conv(b, k, stride), Conv(out)), project=first),
    unit(out, (Conv(b), Conv(b, k), Conv(out))),
  )


def _unit(use_se, inputs, convs, project=False):
  changes = inputs != convs[-1].features or any(c.stride > 1 for c in convs)
  within = convs[-2].features
  return Unit(
    convs,
    project=project or changes,
    squeezed=max(1, round(within / 4)) if use_se else 0,
    # Of the units that need not project, even if they do.
    silent=not project,
  )


def plan_of(module: 'ZenNet') -> list[tuple[tuple[Unit, ...], ...]]:
  """The layers of each super block of a network."""
  supers = []
  for block in blocks_of(module.structure):
    layers = layers_of(block, module.use_se)
    if not module.residual:
      layers = tuple(
        tuple(unit._replace(residual=False, project=False) for unit in units)
        for units in layers
      )
    supers.append(layers)
  return supers


class ZenNet(nn.Module):
  """A network in ZenNet's dialect; maps are the last of each stride.

  Attributes:
    structure: see above.
    use_se: squeeze-and-excitation in the residual units.
    num_classes: see `backbone`, as `features_only`.
    folded: batch norms are part of the convolutions, for inference; `fold`
      turns variables into those of a folded network.
    residual: False for a network without shortcuts, which scores of
      architectures look at.
    batch_norm: False for one without batch norms, likewise.
    epsilon: of the batch norms.
    momentum: share of a batch in their running statistics; the recipe's is
      0.01.
    scan: equal layers of a super block are compiled once.
    remat: as in `layers/transformer.py`, per layer.
    dtype: compute dtype.
  """

  structure: str
  use_se: bool = False
  num_classes: int = 1000
  features_only: bool = False
  folded: bool = False
  residual: bool = True
  batch_norm: bool = True
  epsilon: float = 1e-3
  momentum: float = 0.1
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.head = nn.Dense(self.num_classes, kernel_init=INIT)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """The output of each super block i is sown as `output{i}`."""
    norm = functools.partial(BatchNorm, self.momentum, self.epsilon)
    unit = functools.partial(
      ResidualUnit,
      norm=norm if self.batch_norm and not self.folded else None,
      bias=self.folded,
      projection_bias=True,
      kernel_init=INIT,
      dtype=self.dtype,
    )
    x, stride, maps = image.astype(self.dtype), 1, []
    blocks = blocks_of(self.structure)
    for i, (block, layers) in enumerate(
      zip(blocks, plan_of(self), strict=True)
    ):
      x = SuperBlock(layers, unit, self.scan, self.remat, name=f'super{i}')(
        x, train
      )
      self.sow('intermediates', f'output{i}', x)
      stride *= block.stride
      maps.append((stride, x))
    return Features(last_maps(maps), global_pool(x))

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
  """A network in ZenNet's dialect, for `models.create.create_model`.

  Any structure can be given as an override: `structure='SuperConv...'`. A
  `folded` network loads checkpoints with and without norms.

  Raises:
    UserError: an override that is no field of `ZenNet`, or a structure string
      that does not parse.
  """
  del text_length
  module = backbone.make_module(
    ZenNet,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  first = blocks_of(module.structure)[0]
  return built(
    module,
    rows,
    image_size=image_size,
    in_chans=in_chans,
    stem='params/super0/first/unit0/conv1/conv/kernel'
    if first.name.startswith('SuperConv')
    else '',
  )


def rows(module: ZenNet) -> list[Row]:
  """The names of idstcv/ZenNAS."""
  found = []
  for i, layers in enumerate(plan_of(module)):
    theirs = f'module_list.{i}.module_list'
    blocks = blocks_of(module.structure)
    within = 0  # of the super block: units and ReLUs, or conv, BN and ReLU
    for units, layer in zip(layers, layer_names(len(layers)), strict=True):
      for u, plan in enumerate(units):
        ours = f'super{i}/{layer}/unit{u}'
        if blocks[i].name.startswith('SuperConv'):
          found += _conv_rows(module, theirs, within, f'{ours}/conv1')
          within += 3
        else:
          found += _unit_rows(module, plan, f'{theirs}.{within}', ours)
          within += 2
  return found + to.linear('fc_linear.netblock', 'head')


def _conv_rows(module, theirs, i, ours):
  """The convolution that is number i and the norm after it."""
  return conv_norm_rows(
    f'{theirs}.{i}.netblock',
    f'{theirs}.{i + 1}.netblock',
    ours,
    bias=module.folded,
    normed=module.batch_norm and not module.folded,
  )


def _unit_rows(module, plan, theirs, ours):
  normed = module.batch_norm and not module.folded
  found, within = [], f'{theirs}.module_list'
  for n in range(len(plan.convs)):
    i = 3 * n  # convolution, norm, ReLU, ..., excitation, convolution, norm
    if plan.squeezed and n == len(plan.convs) - 1:
      for fc in (1, 2):
        place = f'{within}.{i}.netblock'
        found += to.pointwise(
          f'{place}.{3 * fc - 2}', f'{ours}/se/fc{fc}', bias=module.folded
        )
        if normed:
          found += to.batch_norm(f'{place}.{3 * fc - 1}', f'{ours}/se/bn{fc}')
      i += 1
    found += _conv_rows(module, within, i, f'{ours}/conv{n + 1}')
  if plan.project:
    found += conv_norm_rows(
      f'{theirs}.proj.0',
      f'{theirs}.proj.1',
      f'{ours}/shortcut',
      bias=True,
      normed=normed,
    )
  return found
