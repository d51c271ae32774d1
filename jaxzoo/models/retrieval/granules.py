"""CFAM's granules: a decoder that makes them, and a matcher that reads them.

UFineBench, arXiv 2312.03441 (CVPR 2024); `cfam.py` has the system. Where the
paper leaves the inside open it was chosen here, and the docstrings say so.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers.activation import quick_gelu
from jaxzoo.models.layers.transformer import (
  Attention,
  BlockInit,
  Mlp,
  Transformer,
  clip_init,
)
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.models.retrieval import towers


class DecoderLayer(nn.Module):
  """q += SelfAttn(LN1 q); q += CrossAttn(LN2 q, LNkv x); q += MLP(LN3 q)."""

  num_heads: int
  kernel_init: BlockInit
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    queries: Float[Array, '#b k d'],
    tokens: Float[Array, 'b n d'],
    mask: Bool[Array, 'b 1 1 n'] | None = None,
  ) -> Float[Array, 'b k d']:
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    attend = lambda name: Attention(
      self.num_heads,
      self.kernel_init.qkv,
      self.kernel_init.out,
      self.dtype,
      name=name,
    )
    queries = queries + attend('self_attn')(norm('ln_1')(queries))
    # So far the first layer has seen no sample: its batch is 1.
    queries = jnp.broadcast_to(queries, (len(tokens), *queries.shape[1:]))
    queries = queries + attend('cross_attn')(
      norm('ln_2')(queries), norm('ln_kv')(tokens), mask
    )
    return queries + Mlp(
      4 * queries.shape[-1],
      quick_gelu,
      self.kernel_init.fc1,
      self.kernel_init.fc2,
      self.dtype,
      name='mlp',
    )(norm('ln_3')(queries))


class GranularityDecoder(nn.Module):
  """Turns the tokens of either modality into granules, one a query.

  The paper gives 16 learned queries, two layers of width 512 and one set of
  weights for both modalities; the inside of a layer is chosen here.
  """

  num_queries: int = 16
  depth: int = 2
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    tokens: Float[Array, 'b n d'],
    mask: Bool[Array, 'b n'] | None = None,
  ) -> Float[Array, 'b k d']:
    """Granules of `tokens`; `mask` is True where a token may be seen."""
    width = tokens.shape[-1]
    queries = self.param(
      'queries',
      nn.initializers.normal(width**-0.5),
      (self.num_queries, width),
    )
    queries = queries.astype(self.dtype or tokens.dtype)[None]
    mask = None if mask is None else mask[:, None, None, :]
    for i in range(self.depth):
      queries = DecoderLayer(
        towers.num_heads(width),
        clip_init(width, self.depth),
        self.dtype,
        name=f'layer_{i}',
      )(queries, tokens, mask)
    return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln_post')(queries)


class Matcher(nn.Module):
  """Whether an image and a text show the same person: a logit a pair.

  The paper gives two transformer blocks, then an MLP with a sigmoid. Chosen
  here: both granule sets in one sequence, their mean after the blocks, and
  Linear, quick-GELU, Linear.
  """

  depth: int = 2
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    image_granules: Float[Array, 'b k d'],
    text_granules: Float[Array, 'b k d'],
  ) -> Float[Array, ' b']:
    """Logits, float32; the match probability is their sigmoid."""
    width = image_granules.shape[-1]
    init = clip_init(width, self.depth)
    x = jnp.concatenate([image_granules, text_granules], axis=1)
    x = Transformer(
      self.depth,
      towers.num_heads(width),
      init,
      remat=self.remat,
      dtype=self.dtype,
      name='transformer',
    )(x)
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln_post')(x)
    x = nn.Dense(width, kernel_init=init.fc1, dtype=self.dtype, name='fc1')(
      x.mean(axis=1)
    )
    x = quick_gelu(x).astype(jnp.float32)
    return nn.Dense(1, kernel_init=init.fc2, name='fc2')(x)[:, 0]


def local_similarity(
  image_granules: Float[Array, 'm k d'], text_granules: Float[Array, 'n k d']
) -> Float[Array, 'm n']:
  """S_ij = (1/k) sum_k cos(f_i^k, g_j^k), over granules of the same query.

  The paper has a similarity loss on granules; this reduction is chosen here.
  """
  return (
    jnp.einsum(
      'mkd,nkd->mn',
      l2_normalize(image_granules),
      l2_normalize(text_granules),
      precision=jax.lax.Precision.HIGHEST,
    )
    / image_granules.shape[1]
  )


def granule_vector(granules: Float[Array, 'b k d']) -> Float[Array, 'b kd']:
  """One vector of length 1 for k granules: its cosines are `local_similarity`.

  So granules are searched as any vectors are, at k times the size.
  """
  unit = l2_normalize(granules) / granules.shape[1] ** 0.5
  return unit.reshape(unit.shape[0], -1)
