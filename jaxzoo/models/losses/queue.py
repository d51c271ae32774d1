"""Queues of vectors from earlier batches, as arrays of a fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxzoo.models.losses.contrastive import l2_normalize


class Queue(NamedTuple):
  """The newest vectors; the oldest are overwritten.

  Attributes:
    vectors: rows, float32.
    position: where the next batch goes, a multiple of its size.
  """

  vectors: Float[Array, 'n d']
  position: Int[Array, '']


def random_queue(rng: jax.Array, size: int, dim: int) -> Queue:
  """Random unit vectors: what a queue is before any batch was seen."""
  vectors = l2_normalize(jax.random.normal(rng, (size, dim)))
  return Queue(vectors, jnp.int32(0))


def enqueue(queue: Queue, vectors: Float[Array, 'b d']) -> Queue:
  """The queue with a batch in it; no gradient goes through.

  Raises:
    ValueError: the size of the queue is no multiple of the batch.
  """
  size, count = len(queue.vectors), len(vectors)
  if size % count:
    raise ValueError(
      f'a queue of {size} is no multiple of the {count} vectors that enter it'
    )
  vectors = jax.lax.stop_gradient(vectors).astype(queue.vectors.dtype)
  return Queue(
    jax.lax.dynamic_update_slice_in_dim(
      queue.vectors, vectors, queue.position, axis=0
    ),
    (queue.position + count) % size,
  )
