"""STViT-R: a Swin Transformer whose third stage thinks in semantic tokens.

Chang et al., arXiv 2303.08685 (CVPR 2023). Every six blocks of that stage, 36
tokens take the place of 196 for four blocks, and give back to them in the last
(`stvit_block.SemanticUnit`). Parameter names of the checkpoints are those of
changsn/STViT-R, and of changsn/STViT-R-Object-Detection.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import backbone, swin, swin_names
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.backbones.stvit_block import MASKS, WINDOW, SemanticUnit
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, global_pool
from jaxzoo.models.layers.drop_path import drop_path_rates
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = swin.SHARDING

PUBLISHED = {
  'STViT-R-Swin-T': swin.PUBLISHED['Swin-T'] | dict(drop_path=0.2),
  'STViT-R-Swin-S': swin.PUBLISHED['Swin-S'] | dict(drop_path=0.3),
  'STViT-R-Swin-B': swin.PUBLISHED['Swin-B'] | dict(drop_path=0.4),
}

SEMANTIC = 2  # the stage of the semantic tokens, from 0
UNIT = ('regular', 'generate1', 'generate2', 'local', 'global', 'recover')


class ConvStem(nn.Module):
  """Two 3x3 convolutions of stride 2, each with a norm and hard swish.

  An image that patches of 4 do not fit is filled up with zeros.
  """

  width: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h4 w4 o']:
    x = swin.fill(image, 4)
    for i, features in enumerate((self.width // 2, self.width)):
      x = conv(
        features,
        3,
        2,
        kernel_init=TORCH_DEFAULT,
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      x = nn.hard_swish(BatchNorm(dtype=self.dtype, name=f'bn{i}')(x, train))
    return x


class SemanticStage(nn.Module):
  """Units of six blocks at one resolution, `block_0`, ... or scanned `blocks`.

  Attributes:
    num_heads: see `SemanticUnit`, as `dense`, `mask`, `shortcut`,
      `relative_pos`, `layer_scale`, `epsilon`, `dtype`.
    use_global: of the first unit, which then differs from the others: no scan.
    scan: compile one unit for all.
    remat: as in `layers/transformer.py`, per unit.
  """

  num_heads: int
  dense: bool = False
  mask: str = 'clean'
  shortcut: bool = False
  use_global: bool = False
  relative_pos: bool = False
  layer_scale: float | None = 1e-5
  epsilon: float = 1e-5
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], rates, train: bool = False
  ) -> Float[Array, 'b h w c']:
    """The map after the units; `rates` of the six blocks of each."""
    scan = self.scan and not self.use_global and len(rates) > 1
    unit = SemanticUnit
    if self.remat != 'none':
      # Rates that are scanned over are no constants.
      traced = scan and train and any(map(any, rates))
      unit = nn.remat(
        SemanticUnit,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not scan,
        static_argnums=(2,) if traced else (2, 3),
      )
    make = lambda name: unit(
      self.num_heads,
      self.dense,
      self.mask,
      self.shortcut,
      self.use_global and name == 'block_0',
      self.relative_pos,
      self.layer_scale,
      self.epsilon,
      self.dtype,
      name=name,
    )
    return stack(make, x, rates, train, scan=scan)


class STViT(nn.Module):
  """STViT-R on Swin; maps are taken after the last block of each stage, before
  its merging.

  In the form for dense prediction (`dense`) images have any size and every map
  goes through a norm of its own, that of the last the classifier's. The two
  forms share parameters, not the function: see `SemanticUnit`.

  Attributes:
    width: channels of the first stage; each further one has twice as many.
    depths: blocks of each stage; 2 n, those of the third 6 n.
    num_heads: of each stage.
    window: 7; no other is published.
    dense: the form for dense prediction.
    mask: there, which zeros the semantic tokens see: 'clean', none; or
      'published', as the released code has it; see `stvit_block.seen_places`.
    shortcut: see `SemanticUnit`, as `use_global`, `relative_pos`.
    layer_scale: what the scales of the semantic blocks start from.
    epsilon: of the norms.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of the last block; it rises linearly from 0.
    scan: compile one pair of blocks, or unit of six, of each stage.
    remat: as in `layers/transformer.py`.
    dtype: compute dtype.
  """

  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  window: int = WINDOW
  dense: bool = False
  mask: str = 'clean'
  shortcut: bool = False
  use_global: bool = False
  relative_pos: bool = False
  layer_scale: float = 1e-5
  epsilon: float = 1e-5
  num_classes: int = 1000
  features_only: bool = False
  drop_path: float = 0.0
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    _check(self)
    self.head = nn.Dense(self.num_classes, kernel_init=swin.INIT)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 4, 8, 16, 32, and the mean of the normalised last.

    Raises:
      UserError: images of another size than 224, unless `dense`.
    """
    if not self.dense:
      _check_size(image.shape[1:3])
    x = ConvStem(self.width, self.dtype, name='patch_embed')(
      image.astype(self.dtype), train
    )
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    last, maps = len(self.depths) - 1, {}
    for i, rates in enumerate(self._rates()):
      x = self._stage(i, x.shape[1:3])(x, rates, train)
      name = f'stage{i + 1}'
      if i == last:
        normed = norm('norm')(x)
        maps[name] = normed if self.dense else x
        break
      maps[name] = norm(f'norm{i + 1}')(x) if self.dense else x
      x = swin.PatchMerging(
        2 * x.shape[-1], self.epsilon, dtype=self.dtype, name=f'merge{i + 1}'
      )(x)
    return Features(maps, global_pool(normed))

  def _stage(self, i, size):
    shared = dict(
      epsilon=self.epsilon,
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
      name=f'stage{i + 1}',
    )
    if i == SEMANTIC:
      return SemanticStage(
        self.num_heads[i],
        self.dense,
        self.mask,
        self.shortcut,
        self.use_global,
        self.relative_pos,
        self.layer_scale,
        **shared,
      )
    window, shift = swin.fit_window(size, self.window, fixed=self.dense)
    return swin.Stage(self.num_heads[i], window, shift, **shared)

  def _rates(self):
    """Of the stochastic depth: of each stage its pairs, or its units of six."""
    rates = [
      round(rate, 9)
      for rate in drop_path_rates(self.drop_path, sum(self.depths))
    ]
    for i, depth in enumerate(self.depths):
      own, rates = rates[:depth], rates[depth:]
      n = len(UNIT) if i == SEMANTIC else 2
      yield [tuple(own[j : j + n]) for j in range(0, depth, n)]

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(jnp.float32))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


def _check(module):
  """Raises a UserError where the fields of a network do not go together."""
  for i, depth in enumerate(module.depths):
    n = len(UNIT) if i == SEMANTIC else 2
    if depth % n:
      raise UserError(
        f'depths={tuple(module.depths)}: that of stage {i + 1} must be a '
        f'multiple of {n}'
      )
  if module.window != WINDOW:
    raise UserError(f'window={module.window}: STViT-R has windows of {WINDOW}')
  if module.mask not in MASKS:
    raise UserError(
      f'mask={module.mask!r} is not one of {", ".join(MASKS)}; '
      + nearest(module.mask, MASKS)
    )
  for name in ('use_global', 'relative_pos'):
    if module.dense and getattr(module, name):
      raise UserError(
        f'{name}=True is made for 36 semantic tokens, which dense=True does '
        'not always have: leave out one of the two'
      )


def _check_size(size):
  side = 16 * 2 * WINDOW
  if tuple(size) != (side, side):
    raise UserError(
      f'STViT-R classifies images of {side} x {side}, got '
      f'{size[0]} x {size[1]}: resize them, or take dense=True, which has the '
      'same parameters for images of any size'
    )


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
  """A published STViT-R, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `STViT`, or fields that do not
      go together.
  """
  del text_length
  module = backbone.make_module(
    STViT,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  _check(module)
  if not module.dense:
    _check_size(image_size)
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/patch_embed/conv0/kernel',
    canonical=lambda state_dict: canonical(state_dict, dense=module.dense),
  )


def rows(module: STViT) -> list[Row]:
  """The names of changsn/STViT-R; of the dense form those of its detectors."""
  found = []
  for i in range(2):
    found += to.conv(f'patch_embed.proj.{2 * i}.c', f'patch_embed/conv{i}')
    found += to.batch_norm(f'patch_embed.proj.{2 * i}.bn', f'patch_embed/bn{i}')
  last = len(module.depths) - 1
  for i, (depth, heads) in enumerate(
    zip(module.depths, module.num_heads, strict=True)
  ):
    theirs, ours = f'layers.{i}', f'stage{i + 1}'
    for j in range(depth):
      place = f'{theirs}.blocks.{j}'
      if i != SEMANTIC:
        name = f'{ours}/block_{j // 2}/{("regular", "shifted")[j % 2]}'
        found += swin_names.block_rows(place, name, heads)
        continue
      unit, n = divmod(j, len(UNIT))
      name = f'{ours}/block_{unit}/{UNIT[n]}'
      if n == 0:
        found += swin_names.block_rows(place, name, heads)
      else:
        biased = module.relative_pos and UNIT[n] in ('local', 'global')
        found += cross_rows(place, name, heads, scaled=True, biased=biased)
    if i < last:
      found += swin_names.merging_rows(f'{theirs}.downsample', f'merge{i + 1}')
    if module.dense:
      found += to.norm(f'norm{i}', 'norm' if i == last else f'norm{i + 1}')
  if module.use_global:
    shape = (-1, module.width * 2**SEMANTIC)
    found += to.tensor(
      f'layers.{SEMANTIC}.semantic_token2',
      f'stage{SEMANTIC + 1}/block_0/semantic_token',
      to.reshaped((1, *shape), shape),
    )
  if not module.dense:
    found += to.norm('norm', 'norm')
  return found + to.linear('head', 'head')


def cross_rows(
  theirs: str, ours: str, num_heads: int, *, scaled: bool, biased: bool = False
) -> list[Row]:
  """Of a `CrossBlock`."""
  attn = f'{theirs}.attn'
  found = [
    *to.norm(f'{theirs}.norm1', f'{ours}/norm1'),
    *to.projections(f'{attn}.q', f'{ours}/attn', ('query',), num_heads),
    *to.projections(f'{attn}.kv', f'{ours}/attn', ('key', 'value'), num_heads),
    *to.from_heads(f'{attn}.proj', f'{ours}/attn/out', num_heads),
    *to.norm(f'{theirs}.norm2', f'{ours}/norm2'),
    *to.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
  ]
  for name in ('layer_scale_1', 'layer_scale_2') if scaled else ():
    found += to.tensor(f'{theirs}.{name}', f'{ours}/{name}')
  if biased:
    table = f'{attn}.relative_position_bias_table'
    found += to.tensor(table, f'{ours}/position_bias/table')
  return found


def canonical(state_dict, *, dense: bool) -> dict:
  """The names of one form for the other, and detectors' without `backbone.`.

  The classifier's norm is the last one of the dense form; the norms of its
  other maps the classifier does not have.
  """
  prefix = 'backbone.'
  if any(name.startswith(prefix) for name in state_dict):
    state_dict = {
      name.removeprefix(prefix): value
      for name, value in state_dict.items()
      if name.startswith(prefix)
    }
  has_own = any(name.startswith('norm3.') for name in state_dict)
  renamed = {}
  for name, value in state_dict.items():
    first, _, leaf = name.partition('.')
    if dense and first == 'norm' and not has_own:
      name = f'norm3.{leaf}'
    elif not dense and first == 'norm3':
      name = f'norm.{leaf}'
    elif not dense and first in ('norm0', 'norm1', 'norm2'):
      continue
    renamed[name] = value
  return renamed
