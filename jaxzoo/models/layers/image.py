"""What happens to pictures on the device, before the first layer."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

# Mean and standard deviation of CLIP's training pictures, RGB in [0, 1]
# (Radford et al. 2021, released code).
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def normalize(
  image: Num[Array, '*b h w 3'],
  mean: Sequence[float] = IMAGE_MEAN,
  std: Sequence[float] = IMAGE_STD,
  dtype=jnp.float32,
) -> Float[Array, '*b h w 3']:
  """(x - mean) / std per colour channel, computed in float32.

  Args:
    image: RGB; uint8 in 0..255, or floating point in [0, 1].
    mean: of the three channels, for x in [0, 1].
    std: likewise.
    dtype: of the result.

  Raises:
    TypeError: integers other than uint8, whose range is unknown.
  """
  image = jnp.asarray(image)
  if image.dtype == jnp.uint8:
    x = image.astype(jnp.float32) / 255
  elif jnp.issubdtype(image.dtype, jnp.floating):
    x = image.astype(jnp.float32)
  else:
    raise TypeError(
      f'image must be uint8 or floating point in [0, 1], got {image.dtype}'
    )
  mean = jnp.asarray(mean, jnp.float32)
  std = jnp.asarray(std, jnp.float32)
  return ((x - mean) / std).astype(dtype)


def resized(
  x: Float[Array, 'b h w c'], size: tuple[int, int]
) -> Float[Array, 'b h2 w2 c']:
  """`x` bilinearly resized to (height, width), if it has another size."""
  if x.shape[1:3] == tuple(size):
    return x
  return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'bilinear')
