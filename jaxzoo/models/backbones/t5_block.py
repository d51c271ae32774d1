"""The layers of T5: RMS norms, attention that is not scaled, stacks of blocks.

Raffel et al., arXiv 1910.10683, section 2.1; see `t5.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.hashed_dropout import HashedDropout
from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.models.layers.transformer import REMAT_POLICIES


def relative_buckets(
  distance: Int[np.ndarray, '...'],
  bidirectional: bool,
  buckets: int = 32,
  max_distance: int = 128,
) -> Int[np.ndarray, '...']:
  """The bucket of key position - query position.

  Half of the buckets are for one distance each, the others are as wide as the
  distance is far, up to `max_distance`, where the last begins. An encoder has
  half of all for keys behind the query; a decoder puts those into the first.
  """
  if bidirectional:
    buckets //= 2
    first, far = np.where(distance > 0, buckets, 0), np.abs(distance)
  else:
    first, far = 0, np.maximum(-distance, 0)
  exact = buckets // 2
  # In float32 as published: it decides the bucket at exact powers.
  ratio = np.maximum(far, 1).astype(np.float32) / np.float32(exact)
  octaves = np.log(ratio) / np.float32(np.log(max_distance / exact))
  wide = exact + (octaves * np.float32(buckets - exact)).astype(np.int32)
  return first + np.where(far < exact, far, np.minimum(wide, buckets - 1))


class RMSNorm(nn.Module):
  """scale x / sqrt(mean x² + epsilon), the mean in float32."""

  epsilon: float = 1e-6
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, '... w']) -> Float[Array, '... w']:
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    wide = x.astype(at_least_float32(x))
    square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    normed = scale * wide * jax.lax.rsqrt(square + self.epsilon)
    return normed.astype(self.dtype or x.dtype)


class Attention(nn.Module):
  """softmax(q kᵀ + bias) v of several heads, without biases, not scaled."""

  width: int
  num_heads: int
  head_width: int
  dtype: Any = None

  def setup(self):
    def project(std):
      return nn.DenseGeneral(
        (self.num_heads, self.head_width),
        use_bias=False,
        kernel_init=nn.initializers.normal(std),
        dtype=self.dtype,
      )

    self.query = project((self.width * self.head_width) ** -0.5)
    self.key = project(self.width**-0.5)
    self.value = project(self.width**-0.5)
    self.out = nn.DenseGeneral(
      self.width,
      axis=(-2, -1),
      use_bias=False,
      kernel_init=nn.initializers.normal(
        (self.num_heads * self.head_width) ** -0.5
      ),
      dtype=self.dtype,
    )

  def keys(self, context: Float[Array, 'b k w']) -> tuple:
    """(keys, values) [b, k, heads, head width] of what is looked at."""
    return self.key(context), self.value(context)

  def __call__(
    self,
    x: Float[Array, 'b q w'],
    key: Float[Array, 'b k h d'],
    value: Float[Array, 'b k h d'],
    mask: Bool[Array, '#b #h #q #k'] | None = None,
    bias: Float[Array, '#b #h #q #k'] | None = None,
  ) -> Float[Array, 'b q w']:
    attended = dot_product_attention(
      self.query(x), key, value, mask, bias, scale=1.0
    )
    return self.out(attended)


class Mlp(nn.Module):
  """fc2 ReLU(fc1 x); gated: fc2 (GELU(gate x) fc1 x), GELU by its tanh form."""

  hidden: int
  gated: bool
  dropout: float
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n w'], train: bool = False
  ) -> Float[Array, 'b n w']:
    dense = lambda size, fan_in, name: nn.Dense(
      size,
      use_bias=False,
      kernel_init=nn.initializers.normal(fan_in**-0.5),
      dtype=self.dtype,
      name=name,
    )
    width = x.shape[-1]
    y = dense(self.hidden, width, 'fc1')(x)
    if self.gated:
      y = y * nn.gelu(dense(self.hidden, width, 'gate')(x), approximate=True)
    else:
      y = nn.relu(y)
    return dense(width, self.hidden, 'fc2')(
      HashedDropout(self.dropout)(y, train)
    )


class Sizes(NamedTuple):
  """Of a block, see `T5`."""

  width: int
  num_heads: int
  head_width: int
  hidden: int
  gated: bool
  dropout: float
  epsilon: float
  dtype: Any


class EncoderBlock(nn.Module):
  """x += Attention(norm x); x += MLP(norm x)."""

  sizes: Sizes

  def setup(self):
    s = self.sizes
    self.self_norm = RMSNorm(s.epsilon, s.dtype)
    self.self_attn = Attention(s.width, s.num_heads, s.head_width, s.dtype)
    self.mlp_norm = RMSNorm(s.epsilon, s.dtype)
    self.mlp = Mlp(s.hidden, s.gated, s.dropout, s.dtype)
    self.drop = HashedDropout(s.dropout)

  def __call__(self, x, layer, mask, bias, train):
    del layer
    y = self.self_norm(x)
    y = self.self_attn(y, *self.self_attn.keys(y), mask, bias)
    x = x + self.drop(y, train)
    y = self.mlp(self.mlp_norm(x), train)
    return x + self.drop(y, train), None


class Past(NamedTuple):
  """Keys and values of decoders; of one layer, or with a leading layer axis.

  Attributes:
    key: of the positions so far, zeros behind them.
    value: likewise.
    memory_key: of what the encoder has made.
    memory_value: likewise.
  """

  key: Float[Array, '*l b t h d']
  value: Float[Array, '*l b t h d']
  memory_key: Float[Array, '*l b s h d']
  memory_value: Float[Array, '*l b s h d']


class DecoderBlock(nn.Module):
  """As the encoder's, with attention to the memory in between."""

  sizes: Sizes

  def setup(self):
    s = self.sizes
    attention = lambda: Attention(s.width, s.num_heads, s.head_width, s.dtype)
    self.self_norm = RMSNorm(s.epsilon, s.dtype)
    self.self_attn = attention()
    self.cross_norm = RMSNorm(s.epsilon, s.dtype)
    self.cross_attn = attention()
    self.mlp_norm = RMSNorm(s.epsilon, s.dtype)
    self.mlp = Mlp(s.hidden, s.gated, s.dropout, s.dtype)
    self.drop = HashedDropout(s.dropout)

  def remember(self, memory) -> tuple:
    """(keys, values) of the memory."""
    return self.cross_attn.keys(memory)

  def __call__(self, x, past, mask, bias, memory, memory_mask, position, train):
    """(x, past); without a past all positions come at once."""
    y = self.self_norm(x)
    key, value = self.self_attn.keys(y)
    if past is None:
      of_memory = self.remember(memory)
    else:
      put = jax.lax.dynamic_update_slice_in_dim
      key = put(past.key, key.astype(past.key.dtype), position, axis=1)
      value = put(past.value, value.astype(past.value.dtype), position, axis=1)
      past = past._replace(key=key, value=value)
      of_memory = past.memory_key, past.memory_value
    x = x + self.drop(self.self_attn(y, key, value, mask, bias), train)
    y = self.cross_attn(self.cross_norm(x), *of_memory, memory_mask)
    x = x + self.drop(y, train)
    y = self.mlp(self.mlp_norm(x), train)
    return x + self.drop(y, train), past


class Stack(nn.Module):
  """Blocks in a row and the norm after them, with one table of distances.

  Attributes:
    block: of which kind.
    sizes: of each.
    depth: how many.
    bidirectional: whether a position sees those behind it.
    buckets: rows of the table.
    max_distance: where the last one begins.
    scan: one compiled block, see `layers/stack.py`.
    remat: see `layers/transformer.py`.
  """

  block: Callable
  sizes: Sizes
  depth: int
  bidirectional: bool
  buckets: int = 32
  max_distance: int = 128
  scan: bool = False
  remat: str = 'none'

  def setup(self):
    s, block = self.sizes, self.block
    if self.remat != 'none':
      block = nn.remat(
        block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scanned,
        static_argnums=(8 if self.block is DecoderBlock else 5,),
      )
    if self.scanned:
      self.blocks = block(s)
    else:
      self.block_list = [block(s, name=f'block_{i}') for i in range(self.depth)]
    self.position_bias = self.param(
      'position_bias',
      nn.initializers.normal(s.width**-0.5),
      (self.buckets, s.num_heads),
    )
    self.norm = RMSNorm(s.epsilon, s.dtype)
    self.drop = HashedDropout(s.dropout)

  @property
  def scanned(self) -> bool:
    return self.scan and self.depth > 1

  def bias(self, length: int) -> Float[Array, '1 h t t']:
    """What scores of so many positions get for their distances, float32."""
    place = np.arange(length)
    found = relative_buckets(
      place[None] - place[:, None],
      self.bidirectional,
      self.buckets,
      self.max_distance,
    )
    return jnp.moveaxis(jnp.asarray(self.position_bias)[found], -1, 0)[None]

  def each(self, call: Callable, x, layers=None) -> tuple:
    """x, y_i = call(block_i, x, layers[i]) in turn; (x, all y stacked)."""
    if self.scanned:
      return nn.scan(
        call,
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        length=self.depth,
      )(self.blocks, x, layers)
    outputs = []
    for i, block in enumerate(self.block_list):
      x, y = call(block, x, jax.tree.map(lambda a, i=i: a[i], layers))
      outputs.append(y)
    return x, jax.tree.map(lambda *ys: jnp.stack(ys), *outputs)

  def run(self, x, layers, inputs: Sequence, train: bool) -> tuple:
    """All blocks and the last norm; (x, what the blocks give beside it)."""
    x = self.drop(x, train)
    call = lambda block, x, layer: block(x, layer, *inputs, train)
    x, outputs = self.each(call, x, layers)
    return self.drop(self.norm(x), train), outputs
