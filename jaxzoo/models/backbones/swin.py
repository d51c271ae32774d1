"""Swin Transformer: attention within windows that shift from block to block.

Liu et al., arXiv 2103.14030 (ICCV 2021). The parts are made for the networks
that descend from it, too: `SwinBlock`, `PatchEmbedding`, `PatchMerging`.
Parameter names of the checkpoints are those of microsoft/Swin-Transformer;
`canonical` brings other spellings to them.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import backbone, swin_names
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers import windows
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, uniform_bias
from jaxzoo.models.layers.drop_path import DropPath, drop_path_rates
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import (
  REMAT_POLICIES,
  Attention,
  Mlp,
)

SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/(query|key|value)/bias$', ('tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'position_bias/table$', (None, 'tensor')),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'(^|/)head/kernel$', (None, 'tensor')),
)

_T = dict(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24))
_S = dict(width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24))
_B = dict(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
_L = dict(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
PUBLISHED = {
  'Swin-T': dict(_T, window=7, drop_path=0.2),
  'Swin-S': dict(_S, window=7, drop_path=0.3),
  'Swin-B': dict(_B, window=7, drop_path=0.5),
  'Swin-B/384': dict(_B, window=12, drop_path=0.5),
  'Swin-L': dict(_L, window=7, drop_path=0.2),
  'Swin-L/384': dict(_L, window=12, drop_path=0.2),
}

# "Truncated normal" of the released code cuts at 100 standard deviations.
INIT = nn.initializers.normal(0.02)


def fit_window(
  size: tuple[int, int], window: int, *, fixed: bool = False
) -> tuple[int, int]:
  """Side of the windows of a map, and the shift of every second block.

  A map that is no larger than a window is one window as small as its shorter
  side, and not shifted. Networks for dense prediction have `fixed` windows:
  they fill small maps up, and shift always.
  """
  if not fixed and min(size) <= window:
    return min(size), 0
  return window, window // 2


class SwinBlock(nn.Module):
  """x += DropPath(W(LN1 x)); x += DropPath(MLP(LN2 x)).

  W is attention within windows, with a learned bias for each offset between two
  tokens. Where windows do not fit the map, it is filled up with zeros after the
  norm; the filled places are seen like others, as in the released code.

  Attributes:
    num_heads: of the attention.
    window: side of the windows.
    shift: of the windows, down and to the right.
    mlp_ratio: width of the MLP over that of the map.
    epsilon: of the norms.
    dtype: compute dtype.
  """

  num_heads: int
  window: int = 7
  shift: int = 0
  mlp_ratio: float = 4.0
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False, rate=0.0
  ) -> Float[Array, 'b h w c']:
    """A map of the same size; `rate` is that of its stochastic depth."""
    size = x.shape[1:3]
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    bias = windows.RelativePositionBias(
      self.window, self.num_heads, name='position_bias'
    )()
    mask = windows.shift_mask(size, self.window, self.shift)
    y = windows.partition(norm('norm1')(x), self.window, self.shift)
    y = Attention(self.num_heads, INIT, INIT, self.dtype, name='attn')(
      y, bias=windows.with_mask(bias, mask)
    )
    y = windows.reverse(y, self.window, size, self.shift)
    x = x + DropPath()(y, train, rate)
    y = make_mlp(x.shape[-1], self.mlp_ratio, self.dtype)(norm('norm2')(x))
    return x + DropPath()(y, train, rate)


def make_mlp(width: int, ratio: float, dtype: Any) -> Mlp:
  """`mlp` of the calling block: fc2(GELU(fc1 x))."""
  return Mlp(int(ratio * width), gelu, INIT, INIT, dtype, name='mlp')


class BlockPair(nn.Module):
  """A block with `regular` windows, then one whose windows are `shifted`.

  The two differ in constants of the program, so that a pair, not a block, is
  what a scan repeats. Fields are those of `SwinBlock`; `remat` as in
  `layers/transformer.py`, per block.
  """

  num_heads: int
  window: int
  shift: int
  mlp_ratio: float = 4.0
  epsilon: float = 1e-5
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False, rates=(0.0, 0.0)
  ) -> Float[Array, 'b h w c']:
    block = SwinBlock
    if self.remat != 'none':
      known = (2,) if isinstance(rates[0], jnp.ndarray) else (2, 3)
      block = nn.remat(
        SwinBlock, policy=REMAT_POLICIES[self.remat], static_argnums=known
      )
    plan = (('regular', 0), ('shifted', self.shift))
    for i, (name, shift) in enumerate(plan):
      x = block(
        self.num_heads,
        self.window,
        shift,
        self.mlp_ratio,
        self.epsilon,
        self.dtype,
        name=name,
      )(x, train, rates[i])
    return x


class PatchEmbedding(nn.Module):
  """LN(convolution of size and stride `patch`), [b, ceil(h/p), ceil(w/p), c].

  Images that patches do not fit are filled up with zeros.
  """

  width: int
  patch: int = 4
  epsilon: float = 1e-5
  kernel_init: Any = TORCH_DEFAULT
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c']
  ) -> Float[Array, 'b h2 w2 o']:
    x = fill(image.astype(self.dtype or image.dtype), self.patch)
    fan_in = self.patch**2 * x.shape[-1]
    x = conv(
      self.width,
      self.patch,
      self.patch,
      padding=0,
      bias=True,
      kernel_init=self.kernel_init,
      bias_init=uniform_bias(fan_in),
      dtype=self.dtype,
      name='proj',
    )(x)
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)


class PatchMerging(nn.Module):
  """W LN([x(0,0), x(1,0), x(0,1), x(1,1)]): half the map, `features` wide.

  Rows come first in the order of a 2x2 neighbourhood. Maps of odd size are
  filled up with zeros.
  """

  features: int
  epsilon: float = 1e-5
  kernel_init: Any = INIT
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h2 w2 o']:
    x = fill(x, 2)
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 4, 2, 5)
    x = x.reshape(b, h // 2, w // 2, 4 * c)
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return nn.Dense(
      self.features,
      use_bias=False,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      name='reduction',
    )(x)


def fill(
  x: Float[Array, 'b h w c'], multiple: int
) -> Float[Array, 'b h2 w2 c']:
  """Zeros at the bottom and on the right, up to multiples."""
  down, right = -x.shape[1] % multiple, -x.shape[2] % multiple
  if down or right:
    x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
  return x


class Swin(nn.Module):
  """A Swin Transformer; maps are taken after the last block of each stage,
  before its merging. Images may have any size.

  Attributes:
    width: channels of the first stage; each further one has twice as many.
    depths: blocks of each stage, even: regular and shifted ones alternate.
    num_heads: of each stage.
    window: side of the windows.
    fixed_windows: see `fit_window`; the released classifiers have False, their
      offspring for dense prediction True.
    norm_maps: a LayerNorm on every map, as for dense prediction; that of the
      last is the classifier's.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of the last block; it rises linearly from 0.
    scan: stages of more than two blocks compile one pair of them.
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype.
  """

  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  window: int = 7
  mlp_ratio: float = 4.0
  patch_size: int = 4
  epsilon: float = 1e-5
  fixed_windows: bool = False
  norm_maps: bool = False
  num_classes: int = 1000
  features_only: bool = False
  drop_path: float = 0.0
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    check_depths(self.depths)
    self.head = nn.Dense(self.num_classes, kernel_init=INIT)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 4, 8, 16, 32, and the mean of the normalised last."""
    x = PatchEmbedding(
      self.width,
      self.patch_size,
      self.epsilon,
      dtype=self.dtype,
      name='patch_embed',
    )(image)
    self.sow('intermediates', 'embedded', x)
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    last, maps = len(self.depths) - 1, {}
    for i, rates in enumerate(stage_rates(self.drop_path, self.depths)):
      window, shift = fit_window(
        x.shape[1:3], self.window, fixed=self.fixed_windows
      )
      x = Stage(
        self.num_heads[i],
        window,
        shift,
        self.mlp_ratio,
        self.epsilon,
        self.scan,
        self.remat,
        self.dtype,
        name=f'stage{i + 1}',
      )(x, rates, train)
      if i == last:
        normed = norm('norm')(x)
        maps[f'stage{i + 1}'] = normed if self.norm_maps else x
        break
      maps[f'stage{i + 1}'] = norm(f'norm{i + 1}')(x) if self.norm_maps else x
      x = PatchMerging(
        2 * x.shape[-1], self.epsilon, dtype=self.dtype, name=f'merge{i + 1}'
      )(x)
    self.sow('intermediates', 'normed', normed)
    vector = normed.mean((1, 2), dtype=jnp.float32).astype(normed.dtype)
    return Features(maps, vector)

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(jnp.float32))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


class Stage(nn.Module):
  """Pairs of blocks at one resolution, `block_0`, ... or scanned `blocks`.

  Fields as in `BlockPair`.
  """

  num_heads: int
  window: int
  shift: int
  mlp_ratio: float = 4.0
  epsilon: float = 1e-5
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], rates, train: bool = False
  ) -> Float[Array, 'b h w c']:
    """The map after the blocks; `rates` of pairs, see `stage_rates`."""
    pair = lambda name: BlockPair(
      self.num_heads,
      self.window,
      self.shift,
      self.mlp_ratio,
      self.epsilon,
      self.remat,
      self.dtype,
      name=name,
    )
    return stack(pair, x, rates, train, scan=self.scan)


def check_depths(depths: tuple[int, ...]) -> None:
  """Raises a UserError where blocks do not come in pairs."""
  if any(depth % 2 for depth in depths):
    raise UserError(
      f'depths={tuple(depths)}: each must be even, since blocks with regular '
      'and with shifted windows alternate'
    )


def stage_rates(
  maximum: float, depths: tuple[int, ...]
) -> list[list[tuple[float, float]]]:
  """Rates of the stochastic depth: of each stage the pairs of its blocks.

  >>> stage_rates(0.5, (2, 4))
  [[(0.0, 0.1)], [(0.2, 0.3), (0.4, 0.5)]]
  """
  rates = [round(x, 9) for x in drop_path_rates(maximum, sum(depths))]
  pairs = list(zip(rates[::2], rates[1::2], strict=True))
  ends = np.cumsum([0, *depths]) // 2
  return [pairs[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]


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
  """A published Swin Transformer, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `Swin`, or an odd depth.
  """
  del text_length
  module = backbone.make_module(
    Swin,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  check_depths(module.depths)
  sides = stage_windows(module, image_size)
  return backbone.built(
    module,
    swin_names.rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/patch_embed/proj/kernel',
    canonical=functools.partial(
      swin_names.canonical,
      stages=len(module.depths),
      norm_maps=module.norm_maps,
    ),
    adapt=functools.partial(swin_names.resize_tables, windows=sides),
  )


def stage_windows(module, image_size: tuple[int, int]) -> list[int]:
  """Sides of the windows of each stage, for images of this size."""
  size = tuple(-(-side // module.patch_size) for side in image_size)
  sides = []
  for _ in module.depths:
    sides.append(fit_window(size, module.window, fixed=module.fixed_windows)[0])
    size = tuple(-(-side // 2) for side in size)
  return sides
