"""Networks from one line of text: the grammar, and the residual units.

GENet and ZenNet write a network as a list of blocks without separators,

    ConvKX(3,13,3,2)BN(13)RELU(13)SuperResKXKX(13,48,3,2,1.0,1)...

NAME(numbers), or NAME(tag|numbers) with a tag that has no meaning. What the
names are and what their numbers mean differs: each has a table of its own, of
signatures, and turns a block into residual units by itself.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import backbone
from jaxzoo.models.cards import Built
from jaxzoo.models.layers.conv_norm import ConvNorm, fold_batch_norms
from jaxzoo.models.layers.convolution import KAIMING_OUT
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.squeeze_excite import SqueezeExcite
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

_BLOCK = re.compile(
  r'\s*(?P<name>\w+)\((?:[^()|]*\|)?(?P<numbers>[^()|]*)\)\s*'
)


class Block(NamedTuple):
  """One block of a structure string.

  Attributes:
    name: as written.
    place: of the name in the string, in characters.
    inputs: channels that it takes.
    outputs: channels that it gives.
    kernel: side of its kernels.
    stride: of its first layer.
    bottleneck: channels within (ZenNet).
    expansion: channels within, in units of `outputs` (GENet).
    repeats: how many layers.
    size: rows and columns that a pool leaves.
    bias: of a linear layer, 0 or 1.
    label: a number without effect.
  """

  name: str
  place: int
  inputs: int
  outputs: int
  kernel: int = 1
  stride: int = 1
  bottleneck: int = 0
  expansion: float = 1.0
  repeats: int = 1
  size: int = 1
  bias: int = 1
  label: int = 0


def parse(structure: str, signatures: Mapping[str, str]) -> tuple[Block, ...]:
  """A structure string -> its blocks.

  >>> table = {'Conv': 'inputs outputs stride'}
  >>> [block.outputs for block in parse('Conv(3,8,2)Conv(tag|8,9,1)', table)]
  [8, 9]

  Args:
    structure: white space around blocks is skipped.
    signatures: name -> its numbers, as names of fields of `Block`. A block
      without `outputs` gives as many channels as it takes, times size²; one
      without `inputs` takes what comes.

  Raises:
    UserError: an unknown block, a number too many or too few or that is none,
      or a block that takes other channels than the one before it gives. The
      message points at the place.
  """
  if not structure.strip():
    raise UserError('the structure string is empty')
  blocks, place, channels = [], 0, 0
  while place < len(structure):
    match = _BLOCK.match(structure, place)
    if match is None:
      place += len(structure[place:]) - len(structure[place:].lstrip())
      raise mistake(
        structure, place, 'expected a block, such as NAME(1,2,3), with numbers'
      )
    name, start = match['name'], match.start('name')
    if name not in signatures:
      raise mistake(
        structure, start, f'no block {name!r}; {nearest(name, signatures)}'
      )
    numbers = _numbers(structure, match, signatures[name].split())
    inputs = numbers.setdefault('inputs', channels)
    numbers.setdefault('outputs', inputs * numbers.get('size', 1) ** 2)
    if blocks and inputs != channels:
      raise mistake(
        structure,
        start,
        f'{name} takes {inputs} channels, but {blocks[-1].name} before it '
        f'gives {channels}',
      )
    blocks.append(Block(name, start, **numbers))
    place, channels = match.end(), blocks[-1].outputs
  return tuple(blocks)


def _numbers(structure, match, fields):
  """Field -> number, of one block."""
  name, place = match['name'], match.start('numbers')
  words = match['numbers'].split(',')
  if len(words) != len(fields):
    raise mistake(
      structure,
      place,
      f'{name} takes {len(fields)} numbers ({", ".join(fields)}), '
      f'here are {len(words)}',
    )
  numbers = {}
  for field, word in zip(fields, words, strict=True):
    kind, least = (float, 0) if field == 'expansion' else (int, 1)
    least = 0 if field in ('bias', 'label') else least
    try:
      number = kind(word)
    except ValueError:
      number = -1
    if number < least:
      wanted = 'a number' if kind is float else f'a whole number from {least}'
      raise mistake(
        structure, place, f'{field} of {name} must be {wanted}, not {word!r}'
      )
    numbers[field] = number
    place += len(word) + 1
  return numbers


def mistake(structure: str, place: int, message: str) -> UserError:
  """An error that shows the place in a structure string."""
  first = max(0, place - 32)
  shown = re.sub(r'\s', ' ', structure[first : place + 32])
  return UserError(
    f'structure, character {place}: {message}\n'
    f'  {shown}\n  {" " * (place - first)}^'
  )


class Conv(NamedTuple):
  """A convolution of a unit, in the order of `ConvNorm`'s fields."""

  features: int
  kernel_size: int = 1
  stride: int = 1
  depthwise: bool = False


class Unit(NamedTuple):
  """The sizes of a residual unit.

  Attributes:
    convs: its convolutions.
    project: whether the shortcut is a 1x1 convolution.
    squeezed: of a squeeze-and-excitation before the last convolution; 0: none.
    silent: the last norm's scale starts at zero.
    residual: whether there is a shortcut at all.
  """

  convs: tuple[Conv, ...]
  project: bool = False
  squeezed: int = 0
  silent: bool = False
  residual: bool = True


class ResidualUnit(nn.Module):
  """relu(shortcut(x) + branch(x)), or relu(branch(x)).

  The branch is convolutions with norms, and ReLUs between them; the shortcut
  the identity, or a 1x1 convolution with a norm. The sum before the last ReLU
  is sown as `sum`.

  Attributes:
    plan: sizes.
    norm: after each convolution; None for none.
    bias: of the branch's convolutions.
    projection_bias: of the shortcut's.
    kernel_init: of all of them.
    dtype: compute dtype.
  """

  plan: Unit
  norm: Any = BatchNorm
  bias: bool = False
  projection_bias: bool = False
  kernel_init: Any = KAIMING_OUT
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    plan, y, stride = self.plan, x, 1
    common = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    for i, sizes in enumerate(plan.convs, 1):
      last, norm = i == len(plan.convs), self.norm
      if last and plan.squeezed:
        y = SqueezeExcite(
          plan.squeezed, bias=self.bias, norm=norm, name='se', **common
        )(y, train)
      if last and plan.silent and norm is not None:
        norm = functools.partial(norm, scale_init=nn.initializers.zeros)
      y = ConvNorm(
        *sizes,
        activation=None if last else nn.relu,
        bias=self.bias,
        norm=norm,
        name=f'conv{i}',
        **common,
      )(y, train)
      stride *= sizes.stride
    if plan.residual:
      if plan.project:
        x = ConvNorm(
          y.shape[-1],
          1,
          stride,
          bias=self.projection_bias,
          norm=self.norm,
          name='shortcut',
          **common,
        )(x, train)
      y = x + y
    self.sow('intermediates', 'sum', y)
    return nn.relu(y)


class Layer(nn.Module):
  """Residual units one after the other, `unit0`, `unit1`, ..."""

  units: tuple[Unit, ...]
  make_unit: Callable[..., nn.Module] = ResidualUnit

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    for i, plan in enumerate(self.units):
      x = self.make_unit(plan, name=f'unit{i}')(x, train)
    return x


class SuperBlock(nn.Module):
  """Layers of which all but the first are equal.

  The first lies under `first`; the others under `block_0`, `block_1`, ... or,
  scanned, stacked under `blocks`.

  Attributes:
    layers: the units of each.
    make_unit: makes a unit of its sizes and `name`.
    scan: compile the equal layers once.
    remat: as in `layers/transformer.py`, per layer.
  """

  layers: tuple[tuple[Unit, ...], ...]
  make_unit: Callable[..., nn.Module] = ResidualUnit
  scan: bool = False
  remat: str = 'none'

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 o']:
    layer = Layer
    if self.remat != 'none':
      layer = nn.remat(
        Layer,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(2,),
      )
    first, *rest = self.layers
    x = layer(first, self.make_unit, name='first')(x, train)
    if not self.scan or not rest:
      for i, units in enumerate(rest):
        x = layer(units, self.make_unit, name=f'block_{i}')(x, train)
      return x
    x, _ = nn.scan(
      lambda module, carry, _: (module(carry, train), None),
      variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
      split_rngs={'params': True},
      length=len(rest),
    )(layer(rest[0], self.make_unit, name='blocks'), x, None)
    return x


def layer_names(count: int) -> list[str]:
  """Of the layers of a super block, unrolled."""
  return ['first', *(f'block_{i}' for i in range(count - 1))]


def last_maps(
  maps: list[tuple[int, Float[Array, 'b h w c']]],
) -> dict[str, Float[Array, 'b h w c']]:
  """[(stride, map), ...] -> 'stage1', ...: the last map of each stride."""
  kept = [
    x
    for (stride, x), after in itertools.zip_longest(maps, maps[1:])
    if after is None or after[0] != stride
  ]
  return {f'stage{i}': x for i, x in enumerate(kept, 1)}


def conv_norm_rows(
  conv: str, norm: str, ours: str, *, bias: bool = False, normed: bool = True
) -> list[Row]:
  """The rows of a `ConvNorm`."""
  rows = to.conv(conv, f'{ours}/conv', bias=bias)
  return rows + (to.batch_norm(norm, f'{ours}/bn') if normed else [])


def fold(module: nn.Module, variables: Mapping) -> tuple[nn.Module, dict]:
  """The network without its batch norms: they become part of convolutions.

  Inference gives the same up to rounding, in fewer and smaller programs.

  Args:
    module: a GENet or a ZenNet, not `folded`.
    variables: of it.

  Returns:
    (the folded module, its variables).
  """
  return module.clone(folded=True), fold_batch_norms(variables, module.epsilon)


def built(
  module: nn.Module,
  rows: Callable[[nn.Module], list[Row]],
  *,
  image_size: tuple[int, int],
  in_chans: int,
  stem: str,
) -> Built:
  """`backbone.built`, of a module that may be `folded`.

  A folded network loads the state dicts of both, and folds what it must.
  """
  own = rows(module)
  options = dict(image_size=image_size, in_chans=in_chans, stem=stem)
  made = backbone.built(module, own, **options)
  if not module.folded:
    return made
  plain = rows(module.clone(folded=False))

  def adapt(flat):
    return layout.flatten(
      fold_batch_norms(layout.unflatten(flat), module.epsilon)
    )

  both = {row.theirs: row for row in (*plain, *own)}.values()
  folding = backbone.built(module, both, adapt=adapt, **options)
  return made._replace(convert=folding.convert)
