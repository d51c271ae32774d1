"""BERT's transformer: norms after the residual sums (arXiv 1810.04805)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import attention_weights, weighted_values
from jaxzoo.models.layers.hashed_dropout import HashedDropout
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import (
  REMAT_POLICIES,
  Attention,
  Mlp,
)

INIT_STD = 0.02  # BERT's, at a width of 768
EPSILON = 1e-12


class PostNormBlock(nn.Module):
  """x = LN(x + Drop(Attention x)); x = LN(x + Drop(MLP x)).

  Gives its attention too: the probabilities [b, heads, n, n] before the
  dropout that they have in training, float32.

  Attributes:
    num_heads: of the attention.
    mlp_ratio: hidden units of the MLP (GELU) over the width.
    dropout: rate at the attention and at both branches, in training.
    init_std: of all matrices.
    dtype: of the computation.
  """

  num_heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  init_std: float = INIT_STD
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    carry: tuple[Float[Array, 'b n w'], Float[Array, 'b h n n']],
    train: bool = False,
    rate: Any = None,  # of a drop path, which these blocks have not
    mask: Bool[Array, '#b #h #n n'] | None = None,
  ) -> tuple[Float[Array, 'b n w'], Float[Array, 'b h n n']]:
    """(tokens, attention of the block before) -> those of this block."""
    del rate
    x, found = carry[0], []
    init = nn.initializers.normal(self.init_std)
    drop = lambda y: HashedDropout(self.dropout)(y, train)
    norm = lambda name: nn.LayerNorm(
      epsilon=EPSILON, dtype=self.dtype, name=name
    )

    def attend(query, key, value, mask, bias):
      weights = attention_weights(query, key, mask, bias)
      found.append(weights)
      return weighted_values(drop(weights), value)

    attended = Attention(
      self.num_heads, init, init, self.dtype, attention=attend, name='attn'
    )(x, mask=mask)
    x = norm('ln_1')(x + drop(attended))
    y = Mlp(
      int(self.mlp_ratio * x.shape[-1]),
      gelu,
      init,
      init,
      self.dtype,
      name='mlp',
    )(x)
    return norm('ln_2')(x + drop(y)), found[0]


class PostNormEncoder(nn.Module):
  """A stack of `PostNormBlock`s: its tokens and its last attention.

  Attributes:
    depth: blocks, at least 1.
    num_heads, mlp_ratio, dropout, init_std, dtype: see `PostNormBlock`.
    scan, remat: see `layers/transformer.py`.
  """

  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  init_std: float = INIT_STD
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n w'],
    mask: Bool[Array, '#b #h #n n'] | None = None,
    train: bool = False,
  ) -> tuple[Float[Array, 'b n w'], Float[Array, 'b h n n']]:
    """(tokens after the last block, its attention, float32)."""
    block = PostNormBlock
    if self.remat != 'none':
      block = nn.remat(
        block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(2,),
      )
    make = lambda name: block(
      self.num_heads,
      self.mlp_ratio,
      self.dropout,
      self.init_std,
      self.dtype,
      name=name,
    )
    b, n, _ = x.shape
    blank = jnp.zeros((b, self.num_heads, n, n), jnp.float32)
    return stack(
      make, (x, blank), [0.0] * self.depth, train, mask, scan=self.scan
    )


class WordHead(nn.Module):
  """Linear, GELU, LN, then the table of words and a bias."""

  init_std: float = INIT_STD
  dtype: Any = None

  @nn.compact
  def __call__(
    self, h: Float[Array, '*b w'], table: Float[Array, 'v w']
  ) -> Float[Array, '*b v']:
    """Logits over the table's rows, float32."""
    init = nn.initializers.normal(self.init_std)
    h = nn.Dense(h.shape[-1], kernel_init=init, dtype=self.dtype, name='dense')(
      h
    )
    h = nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype, name='ln')(gelu(h))
    bias = self.param('bias', nn.initializers.zeros, table.shape[:1])
    logits = jnp.einsum(
      '...w,vw->...v',
      h,
      table.astype(h.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits + bias
