"""The form in which a state is written: plain arrays, masks as bits.

Keys are the uint32 arrays that they are made of. Boolean arrays have eight
entries in a byte, packed along the last axis: the others stay sharded, and what
lies on disk does not depend on the mesh.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def is_mask(x) -> bool:
  return x.dtype == jnp.bool_ and len(x.shape) > 0


def to_stored(state):
  """A state as it is written, of arrays or, in `jax.eval_shape`, abstract."""

  def stored(x):
    if is_key(x):
      return jax.random.key_data(x)
    return jnp.packbits(x, axis=-1) if is_mask(x) else x

  return jax.tree.map(stored, state)


def stored_shardings(state, shardings):
  """Where the arrays of `to_stored` lie: the axis that is packed is whole."""

  def whole(x, sharding):
    if not is_mask(x) or not isinstance(sharding, NamedSharding):
      return sharding
    others = tuple(sharding.spec)[: len(x.shape) - 1]
    return NamedSharding(sharding.mesh, PartitionSpec(*others))

  return jax.tree.map(whole, state, shardings)


def from_stored(stored, state, shardings):
  """The inverse of `to_stored`.

  Args:
    stored: arrays as they were read.
    state: says which are keys, which are masks, and how long these are.
    shardings: where the masks are to lie.
  """

  def live(x, like, sharding):
    if is_key(like):
      return jax.random.wrap_key_data(x)
    if not is_mask(like):
      return x
    count = like.shape[-1]
    unpack = lambda bits: jnp.unpackbits(bits, axis=-1, count=count) > 0
    return jax.jit(unpack, out_shardings=sharding)(x)

  return jax.tree.map(live, stored, state, shardings)
