"""Mixup that is learned: the mask of two images from their features.

AutoMix, arXiv 2103.13027 (ECCV 2022), section 3; the form of the released code.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.layers.attention import dot_product_attention

UPSAMPLINGS = ('nearest', 'bilinear')


class MixBlock(nn.Module):
  """Which share of every pixel comes from the partner, from both's features.

  M' = sigmoid(upsample(softmax(q kᵀ / sqrt(c/2)) v)): queries are of the image,
  keys of its partner by the same layer, values of the partner alone.

  Attributes:
    reduction: channels of queries and keys are c / reduction.
    lam_concat: the features get their share as a channel more.
    upsampling: 'nearest', or 'bilinear' (half-pixel centres).
  """

  reduction: int = 2
  lam_concat: bool = False
  upsampling: str = 'nearest'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b h w c'],
    partner: Float[Array, 'b h w c'],
    lam: Float[Array, ''],
    scale: int,
  ) -> Float[Array, 'b h2 w2']:
    """The partner's mask in (0, 1), at `scale` times the size, float32.

    Args:
      x: features of the image.
      partner: features of its partner.
      lam: share of the image.
      scale: of the images' side over the features'.
    """
    b, h, w, channels = x.shape
    x, partner = x.astype(jnp.float32), partner.astype(jnp.float32)
    if self.lam_concat:
      share = jnp.broadcast_to(jnp.float32(lam), (b, h, w, 1))
      x = jnp.concatenate([x, share], -1)
      partner = jnp.concatenate([partner, 1 - share], -1)
    dense = lambda features, name: nn.Dense(
      features, kernel_init=nn.initializers.normal(0.01), name=name
    )
    query = dense(channels // self.reduction, 'query')
    one_head = lambda y: y.reshape(b, h * w, 1, -1)
    mask = dot_product_attention(
      one_head(query(x)),
      one_head(query(partner)),
      one_head(dense(1, 'value')(partner)),
    ).reshape(b, h, w)
    # The sigmoid comes last: of a bilinear mask that is not the same.
    return nn.sigmoid(upsample(mask, scale, self.upsampling))


def upsample(
  mask: Float[Array, 'b h w'], scale: int, method: str
) -> Float[Array, 'b h2 w2']:
  """`scale` times the size, by 'nearest' or 'bilinear' interpolation."""
  if method == 'nearest':
    return mask.repeat(scale, 1).repeat(scale, 2)
  b, h, w = mask.shape
  return jax.image.resize(mask, (b, scale * h, scale * w), 'bilinear')


def mask_loss(
  mask: Float[Array, 'b h w'], lam: Float[Array, ''], margin: float = 0.1
) -> Float[Array, '']:
  """max(|1 - mean(M') - lam| - margin, 0), the mean over batch and pixels."""
  return jnp.maximum(jnp.abs(1 - mask.mean() - lam) - margin, 0)
