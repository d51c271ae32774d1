"""Semantic tokens: what they are pooled from, refined by, and give back to.

Chang et al., arXiv 2303.08685 (CVPR 2023). A few tokens, pooled from the map,
look at it twice and then stand for it. `stvit.py` has the hierarchical network
of these parts, `stvit_deit.py` the plain one.

Semantic tokens are kept window by window, each window's row by row, from first
to last: the order in which they are pooled and in which windows of them attend.
Everything else that happens to them knows no order, so they are never put into
the rows of one grid, as they are in the released code.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.backbones.swin import INIT, SwinBlock, fill, make_mlp
from jaxzoo.models.layers import windows
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.convolution import largest
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.models.layers.transformer import Attention

WINDOW = 7  # side of a window of the map
SAMPLES = 3  # side of the semantic tokens of a window
# Form of fixed size: side of a window's neighbourhood, and from one to the next.
PATCH, STEP = 10, 4
# Form for dense prediction: (side, margin before, margin after) of the
# neighbourhoods of a window in the map, which the tokens are generated from;
# and in windows, each way, what a place of the map is recovered from.
NEAR, FAR, REACH = (14, 3, 4), (21, 7, 7), 4
MASKS = ('clean', 'published', 'none')


class CrossBlock(nn.Module):
  """x += DropPath(g1 A(LN1 x, LN1 y)); x += DropPath(g2 MLP(LN2 x)).

  A(queries, keys) is attention; y is x where nothing else is given. One norm
  serves both. g1 and g2 are learned for each channel.

  Attributes:
    num_heads: of the attention.
    attend: what is computed from q, k and v.
    residual: without, the first branch is all that remains, and never dropped.
    layer_scale: what g1 and g2 start from; None: they are not there.
    relative: side of the square of positions that a learned bias is for; 0:
      none.
    epsilon: of the norms.
    dtype: compute dtype.
  """

  num_heads: int
  attend: Callable = dot_product_attention
  residual: bool = True
  layer_scale: float | None = 1e-5
  relative: int = 0
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b q c'],
    train: bool = False,
    rate: float | Float[Array, ''] = 0.0,
    y: Float[Array, 'b k c'] | None = None,
    index: Int[np.ndarray, 'q k'] | None = None,
  ) -> Float[Array, 'b q c']:
    """The tokens x after both; `index` as in `RelativePositionBias`."""
    width = x.shape[-1]

    def scaled(name, branch):
      if self.layer_scale is None:
        return branch
      start = nn.initializers.constant(self.layer_scale)
      return branch * self.param(name, start, (width,)).astype(branch.dtype)

    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    norm1, bias = norm('norm1'), None
    if self.relative:
      bias = windows.RelativePositionBias(
        self.relative, self.num_heads, name='position_bias'
      )(index)
    branch = Attention(
      self.num_heads, INIT, INIT, self.dtype, None, self.attend, name='attn'
    )(norm1(x), None if y is None else norm1(y), bias=bias)
    branch = scaled('layer_scale_1', branch)
    x = x + DropPath()(branch, train, rate) if self.residual else branch
    branch = make_mlp(width, 4.0, self.dtype)(norm('norm2')(x))
    return x + DropPath()(scaled('layer_scale_2', branch), train, rate)


class SemanticUnit(nn.Module):
  """Six blocks on a map: tokens arise from it, think, and it reads them.

  1. a Swin block without shift;
  2. tokens s, 3x3 maxima of each 7x7 window, look at the window's surroundings;
  3. s look at the map and at themselves (dense: at wider surroundings);
  4. s of each window among themselves; 5. all s among themselves;
  6. the map, as block 1 has left it, looks at s.

  Two forms share all parameters, but are not the same function. That of fixed
  size takes maps of 14x14 only. That for dense prediction takes any map; it is
  filled up with zeros to whole windows, and what lies around is zeros as well.

  Attributes:
    num_heads: of all attention.
    dense: the form for dense prediction.
    mask: there, which of the zeros are seen; see `seen_places`.
    shortcut: block 2 of the fixed form has a residual connection.
    use_global: a learned token is added to each s ahead of block 3.
    relative_pos: blocks 4 and 5 have a bias for relative positions.
    layer_scale: see `CrossBlock`.
    epsilon: of the norms.
    dtype: compute dtype.
  """

  num_heads: int
  dense: bool = False
  mask: str = 'clean'
  shortcut: bool = False
  use_global: bool = False
  relative_pos: bool = False
  layer_scale: float | None = 1e-5
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False, rates=(0.0,) * 6
  ) -> Float[Array, 'b h w c']:
    """A map of the same size; `rates` of the stochastic depth of each block."""
    b, _, _, c = x.shape
    x = SwinBlock(
      self.num_heads,
      WINDOW,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name='regular',
    )(x, train, rates[0])
    filled, size = fill(x, WINDOW), x.shape[1:3]
    cut = windows.partition(filled, WINDOW).reshape(b, -1, WINDOW, WINDOW, c)
    s = adaptive_max_pool(cut, SAMPLES).reshape(b, -1, c)
    if self.dense:
      s = self._generate_dense(s, filled, size, train, rates)
    else:
      s = self._generate_fixed(s, filled, train, rates)
    s = self._block('local', within_windows, relative=SAMPLES)(
      s, train, rates[3]
    )
    side = 2 * SAMPLES  # of the fixed form's grid
    order = by_windows(np.arange(side**2).reshape(side, side))
    index = windows.relative_position_index(side)[order][:, order]
    s = self._block('global', relative=side)(s, train, rates[4], None, index)
    return self._recover(x, s, train, rates[5])

  def _block(
    self, name, attend=dot_product_attention, residual=True, relative=0
  ):
    return CrossBlock(
      self.num_heads,
      attend,
      residual,
      self.layer_scale,
      relative if self.relative_pos else 0,
      self.epsilon,
      self.dtype,
      name=name,
    )

  def _generate_fixed(self, s, x, train, rates):
    """Blocks 2 and 3; keys of both are the tokens, then the map's."""
    b, h, w, c = x.shape
    with_map = lambda s: jnp.concatenate([s, x.reshape(b, h * w, c)], 1)
    around = functools.partial(
      around_windows, size=(h, w), side=PATCH, step=STEP
    )
    s = self._block('generate1', around, self.shortcut)(
      s, train, rates[1], with_map(s)
    )
    asking = s
    if self.use_global:
      token = self.param('semantic_token', INIT, (s.shape[1], c))
      order = by_windows(np.arange(len(token)).reshape(2 * SAMPLES, -1))
      asking = s + token[order].astype(s.dtype)
    return self._block('generate2')(asking, train, rates[2], with_map(s))

  def _generate_dense(self, s, x, size, train, rates):
    """Blocks 2 and 3; keys of both are the map's, `size` of which are real."""
    b, _, _, c = x.shape
    grid, outside = seen_places(size, self.mask)
    plan = (('generate1', NEAR, rates[1]), ('generate2', FAR, rates[2]))
    for name, (side, before, after), rate in plan:
      margins = ((before, after), (before, after))
      around = jnp.pad(x, ((0, 0), *margins, (0, 0)))
      attend = functools.partial(
        around_windows,
        size=around.shape[1:3],
        side=side,
        step=WINDOW,
        seen=seen_around(grid, outside, margins, side, WINDOW),
      )
      s = self._block(name, attend)(s, train, rate, around.reshape(b, -1, c))
    return s

  def _recover(self, x, s, train, rate):
    """Block 6. Dense, a place sees the tokens of the 9x9 windows around its
    own, and zeros where there are no windows."""
    b, h, w, c = x.shape
    attend = dot_product_attention
    if self.dense:
      mask, bias = recovery_mask((h, w), self.mask)
      if bias is not None:
        s = jnp.pad(s, ((0, 0), (0, 1), (0, 0)))
      attend = lambda q, k, v, *_: dot_product_attention(q, k, v, mask, bias)
    x = self._block('recover', attend)(x.reshape(b, -1, c), train, rate, s)
    return x.reshape(b, h, w, c)


def bins(length: int, count: int) -> list[tuple[int, int]]:
  """Beginnings and ends of `count` parts of an axis, which may overlap.

  >>> bins(7, 3)
  [(0, 3), (2, 5), (4, 7)]
  """
  return [
    (i * length // count, -(-(i + 1) * length // count)) for i in range(count)
  ]


def adaptive_max_pool(
  x: Float[Array, '*b h w c'], count: int
) -> Float[Array, '*b n n c']:
  """Maxima of n x n parts of a map, `bins` of each axis."""
  rows = [
    largest([x[..., i, :, :] for i in range(a, z)])
    for a, z in bins(x.shape[-3], count)
  ]
  x = jnp.stack(rows, -3)
  columns = [
    largest([x[..., i, :] for i in range(a, z)])
    for a, z in bins(x.shape[-2], count)
  ]
  return jnp.stack(columns, -2)


def neighbourhoods(
  x: Float[Array, 'b h w c'], side: int, step: int
) -> Float[Array, 'b n s c']:
  """Overlapping squares of a map: n of them with s = side² places, row by row.

  Slices on top of each other rather than a gather, whose gradient would be a
  scatter-add, which accelerators are slow at. On a CPU the gather is twice as
  fast, at a millisecond for 8 images (docs/performance.md: `python -m
  jaxzoo.bench.formulations neighbourhoods`); GPU and TPU have not been
  measured. NumPy stays NumPy.
  """
  stack = np.stack if isinstance(x, np.ndarray) else jnp.stack
  b, h, w, c = x.shape
  x = stack([x[:, i : i + side] for i in range(0, h - side + 1, step)], 1)
  x = stack([x[:, :, :, j : j + side] for j in range(0, w - side + 1, step)], 2)
  return x.reshape(b, -1, side * side, c)


def within_windows(q, k, v, mask=None, bias=None) -> Float[Array, 'b q h d']:
  """Attention among the semantic tokens of each window."""
  cut = lambda y: y.reshape(len(y), -1, SAMPLES**2, *y.shape[2:])
  return dot_product_attention(cut(q), cut(k), cut(v), mask, bias).reshape(
    q.shape
  )


def around_windows(
  q: Float[Array, 'b q h d'],
  k: Float[Array, 'b k h d'],
  v: Float[Array, 'b k h d'],
  mask: None = None,
  bias: None = None,
  *,
  size: tuple[int, int],
  side: int,
  step: int,
  seen: Bool[np.ndarray, 'n s'] | None = None,
) -> Float[Array, 'b q h d']:
  """Attention of the tokens of each window to a neighbourhood of their own.

  Keys and values are made once a place, ahead of the neighbourhoods, which
  overlap four- and ninefold.

  Args:
    q: of 9 semantic tokens a window.
    k: of a map of this `size`, row by row; ahead of it may come those of the
      tokens themselves, which are then keys in their windows.
    v: as `k`.
    mask: never given, as `bias`.
    bias: see `mask`.
    size: (h, w).
    side: of the neighbourhoods.
    step: from one neighbourhood to the next.
    seen: which of its places a window sees; None: all.
  """
  cut = lambda y: y.reshape(len(y), -1, SAMPLES**2, *y.shape[2:])

  def gathered(y):
    b, count, heads, d = y.shape
    own = count - size[0] * size[1]
    around = neighbourhoods(y[:, own:].reshape(b, *size, heads * d), side, step)
    around = around.reshape(*around.shape[:3], heads, d)
    return jnp.concatenate([cut(y[:, :own]), around], 2) if own else around

  mask = None if seen is None else seen[:, None, None]
  return dot_product_attention(cut(q), gathered(k), gathered(v), mask).reshape(
    q.shape
  )


def by_windows(x: Int[np.ndarray, 'h w']) -> Int[np.ndarray, ' n']:
  """A grid of semantic tokens in the order that they are kept in."""
  h, w = x.shape
  x = x.reshape(h // SAMPLES, SAMPLES, w // SAMPLES, SAMPLES)
  return x.swapaxes(1, 2).reshape(-1)


def seen_places(
  size: tuple[int, int], mask: str, *, samples: bool = False
) -> tuple[Bool[np.ndarray, 'h w'], bool]:
  """Which keys are seen in the form for dense prediction.

  `clean`: what is of the map; a semantic token where its part of the window
    reaches into the map.
  `none`: everything, the zeros that a map of `size` is filled up with and those
    around it too.
  `published`: what the released code does. It hides the zeros around, and of
    the map only the corner that is to the right of its right edge AND below its
    bottom edge; where the map fits its windows in one direction, the strip
    beyond the other edge; where it fits in both, a mask that is everywhere the
    same hides nothing, the zeros around included. The corner in the grid of
    tokens has as many rows and columns as the one in the map.

  Args:
    size: of the map, before it is filled up.
    mask: one of `MASKS`.
    samples: of the grid of semantic tokens instead of the map.

  Returns:
    For each place, filled ones included; and for those around. Where nothing is
    seen at all, everything is.
  """
  full = windows.padded(size, WINDOW)
  shape = [side * SAMPLES // WINDOW for side in full] if samples else full
  grid = np.ones(shape, bool)
  if mask == 'none':
    return grid, True
  if mask == 'published':
    # -0 is the beginning.
    grid[size[0] - full[0] :, size[1] - full[1] :] = False
    return grid, False
  starts = [np.arange(side) for side in full]
  if samples:
    first = [a for a, _ in bins(WINDOW, SAMPLES)]
    starts = [
      np.add.outer(np.arange(0, side, WINDOW), first).reshape(-1)
      for side in full
    ]
  rows, columns = (x < side for x, side in zip(starts, size, strict=True))
  return rows[:, None] & columns, False


def seen_around(
  grid: Bool[np.ndarray, 'h w'],
  outside: bool,
  margins: tuple[tuple[int, int], tuple[int, int]],
  side: int,
  step: int,
) -> Bool[np.ndarray, 'n s']:
  """`seen_places` in the neighbourhoods of a map with margins."""
  around = np.pad(grid, margins, constant_values=outside)
  seen = neighbourhoods(around[None, :, :, None], side, step)[0, :, :, 0]
  return seen | ~seen.any(-1, keepdims=True)


def recovery_mask(
  size: tuple[int, int], mask: str
) -> tuple[Bool[Array, 'p k'] | None, Float[Array, 'p k'] | None]:
  """Which of all semantic tokens each place of a map sees, and how often.

  A place sees those of the 9x9 windows around its own. In the released code
  each window has copies of their keys; here all places attend to all tokens,
  with a mask: as many logits on a map of nine windows each way, fewer on a
  smaller one, and no copies. Where zeros around the windows are seen, all the
  same n times, one more key stands for them, with log n on its logit.

  Args:
    size: (h, w) of the map; p = h w.
    mask: one of `MASKS`.

  Returns:
    mask: True where seen; None where all are.
    bias: None where no zeros are seen; else the last key stands for them.
  """
  grid, outside = seen_places(size, mask, samples=True)
  reach = REACH * SAMPLES
  margins = ((reach, reach), (reach, reach))
  side = (2 * REACH + 1) * SAMPLES
  seen = seen_around(grid, outside, margins, side, SAMPLES)
  # Each place of a neighbourhood: which token is there; the last is no token.
  order = by_windows(np.arange(grid.size).reshape(grid.shape))
  token = np.pad(
    np.argsort(order).reshape(grid.shape), margins, constant_values=grid.size
  )
  token = neighbourhoods(token[None, :, :, None], side, SAMPLES)[0, :, :, 0]
  times = np.zeros((len(seen), grid.size + 1), np.float32)
  np.add.at(times, (np.arange(len(seen))[:, None], token), seen)
  around = times[:, -1].any()
  times = times if around else times[:, :-1]

  def of_places(x):
    x = jnp.asarray(x).reshape(grid.shape[0] // SAMPLES, -1, x.shape[-1])
    x = jnp.repeat(jnp.repeat(x, WINDOW, 0), WINDOW, 1)
    return x[: size[0], : size[1]].reshape(size[0] * size[1], -1)

  bias = of_places(np.log(np.maximum(times, 1))) if around else None
  return None if times.all() else of_places(times > 0), bias
