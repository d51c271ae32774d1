"""Pre-norm transformer blocks, scanned or unrolled, with rematerialisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers.attention import dot_product_attention

Initializer = Callable[..., Any]

# Rematerialisation: what the backward pass finds stored and what it computes
# again, from most memory to least.
REMAT_POLICIES = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class BlockInit(NamedTuple):
  """Initialisers of a block's four kinds of matrices (biases start at 0)."""

  qkv: Initializer
  out: Initializer
  fc1: Initializer
  fc2: Initializer


def clip_init(width: int, depth: int) -> BlockInit:
  """CLIP's initialisation: residual branches scaled by the depth (spec clip).

  Standard deviations w^-0.5 for q, k, v; (2w)^-0.5 for the MLP's input;
  w^-0.5 (2 depth)^-0.5 for both matrices that write into the residual stream.
  """
  residual = width**-0.5 * (2 * depth) ** -0.5
  return BlockInit(
    qkv=nn.initializers.normal(width**-0.5),
    out=nn.initializers.normal(residual),
    fc1=nn.initializers.normal((2 * width) ** -0.5),
    fc2=nn.initializers.normal(residual),
  )


def quick_gelu(x: Float[Array, '...']) -> Float[Array, '...']:
  """x sigmoid(1.702 x), the GELU of OpenAI's CLIP weights."""
  return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  'quick_gelu': quick_gelu,
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'relu': nn.relu,
}


class Attention(nn.Module):
  """Multi-head attention with biases on q, k, v and output.

  `inputs` [b, q, w] ask, `context` [b, k, w] (default: the inputs) answers.
  Kernels keep heads on an axis of their own ([w, heads, w / heads] for query,
  key and value, [heads, w / heads, w] for out), so that they shard by head.
  `output_dim` is the width of the result, where it is not that of the inputs.
  """

  num_heads: int
  qkv_init: Initializer = nn.initializers.xavier_uniform()
  out_init: Initializer = nn.initializers.xavier_uniform()
  dtype: Any = None
  output_dim: int | None = None

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, 'b q w'],
    context: Float[Array, 'b k w'] | None = None,
    mask: Bool[Array, '#b #h #q #k'] | None = None,
  ) -> Float[Array, 'b q o']:
    context = inputs if context is None else context
    width = inputs.shape[-1]
    if width % self.num_heads:
      raise ValueError(
        f'{self.num_heads} heads do not divide the width {width}'
      )

    def project(name, x):
      return nn.DenseGeneral(
        (self.num_heads, width // self.num_heads),
        kernel_init=self.qkv_init,
        dtype=self.dtype,
        name=name,
      )(x)

    attended = dot_product_attention(
      project('query', inputs),
      project('key', context),
      project('value', context),
      mask,
    )
    return nn.DenseGeneral(
      self.output_dim or width,
      axis=(-2, -1),
      kernel_init=self.out_init,
      dtype=self.dtype,
      name='out',
    )(attended)


class Mlp(nn.Module):
  """fc2(activation(fc1 x)); the output is as wide as the input."""

  hidden: int
  activation: Callable = quick_gelu
  fc1_init: Initializer = nn.initializers.xavier_uniform()
  fc2_init: Initializer = nn.initializers.xavier_uniform()
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, '... w']) -> Float[Array, '... w']:
    width = x.shape[-1]
    x = nn.Dense(
      self.hidden, kernel_init=self.fc1_init, dtype=self.dtype, name='fc1'
    )(x)
    return nn.Dense(
      width, kernel_init=self.fc2_init, dtype=self.dtype, name='fc2'
    )(self.activation(x))


class Block(nn.Module):
  """x += Attention(LN1 x); x += MLP(LN2 x)."""

  num_heads: int
  kernel_init: BlockInit
  mlp_ratio: float = 4.0
  activation: Callable = quick_gelu
  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, 'b n w'], mask=None):
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    x = x + Attention(
      self.num_heads,
      self.kernel_init.qkv,
      self.kernel_init.out,
      self.dtype,
      name='attn',
    )(norm('ln_1')(x), mask=mask)
    return x + Mlp(
      int(self.mlp_ratio * x.shape[-1]),
      self.activation,
      self.kernel_init.fc1,
      self.kernel_init.fc2,
      self.dtype,
      name='mlp',
    )(norm('ln_2')(x))


class Transformer(nn.Module):
  """A stack of `depth` blocks.

  Scanned, the blocks are compiled once and their parameters are stacked on a
  leading axis under `blocks`; unrolled, they lie under `block_0`, `block_1`,
  ... `weights/layout.py` turns one layout into the other.
  """

  depth: int
  num_heads: int
  kernel_init: BlockInit
  mlp_ratio: float = 4.0
  activation: Callable = quick_gelu
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n w'],
    mask: Bool[Array, '#b #h n n'] | None = None,
  ) -> Float[Array, 'b n w']:
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan
      )
    make = lambda name: block(
      self.num_heads,
      self.kernel_init,
      self.mlp_ratio,
      self.activation,
      dtype=self.dtype,
      name=name,
    )
    if not self.scan:
      for i in range(self.depth):
        x = make(f'block_{i}')(x, mask)
      return x
    x, _ = nn.scan(
      lambda module, carry, _: (module(carry, mask), None),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=self.depth,
    )(make('blocks'), x, None)
    return x
