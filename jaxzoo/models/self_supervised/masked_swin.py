"""Swin Transformer on all patches of images, masked ones replaced by a token.

Masked image modelling of a hierarchical encoder as it is done without GreenMIM
(SimMIM, arXiv 2111.09886): the comparison for its speed. Without a mask it is
Swin, by which a pre-trained encoder is judged.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxzoo.models.backbones import swin
from jaxzoo.models.self_supervised.grouped_swin import (
  EPSILON,
  XAVIER,
  GroupedSwin,
)


class MaskedSwin(nn.Module):
  """Swin's encoder, windows and all.

  Fields are those of `GroupedSwin`, and so are the parameters, with the
  `mask_token` beside them.
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

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], masked: Bool[Array, 'y x'] | None
  ) -> Float[Array, 'b n d']:
    """Normalised features of all patches, row by row.

    Args:
      image: normalised; sides are multiples of the patches that are masked.
      masked: which patches are hidden; None: none of them.
    """
    x = swin.PatchEmbedding(
      self.width,
      self.patch_size,
      self.epsilon,
      dtype=self.dtype,
      name='patch_embed',
    )(image)
    if masked is not None:
      token = self.param(
        'mask_token', nn.initializers.normal(0.02), (self.width,)
      )
      side = x.shape[1] // masked.shape[0]
      hidden = masked.repeat(side, 0).repeat(side, 1)[:, :, None]
      x = jnp.where(hidden, token.astype(x.dtype), x)
    for i, rates in enumerate(swin.stage_rates(0.0, self.depths)):
      window, shift = swin.fit_window(x.shape[1:3], self.window)
      x = swin.Stage(
        self.num_heads[i],
        window,
        shift,
        self.mlp_ratio,
        self.epsilon,
        self.scan,
        self.remat,
        self.dtype,
        name=f'stage{i + 1}',
      )(x, rates)
      if i < len(self.depths) - 1:
        x = swin.PatchMerging(
          2 * x.shape[-1],
          self.epsilon,
          XAVIER,
          self.dtype,
          name=f'merge{i + 1}',
        )(x)
    x = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')(x)
    return x.reshape(len(x), -1, x.shape[-1])


def dense(encoder: GroupedSwin) -> MaskedSwin:
  """The same encoder on all patches."""
  names = {field.name for field in dataclasses.fields(MaskedSwin)}
  return MaskedSwin(
    **{name: getattr(encoder, name) for name in names - {'parent', 'name'}}
  )
