"""Swin Transformer on the visible patches of masked images.

GreenMIM's encoder (arXiv 2205.13515, 3.2 and 3.3): what masks leave of the
windows is packed into groups of equal size that attend under a mask.
`window_groups.py` has what the host makes of a mask. Bias and mask of a group
are made once for all images under it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.backbones import swin
from jaxzoo.models.layers import windows
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import (
  REMAT_POLICIES,
  Attention,
  Mlp,
)
from jaxzoo.models.self_supervised import window_groups
from jaxzoo.models.self_supervised.window_groups import StagePlan

XAVIER = nn.initializers.xavier_uniform()
# Of a third of a matrix that is initialised as a whole: 6 / (w + 3 w).
XAVIER_QKV = nn.initializers.variance_scaling(0.5, 'fan_avg', 'uniform')
EPSILON = 1e-6


def xavier_patch(key, shape, dtype=jnp.float32):
  """Xavier uniform on a patch convolution taken as a matrix."""
  *inner, out = shape
  return XAVIER(key, (int(np.prod(inner)), out), dtype).reshape(shape)


class Groups(NamedTuple):
  """How the tokens of a stage attend.

  Attributes:
    order: token of each place of each group, [g, p].
    slots: place of each token, [n].
    index: row of the table of positions for each pair of places, [g, p, p].
    visible: which pairs see each other: those of tokens of one window.
  """

  order: Int[Array, 'g p']
  slots: Int[Array, ' n']
  index: Int[Array, 'g p p']
  visible: Bool[Array, 'g 1 p p']


def make_groups(
  keep: Int[Array, ' k'],
  grid: tuple[int, int],
  plan: StagePlan,
  shift: int,
  order: Int[Array, 'g p'] | None,
) -> Groups:
  """What a stage needs to know of a mask, once for all blocks and images.

  Args:
    keep: kept patches, increasing.
    grid: (rows, columns) of patches.
    plan: of the stage.
    shift: of the windows.
    order: from the host, -1 for empty places; None: one group of all tokens.
  """
  y, x = window_groups.coordinates(keep, grid[1], plan.side)
  ids = window_groups.window_ids(y, x, plan.window, shift, grid[1] * plan.side)
  if order is None:
    order = jnp.arange(len(y))[None]
  empty, tokens = order < 0, jnp.maximum(order, 0)
  slots = jnp.zeros(len(y), jnp.int32)
  slots = slots.at[jnp.where(empty, len(y), order).reshape(-1)].set(
    jnp.arange(order.size), mode='drop'
  )
  pairs = lambda a: (a[:, :, None], a[:, None, :])
  difference = lambda a: jnp.subtract(*pairs(jnp.asarray(a)[tokens]))
  query, key = pairs(jnp.where(empty, -1, jnp.asarray(ids)[tokens]))
  visible = (query == key) & (query >= 0)
  span = plan.window - 1
  index = (difference(y) + span) * (2 * span + 1) + difference(x) + span
  return Groups(tokens, slots, jnp.where(visible, index, 0), visible[:, None])


class GroupedBlock(nn.Module):
  """x += W(LN1 x); x += MLP(LN2 x): `SwinBlock` on tokens in groups.

  Attributes are those of `SwinBlock`, whose parameters it has.
  """

  num_heads: int
  window: int
  mlp_ratio: float = 4.0
  epsilon: float = EPSILON
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n c'], groups: Groups
  ) -> Float[Array, 'b n c']:
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    bias = windows.RelativePositionBias(
      self.window, self.num_heads, name='position_bias'
    )(groups.index)
    bias = jnp.where(groups.visible, bias, windows.MASKED)
    y = jnp.take(norm('norm1')(x), groups.order, axis=1)
    y = Attention(self.num_heads, XAVIER_QKV, XAVIER, self.dtype, name='attn')(
      y, bias=bias
    )
    y = y.reshape(len(y), -1, y.shape[-1])
    x = x + jnp.take(y, groups.slots, axis=1)
    return x + Mlp(
      int(self.mlp_ratio * x.shape[-1]),
      gelu,
      XAVIER,
      XAVIER,
      self.dtype,
      name='mlp',
    )(norm('norm2')(x))


class GroupedPair(nn.Module):
  """A block with regular and one with shifted windows, see `swin.BlockPair`."""

  num_heads: int
  window: int
  mlp_ratio: float
  epsilon: float
  remat: str
  dtype: Any

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n c'],
    train,
    rate,
    regular: Groups,
    shifted: Groups,
  ) -> Float[Array, 'b n c']:
    del train, rate  # nothing is dropped
    block = GroupedBlock
    if self.remat != 'none':
      block = nn.remat(GroupedBlock, policy=REMAT_POLICIES[self.remat])
    for name, groups in (('regular', regular), ('shifted', shifted)):
      x = block(
        self.num_heads,
        self.window,
        self.mlp_ratio,
        self.epsilon,
        self.dtype,
        name=name,
      )(x, groups)
    return x


class GroupedStage(nn.Module):
  """Pairs of blocks at one resolution, see `swin.Stage`."""

  depth: int
  num_heads: int
  window: int
  mlp_ratio: float
  epsilon: float
  scan: bool
  remat: str
  dtype: Any

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n c'], regular: Groups, shifted: Groups
  ) -> Float[Array, 'b n c']:
    pair = lambda name: GroupedPair(
      self.num_heads,
      self.window,
      self.mlp_ratio,
      self.epsilon,
      self.remat,
      self.dtype,
      name=name,
    )
    rates = self.depth // 2 * [0.0]
    return stack(pair, x, rates, False, regular, shifted, scan=self.scan)


class GroupedSwin(nn.Module):
  """Swin's encoder on the visible patches of images.

  Fields and parameters are those of `swin.Swin` without its classifier; the
  epsilon of the norms is smaller.
  """

  width: int
  depths: tuple[int, ...]
  num_heads: tuple[int, ...]
  window: int = 7
  mlp_ratio: float = 4.0
  patch_size: int = 4
  epsilon: float = EPSILON
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @property
  def unit(self) -> int:
    """Side in pixels of what is masked: a token of the last stage."""
    return self.patch_size * 2 ** (len(self.depths) - 1)

  @property
  def output_width(self) -> int:
    """Channels of the last stage."""
    return self.width * 2 ** (len(self.depths) - 1)

  def plans(self, grid: tuple[int, int], kept: int) -> tuple[StagePlan, ...]:
    """Of the stages, for `kept` patches of a grid."""
    stages = len(self.depths)
    return window_groups.plan_stages(
      grid, kept, self.window, 2 ** (stages - 1), stages
    )

  @nn.compact
  def __call__(
    self,
    image: Float[Array, 'b h w c'],
    keep: Int[Array, ' k'],
    groups: Mapping[str, Int[Array, 'g p']],
  ) -> Float[Array, 'b k d']:
    """Normalised features of the kept patches, in their increasing order.

    Args:
      image: normalised; sides are multiples of `unit`.
      keep: numbers of the kept patches, in any order.
      groups: of `window_groups.group_stages`; tokens of a stage without any
        attend as one group, at a cost that is quadratic in their number.
    """
    grid = (image.shape[1] // self.unit, image.shape[2] // self.unit)
    keep = jnp.sort(keep)
    # Patches before their embedding: it sees no pixel of another patch.
    x = jnp.take(patches(image, self.unit), keep, axis=1)
    b, k = x.shape[:2]
    x = x.reshape(b * k, self.unit, self.unit, -1)
    x = swin.PatchEmbedding(
      self.width,
      self.patch_size,
      self.epsilon,
      xavier_patch,
      self.dtype,
      name='patch_embed',
    )(x)
    plans = self.plans(grid, k)
    self.sow('intermediates', 'visible', x.reshape(b, -1, x.shape[-1]))
    for i, plan in enumerate(plans):
      x = x.reshape(b, -1, x.shape[-1])
      regular, shifted = (
        make_groups(keep, grid, plan, shift, groups.get(f'groups{i + 1}{name}'))
        for name, shift in (
          ('', 0),
          ('_shifted' if plan.shift else '', plan.shift),
        )
      )
      x = GroupedStage(
        self.depths[i],
        self.num_heads[i],
        plan.window,
        self.mlp_ratio,
        self.epsilon,
        self.scan,
        self.remat,
        self.dtype,
        name=f'stage{i + 1}',
      )(x, regular, shifted)
      if i < len(plans) - 1:
        x = swin.PatchMerging(
          2 * x.shape[-1],
          self.epsilon,
          XAVIER,
          self.dtype,
          name=f'merge{i + 1}',
        )(x.reshape(b * k, plan.side, plan.side, -1))
      self.sow(
        'intermediates', f'stage{i + 1}_out', x.reshape(b, -1, x.shape[-1])
      )
    return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)


def patches(image: Float[Array, 'b h w c'], side: int) -> Float[Array, 'b n p']:
  """Squares row by row; each by row, column, channel."""
  b, h, w, c = image.shape
  x = image.reshape(b, h // side, side, w // side, side, c).swapaxes(2, 3)
  return x.reshape(b, -1, side * side * c)
