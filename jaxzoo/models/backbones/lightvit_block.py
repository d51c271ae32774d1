"""LightViT's block: windows and global tokens, and a gated MLP.

Huang et al., arXiv 2207.05557: self-attention with global tokens, and the
bi-dimensional attention of the feed-forward part. `lightvit.py` has the network.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxzoo.models.layers import windows
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.drop_path import DropPath
from jaxzoo.models.layers.transformer import Mlp

INIT = nn.initializers.normal(0.02)  # of every matrix, table and token


def norm(name: str, dtype: Any, epsilon: float = 1e-6) -> nn.LayerNorm:
  """1e-6 of the residual stream's norms; those of all else have 1e-5."""
  return nn.LayerNorm(epsilon=epsilon, dtype=dtype, name=name)


class Tokens(NamedTuple):
  """Global tokens and the map, which share all layers that see one token.

  Kept apart, the map is never copied to stand behind the tokens in one
  sequence, as it does in the published code.

  Attributes:
    glob: [b, t, c]; None where they have been given up.
    image: [b, h, w, c].
  """

  glob: Float[Array, 'b t c'] | None
  image: Float[Array, 'b h w c']

  def mean(self) -> Float[Array, 'b c']:
    """Over all tokens of both kinds, float32."""
    parts = jax.tree.leaves(self)
    flat = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in parts]
    total = sum(x.sum(1, dtype=jnp.float32) for x in flat)
    return total / sum(x.shape[1] for x in flat)


class Attention(nn.Module):
  """Windows attend to themselves; global tokens gather, and are attended to.

  With q, k, v of the map and q_g of the global tokens:

    local    L = softmax(q kᵀ + bias) v within each window,
    gather   G = softmax(q_g kᵀ) v over the whole map,
    answer   L + softmax(q k(G)ᵀ) v(G), for each position of the map,

  all scaled by d^-0.5; one projection makes the outputs of G and of the answer.
  The global tokens' own keys and values are nowhere used.

  The map is cut into windows once, ahead of the projections, and put together
  once, after the last: gathering and answering know no order. Maps that are no
  whole windows are filled up with zeros. Those positions are seen within their
  windows, as published (their keys are the biases), not by the global tokens,
  and vanish in the end.
  """

  num_heads: int
  window: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    _, height, width, channels = x.image.shape

    def project(name):
      return nn.DenseGeneral(
        (self.num_heads, channels // self.num_heads),
        kernel_init=INIT,
        dtype=self.dtype,
        name=name,
      )

    cut = windows.partition(x.image, self.window)  # [b, n, p, c]
    query = project('query')
    q, q_glob = query(cut), query(x.glob)
    k, v = project('key')(cut), project('value')(cut)
    bias = windows.RelativePositionBias(
      self.window, self.num_heads, name='position_bias'
    )()
    local = dot_product_attention(q, k, v, bias=bias)

    # [b, n p, heads, d]: all windows as one sequence.
    joined = lambda y: y.reshape(y.shape[0], -1, *y.shape[3:])
    gathered = dot_product_attention(
      q_glob, joined(k), joined(v), _within((height, width), self.window)
    )
    context = gathered.reshape(*x.glob.shape[:2], channels)
    answer = dot_product_attention(
      joined(q),
      project('global_key')(context),
      project('global_value')(context),
    )
    out = nn.DenseGeneral(
      channels, axis=(-2, -1), kernel_init=INIT, dtype=self.dtype, name='out'
    )
    image = out(local + answer.reshape(local.shape))
    return Tokens(
      out(gathered), windows.reverse(image, self.window, (height, width))
    )


def _within(size, window):
  """Which tokens of the windows are in the map: [1, 1, 1, n p], or None."""
  rows, columns = windows.padded(size, window)
  if (rows, columns) == tuple(size):
    return None
  inside = np.zeros((1, rows, columns, 1), bool)
  inside[:, : size[0], : size[1]] = True
  cut = inside.reshape(1, rows // window, window, columns // window, window)
  return cut.swapaxes(2, 3).reshape(1, 1, 1, -1)


class Gate(nn.Module):
  """y times sigmoid gates of each channel and of each token.

  With n = LN(y) and r a quarter of the channels: g = gelu(W_g mean n) of all
  tokens, l = gelu(W_l n) of each; channels are gated by sigmoid(W_c g), tokens
  by sigmoid(w · [l, g]). That product is taken in two parts, so that g is not
  repeated for each token.
  """

  dtype: Any = None

  @nn.compact
  def __call__(self, y: Tokens) -> Tokens:
    channels = y.image.shape[-1]
    reduced = channels // 4
    dense = lambda features, name: nn.Dense(
      features, kernel_init=INIT, dtype=self.dtype, name=name
    )
    normed = jax.tree.map(norm('norm', self.dtype, 1e-5), y)
    g = gelu(dense(reduced, 'global_reduce')(normed.mean()))
    local_reduce = dense(reduced, 'local_reduce')
    kernel = self.param('spatial_kernel', INIT, (2 * reduced, 1))
    bias = self.param('spatial_bias', nn.initializers.zeros, (1,))
    kernel, bias = kernel.astype(g.dtype), bias.astype(g.dtype)
    by_channel = nn.sigmoid(dense(channels, 'channel_select')(g))
    of_all = g @ kernel[reduced:] + bias

    def gated(y, normed):
      each = lambda x: x.reshape(len(x), *(1,) * (y.ndim - 2), -1)
      of_each = gelu(local_reduce(normed)) @ kernel[:reduced]
      return y * each(by_channel) * nn.sigmoid(of_each + each(of_all))

    return jax.tree.map(gated, y, normed)


class Block(nn.Module):
  """x += Attention(LN1 x); x += Gate(MLP(LN2 x)).

  Attributes:
    num_heads: of the attention.
    mlp_ratio: hidden over outer width of the MLP.
    window: side of the windows.
    forget: the global tokens end between the two: they serve nothing where
      only the map is asked for (dense prediction, last block).
    dtype: compute dtype.
  """

  num_heads: int
  mlp_ratio: float
  window: int = 7
  forget: bool = False
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Tokens,
    train: bool = False,
    rate: float | Float[Array, ''] = 0.0,
  ) -> Tokens:
    """`rate`: of the stochastic depth, of each of the two branches."""
    drop = DropPath()
    y = jax.tree.map(norm('norm1', self.dtype), x)
    y = Attention(self.num_heads, self.window, self.dtype, name='attn')(y)
    if self.forget:
      x, y = Tokens(None, x.image), Tokens(None, y.image)
    x = jax.tree.map(jnp.add, x, drop(y, train, rate))
    y = jax.tree.map(norm('norm2', self.dtype), x)
    mlp = Mlp(
      int(self.mlp_ratio * x.image.shape[-1]), gelu, INIT, INIT, self.dtype,
      name='mlp',
    )  # fmt: skip
    y = Gate(self.dtype, name='gate')(jax.tree.map(mlp, y))
    return jax.tree.map(jnp.add, x, drop(y, train, rate))
