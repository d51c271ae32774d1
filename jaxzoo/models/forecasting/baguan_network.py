"""The networks of Baguan (arXiv 2505.13873, section 3; spec baguan).

An encoder of fields into tokens, one for each patch of the grid, and a decoder
that makes a field of them. Both are transformers whose norms are moved by the
lead time.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxzoo.models.forecasting.baguan_codes import (
  from_patches,
  grid_sincos,
  height_index,
  lead_code,
  sincos,
  to_patches,
  volume_sincos,
)
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import chunked_attention
from jaxzoo.models.layers.drop_path import DropPath, drop_path_rates
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES, Attention

INIT = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros
EPSILON = 1e-5


def dense(features: int, name: str, dtype, kernel_init=INIT) -> nn.Dense:
  return nn.Dense(features, kernel_init=kernel_init, dtype=dtype, name=name)


def layer_norm(name: str, dtype) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, name=name)


class LeadEmbedding(nn.Module):
  """fc2(SiLU(fc1(code of the lead time))), which moves the norms."""

  width: int
  dtype: Any = None

  @nn.compact
  def __call__(self, lead: Float[Array, ' b']) -> Float[Array, 'b d']:
    hidden = dense(self.width, 'fc1', self.dtype)(lead_code(lead))
    return dense(self.width, 'fc2', self.dtype)(nn.silu(hidden))


class Heads(nn.Module):
  """The kernel [d, heads, d / heads] and the bias of a projection."""

  num_heads: int

  @nn.compact
  def __call__(self, width: int) -> tuple[Array, Array]:
    shape = (self.num_heads, width // self.num_heads)
    # Fans as of the matrix that it is.
    kernel = self.param('kernel', INIT, (width, *shape))
    return kernel, self.param('bias', ZEROS, shape)


class VariableAggregation(nn.Module):
  """One token for each patch: attention of one learned query to all variables.

  Token (n, v) of a patch and a variable is x_nv E_v + b_v + p_nv + e_v, with
  a code p of row, column and height and a learned vector e. There are 75 of
  them at a patch, and none is ever made: scores and values are linear in them,
  so that E, keys and values are multiplied with each other first, and what is
  the same for all variables leaves the softmax.

  Attributes:
    names: of the tables, see `internal_order`.
    inputs: the channels of the field.
    grid: (rows, columns) of patches.
    width: of the tokens.
    num_heads: of the attention.
    dtype: compute dtype.
  """

  names: tuple[str, ...]
  inputs: tuple[str, ...]
  grid: tuple[int, int]
  width: int
  num_heads: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    patches: Float[Array, 'b k v p'],
    places: Int[Array, 'b k'] | None = None,
  ) -> Float[Array, 'b k d']:
    """Tokens of patches, which are all of the grid or lie at `places`."""
    width, points = self.width, patches.shape[-1]
    count = len(self.names)
    kernel = self.param('kernel', INIT, (count, points, width))
    bias = self.param('bias', ZEROS, (count, width))
    table = lambda *_: jnp.asarray(sincos(np.arange(count), width))
    vectors = self.param('variable_embed', table)
    query = self.param('query', ZEROS, (width,))
    heads = lambda name: Heads(self.num_heads, name=name)(width)
    (wq, bq), (wk, _), (wv, bv) = map(heads, ('to_query', 'to_key', 'to_value'))
    # The bias of the keys is the same for all variables.

    rows = np.array([self.names.index(name) for name in self.inputs])
    places_code, high = volume_sincos(
      self.grid, [height_index(name) for name in self.inputs], width
    )
    kernel, own = kernel[rows], (bias + vectors)[rows] + high
    asked = jnp.einsum('d,dhe->he', query, wq) + bq
    asked = (
      jnp.einsum('dhe,he->dh', wk, asked) * (width // self.num_heads) ** -0.5
    )
    dtype = self.dtype or jnp.float32
    logits = jnp.einsum(
      'bnvp,vph->bhnv',
      patches.astype(jnp.float32),
      jnp.einsum('vpd,dh->vph', kernel, asked),
    )
    weights = jax.nn.softmax(logits + (own @ asked).T[:, None], -1)

    code = jnp.einsum('nd,dhe->hne', places_code, wv)
    code = code if places is None else jnp.moveaxis(code[:, places], 1, 0)
    attended = attend(
      weights.astype(dtype),
      patches.astype(dtype),
      jnp.einsum('vpd,dhe->hvpe', kernel, wv).astype(dtype),
    )
    attended = attended + jnp.einsum(
      'bhnv,vhe->bhne', weights, jnp.einsum('vd,dhe->vhe', own, wv)
    )
    attended = attended + code + bv[:, None]
    return nn.DenseGeneral(
      width, axis=(-2, -1), kernel_init=INIT, dtype=self.dtype, name='out'
    )(attended.swapaxes(1, 2).astype(dtype))


def attend(
  weights: Float[Array, 'b h n v'],
  patches: Float[Array, 'b n v p'],
  values: Float[Array, 'h v p e'],
) -> Float[Array, 'b h n e']:
  """sum_v weights (patches values), one head after the other.

  A head weights the field and is one product of matrices; its copy of the
  field is not kept for the gradient.
  """

  @jax.checkpoint
  def one(head):
    weight, value = head
    x = (weight[..., None] * patches).reshape(*weight.shape[:-1], -1)
    return x @ value.reshape(-1, value.shape[-1])

  return jnp.moveaxis(
    jax.lax.map(one, (jnp.moveaxis(weights, 1, 0), values)), 0, 1
  )


class Block(nn.Module):
  """x += gate1 attention(m1 x); x += gate2 MLP(m2 x), moved by the lead time.

  m x = (1 + scale) LN x + shift; shifts, scales and gates are a linear map of
  SiLU(e). With a `source`, x += attention(LN x asks, LN source answers) comes
  first. `dropout` follows the projections and the activation.
  """

  num_heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'b n d'],
    train: bool = False,
    rate=0.0,
    lead: Float[Array, 'b d'] | None = None,
    source: Float[Array, 'b n d'] | None = None,
  ) -> Float[Array, 'b n d']:
    width = x.shape[-1]
    drop = lambda y: nn.Dropout(self.dropout, deterministic=not train)(y)
    path = lambda y: DropPath()(y, train, rate)
    norm = lambda name, y: layer_norm(name, self.dtype)(y)
    # At 0.25 degrees there are 16,380 tokens.
    attention = lambda name: Attention(
      self.num_heads,
      INIT,
      INIT,
      self.dtype,
      attention=chunked_attention,
      name=name,
    )
    if source is not None:
      x = x + path(
        drop(
          attention('cross_attn')(
            norm('ln_target', x), norm('ln_source', source)
          )
        )
      )
    moves = dense(6 * width, 'modulation', self.dtype, ZEROS)(nn.silu(lead))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
      moves[:, None], 6, -1
    )
    y = (1 + scale1) * norm('ln_1', x) + shift1
    x = x + path(gate1 * drop(attention('attn')(y)))
    y = (1 + scale2) * norm('ln_2', x) + shift2
    y = dense(int(self.mlp_ratio * width), 'fc1', self.dtype)(y)
    y = drop(gelu(y))
    return x + path(gate2 * drop(dense(width, 'fc2', self.dtype)(y)))


def run_blocks(
  x, rates, train, *inputs, scan, remat, **fields
) -> Float[Array, 'b n d']:
  """A stack of blocks within the calling module, see `layers/stack.py`."""
  block = Block
  if remat != 'none':
    traced = scan and train and any(rates)
    block = nn.remat(
      Block,
      policy=REMAT_POLICIES[remat],
      prevent_cse=not scan,
      static_argnums=(2,) if traced else (2, 3),
    )
  make = lambda name: block(**fields, name=name)
  return stack(make, x, rates, train, *inputs, scan=scan)


class Encoder(nn.Module):
  """Fields to tokens.

  Attributes:
    names: as `inputs` and `grid` see `VariableAggregation`.
    patch: points of a patch, each way.
    pad: rows that repeat the northernmost one, to fill whole patches.
    width: of the tokens.
    depth: of the transformer.
    num_heads: of all attention.
    mlp_ratio: hidden width of the MLP over that of the tokens.
    dropout: rate, while training.
    drop_path: of the last block; it grows linearly from 0.
    scan: one compiled block for all.
    remat: see `layers/transformer.py`.
    dtype: compute dtype.
  """

  names: tuple[str, ...]
  inputs: tuple[str, ...]
  grid: tuple[int, int]
  patch: int
  pad: int = 0
  width: int = 512
  depth: int = 8
  num_heads: int = 16
  mlp_ratio: float = 4.0
  dropout: float = 0.1
  drop_path: float = 0.1
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  def patches(self, field: Float[Array, 'b h w v']) -> Float[Array, 'b n v p']:
    """All patches of a field."""
    field = jnp.pad(field, ((0, 0), (self.pad, 0), (0, 0), (0, 0)), 'edge')
    return to_patches(field, self.patch)

  @nn.compact
  def __call__(
    self,
    field: Float[Array, 'b h w v'],
    lead: Float[Array, ' b'],
    places: Int[Array, 'b k'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'b k d']:
    """Tokens of all patches, or of those at `places`, in their order.

    Args:
      field: standardised, channels as `inputs` says.
      lead: hours.
      places: numbers of patches, row by row.
      train: whether anything is dropped.
    """
    patches = self.patches(field)
    if places is not None:
      patches = jnp.take_along_axis(patches, places[..., None, None], 1)
    x = VariableAggregation(
      self.names,
      self.inputs,
      self.grid,
      self.width,
      self.num_heads,
      self.dtype,
      name='aggregation',
    )(patches, places)
    table = lambda *_: jnp.asarray(grid_sincos(self.grid, self.width))
    position = self.param('position', table)
    position = position if places is None else position[places]
    linear = dense(self.width, 'lead', None)(lead[:, None])
    x = x + (position + linear[:, None]).astype(x.dtype)
    x = run_blocks(
      x,
      drop_path_rates(self.drop_path, self.depth),
      train,
      LeadEmbedding(self.width, self.dtype, name='lead_embed')(lead),
      num_heads=self.num_heads,
      mlp_ratio=self.mlp_ratio,
      dropout=self.dropout,
      dtype=self.dtype,
      scan=self.scan,
      remat=self.remat,
    )
    return layer_norm('norm', self.dtype)(x)


class Decoder(nn.Module):
  """Tokens to fields.

  Attributes:
    kind: 'paper': tokens of the target field ask those of the current one.
      'identity': there are no blocks, and the output is made of the current
      field's tokens, as in the released code, whose blocks return what they
      are given.
    names: all that the last layer makes.
    outputs: those that are wanted, in order.

  Other attributes are those of `Encoder`.
  """

  names: tuple[str, ...]
  outputs: tuple[str, ...]
  grid: tuple[int, int]
  patch: int
  pad: int = 0
  width: int = 256
  depth: int = 4
  num_heads: int = 8
  kind: str = 'paper'
  mlp_ratio: float = 4.0
  dropout: float = 0.1
  drop_path: float = 0.1
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    tokens: Float[Array, 'b n d'] | None,
    lead: Float[Array, ' b'],
    visible: Float[Array, 'b k d'] | None = None,
    places: Int[Array, 'b k'] | None = None,
    train: bool = False,
  ) -> Float[Array, 'b h w o']:
    """The target field, float32.

    Args:
      tokens: of the current field; None: nothing is asked (a masked
        autoencoder of one field).
      lead: hours from the one to the other.
      visible: tokens of the target field, in pre-training.
      places: their patches.
      train: whether anything is dropped.
    """
    dtype = self.dtype or jnp.float32
    project = dense(self.width, 'project', self.dtype)
    source = None if tokens is None else project(tokens)
    embedded = LeadEmbedding(self.width, self.dtype, name='lead_embed')(lead)
    x = source
    if self.kind == 'paper':
      mask = self.param(
        'mask_token', nn.initializers.normal(1.0), (self.width,)
      )
      table = lambda *_: jnp.asarray(grid_sincos(self.grid, self.width))
      position = self.param('position', table)
      linear = dense(self.width, 'lead', None)(jnp.zeros((1, 1)))
      b, n = lead.shape[0], len(position)
      x = jnp.broadcast_to(mask.astype(dtype), (b, n, self.width))
      if visible is not None:
        put = jax.vmap(lambda x, places, seen: x.at[places].set(seen))
        x = put(x, places, project(visible))
      x = x + (position + linear).astype(dtype)
      x = run_blocks(
        x,
        drop_path_rates(self.drop_path, self.depth),
        train,
        embedded,
        source,
        num_heads=self.num_heads,
        mlp_ratio=self.mlp_ratio,
        dropout=self.dropout,
        dtype=self.dtype,
        scan=self.scan,
        remat=self.remat,
      )
    moves = dense(2 * self.width, 'modulation', self.dtype, ZEROS)
    shift, scale = jnp.split(moves(nn.silu(embedded))[:, None], 2, -1)
    x = (1 + scale) * layer_norm('norm', self.dtype)(x) + shift
    points = self.patch**2
    x = dense(len(self.names) * points, 'head', self.dtype, ZEROS)(x)
    x = x.reshape(*x.shape[:2], len(self.names), points)
    rows = np.array([self.names.index(name) for name in self.outputs])
    field = from_patches(x[:, :, rows], self.grid, self.patch)
    return field[:, self.pad :].astype(jnp.float32)
