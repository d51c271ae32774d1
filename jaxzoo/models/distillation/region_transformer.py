"""A transformer over words, object tags and the regions of a picture.

The network of Oscar (arXiv 2004.06165) and MiniVLM (arXiv 2012.06946): BERT's
encoder on [words; tags; regions], where a detector has found the regions and
named them. Its heads fill in masked words, tell whether the tags belong to the
picture, answer questions, and write captions.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.layers.beam_search import IMPOSSIBLE, beam_search
from jaxzoo.models.layers.hashed_dropout import HashedDropout
from jaxzoo.models.layers.post_norm import (
  EPSILON,
  INIT_STD,
  PostNormEncoder,
  WordHead,
)
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/(query|key|value)/bias$', ('tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'word_embedding/embedding$', ('tensor', None)),
)
PAD = 0


class Encoded(NamedTuple):
  """What the encoder makes of an example, float32.

  Attributes:
    hidden: of every token after the last block.
    attention: probabilities of the last block.
    valid: tokens that are not padding.
  """

  hidden: Float[Array, 'b n w']
  attention: Float[Array, 'b h n n']
  valid: Bool[Array, 'b n']


class RegionTransformer(nn.Module):
  """Words, tags and regions to tokens, and tokens to answers.

  A word is the sum of its embedding, its position's and its type's (0 text, 1
  tags), then a norm; a region is LN(Linear(features)), without a position: its
  box is among its features.

  Attributes:
    vocab_size: words; 0 is padding.
    width: of the tokens.
    depth: blocks.
    num_heads: of the attention.
    text_length: places for the text; tags start after them, whatever the
      text's own length.
    tag_length: places for tags.
    heads: of 'words', 'match', 'answers', those that are made.
    num_answers: of the head for answers.
    dropout: rate in training.
    init_std: of all matrices and tables; BERT's 0.02 is 0.55 / sqrt(768).
    scan, remat, dtype: see `PostNormEncoder`.
  """

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  text_length: int
  tag_length: int
  heads: tuple[str, ...] = ('words', 'match')
  num_answers: int = 0
  dropout: float = 0.1
  init_std: float = INIT_STD
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    init = nn.initializers.normal(self.init_std)
    norm = lambda: nn.LayerNorm(epsilon=EPSILON, dtype=self.dtype)
    dense = lambda width: nn.Dense(width, kernel_init=init, dtype=self.dtype)
    self.word_embedding = nn.Embed(
      self.vocab_size, self.width, embedding_init=init
    )
    places = self.text_length + self.tag_length
    self.position_embedding = self.param(
      'position_embedding', init, (places, self.width)
    )
    self.type_embedding = self.param('type_embedding', init, (2, self.width))
    self.word_norm, self.region_norm = norm(), norm()
    self.region_fc = dense(self.width)
    self.drop = HashedDropout(self.dropout)
    self.encoder = PostNormEncoder(
      self.depth,
      self.num_heads,
      dropout=self.dropout,
      init_std=self.init_std,
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
    )
    if 'words' in self.heads:
      self.word_head = WordHead(self.init_std, self.dtype)
    if 'match' in self.heads or 'answers' in self.heads:
      self.pooler = dense(self.width)
    if 'match' in self.heads:
      self.match_head = dense(2)
    if 'answers' in self.heads:
      # Each answer is as likely as the others, and not as its contrary.
      prior = nn.initializers.constant(-math.log(max(self.num_answers, 1)))
      self.answer_head = nn.Dense(
        self.num_answers,
        kernel_init=init,
        bias_init=prior,
        dtype=self.dtype,
      )

  def encode(
    self,
    words: Int[Array, 'b t'],
    regions: Float[Array, 'b r d'],
    region_count: Int[Array, ' b'],
    train: bool = False,
    causal: bool = False,
  ) -> Encoded:
    """All tokens: text, tags, regions.

    Args:
      words: ids of the text, then of the tags.
      regions: features, the box among them; padding at the end.
      region_count: regions that are no padding.
      train: whether there is dropout.
      causal: whether a word of the text sees only those before it, and tags
        and regions see no text: for captions.
    """
    x = self.word_embedding(words)
    types = jnp.arange(words.shape[1]) >= self.text_length
    x = x + self.position_embedding + self.type_embedding[types.astype(int)]
    x = self.word_norm(x.astype(self.dtype))
    y = self.region_norm(self.region_fc(regions.astype(self.dtype)))
    x = self.drop(jnp.concatenate([x, y], axis=1), train)
    places = jnp.arange(regions.shape[1])
    valid = jnp.concatenate(
      [words != PAD, places < region_count[:, None]], axis=1
    )
    mask = valid[:, None, None]
    if causal:
      mask = mask & caption_mask(self.text_length, x.shape[1])
    hidden, attention = self.encoder(x, mask, train)
    return Encoded(hidden.astype(jnp.float32), attention, valid)

  def word_logits(self, hidden: Float[Array, 'b n w']) -> Float[Array, 'b n v']:
    """Of the words at tokens."""
    return self.word_head(hidden, self.word_embedding.embedding)

  def pooled(self, hidden: Float[Array, 'b n w']) -> Float[Array, 'b w']:
    """tanh(Linear) of the first token."""
    return nn.tanh(self.pooler(hidden[:, 0]))

  def match_logits(self, hidden: Float[Array, 'b n w']) -> Float[Array, 'b 2']:
    """Tags of another picture (0) or of this one (1)."""
    return self.match_head(self.pooled(hidden)).astype(jnp.float32)

  def answer_logits(self, hidden: Float[Array, 'b n w']) -> Float[Array, 'b k']:
    """Of the answers to a question."""
    return self.answer_head(self.pooled(hidden)).astype(jnp.float32)

  def __call__(self, words, regions, region_count) -> dict:
    """The logits of all heads, for initialisation."""
    hidden = self.encode(words, regions, region_count).hidden
    made = {
      'words': self.word_logits,
      'match': self.match_logits,
      'answers': self.answer_logits,
    }
    return {name: made[name](hidden) for name in self.heads}


def caption_mask(text: int, length: int) -> Bool[np.ndarray, 'n n']:
  """Which token (row) sees which (column) while a caption is written.

  Text sees the text up to itself, and all tags and regions; tags and regions
  see each other.
  """
  place = np.arange(length)
  asks, answers = place[:, None], place
  return np.where(answers < text, (asks < text) & (answers <= asks), True)


def write_captions(
  module: RegionTransformer,
  variables: Mapping,
  batch: Mapping[str, Array],
  special_ids: tuple[int, int, int, int],
  *,
  width: int,
  length_penalty: float,
) -> tuple[Int[Array, 'b t'], Float[Array, ' b']]:
  """The captions of pictures by beam search: (ids, log probability).

  The word at a place is what the head for masked words makes of a mask there,
  as in training; special words but the end are never written.

  Args:
    module: with the head 'words'.
    variables: its.
    batch: `words`, of which the tags count, `regions`, `region_count`.
    special_ids: of unknown, start, end and mask.
    width: beams of a picture; 1 is greedy.
    length_penalty: see `beam_search`.
  """
  unknown, start, end, mask = special_ids
  t = module.text_length
  again = lambda x: jnp.repeat(x, width, axis=0)
  tags, regions = again(batch['words'][:, t:]), again(batch['regions'])
  count = again(batch['region_count'])
  forbidden = jnp.array([PAD, unknown, start, mask])

  def next_word(module, words, position):
    words = words.at[:, position].set(mask)
    encoded = module.encode(
      jnp.concatenate([words, tags], axis=1), regions, count, causal=True
    )
    token = jnp.take(encoded.hidden, position[None], axis=1)
    return module.word_logits(token)[:, 0]

  def log_probs(words, position):
    logits = module.apply(variables, words, position, method=next_word)
    logits = logits.at[:, forbidden].set(IMPOSSIBLE)
    return nn.log_softmax(logits)

  first = jnp.zeros_like(batch['words'][:, :t]).at[:, 0].set(start)
  return beam_search(
    log_probs, first, end_id=end, width=width, length_penalty=length_penalty
  )


# Weights: BERT's names, as Oscar's checkpoints have them.


def rows(module: RegionTransformer) -> list[Row]:
  """Names of a checkpoint of BERT or Oscar; the layout is the unrolled one."""
  found = [
    *to.tensor(
      'bert.embeddings.word_embeddings.weight', 'word_embedding/embedding'
    ),
    *to.tensor(
      'bert.embeddings.position_embeddings.weight',
      'position_embedding',
      # Theirs has more places than texts have words.
      to.Form(
        lambda x: x[: module.text_length + module.tag_length], lambda x: x
      ),
    ),
    *to.tensor(
      'bert.embeddings.token_type_embeddings.weight', 'type_embedding'
    ),
    *to.norm('bert.embeddings.LayerNorm', 'word_norm'),
    *to.linear('bert.img_embedding', 'region_fc'),
    *to.norm('bert.LayerNorm', 'region_norm'),
  ]
  for i in range(module.depth):
    found += _block_rows(i, module.num_heads)
  if 'words' in module.heads:
    found += [
      *to.linear('cls.predictions.transform.dense', 'word_head/dense'),
      *to.norm('cls.predictions.transform.LayerNorm', 'word_head/ln'),
      *to.tensor('cls.predictions.bias', 'word_head/bias'),
    ]
  if 'match' in module.heads or 'answers' in module.heads:
    found += to.linear('bert.pooler.dense', 'pooler')
  if 'match' in module.heads:
    found += to.linear('cls.seq_relationship', 'match_head')
  if 'answers' in module.heads:
    found += to.linear('classifier', 'answer_head')
  return found


def _block_rows(i: int, num_heads: int) -> list[Row]:
  theirs, ours = f'bert.encoder.layer.{i}', f'encoder/block_{i}'
  found = []
  for part in ('query', 'key', 'value'):
    found += to.projections(
      f'{theirs}.attention.self.{part}', f'{ours}/attn', [part], num_heads
    )
  return [
    *found,
    *to.from_heads(
      f'{theirs}.attention.output.dense', f'{ours}/attn/out', num_heads
    ),
    *to.norm(f'{theirs}.attention.output.LayerNorm', f'{ours}/ln_1'),
    *to.linear(f'{theirs}.intermediate.dense', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.output.dense', f'{ours}/mlp/fc2'),
    *to.norm(f'{theirs}.output.LayerNorm', f'{ours}/ln_2'),
  ]


def convert(
  state_dict: Mapping[str, np.ndarray], module: RegionTransformer
) -> dict:
  """Parameters of a checkpoint of BERT or Oscar.

  What it has beside them is left out: heads that the module has not, and the
  tied copy of the word table. A BERT lacks `region_fc` and `region_norm`.
  """
  wanted = rows(module)
  names = {row.theirs for row in wanted}
  found = to.load(
    {name: x for name, x in state_dict.items() if name in names}, wanted
  ).get('params', {})
  stacked = module.scan and module.depth > 1 and found
  return layout.stack_blocks(found) if stacked else found
