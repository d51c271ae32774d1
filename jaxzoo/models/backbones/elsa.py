"""ELSA-Swin: Swin Transformer with attention over each pixel's neighbourhood.

Zhou et al., arXiv 2112.12786. `layers/elsa.py` has the operator. The first
stages have it in every block, without windows; the last is Swin's. Parameter
names of the checkpoints are those of damo-cv/ELSA. Its window attention orders
its projections value, query, key, and its table of positions goes by key minus
query: by Swin's order with all rows reversed, which is how it is kept here.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.backbones import backbone, swin, swin_names
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.backbones.swin import (
  INIT,
  PatchEmbedding,
  PatchMerging,
  Stage,
  check_depths,
  fit_window,
  make_mlp,
  stage_rates,
  stage_windows,
)
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.models.layers.elsa import Elsa
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Form, Row

# Ghost heads and what takes the heads' channels follow the heads.
SHARDING = (
  *swin.SHARDING,
  (r'attn/attn_taps/kernel$', (None, 'tensor')),
  (r'attn/ghost_(mul|add)$', ('tensor', None)),
  (r'attn/post_proj/kernel$', ('tensor', None)),
)

PUBLISHED = {
  'ELSA-Swin-T': dict(
    width=96,
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 24),
    group_width=4,
    drop_path=0.1,
  ),
  'ELSA-Swin-S': dict(
    width=96,
    depths=(2, 2, 18, 2),
    num_heads=(3, 6, 12, 24),
    group_width=8,
    drop_path=0.3,
  ),
  'ELSA-Swin-B': dict(
    width=128,
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    group_width=8,
    drop_path=0.5,
  ),
}


class ElsaBlock(nn.Module):
  """x += DropPath(ELSA(LN1 x)); x += DropPath(MLP(LN2 x)).

  Fields are those of `Elsa` and of `SwinBlock`.
  """

  num_heads: int
  kernel_size: int = 7
  group_width: int = 8
  qk_scale: float = 1.0
  lam: float = 0.0
  gamma: float = 1.0
  mlp_ratio: float = 4.0
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False, rate=0.0
  ) -> Float[Array, 'b h w c']:
    """A map of the same size; `rate` is that of its stochastic depth."""
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    y = Elsa(
      self.num_heads,
      self.kernel_size,
      group_width=self.group_width,
      qk_scale=self.qk_scale,
      lam=self.lam,
      gamma=self.gamma,
      dtype=self.dtype,
      name='attn',
    )(norm('norm1')(x))
    x = x + DropPath()(y, train, rate)
    y = make_mlp(x.shape[-1], self.mlp_ratio, self.dtype)(norm('norm2')(x))
    return x + DropPath()(y, train, rate)


class ElsaStage(nn.Module):
  """Blocks at one resolution, `block_0`, ... or scanned `blocks`."""

  num_heads: int
  kernel_size: int
  group_width: int
  qk_scale: float
  lam: float
  gamma: float
  mlp_ratio: float
  epsilon: float
  scan: bool
  remat: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], rates, train: bool = False
  ) -> Float[Array, 'b h w c']:
    scanned = self.scan and len(rates) > 1
    block = ElsaBlock
    if self.remat != 'none':
      block = nn.remat(
        ElsaBlock,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not scanned,
        static_argnums=(2,) if scanned else (2, 3),
      )
    make = lambda name: block(
      self.num_heads,
      self.kernel_size,
      self.group_width,
      self.qk_scale,
      self.lam,
      self.gamma,
      self.mlp_ratio,
      self.epsilon,
      self.dtype,
      name=name,
    )
    return stack(make, x, rates, train, scan=self.scan)


class ElsaSwin(nn.Module):
  """ELSA-Swin; maps are taken after the last block of each stage.

  Attributes:
    width: channels of the first stage; each further one has twice as many.
    depths: blocks of each stage, even.
    num_heads: of each stage.
    kernel_size: side of the neighbourhoods, as the fields that follow those of
      `Elsa`.
    window: side of the windows of the last stage.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of the last block; it rises linearly from 0.
    scan: stages of more than two blocks compile one of them (of the last
      stage, one pair).
    remat: as in `layers/transformer.py`, per block.
    dtype: compute dtype.
  """

  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  kernel_size: int = 7
  group_width: int = 8
  qk_scale: float = 1.0
  lam: float = 0.0
  gamma: float = 1.0
  window: int = 7
  mlp_ratio: float = 4.0
  patch_size: int = 4
  epsilon: float = 1e-5
  num_classes: int = 1000
  features_only: bool = False
  drop_path: float = 0.0
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  # All maps but the last are free of windows, so none needs filling up.
  fixed_windows = False

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
    *local, last = stage_rates(self.drop_path, self.depths)
    maps = {}
    for i, rates in enumerate(local):
      x = ElsaStage(
        self.num_heads[i],
        self.kernel_size,
        self.group_width,
        self.qk_scale,
        self.lam,
        self.gamma,
        self.mlp_ratio,
        self.epsilon,
        self.scan,
        self.remat,
        self.dtype,
        name=f'stage{i + 1}',
      )(x, [rate for pair in rates for rate in pair], train)
      maps[f'stage{i + 1}'] = x
      x = PatchMerging(
        2 * x.shape[-1], self.epsilon, dtype=self.dtype, name=f'merge{i + 1}'
      )(x)
    stage = len(self.depths)
    x = Stage(
      self.num_heads[-1],
      *fit_window(x.shape[1:3], self.window),
      self.mlp_ratio,
      self.epsilon,
      self.scan,
      self.remat,
      self.dtype,
      name=f'stage{stage}',
    )(x, last, train)
    maps[f'stage{stage}'] = x
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    self.sow('intermediates', 'normed', x)
    return Features(maps, x.mean((1, 2), dtype=jnp.float32).astype(x.dtype))

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
  """A published ELSA-Swin, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `ElsaSwin`, or an odd depth.
  """
  del text_length
  module = backbone.make_module(
    ElsaSwin,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  check_depths(module.depths)
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/patch_embed/proj/kernel',
    adapt=functools.partial(
      swin_names.resize_tables, windows=stage_windows(module, image_size)
    ),
  )


# [heads, rows], key minus query <-> [rows, heads], query minus key.
_REVERSED = Form(lambda x: x[:, ::-1].T, lambda x: x.T[:, ::-1])


def rows(module: ElsaSwin) -> list[Row]:
  """damo-cv/ELSA's names."""
  found = [
    *to.conv('patch_embed.proj', 'patch_embed/proj', bias=True),
    *to.norm('patch_embed.norm', 'patch_embed/norm'),
  ]
  last = len(module.depths) - 1
  for i, depth in enumerate(module.depths):
    for j in range(depth):
      theirs, ours = f'layers.{i}.blocks.{j}', f'stage{i + 1}/block_{j}'
      if i == last:
        ours = f'stage{i + 1}/{swin_names.block_path(j)}'
        found += _window_rows(theirs, ours, module.num_heads[i])
      else:
        found += layer_rows(
          f'{theirs}.attn.', f'{ours}/attn', module.lam, module.gamma
        )
      found += swin_names.shared_rows(theirs, ours)
    if i < last:
      found += swin_names.merging_rows(
        f'layers.{i}.downsample', f'merge{i + 1}'
      )
  return [*found, *to.norm('norm', 'norm'), *to.linear('head', 'head')]


def layer_rows(theirs: str, ours: str, lam: float, gamma: float) -> list[Row]:
  """Of an `Elsa`; `theirs` is a prefix with its dot."""
  found = [
    *to.pointwise(f'{theirs}pre_proj', f'{ours}/pre_proj'),
    *to.conv(f'{theirs}attn.0', f'{ours}/attn_conv', bias=True),
    *to.pointwise(f'{theirs}attn.2', f'{ours}/attn_taps'),
    *to.linear(f'{theirs}post_proj', f'{ours}/post_proj'),
  ]
  leaves = ['ghost_mul'] * bool(lam) + ['ghost_add'] * bool(gamma)
  paths = tuple(f'params/{ours}/{leaf}' for leaf in leaves)
  # [1, c, k, k]; of both kinds [2, 1, c, k, k].
  if len(paths) == 2:
    found.append(Row(f'{theirs}ghost_head', paths, _GHOSTS))
  elif paths:
    found.append(Row(f'{theirs}ghost_head', paths[0], _GHOST))
  return found


def _kernels(x):
  side = round(x.shape[-1] ** 0.5)
  return x.reshape(1, x.shape[0], side, side)


_GHOST = Form(lambda x: x.reshape(x.shape[-3], -1), _kernels)
_GHOSTS = Form(_GHOST.load, lambda x: _kernels(x)[None])


def _window_rows(theirs, ours, heads):
  return [
    *to.tensor(f'{theirs}.attn.rb', f'{ours}/position_bias/table', _REVERSED),
    *to.projections(
      f'{theirs}.attn.pre_proj',
      f'{ours}/attn',
      ('value', 'query', 'key'),
      heads,
    ),
    *to.from_heads(f'{theirs}.attn.post_proj', f'{ours}/attn/out', heads),
  ]
