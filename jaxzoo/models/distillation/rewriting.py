"""Texts that a T5 writes, with a gradient: samples, their likelihood, a buffer.

Of DFKD-T3 (arXiv 2311.01689), see `dfkd_t3.py`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.backbones import t5
from jaxzoo.models.backbones.t5 import T5, generate, shift_right
from jaxzoo.models.losses.data_free import (
  gumbel,
  masked_mean,
  straight_through,
)
from jaxzoo.models.supervised.text_to_text import read


class Noise(NamedTuple):
  """Gumbel noise for each position of a batch of texts, made when needed."""

  rng: jax.Array
  batch: int
  vocab_size: int

  def at(self, position) -> Float[Array, 'b v']:
    """Of one position."""
    shape = (self.batch, self.vocab_size)
    key = jax.random.fold_in(self.rng, position)
    return gumbel(jax.random.uniform(key, shape))

  def all(self, length: int) -> Float[Array, 'b n v']:
    """Of all positions."""
    return jnp.moveaxis(jax.vmap(self.at)(jnp.arange(length)), 0, 1)


class Rewritten(NamedTuple):
  """Texts of the generator.

  Attributes:
    tokens: ids; END, then PAD.
    soft: the same as vectors, one-hot, whose gradient goes to the logits.
    mask: positions up to END.
    logits: of each position, the words before it given.
  """

  tokens: Int[Array, 'b n']
  soft: Float[Array, 'b n v']
  mask: Bool[Array, 'b n']
  logits: Float[Array, 'b n v']


def without_pad(logits: Float[Array, '*b v']) -> Float[Array, '*b v']:
  """Logits of which PAD is never sampled: a text is ended by END alone."""
  return jnp.asarray(logits).at[..., t5.PAD].set(-1e9)


def ended(tokens: Int[Array, 'b n']) -> Int[Array, 'b n']:
  """Texts with END in the last place where they have none."""
  cut = (tokens[:, -1] != t5.END) & (tokens[:, -1] != t5.PAD)
  return tokens.at[:, -1].set(jnp.where(cut, t5.END, tokens[:, -1]))


def sample(
  module: T5, variables, batch: Mapping[str, Array], noise: Noise, length: int
) -> Int[Array, 'b n']:
  """Rewrites of `batch['sentence']`, word for word; no gradient.

  Args:
    module: the generator.
    variables: its.
    batch: `sentence` and the prefix `rewrite`.
    noise: with which the likeliest token is a sample.
    length: of the texts, END included.
  """
  memory, seen = read_source(module, variables, batch)
  return draw(module, variables, memory, seen, noise, length)


def read_source(module: T5, variables, batch: Mapping[str, Array]) -> tuple:
  """(memory, mask) of the sentences that are to be rewritten."""
  sentence = batch['sentence']
  return read(module, variables, batch['rewrite'], sentence, sentence != t5.PAD)


def draw(
  module: T5, variables, memory, seen, noise: Noise, length: int
) -> Int[Array, 'b n']:
  """`sample` of a memory."""
  choose = lambda logits, i: (without_pad(logits) + noise.at(i)).argmax(-1)
  return ended(generate(module, variables, memory, seen, length, choose))


def rewrite(
  module: T5,
  variables,
  batch: Mapping[str, Array],
  noise: Noise,
  length: int,
  temperature: float | Float[Array, ''],
) -> Rewritten:
  """`sample` with a gradient, cut at the decoder's past inputs.

  Each token has the gradient of its own logits, as if the words before it were
  given. Hence the texts are sampled first, and their logits are computed once
  more, all positions at once: what differentiating the scan would give, without
  a chain through it.

  Args:
    module: the generator.
    variables: its.
    batch: see `sample`.
    noise: likewise.
    length: likewise.
    temperature: of the softmax whose gradient is taken.
  """
  memory, seen = read_source(module, variables, batch)
  fixed = jax.lax.stop_gradient((variables, memory))
  tokens = draw(module, *fixed, seen, noise, length)
  logits = module.apply(
    variables, shift_right(tokens), memory, seen, method='decode'
  )
  logits = without_pad(logits)
  soft = straight_through(logits, noise.all(length), temperature, tokens)
  # An END that was put there is nobody's choice, and PAD is no word.
  free = jnp.argmax(logits[:, -1] + noise.at(length - 1), axis=-1)
  forced = (tokens[:, -1] == t5.END) & (free != t5.END)
  mask = tokens != t5.PAD
  settled = ~mask | (forced[:, None] & (jnp.arange(length) == length - 1))
  soft = jnp.where(settled[..., None], jax.lax.stop_gradient(soft), soft)
  return Rewritten(tokens, soft, mask, logits)


def say(
  module: T5, variables, batch: Mapping[str, Array], tokens: Int[Array, 'b n']
) -> Float[Array, 'b n v']:
  """The logits of a generator that rewrites sentences as these tokens."""
  memory, seen = read_source(module, variables, batch)
  return module.apply(
    variables, shift_right(tokens), memory, seen, method='decode'
  )


def language_loss(
  logits: Float[Array, 'b n v'], texts: Rewritten
) -> Float[Array, '']:
  """Mean -log p of the words up to END, by the logits of another generator."""
  log_p = jax.nn.log_softmax(without_pad(logits), axis=-1)
  nll = -jnp.sum(texts.soft * log_p, axis=-1)
  return masked_mean(nll.reshape(-1), texts.mask.reshape(-1))


def drift(logits: Float[Array, 'b n v'], texts: Rewritten) -> Float[Array, '']:
  """Mean KL divergence from another generator, word by word up to END.

  Of the distributions that the words of the texts were drawn from. Where
  `language_loss` is the least if every word is the likeliest one, this is 0
  where both generators say the same: rare words stay as likely as they were.
  """
  log_p = jax.nn.log_softmax(without_pad(logits), axis=-1)
  log_q = jax.nn.log_softmax(texts.logits, axis=-1)
  kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
  return masked_mean(kl.reshape(-1), texts.mask.reshape(-1))


class Replay(NamedTuple):
  """The newest texts; the oldest are overwritten.

  Attributes:
    texts: ids.
    position: where the next goes.
    count: how many there are.
  """

  texts: Int[Array, 'm n']
  position: Int[Array, '']
  count: Int[Array, '']


def remember(replay: Replay, texts: Int[Array, 'b n']) -> Replay:
  """The buffer with a batch in it."""
  size, batch = len(replay.texts), len(texts)
  rows = (replay.position + jnp.arange(batch)) % size
  return Replay(
    replay.texts.at[rows].set(texts),
    (replay.position + batch) % size,
    jnp.minimum(replay.count + batch, size),
  )


def recall(replay: Replay, rng: jax.Array, batch: int) -> Int[Array, 'b n']:
  """Texts of the buffer at random, each as likely."""
  rows = jax.random.randint(rng, (batch,), 0, jnp.maximum(replay.count, 1))
  return replay.texts[rows]
