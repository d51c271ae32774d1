"""Dropout whose mask is a hash of the place: cheap where the layers are small.

A draw of `jax.random` costs a number some 20 rounds of a cipher, on a CPU more
than all else that a small network does with it. A mask needs no such care.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32


def mix(x: UInt32[Array, '...']) -> UInt32[Array, '...']:
  """A bijection of 32 bits that turns each output bit with every input bit.

  'lowbias32' of https://nullprogram.com/blog/2018/07/31/ (public domain).
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def hashed_bits(key: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, '...']:
  """Uniform bits for each place of an array, the same on every mesh."""
  start, turn = jax.random.bits(key, (2,), jnp.uint32)
  place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  return mix(mix(place + start) ^ turn)


class HashedDropout(nn.Module):
  """x / (1 - rate) with probability 1 - rate, else 0; in training alone.

  Attributes:
    rate: in [0, 1).
  """

  rate: float

  @nn.compact
  def __call__(
    self, x: Float[Array, '...'], train: bool = False
  ) -> Float[Array, '...']:
    if not train or not self.rate:
      return x
    bits = hashed_bits(self.make_rng('dropout'), x.shape)
    keep = bits >= jnp.uint32(round(self.rate * 2**32))
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)
