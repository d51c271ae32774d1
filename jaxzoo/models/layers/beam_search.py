"""Beam search with static shapes: one compiled scan over the positions."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The lowest score that sums of scores still tell from each other.
IMPOSSIBLE = -1e9


def beam_search(
  log_probs: Callable,
  start: Int[Array, 'b t'],
  *,
  end_id: int,
  width: int,
  pad_id: int = 0,
  length_penalty: float = 0.0,
) -> tuple[Int[Array, 'b t'], Float[Array, ' b']]:
  """The best word sequence that a beam of `width` finds; 1 is greedy.

  A beam that has given `end_id` is finished: padding follows at no cost. One
  that is not at the last position is cut off there.

  Args:
    log_probs: (words int32 [b width, t], position) -> [b width, v], of the
      word at the position, given those before it. Row i width + j is beam j of
      example i.
    start: the first word at position 0; what follows is overwritten.
    end_id: of the word that ends a sequence.
    width: beams of an example.
    pad_id: what follows the end.
    length_penalty: p; the beams are ranked by their log probability over
      words^p at the end. 0 for the most probable sequence.

  Returns:
    (words, log probability of the sequence).
  """
  b, t = start.shape
  first = start.at[:, 1:].set(pad_id)
  words = jnp.repeat(first[:, None], width, axis=1)
  # The beams are equal at first: all but one would only repeat it.
  scores = jnp.where(jnp.arange(width) == 0, 0.0, IMPOSSIBLE)
  scores = jnp.broadcast_to(scores, (b, width))

  def extend(carry, position):
    words, scores, done = carry
    found = log_probs(words.reshape(b * width, t), position)
    found = found.astype(jnp.float32).reshape(b, width, -1)
    size = found.shape[-1]
    stay = jnp.where(jnp.arange(size) == pad_id, 0.0, IMPOSSIBLE)
    total = scores[..., None] + jnp.where(done[..., None], stay, found)
    scores, place = jax.lax.top_k(total.reshape(b, -1), width)
    parent, word = place // size, place % size
    words = jnp.take_along_axis(words, parent[..., None], axis=1)
    words = words.at[:, :, position].set(word.astype(words.dtype))
    done = jnp.take_along_axis(done, parent, axis=1) | (word == end_id)
    return (words, scores, done), None

  done = jnp.zeros((b, width), bool)
  (words, scores, _), _ = jax.lax.scan(
    extend, (words, scores, done), jnp.arange(1, t)
  )
  length = jnp.maximum((words != pad_id).sum(-1) - 1, 1)
  best = jnp.argmax(scores / length**length_penalty, axis=1)[:, None]
  return (
    jnp.take_along_axis(words, best[..., None], axis=1)[:, 0],
    jnp.take_along_axis(scores, best, axis=1)[:, 0],
  )
