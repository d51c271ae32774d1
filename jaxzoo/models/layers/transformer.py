"""Pre-norm transformer blocks, scanned or unrolled, with rematerialisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from jaxzoo.models.layers.activation import quick_gelu
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.dense import dot_general
from jaxzoo.models.layers.drop_path import DropPath, drop_path_rates

Initializer = Callable[..., Any]

# Rematerialisation: what the backward pass finds stored and what it computes
# again, from most memory to least. 'attention' keeps what attention is made of
# and its result; where there is none it is 'full'.
REMAT_POLICIES = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'attention': jax.checkpoint_policies.save_only_these_names(
    'query', 'key', 'value', 'attended'
  ),
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


def vit_init(std: float = 0.02) -> BlockInit:
  """One normal distribution for all matrices, as of ViT and DeiT.

  Published code truncates it at +-2, which is 100 standard deviations.
  """
  return BlockInit(*[nn.initializers.normal(std)] * 4)


class Attention(nn.Module):
  """Multi-head attention with biases on q, k, v and output.

  `inputs` [*b, q, w] ask, `context` [*b, k, w] (default: the inputs) answers;
  `mask` and `bias` are those of `dot_product_attention`.
  Kernels keep heads on an axis of their own ([w, heads, w / heads] for query,
  key and value, [heads, w / heads, w] for out), so that they shard by head.
  `output_dim` is the width of the result, where it is not that of the inputs;
  `head_width` that of a head, where heads are missing (0: width / heads);
  `attention` is what is computed from q, k, v, mask and bias.
  """

  num_heads: int
  qkv_init: Initializer = nn.initializers.xavier_uniform()
  out_init: Initializer = nn.initializers.xavier_uniform()
  dtype: Any = None
  output_dim: int | None = None
  attention: Callable = dot_product_attention
  head_width: int = 0

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, '*b q w'],
    context: Float[Array, '*b k w'] | None = None,
    mask: Bool[Array, '#*b #h #q #k'] | None = None,
    bias: Float[Array, '#*b #h #q #k'] | None = None,
  ) -> Float[Array, '*b q o']:
    context = inputs if context is None else context
    width = inputs.shape[-1]
    if not self.head_width and width % self.num_heads:
      raise ValueError(
        f'{self.num_heads} heads do not divide the width {width}'
      )

    def project(name, x):
      x = nn.DenseGeneral(
        (self.num_heads, self.head_width or width // self.num_heads),
        kernel_init=self.qkv_init,
        dtype=self.dtype,
        dot_general=dot_general,
        name=name,
      )(x)
      return checkpoint_name(x, name)

    attended = self.attention(
      project('query', inputs),
      project('key', context),
      project('value', context),
      mask,
      bias,
    )
    attended = checkpoint_name(attended, 'attended')
    return nn.DenseGeneral(
      self.output_dim or width,
      axis=(-2, -1),
      kernel_init=self.out_init,
      dtype=self.dtype,
      dot_general=dot_general,
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
      self.hidden,
      kernel_init=self.fc1_init,
      dtype=self.dtype,
      dot_general=dot_general,
      name='fc1',
    )(x)
    return nn.Dense(
      width,
      kernel_init=self.fc2_init,
      dtype=self.dtype,
      dot_general=dot_general,
      name='fc2',
    )(self.activation(x))


class Block(nn.Module):
  """x += DropPath(Attention(LN1 x)); x += DropPath(MLP(LN2 x)).

  `drop_path` is the rate of stochastic depth while training. The blocks of a
  scan are one module: there the rate comes with the call, traced. `kept` are
  the heads and the hidden units that are left of a compact network.
  """

  num_heads: int
  kernel_init: BlockInit
  mlp_ratio: float = 4.0
  activation: Callable = quick_gelu
  epsilon: float = 1e-5
  dtype: Any = None
  drop_path: float = 0.0
  attention: Callable = dot_product_attention
  kept: tuple[int, int] = ()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n w'],
    mask: Bool[Array, '#b #h n n'] | None = None,
    train: bool = False,
    rate: Float[Array, ''] | None = None,
  ) -> Float[Array, 'b n w']:
    norm = lambda name: nn.LayerNorm(
      epsilon=self.epsilon, dtype=self.dtype, name=name
    )
    drop = lambda y: DropPath(self.drop_path)(y, train, rate)
    heads, hidden = self.kept or (
      self.num_heads,
      int(self.mlp_ratio * x.shape[-1]),
    )
    attended = Attention(
      heads,
      self.kernel_init.qkv,
      self.kernel_init.out,
      self.dtype,
      attention=self.attention,
      head_width=x.shape[-1] // self.num_heads if self.kept else 0,
      name='attn',
    )(norm('ln_1')(x), mask=mask)
    x = x + drop(attended)
    y = Mlp(
      hidden,
      self.activation,
      self.kernel_init.fc1,
      self.kernel_init.fc2,
      self.dtype,
      name='mlp',
    )(norm('ln_2')(x))
    return x + drop(y)


class Transformer(nn.Module):
  """A stack of `depth` blocks.

  Scanned, the blocks are compiled once and their parameters are stacked on a
  leading axis under `blocks`; unrolled, they lie under `block_0`, `block_1`,
  ... `weights/layout.py` turns one layout into the other. `drop_path` is the
  rate of the last block; it grows linearly from 0 at the first. `kept` are the
  (heads, hidden units) of each block of a compact network, which is unrolled.
  """

  depth: int
  num_heads: int
  kernel_init: BlockInit
  mlp_ratio: float = 4.0
  activation: Callable = quick_gelu
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None
  epsilon: float = 1e-5
  drop_path: float = 0.0
  attention: Callable = dot_product_attention
  kept: tuple[tuple[int, int], ...] = ()

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n w'],
    mask: Bool[Array, '#b #h n n'] | None = None,
    train: bool = False,
    *,
    every: bool = False,
  ) -> Float[Array, 'b n w'] | Float[Array, 'l b n w'] | list:
    """The tokens after the last block.

    With `every` those after each block instead: [depth, b, n, w], of unrolled
    blocks a list of `depth` arrays [b, n, w].
    """
    block = Block
    if self.remat != 'none':
      block = nn.remat(
        Block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(3,),
      )
    make = lambda name, rate=0.0, kept=(): block(
      self.num_heads,
      self.kernel_init,
      self.mlp_ratio,
      self.activation,
      self.epsilon,
      self.dtype,
      rate,
      self.attention,
      kept,
      name=name,
    )
    rates = drop_path_rates(self.drop_path, self.depth)
    if not self.scan:
      outputs = []
      for i, rate in enumerate(rates):
        kept = self.kept[i] if self.kept else ()
        x = make(f'block_{i}', rate, kept)(x, mask, train)
        outputs.append(x)
      return outputs if every else x

    def body(module, carry, rate):
      carry = module(carry, mask, train, rate)
      return carry, carry if every else None

    # Without rates nothing random is drawn.
    over = jnp.asarray(rates, jnp.float32) if train and self.drop_path else None
    x, outputs = nn.scan(
      body,
      variable_axes={'params': 0, 'intermediates': 0},
      split_rngs={'params': True, 'dropout': True},
      length=self.depth,
    )(make('blocks'), x, over)
    return outputs if every else x
