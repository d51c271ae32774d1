"""Attention on NVIDIA GPUs by cuDNN, which never writes the logits to memory.

Through `jax.nn.dot_product_attention`, in half precision, without masks and
biases: of those cuDNN would read a matrix for every sequence and head from
memory. The images of a transformer have neither.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.platform import platform

GPUS = ('cuda', 'gpu')
MOST_WIDTH = 128  # of a head; Hopper can do more


def attend(
  query: Float[Array, '*b q h d'],
  key: Float[Array, '*b k h d'],
  value: Float[Array, '*b k h d'],
  mask: Array | None = None,
  bias: Array | None = None,
  scale: float | None = None,
) -> Float[Array, '*b q h d'] | None:
  """`attention.dot_product_attention` by cuDNN; None where it cannot.

  Odd numbers of positions, which some versions refuse, are padded by one that
  nobody sees. Where cuDNN is missing or refuses, that is said once.
  """
  if platform() not in GPUS or mask is not None or bias is not None:
    return None
  if query.dtype not in (jnp.bfloat16, jnp.float16):
    return None
  width = query.shape[-1]
  if width % 8 or width > MOST_WIDTH:
    return None
  flat = lambda x: x.reshape(-1, *x.shape[-3:])
  try:
    out = padded(flat(query), flat(key), flat(value), scale)
  except (RuntimeError, NotImplementedError, ValueError) as error:
    _say(str(error).splitlines()[0])
    return None
  return out.reshape(query.shape)


def padded(query, key, value, scale, implementation='cudnn'):
  """Attention of [b, t, h, d] whose odd lengths are made even."""
  batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
  lengths = {}
  if queries % 2 or keys % 2:
    full = functools.partial(jnp.full, batch, dtype=jnp.int32)
    lengths = {
      'query_seq_lengths': full(queries),
      'key_value_seq_lengths': full(keys),
    }
  out = jax.nn.dot_product_attention(
    even(query),
    even(key),
    even(value),
    scale=scale,
    implementation=implementation,
    **lengths,
  )
  return out[:, :queries]


@functools.cache
def _say(reason: str) -> None:
  warnings.warn(
    f'attention goes without cuDNN, by products that XLA compiles: {reason}',
    stacklevel=2,
  )
