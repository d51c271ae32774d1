"""ELSA: enhanced local self-attention over the neighbourhood of each pixel.

Zhou et al., arXiv 2112.12786. Taps of a k x k neighbourhood are numbered row
by row: tap j = (row, column) of the kernel has the offset
(row - k // 2, column - k // 2) times the dilation.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, uniform_bias

INIT = nn.initializers.normal(0.02)


def local_filter(
  value: Float[Array, 'b h w c'],
  attention: Float[Array, 'b h w n j'],
  multiply: Float[Array, 'c j'] | None = None,
  add: Float[Array, 'c j'] | None = None,
  dilation: int = 1,
) -> Float[Array, 'b h w c']:
  """y[p, c] = sum_j (multiply[c, j] a[p, n(c), j] + add[c, j]) v[p + o_j, c].

  Outside of the map v is 0. Channel c belongs to head n(c) = c // (c / n).

  A sum over k² static shifts of the padded map, each a slice, in float32: XLA
  makes one loop of it, and no copy of the map with k² values a place comes
  into being. Nor does one in the backward pass (`_backward`). On a CPU that is
  21 times as fast as copies, 3.4 times with the gradients (docs/performance.md:
  `python -m jaxzoo.bench.formulations local_filter`).

  Args:
    value: v.
    attention: a, weights of the k² taps for every place and head.
    multiply: of every channel, a `ghost` matrix; None for 1.
    add: likewise, None for 0.
    dilation: of the neighbourhood.

  Returns:
    y in the dtype of `value`.

  Raises:
    ValueError: the number of taps is not the square of an odd number.
  """
  kernel = round(attention.shape[-1] ** 0.5)
  if kernel * kernel != attention.shape[-1] or kernel % 2 == 0:
    raise ValueError(f'{attention.shape[-1]} taps are no square of an odd side')
  if multiply is None:
    return _filter(value, attention, add, dilation)
  # The published networks have none: gradients are JAX's own, and products
  # are made anew for them instead of being kept.
  return jax.checkpoint(_forward, static_argnums=4)(
    value, attention, multiply, add, dilation
  )


def _forward(value, attention, multiply, add, dilation, reverse=False):
  """The sum over shifts; `reverse` has weights and values at p - o_j."""
  b, h, w, c = value.shape
  heads, taps = attention.shape[3:]
  kernel = round(taps**0.5)
  by_head = lambda x: x.reshape(*x.shape[:-1], heads, c // heads)
  padded = _pad(value, kernel, dilation)
  if reverse:
    attention = _pad(attention, kernel, dilation)
  # Cut in one step: the gradients of the parts are joined in one, too.
  weights = jnp.split(attention, taps, axis=-1)
  total = jnp.zeros((b, h, w, heads, c // heads), jnp.float32)
  for j, weight in enumerate(weights):
    tap = divmod(taps - 1 - j if reverse else j, kernel)
    top, left = (dilation * place for place in tap)
    here = lambda x, top=top, left=left: x[:, top : top + h, left : left + w]
    weight = here(weight) if reverse else weight
    if multiply is not None:
      weight = weight * by_head(multiply[:, j])
    if add is not None:
      weight = weight + by_head(add[:, j])
    total = total + weight * by_head(here(padded)).astype(jnp.float32)
  return total.reshape(b, h, w, c).astype(value.dtype)


def _pad(x, kernel, dilation):
  margin = kernel // 2 * dilation
  return jnp.pad(x, [(0, 0), *2 * [(margin, margin)], *(x.ndim - 3) * [(0, 0)]])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _filter(value, attention, add, dilation):
  return _forward(value, attention, None, add, dilation)


def _keep(value, attention, add, dilation):
  return _filter(value, attention, add, dilation), (value, attention, add)


def _backward(dilation, kept, grad):
  """Gradients without k² reductions, of which XLA would make k² loops.

  That to v is a sum over shifts again. Those to weights are products of g at
  (y, x) and v at (y + dy, x + dx): for each of the k rows dy a matrix product
  has them for all pairs of columns, and a band of it, cut out by a reshape,
  those that are within the neighbourhood.
  """
  value, attention, add = kept
  heads, taps = attention.shape[3:]
  kernel = round(taps**0.5)
  b, h, w, c = value.shape
  by_head = lambda x: x.reshape(*x.shape[:-1], heads, c // heads)
  padded, to_attention, to_add = _pad(value, kernel, dilation), [], []
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  for row in range(kernel):
    rows = padded[:, row * dilation : row * dilation + h]
    pairs = product('byxnd,byznd->bynxz', by_head(grad), by_head(rows))
    to_attention.append(_band(pairs, kernel, dilation))
    if add is not None:
      pairs = product('byxc,byzc->cxz', grad, rows)
      to_add.append(_band(pairs, kernel, dilation).sum(1))
  to_attention = jnp.concatenate(to_attention, -1).swapaxes(2, 3)
  return (
    _forward(grad, attention, None, add, dilation, reverse=True),
    to_attention.astype(attention.dtype),
    None if add is None else jnp.concatenate(to_add, -1).astype(add.dtype),
  )


def _band(pairs: Float[Array, '*n x z'], kernel: int, dilation: int):
  """[*n, x, i] = pairs[*n, x, x + i dilation] for i < kernel."""
  *n, x, z = pairs.shape
  flat = pairs.reshape(*n, x * z)
  flat = jnp.pad(flat, [*len(n) * [(0, 0)], (0, x)])
  stop = (kernel - 1) * dilation + 1
  return flat.reshape(*n, x, z + 1)[..., :stop:dilation]


_filter.defvjp(_keep, _backward)


class Elsa(nn.Module):
  """post(local_filter(v, softmax(W2 GELU(W1 (q k scale)))) with ghost heads.

  q k is the Hadamard product, W1 a grouped convolution over the neighbourhood,
  W2 a linear map to the taps of each head. The softmax is over the taps; those
  outside of the map keep their weight and multiply zeros. The filters of each
  head are enriched for each channel by static matrices, the ghost heads:
  multiply^lam a + gamma add (arXiv 2112.12786, 3.2 and 3.3).

  Attributes:
    num_heads: n.
    kernel_size: k.
    dilation: of the neighbourhood.
    group_width: channels of a group of W1.
    qk_scale: 0 for (dim / n)^-0.5.
    lam: exponent of the multiplying matrices; 0: there are none.
    gamma: factor of the added matrices; 0: there are none.
    dtype: compute dtype.
  """

  num_heads: int
  kernel_size: int = 7
  dilation: int = 1
  group_width: int = 8
  qk_scale: float = 0.0
  lam: float = 0.0
  gamma: float = 1.0
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b h w c']) -> Float[Array, 'b h w c']:
    *_, c = x.shape
    taps = self.kernel_size**2
    width = query_width(c, self.group_width)
    dense = lambda features, fan_in, name: nn.Dense(
      features,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(fan_in),
      dtype=self.dtype,
      name=name,
    )
    q, k, v = jnp.split(
      dense(2 * width + c, c, 'pre_proj')(x), (width, 2 * width), axis=-1
    )
    scale = self.qk_scale or (c / self.num_heads) ** -0.5
    a = conv(
      width,
      self.kernel_size,
      dilation=self.dilation,
      groups=width // self.group_width,
      bias=True,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(taps * self.group_width),
      dtype=self.dtype,
      name='attn_conv',
    )(q * k * scale)
    a = dense(self.num_heads * taps, width, 'attn_taps')(gelu(a))
    a = a.reshape(*x.shape[:-1], self.num_heads, taps)
    a = jax.nn.softmax(a.astype(jnp.float32), axis=-1)
    y = local_filter(v, a, *self._ghosts(c, taps), self.dilation)
    return nn.Dense(c, kernel_init=INIT, dtype=self.dtype, name='post_proj')(y)

  def _ghosts(self, channels, taps):
    """multiply^lam and gamma add, None where there is none."""
    multiply = add = None
    shape = (channels, taps)
    if self.lam:
      multiply = self.param('ghost_mul', nn.initializers.normal(1.0), shape)
      multiply = multiply if self.lam == 1 else multiply**self.lam
    if self.gamma:
      add = self.gamma * self.param('ghost_add', INIT, shape)
    return multiply, add


def query_width(channels: int, group_width: int) -> int:
  """Two thirds of the channels, rounded up to whole groups.

  >>> query_width(96, 4), query_width(128, 8)
  (64, 88)
  """
  return -(-2 * (channels // 3) // group_width) * group_width
