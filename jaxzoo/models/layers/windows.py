"""Windows of a map: cutting, shifting, and what is known of their positions.

A map [b, h, w, c] becomes windows [b, n, p, c], n of them row by row with p =
window² tokens each, row by row. The batch keeps an axis of its own: it shards,
and a bias for each window broadcasts over it. Sizes are static. Indices and
masks depend on nothing else, so they are NumPy arrays, made while tracing:
constants of the compiled program.

A window block, in short (`backbones/swin.py` has the whole):

    bias = RelativePositionBias(window, num_heads)()        # [heads, p, p]
    y = partition(x, window, shift)                         # [b, n, p, c]
    mask = shift_mask(x.shape[1:3], window, shift)          # [n, p, p] or None
    y = Attention(num_heads)(y, bias=with_mask(bias, mask))
    y = reverse(y, window, x.shape[1:3], shift)             # [b, h, w, c]
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# What is added to the logit of a pair that must not see each other (Swin's
# released code). Finite, so that a row with no other pair stays finite.
MASKED = -100.0
# "Truncated normal" of published code cuts at 100 standard deviations.
TABLE_INIT = nn.initializers.normal(0.02)


def padded(size: tuple[int, int], window: int) -> tuple[int, int]:
  """The size of a map in whole windows.

  >>> padded((8, 14), 7)
  (14, 14)
  """
  return tuple(-(-side // window) * window for side in size)


def partition(
  x: Float[Array, 'b h w c'], window: int, shift: int = 0
) -> Float[Array, 'b n p c']:
  """Cuts a map into windows.

  The map is filled up with zeros at the bottom and on the right to whole
  windows, then rolled by -`shift` along both axes, then cut. All three are
  copies of rectangles that XLA fuses into one, and so are their gradients,
  where an index for each place would be a gather and its gradient a
  scatter-add, which accelerators are slow at. On a CPU gathers are the faster
  ones, 5 times there and back and 1.5 times with the gradient
  (docs/performance.md: `python -m jaxzoo.bench.formulations windows`); GPU and
  TPU have not been measured.

  Args:
    x: map.
    window: side of a window.
    shift: of all windows, down and to the right; those that leave the map come
      in at the other side (`shift_mask` keeps the parts apart).

  Returns:
    n windows of p = window² tokens, both row by row.
  """
  b, h, w, c = x.shape
  rows, columns = padded((h, w), window)
  if (rows, columns) != (h, w):
    x = jnp.pad(x, ((0, 0), (0, rows - h), (0, columns - w), (0, 0)))
  if shift:
    x = jnp.roll(x, (-shift, -shift), (1, 2))
  x = x.reshape(b, rows // window, window, columns // window, window, c)
  return x.swapaxes(2, 3).reshape(b, -1, window * window, c)


def reverse(
  windows: Float[Array, 'b n p c'],
  window: int,
  size: tuple[int, int],
  shift: int = 0,
) -> Float[Array, 'b h w c']:
  """The map of size (h, w) that `partition` has cut; what was filled is gone."""
  b, _, _, c = windows.shape
  rows, columns = padded(size, window)
  x = windows.reshape(b, rows // window, columns // window, window, window, c)
  x = x.swapaxes(2, 3).reshape(b, rows, columns, c)
  if shift:
    x = jnp.roll(x, (shift, shift), (1, 2))
  return x[:, : size[0], : size[1]]


def relative_position_index(
  window: int, *, key_minus_query: bool = False
) -> Int[np.ndarray, 'p p']:
  """For query i and key j of a window the row of the table that belongs to it.

  (dy + w - 1)(2w - 1) + (dx + w - 1) with dy = y_i - y_j, dx = x_i - x_j: query
  minus key, as in Swin. With `key_minus_query` both differences have the other
  sign (ELSA): the same row of a table whose rows are reversed. Positions of a
  window are numbered row by row.

  Returns:
    int32, in 0..(2w - 1)² - 1.
  """
  y, x = np.divmod(np.arange(window * window), window)
  rows, columns = y[:, None] - y[None, :], x[:, None] - x[None, :]
  if key_minus_query:
    rows, columns = -rows, -columns
  index = (rows + window - 1) * (2 * window - 1) + columns + window - 1
  return index.astype(np.int32)


def shift_mask(
  size: tuple[int, int], window: int, shift: int
) -> Float[np.ndarray, 'n p p'] | None:
  """What is added to the logits of shifted windows: 0, or `MASKED`.

  Rolled around, the last windows of each axis hold tokens from both ends of
  the map. The rolled map has three bands an axis, cut at -window and at -shift;
  tokens of different bands must not see each other. What `partition` has filled
  up counts as map: it is seen. (arXiv 2103.14030, 3.2, figure 4.)

  Args:
    size: (h, w) of the map, before it is filled up.
    window: side of a window.
    shift: as for `partition`.

  Returns:
    float32, windows row by row; None without shift.
  """
  if not shift:
    return None
  bands = []
  for side in padded(size, window):
    position = np.arange(side)
    bands.append((position >= side - window) * 1 + (position >= side - shift))
  region = 3 * bands[0][:, None] + bands[1][None, :]
  rows, columns = region.shape
  region = region.reshape(rows // window, window, columns // window, window)
  region = region.swapaxes(1, 2).reshape(-1, window * window)
  apart = region[:, :, None] != region[:, None, :]
  return np.where(apart, MASKED, 0.0).astype(np.float32)


def with_mask(
  bias: Float[Array, 'h p p'], mask: Float[Array, 'n p p'] | None
) -> Float[Array, '#n h p p']:
  """A bias for each head and one for each window as one for both."""
  bias = bias[None]
  return bias if mask is None else bias + mask[:, None]


class RelativePositionBias(nn.Module):
  """A learned number for each offset within a window and each head.

  Attributes:
    window: side of the windows, w.
    num_heads: h.
    init: of the table, [(2w - 1)², h].
  """

  window: int
  num_heads: int
  init: Any = TABLE_INIT

  @nn.compact
  def __call__(
    self, index: Int[Array, '*n q k'] | None = None
  ) -> Float[Array, '*n h q k']:
    """The bias of all pairs of a window, [h, p, p], float32.

    One gather a step, whatever the batch; its gradient is a scatter-add into
    the small table.

    Args:
      index: rows of the table for other pairs than all of a whole window;
        default `relative_position_index`.
    """
    table = self.param(
      'table', self.init, ((2 * self.window - 1) ** 2, self.num_heads)
    )
    if index is None:
      index = relative_position_index(self.window)
    return jnp.moveaxis(jnp.asarray(table)[index], -1, -3)
