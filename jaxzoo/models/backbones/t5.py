"""T5: text to text, an encoder and a decoder over one table of words.

Raffel et al., arXiv 1910.10683, section 2.1, and the 1.1 checkpoints (arXiv
2002.05202: gated GELU, a head of its own). Relative positions alone, RMS norms
without biases, scores that are not scaled. Inputs are token ids or, so that a
text can have a gradient, distributions over tokens, which are embedded by their
product with the table.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones.t5_block import (
  DecoderBlock,
  EncoderBlock,
  Past,
  Sizes,
  Stack,
)
from jaxzoo.models.layers.attention import causal_mask

PAD = 0  # also what a decoder begins with
END = 1
UNKNOWN = 2

# For tensor-parallel meshes, see `train/mesh.py`; specs are aligned to the last
# dimensions. The table is cut by words, which soft tokens contract over.
SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/(fc1|gate)/kernel$', (None, 'tensor')),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'token_embedding$', ('tensor', None)),
  (r'head/kernel$', (None, 'tensor')),
)

# Published sizes, as fields of `T5`.
SIZES = {
  't5_small': dict(width=512, depth=6, num_heads=8, hidden=2048),
  't5_base': dict(width=768, depth=12, num_heads=12, hidden=3072),
  't5_large': dict(width=1024, depth=24, num_heads=16, hidden=4096),
  't5_v1_1_small': dict(
    width=512, depth=8, num_heads=6, hidden=1024, gated=True, tied=False
  ),
  't5_v1_1_base': dict(
    width=768, depth=12, num_heads=12, hidden=2048, gated=True, tied=False
  ),
  't5_v1_1_large': dict(
    width=1024, depth=24, num_heads=16, hidden=2816, gated=True, tied=False
  ),
}


def shift_right(tokens: Int[Array, 'b t']) -> Int[Array, 'b t']:
  """What a decoder is given to say `tokens`: PAD, then all but the last."""
  return jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=PAD)[:, :-1]


class Cache(NamedTuple):
  """Where a decoder is.

  Attributes:
    past: of all layers.
    position: of the token that comes next.
  """

  past: Past
  position: Int[Array, '']


class T5(nn.Module):
  """Encoder and decoder; `__call__` is the logits of known targets.

  Attributes:
    vocab_size: rows of the table, which both share.
    width: channels.
    depth: blocks of the encoder, and of the decoder.
    num_heads: heads of each.
    hidden: units of an MLP.
    head_width: channels of a head, whatever `width` is.
    gated: gated GELU (1.1) instead of ReLU.
    tied: the table, over sqrt(width), as the head; or (1.1) one of its own.
    buckets: of relative positions.
    max_distance: where the last of them begins.
    dropout: in training: on embeddings, branches and hidden units. (The
      published one is on attention weights too.)
    epsilon: of the norms.
    scan: one compiled block for all layers.
    remat: see `layers/transformer.py`.
    dtype: compute dtype.
  """

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  hidden: int
  head_width: int = 64
  gated: bool = False
  tied: bool = True
  buckets: int = 32
  max_distance: int = 128
  dropout: float = 0.1
  epsilon: float = 1e-6
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    sizes = Sizes(
      self.width,
      self.num_heads,
      self.head_width,
      self.hidden,
      self.gated,
      self.dropout,
      self.epsilon,
      self.dtype,
    )
    stack = lambda block, bidirectional: Stack(
      block,
      sizes,
      self.depth,
      bidirectional,
      self.buckets,
      self.max_distance,
      self.scan,
      self.remat,
    )
    self.token_embedding = self.param(
      'token_embedding',
      nn.initializers.normal(1.0),
      (self.vocab_size, self.width),
    )
    self.encoder = stack(EncoderBlock, True)
    self.decoder = stack(DecoderBlock, False)
    if not self.tied:
      self.head = nn.Dense(
        self.vocab_size,
        use_bias=False,
        kernel_init=nn.initializers.normal(self.width**-0.5),
        dtype=self.dtype,
      )

  def embed(
    self, tokens: Int[Array, 'b n'] | Float[Array, 'b n v']
  ) -> Float[Array, 'b n w']:
    """Rows of the table; of distributions their mean rows, as a product."""
    table = jnp.asarray(self.token_embedding, self.dtype)
    if jnp.issubdtype(tokens.dtype, jnp.integer):
      return table[tokens]
    return tokens.astype(self.dtype) @ table

  def encode(
    self,
    embedded: Float[Array, 'b s w'],
    mask: Bool[Array, 'b s'],
    train: bool = False,
  ) -> Float[Array, 'b s w']:
    """The memory of an embedded text, whose padding `mask` leaves out."""
    bias = self.encoder.bias(embedded.shape[1])
    inputs = (mask[:, None, None], bias)
    return self.encoder.run(embedded, None, inputs, train)[0]

  def decode(
    self,
    tokens: Int[Array, 'b t'],
    memory: Float[Array, 'b s w'],
    memory_mask: Bool[Array, 'b s'],
    train: bool = False,
  ) -> Float[Array, 'b t v']:
    """Logits, float32, of what follows each token; see `shift_right`."""
    length = tokens.shape[1]
    bias = self.decoder.bias(length)
    of_memory = memory, memory_mask[:, None, None], None
    x, _ = self.decoder.run(
      self.embed(tokens), None, (causal_mask(length), bias, *of_memory), train
    )
    return self.logits(x)

  def start(self, memory: Float[Array, 'b s w'], length: int) -> Cache:
    """A decoder before its first token, for at most `length` of them."""
    keep = lambda block, x, _: (x, block.remember(memory))
    _, (key, value) = self.decoder.each(keep, memory)
    shape = (*key.shape[:2], length, *key.shape[3:])
    blank = jnp.zeros(shape, key.dtype)
    return Cache(Past(blank, blank, key, value), jnp.int32(0))

  def extend(
    self,
    tokens: Int[Array, ' b'],
    cache: Cache,
    memory_mask: Bool[Array, 'b s'],
  ) -> tuple[Float[Array, 'b v'], Cache]:
    """Logits of what follows the next token of each text, and the cache."""
    past, position = cache
    length = past.key.shape[2]
    bias = jax.lax.dynamic_slice_in_dim(
      self.decoder.bias(length), position, 1, axis=2
    )
    seen = jnp.arange(length) <= position
    of_memory = None, memory_mask[:, None, None], position
    x, past = self.decoder.run(
      self.embed(tokens[:, None]),
      past,
      (seen[None, None, None], bias, *of_memory),
      False,
    )
    return self.logits(x)[:, 0], Cache(past, position + 1)

  def logits(self, x: Float[Array, '... w']) -> Float[Array, '... v']:
    """The head, float32."""
    if not self.tied:
      return self.head(x).astype(jnp.float32)
    table = jnp.asarray(self.token_embedding, self.dtype)
    x = x * self.width**-0.5
    return jnp.matmul(x, table.T, preferred_element_type=jnp.float32)

  def __call__(
    self,
    source: Int[Array, 'b s'] | Float[Array, 'b s v'],
    tokens: Int[Array, 'b t'],
    mask: Bool[Array, 'b s'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'b t v']:
    """Logits of what follows each of `tokens`; all of `source` unless masked."""
    if mask is None:
      mask = jnp.ones(source.shape[:2], bool)
    memory = self.encode(self.embed(source), mask, train)
    return self.decode(tokens, memory, mask, train)


def generate(
  module: T5,
  variables,
  memory: Float[Array, 'b s w'],
  memory_mask: Bool[Array, 'b s'],
  length: int,
  choose: Callable | None = None,
) -> Int[Array, 'b t']:
  """A text of at most `length` tokens for each memory, by a scan.

  After END there is PAD; a text that is too long has no END.

  Args:
    module: the network.
    variables: its.
    memory: of `T5.encode`.
    memory_mask: its positions that are no padding.
    length: of the result.
    choose: (logits [b, v], position) -> ids [b]; default the likeliest.
  """
  choose = choose or (lambda logits, _: logits.argmax(-1))
  cache = module.apply(variables, memory, length, method='start')
  batch = memory.shape[0]

  def one(carry, position):
    cache, token, ended = carry
    logits, cache = module.apply(
      variables, token, cache, memory_mask, method='extend'
    )
    token = jnp.where(ended, PAD, choose(logits, position)).astype(jnp.int32)
    return (cache, token, ended | (token == END)), token

  first = (cache, jnp.full(batch, PAD, jnp.int32), jnp.zeros(batch, bool))
  _, tokens = jax.lax.scan(one, first, jnp.arange(length))
  return tokens.T


def make_t5(
  model: str, options, *, vocab_size: int, scan: bool, remat: str, dtype: str
) -> T5:
  """A network of a published size, with fields of its own.

  Args:
    model: one of `SIZES`.
    options: fields of `T5` that are other than published.
    vocab_size: rows of the table.
    scan: see `T5`, as `remat` and `dtype`.

  Raises:
    UserError: no such model or field.
  """
  if model not in SIZES:
    raise UserError(f'model: no {model!r}; ' + nearest(model, SIZES))
  known = set(T5.__dataclass_fields__) - {'parent', 'name', 'vocab_size'}
  for name in options:
    if name not in known:
      raise UserError(
        f'model_options: {model} has no {name!r}; ' + nearest(name, known)
      )
  fields = {**SIZES[model], 'scan': scan, 'remat': remat, **dict(options)}
  return T5(vocab_size=vocab_size, dtype=jnp.dtype(dtype), **fields)
