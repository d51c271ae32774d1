"""What MobileNetV2, MobileNetV3 and EfficientNet are: inverted residuals.

A stem that halves the image, blocks that widen their input with a 1x1
convolution, filter every channel by itself and narrow again, a last 1x1
convolution, a mean over positions and a linear classifier. The families differ
in their tables, activations, squeeze-and-excitation and names. (Sandler et al.,
arXiv 1801.04381, section 3.)

Published weights pad a strided convolution equally on both sides; TensorFlow's
original checkpoints, which pad as XLA's SAME does, are others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.conv_norm import ConvNorm
from jaxzoo.models.layers.convolution import global_pool
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.squeeze_excite import SqueezeExcite
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = ((r'(^|/)head/kernel$', (None, 'tensor')),)


class Block(NamedTuple):
  """The sizes of an inverted residual.

  Attributes:
    kernel_size: of the depth-wise convolution.
    expanded: channels within; where they are those of the input, nothing
      expands.
    features: channels of the result.
    stride: of the depth-wise convolution.
    squeezed: of the squeeze-and-excitation; 0: there is none.
    activation: after the first two convolutions.
  """

  kernel_size: int
  expanded: int
  features: int
  stride: int = 1
  squeezed: int = 0
  activation: Callable = nn.relu6


class InvertedResidual(nn.Module):
  """project(excite(depthwise(expand(x)))), + x where the shape stays.

  A batch norm follows each convolution, an activation the first two: the
  projection is linear.

  Attributes:
    plan: sizes.
    drop_path: rate of the stochastic depth.
    excite: makes the squeeze-and-excitation.
    norm: of the convolutions.
    dtype: compute dtype.
    inputs: channels of the input in the whole network, 0: those that it has.
    kept: of a compact network: channels within, squeezed to, and of the result.
  """

  plan: Block
  drop_path: float = 0.0
  excite: Any = SqueezeExcite
  norm: Any = BatchNorm
  dtype: Any = None
  inputs: int = 0
  kept: tuple[int, int, int] = ()

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    plan, dtype = self.plan, self.dtype
    inputs = self.inputs or x.shape[-1]
    expanded, squeezed, features = self.kept or (
      plan.expanded,
      plan.squeezed,
      plan.features,
    )
    y = x
    if plan.expanded != inputs:
      y = ConvNorm(
        expanded,
        activation=plan.activation,
        norm=self.norm,
        dtype=dtype,
        name='expand',
      )(y, train)
    y = ConvNorm(
      expanded,
      plan.kernel_size,
      plan.stride,
      depthwise=True,
      activation=plan.activation,
      norm=self.norm,
      dtype=dtype,
      name='depthwise',
    )(y, train)
    if plan.squeezed:
      y = self.excite(squeezed, dtype=dtype, name='se')(y, train)
    y = ConvNorm(features, norm=self.norm, dtype=dtype, name='project')(
      y, train
    )
    if plan.stride > 1 or plan.features != inputs:
      return y
    return x + DropPath(self.drop_path)(y, train)


class MobileNet(nn.Module):
  """A stack of inverted residuals.

  Attributes:
    blocks: sizes of each.
    stem_width: channels of the first convolution, 3x3 with stride 2.
    last_width: channels of the last one, 1x1.
    hidden_width: of a dense layer after the mean; 0: there is none.
    activation: of the stem, the last convolution and that layer.
    excite: makes the squeeze-and-excitations, of the number squeezed to and
      with `dtype` and `name`.
    norm: of every convolution.
    drop_path_rate: block b of n drops its branch at this rate times b / n,
      counted from 0.
    dropout: rate before the classifier.
    head_init: of the classifier.
    num_classes: see `backbone`, as `features_only`.
    widths: channels that are left of a compact network, by the names of
      `channel_groups`.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype.
  """

  blocks: tuple[Block, ...]
  stem_width: int
  last_width: int
  hidden_width: int = 0
  activation: Callable = nn.relu6
  excite: Any = SqueezeExcite
  norm: Any = BatchNorm
  drop_path_rate: float = 0.0
  dropout: float = 0.2
  head_init: Any = nn.initializers.normal(0.01)
  num_classes: int = 1000
  features_only: bool = False
  widths: Any = ()
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.drop = nn.Dropout(self.dropout)
    self.head = nn.Dense(self.num_classes, kernel_init=self.head_init)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 2, 4, 8, ...: the last before each halving.

    The last convolution belongs to the vector, not to the maps.
    """
    block = InvertedResidual
    if self.remat != 'none':
      block = nn.remat(
        InvertedResidual, policy=REMAT_POLICIES[self.remat], static_argnums=(2,)
      )
    widths, parts = dict(self.widths), parts_of(self)
    x = ConvNorm(
      widths.get('stream0', self.stem_width),
      3,
      2,
      activation=self.activation,
      norm=self.norm,
      dtype=self.dtype,
      name='stem',
    )(image.astype(self.dtype), train)
    maps = []
    names = block_names(self.blocks)
    for i, (name, plan) in enumerate(zip(names, self.blocks, strict=True)):
      if plan.stride > 1:
        maps.append(x)
      rate = self.drop_path_rate * i / len(self.blocks)
      kept = (
        widths.get(parts[i].within, plan.expanded),
        widths.get(f'{name}/se', plan.squeezed),
        widths.get(parts[i].after, plan.features),
      )
      x = block(
        plan,
        rate,
        self.excite,
        self.norm,
        self.dtype,
        parts[i].inputs,
        kept,
        name=name,
      )(x, train)
    maps.append(x)
    x = ConvNorm(
      widths.get('last', self.last_width),
      activation=self.activation,
      norm=self.norm,
      dtype=self.dtype,
      name='last',
    )(x, train)
    vector = global_pool(x)
    if self.hidden_width:
      hidden = nn.Dense(
        widths.get('hidden', self.hidden_width),
        kernel_init=self.head_init,
        dtype=self.dtype,
        name='hidden',
      )
      vector = self.activation(hidden(vector))
    return Features({f'stage{i}': x for i, x in enumerate(maps, 1)}, vector)

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    vector = vector.astype(jnp.float32)
    return self.head(self.drop(vector, deterministic=not train))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


def block_names(blocks: Sequence[Block]) -> list[str]:
  """'stage2_block0', ...: the stage is that of the map that a block is in.

  >>> a, b = Block(3, 16, 16), Block(3, 16, 16, stride=2)
  >>> block_names([a, b, a])
  ['stage1_block0', 'stage2_block0', 'stage2_block1']
  """
  names, stage, i = [], 1, 0
  for block in blocks:
    if block.stride > 1:
      stage, i = stage + 1, 0
    names.append(f'stage{stage}_block{i}')
    i += 1
  return names


class Parts(NamedTuple):
  """The channel groups that a block is made of, by name.

  Attributes:
    before: stream that it takes.
    within: its own channels, or `before` where nothing expands.
    after: stream that it gives.
    inputs: how many channels `before` has.
  """

  before: str
  within: str
  after: str
  inputs: int


def parts_of(module: MobileNet) -> list[Parts]:
  """The groups of each block; a block without a shortcut begins a stream."""
  found, stream, number, inputs = [], 'stream0', 0, module.stem_width
  for name, plan in zip(block_names(module.blocks), module.blocks, strict=True):
    before, within = stream, f'{name}/expand'
    if plan.expanded == inputs:
      within = before
    if plan.stride > 1 or plan.features != inputs:
      number += 1
      stream = f'stream{number}'
    found.append(Parts(before, within, stream, inputs))
    inputs = plan.features
  return found


def channel_groups(module: MobileNet) -> tuple[ChannelGroup, ...]:
  """Channels within blocks ('stage2_block0/expand', '.../se'), the last ones
  ('last', 'hidden'), and the streams between blocks ('stream0', ...).
  """
  groups = {}

  def group(name, size):
    # Producers, norms, consumers.
    return groups.setdefault(name, (size, [], [], []))

  def make(name, size, path, axis, norm=''):
    _, makers, norms, _ = group(name, size)
    makers.append((path, axis))
    norms += [norm] * bool(norm)

  def conv_norm(name, size, path):
    make(name, size, f'{path}/conv/kernel', 3, f'{path}/bn')

  def dense(name, size, path):
    make(name, size, f'{path}/kernel', 1)
    make(name, size, f'{path}/bias', 0)

  def read(name, path, axis):
    groups[name][3].append((path, axis, 1))

  conv_norm('stream0', module.stem_width, 'stem')
  names, parts = block_names(module.blocks), parts_of(module)
  for block, own, plan in zip(names, parts, module.blocks, strict=True):
    if own.within != own.before:
      read(own.before, f'{block}/expand/conv/kernel', 2)
      conv_norm(own.within, plan.expanded, f'{block}/expand')
    conv_norm(own.within, plan.expanded, f'{block}/depthwise')
    if plan.squeezed:
      read(own.within, f'{block}/se/fc1/kernel', 0)
      dense(f'{block}/se', plan.squeezed, f'{block}/se/fc1')
      read(f'{block}/se', f'{block}/se/fc2/kernel', 0)
      dense(own.within, plan.expanded, f'{block}/se/fc2')
    read(own.within, f'{block}/project/conv/kernel', 2)
    conv_norm(own.after, plan.features, f'{block}/project')
  read(parts[-1].after, 'last/conv/kernel', 2)
  conv_norm('last', module.last_width, 'last')
  end = 'last'
  if module.hidden_width:
    read('last', 'hidden/kernel', 0)
    dense('hidden', module.hidden_width, 'hidden')
    end = 'hidden'
  if module.num_classes and not module.features_only:
    read(end, 'head/kernel', 0)
  return tuple(
    ChannelGroup(name, size, *map(tuple, rest))
    for name, (size, *rest) in groups.items()
  )


def build(
  published: Mapping[str, Mapping[str, Any]],
  rows: Callable[[MobileNet], list[Row]],
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
  """A network of a family, for `models.create.create_model`.

  Args:
    published: variant -> fields of `MobileNet`.
    rows: names of its checkpoints.
    card: what to build.
    num_classes: as all that follow, what `create_model` passes.

  Raises:
    UserError: an override that is no field of `MobileNet`.
  """
  del text_length
  module = backbone.make_module(
    MobileNet,
    card,
    published[card.variant],
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


def named_rows(
  module: MobileNet,
  blocks: Sequence[str],
  *,
  last: str,
  head: str,
  hidden: str = '',
  split_projection: bool = False,
) -> list[Row]:
  """torchvision's names.

  Args:
    module: the network.
    blocks: the prefix of each block's parts, which are numbered.
    last: prefix of the last convolution.
    head: of the classifier.
    hidden: of the dense layer before it.
    split_projection: convolution and norm of the projection have numbers of
      their own, instead of one together.
  """

  def conv_norm(conv, norm, ours):
    return to.conv(conv, f'{ours}/conv') + to.batch_norm(norm, f'{ours}/bn')

  found = conv_norm('features.0.0', 'features.0.1', 'stem')
  inputs = module.stem_width
  names = block_names(module.blocks)
  for theirs, ours, plan in zip(blocks, names, module.blocks, strict=True):
    parts = ['depthwise', 'project']
    if plan.expanded != inputs:
      parts.insert(0, 'expand')
    if plan.squeezed:
      parts.insert(-1, 'se')
    for i, part in enumerate(parts):
      if part == 'se':
        for fc in ('fc1', 'fc2'):
          found += to.pointwise(f'{theirs}.{i}.{fc}', f'{ours}/se/{fc}')
      elif part == 'project' and split_projection:
        found += conv_norm(
          f'{theirs}.{i}', f'{theirs}.{i + 1}', f'{ours}/project'
        )
      else:
        found += conv_norm(
          f'{theirs}.{i}.0', f'{theirs}.{i}.1', f'{ours}/{part}'
        )
    inputs = plan.features
  found += conv_norm(f'{last}.0', f'{last}.1', 'last')
  if module.hidden_width:
    found += to.linear(hidden, 'hidden')
  return found + to.linear(head, 'head')
