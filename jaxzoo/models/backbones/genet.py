"""GENet: networks shaped for a GPU's speed, from a structure string.

Lin et al., arXiv 2006.14090. Full convolutions in the early stages, bottlenecks
in the middle, inverted depth-wise bottlenecks at the end. Names of the
checkpoints are those of idstcv/GPU-Efficient-Networks. The grammar is
`structure.py`'s; the blocks mean, with E = round(expansion outputs), to even:

  ConvKX, ConvDW  a convolution without bias, of all channels or of each one
  BN, RELU, MaxPool, AdaptiveAvgPool, Flatten, Linear
  SuperResKXKX    kxk to E, kxk
  SuperResK1KX    1x1 to E, kxk
  SuperResK1KXK1  1x1 to E, kxk to E, 1x1
  SuperResK1DWK1  1x1 to E, kxk of each channel, 1x1
  SuperResK1DW    1x1, kxk of each channel; expansion 1

A super block is as many residual layers as its last number says. The stride is
that of the first kxk of the first layer (of the last convolution in K1KX and
K1DW). Kernels are initialised as those of residual networks are.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
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
  mistake,
  parse,
)
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import (
  TORCH_DEFAULT,
  conv,
  global_pool,
)
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.pooling import max_pool
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Channels of the released networks are odd numbers like 13: only the
# classifier is worth splitting.
SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)

PUBLISHED = {
  'GENet-light': dict(
    structure='ConvKX(3,13,3,2)BN(13)RELU(13)SuperResKXKX(13,48,3,2,1.0,1)'
    'SuperResKXKX(48,48,3,2,1.0,3)SuperResK1KXK1(48,384,3,2,0.25,7)'
    'SuperResK1DWK1(384,560,3,2,3.0,2)SuperResK1DWK1(560,256,3,1,3.0,1)'
    'ConvKX(256,1920,1,1)BN(1920)RELU(1920)AdaptiveAvgPool(1920,1)'
  ),
  'GENet-normal': dict(
    structure='ConvKX(3,32,3,2)BN(32)RELU(32)SuperResKXKX(32,128,3,2,1.0,1)'
    'SuperResKXKX(128,192,3,2,1.0,2)SuperResK1KXK1(192,640,3,2,0.25,6)'
    'SuperResK1DWK1(640,640,3,2,3.0,4)SuperResK1DWK1(640,640,3,1,3.0,1)'
    'ConvKX(640,2560,1,1)BN(2560)RELU(2560)AdaptiveAvgPool(2560,1)'
  ),
  'GENet-large': dict(
    structure='ConvKX(3,32,3,2)BN(32)RELU(32)SuperResKXKX(32,128,3,2,1.0,1)'
    'SuperResKXKX(128,192,3,2,1.0,2)SuperResK1KXK1(192,640,3,2,0.25,6)'
    'SuperResK1DWK1(640,640,3,2,3.0,5)SuperResK1DWK1(640,640,3,1,3.0,4)'
    'ConvKX(640,2560,1,1)BN(2560)RELU(2560)AdaptiveAvgPool(2560,1)'
  ),
}

_CONVS = ('ConvKX', 'ConvDW')
_OF_VECTORS = ('BN', 'RELU', 'Flatten', 'Linear')
_SUPER = 'inputs outputs kernel stride expansion repeats'
SIGNATURES = {
  'ConvKX': 'inputs outputs kernel stride',
  'ConvDW': 'inputs kernel stride',
  'BN': 'inputs',
  'RELU': 'label',
  'MaxPool': 'inputs kernel stride',
  'AdaptiveAvgPool': 'inputs size',
  'Flatten': 'label',
  'Linear': 'inputs outputs bias',
  'SuperResKXKX': _SUPER,
  'SuperResK1KX': _SUPER,
  'SuperResK1KXK1': _SUPER,
  'SuperResK1DWK1': _SUPER,
  'SuperResK1DW': _SUPER,
}


@functools.cache
def blocks_of(structure: str) -> tuple[Block, ...]:
  """The blocks of a structure string in GENet's dialect.

  Raises:
    UserError: it is none; the message points at the place.
  """
  blocks = parse(structure, SIGNATURES)
  pooled = False
  for block in blocks:
    if block.name == 'SuperResK1DW' and block.expansion != 1:
      raise mistake(
        structure, block.place, 'the expansion of SuperResK1DW must be 1'
      )
    fits = (
      block.name in _OF_VECTORS
      if pooled
      else block.name not in ('Flatten', 'Linear')
    )
    if not fits:
      raise mistake(
        structure,
        block.place,
        f'{block.name} cannot stand here: AdaptiveAvgPool makes vectors of '
        f'maps, which only {", ".join(_OF_VECTORS)} take, and Flatten and '
        'Linear take nothing else',
      )
    pooled = pooled or block.name == 'AdaptiveAvgPool'
  return blocks


def layers_of(block: Block) -> tuple[tuple[Unit], ...]:
  """The layers of a super block, a unit each."""
  return tuple(
    (
      _unit(block, block.inputs, block.stride)
      if i == 0
      else _unit(block, block.outputs, 1),
    )
    for i in range(block.repeats)
  )


def _unit(block, inputs, stride):
  out, k = block.outputs, block.kernel
  wide = round(out * block.expansion)
  convs = {
    'SuperResKXKX': (Conv(wide, k, stride), Conv(out, k)),
    'SuperResK1KX': (Conv(wide), Conv(out, k, stride)),
    'SuperResK1KXK1': (Conv(wide), Conv(wide, k, stride), Conv(out)),
    'SuperResK1DWK1': (Conv(wide), Conv(wide, k, stride, True), Conv(out)),
    'SuperResK1DW': (Conv(out), Conv(out, k, stride, True)),
  }[block.name]
  return Unit(convs, project=stride > 1 or inputs != out)


def _norm_name(blocks, i):
  """Of the norm that is block i: after a convolution by that one's number."""
  follows = i and blocks[i - 1].name in _CONVS
  return (f'bn{i - 1}', True) if follows else (f'bn{i}', False)


def adaptive_pool(
  x: Float[Array, 'b h w c'], size: int
) -> Float[Array, 'b size*size*c']:
  """Means over size x size cells, flattened with channels first.

  Cell i of n goes from floor(i h / n) to ceil((i + 1) h / n), as PyTorch's.
  """
  if size == 1:
    return global_pool(x)

  def cells(length):
    i = np.arange(size)[:, None]
    first, end = i * length // size, -(-(i + 1) * length // size)
    at = np.arange(length)
    return ((at >= first) & (at < end)) / np.float32(end - first)

  pooled = jnp.einsum(
    'ih,jw,bhwc->bcij',
    cells(x.shape[1]),
    cells(x.shape[2]),
    x.astype(jnp.float32),
  )
  return pooled.reshape(x.shape[0], -1).astype(x.dtype)


class GENet(nn.Module):
  """A network in GENet's dialect; maps are the last of each stride.

  Attributes:
    structure: see above.
    num_classes: see `backbone`, as `features_only`.
    folded: batch norms after convolutions are part of them, for inference;
      `fold` turns variables into those of a folded network.
    epsilon: of the batch norms.
    momentum: share of a batch in their running statistics.
    scan: equal layers of a super block are compiled once.
    remat: as in `layers/transformer.py`, per layer of a super block.
    dtype: compute dtype.
  """

  structure: str
  num_classes: int = 1000
  features_only: bool = False
  folded: bool = False
  epsilon: float = 1e-5
  momentum: float = 0.1
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.head = nn.Dense(self.num_classes, kernel_init=TORCH_DEFAULT)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """The output of each block i is sown as `output{i}`."""
    x, stride, maps = image.astype(self.dtype), 1, []
    blocks = blocks_of(self.structure)
    for i, block in enumerate(blocks):
      x = self._block(blocks, i, x, train)
      self.sow('intermediates', f'output{i}', x)
      stride *= block.stride
      if x.ndim == 4:
        maps.append((stride, x))
    if x.ndim == 4:
      x = global_pool(x)
    return Features(last_maps(maps), x)

  @nn.nowrap
  def _block(self, blocks, i, x, train):
    block, dtype = blocks[i], self.dtype
    norm = functools.partial(
      BatchNorm, self.momentum, self.epsilon, dtype=dtype
    )
    if block.name in _CONVS:
      before_norm = blocks[i + 1 : i + 2] and blocks[i + 1].name == 'BN'
      return conv(
        block.outputs,
        block.kernel,
        block.stride,
        groups=block.inputs if block.name == 'ConvDW' else 1,
        bias=self.folded and before_norm,
        dtype=dtype,
        name=f'conv{i}',
      )(x)
    if block.name == 'BN':
      name, follows = _norm_name(blocks, i)
      return x if self.folded and follows else norm(name=name)(x, train)
    if block.name == 'RELU':
      return nn.relu(x)
    if block.name == 'MaxPool':
      return max_pool(x, block.kernel, block.stride, (block.kernel - 1) // 2)
    if block.name == 'AdaptiveAvgPool':
      return adaptive_pool(x, block.size)
    if block.name == 'Flatten':  # vectors are flat
      return x
    if block.name == 'Linear':
      return nn.Dense(
        block.outputs,
        use_bias=bool(block.bias),
        kernel_init=TORCH_DEFAULT,
        dtype=dtype,
        name=f'linear{i}',
      )(x)
    unit = functools.partial(
      ResidualUnit,
      norm=None if self.folded else norm,
      bias=self.folded,
      projection_bias=self.folded,
      dtype=dtype,
    )
    return SuperBlock(
      layers_of(block), unit, self.scan, self.remat, name=f'super{i}'
    )(x, train)

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
  """A network in GENet's dialect, for `models.create.create_model`.

  Any structure can be given: `create_model('genet_small', structure='...')`.
  A `folded` network loads checkpoints with and without norms.

  Raises:
    UserError: an override that is no field of `GENet`, or a structure string
      that does not parse.
  """
  del text_length
  module = backbone.make_module(
    GENet,
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
    stem='params/conv0/kernel' if first.name == 'ConvKX' else '',
  )


def rows(module: GENet) -> list[Row]:
  """The names of idstcv/GPU-Efficient-Networks."""
  found, blocks = [], blocks_of(module.structure)
  for i, block in enumerate(blocks):
    theirs = f'module_list.{i}'
    if block.name in _CONVS:
      before_norm = blocks[i + 1 : i + 2] and blocks[i + 1].name == 'BN'
      found += to.conv(
        f'{theirs}.netblock', f'conv{i}', bias=module.folded and before_norm
      )
    elif block.name == 'BN':
      name, follows = _norm_name(blocks, i)
      if not (module.folded and follows):
        found += to.batch_norm(f'{theirs}.netblock', name)
    elif block.name == 'Linear':
      found += to.linear(
        f'{theirs}.netblock', f'linear{i}', bias=bool(block.bias)
      )
    elif block.name.startswith('Super'):
      layers = layers_of(block)
      for j, name in enumerate(layer_names(len(layers))):
        found += _unit_rows(
          layers[j][0], theirs, j, f'super{i}/{name}/unit0', module.folded
        )
  return found + to.linear('fc_linear', 'head')


def _unit_rows(plan, theirs, j, ours, folded):
  """The unit that is layer j of the super block `theirs`."""
  named = functools.partial(conv_norm_rows, bias=folded, normed=not folded)
  found, place = [], f'{theirs}.conv_list.{j}'
  for n in range(len(plan.convs)):  # convolution, norm, ReLU, convolution, ...
    found += named(
      f'{place}.{3 * n}', f'{place}.{3 * n + 1}', f'{ours}/conv{n + 1}'
    )
  if plan.project:
    place = f'{theirs}.shortcut_list.{j}'
    found += named(f'{place}.0', f'{place}.1', f'{ours}/shortcut')
  return found
