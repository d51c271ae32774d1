"""Images into patches."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from jaxzoo.errors import UserError
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, uniform_bias


class PatchEmbed(nn.Module):
  """One linear map of every patch: a convolution as large as its stride.

  Attributes:
    width: channels of a patch's token.
    patch_size: pixels of a patch, each way.
    stride: pixels from one patch to the next, each way; default: the patch
      size. With a smaller one patches overlap (TransReID).
    dtype: compute dtype.
  """

  width: int
  patch_size: int = 16
  stride: int | None = None
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 d']:
    """(h - patch) // stride + 1 rows of patches, and columns likewise.

    Raises:
      UserError: patches that do not overlap do not fill the image.
    """
    del train
    if not self.stride:
      check_divisible(image.shape[1:3], self.patch_size)
    return conv(
      self.width,
      self.patch_size,
      self.stride or self.patch_size,
      padding=0,
      bias=True,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(self.patch_size**2 * image.shape[-1]),
      dtype=self.dtype,
      name='proj',
    )(image)


def check_divisible(size: tuple[int, int], patch_size: int) -> None:
  """Raises a UserError where patches do not fill an image of (h, w) pixels."""
  if any(side % patch_size or not side for side in size):
    fit = tuple(max(round(s / patch_size), 1) * patch_size for s in size)
    raise UserError(
      f'an image of {size[0]}x{size[1]} is not made of patches of '
      f'{patch_size}x{patch_size}: make it {fit[0]}x{fit[1]}'
    )
