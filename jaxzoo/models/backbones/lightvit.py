"""LightViT: window attention whose context passes through a few global tokens.

Huang et al., arXiv 2207.05557. No convolution but in the stem: the windows
never shift, and what lies outside of one reaches it through learned tokens that
gather from all of the map and answer to all of it. Parameter names of the
checkpoints are those of hunto/LightViT.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.backbones.lightvit_block import (
  INIT,
  Block,
  Tokens,
  gelu,
  norm,
)
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import (
  TORCH_DEFAULT,
  conv,
  global_pool,
  largest,
  uniform_bias,
)
from jaxzoo.models.layers.drop_path import drop_path_rates
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = (
  (r'attn/(global_)?(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/(global_)?(query|key|value)/bias$', ('tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'(^|/)neck/kernel$', (None, 'tensor')),
  (r'(^|/)head/kernel$', ('tensor', None)),
)

PUBLISHED = {
  'LightViT-T': dict(
    dims=(64, 128, 256), depths=(2, 6, 6), heads=(2, 4, 8), num_tokens=8
  ),
  'LightViT-S': dict(
    dims=(96, 192, 384), depths=(2, 6, 6), heads=(3, 6, 12), num_tokens=16
  ),
  'LightViT-B': dict(
    dims=(128, 256, 512), depths=(3, 8, 6), heads=(4, 8, 16), num_tokens=24
  ),
}

PATCH = 8  # pixels to a position of the first map, each way


class Stem(nn.Module):
  """Five convolutions that make patches of 8x8 pixels, and a layer norm.

  Attributes:
    width: channels of the result; half of it inside.
    dtype: compute dtype.
  """

  width: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h8 w8 o']:
    hidden = self.width // 2
    x = image
    # (stride, groups): one over all channels, three over each by itself.
    plan = ((2, 1), (1, hidden), (1, hidden), (2, hidden))
    for i, (stride, groups) in enumerate(plan):
      x = conv(
        hidden,
        3,
        stride,
        groups=groups,
        kernel_init=TORCH_DEFAULT,
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      x = gelu(BatchNorm(dtype=self.dtype, name=f'bn{i}')(x, train))
    x = conv(
      self.width,
      3,
      2,
      bias=True,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(9 * hidden),
      dtype=self.dtype,
      name='proj',
    )(x)
    return norm('norm', self.dtype, 1e-5)(x)


class Merging(nn.Module):
  """2x2 positions become one; the global tokens follow in width.

  Map: W LN(the four, concatenated) + W' max of the four. A map of odd size is
  filled up with zeros at the bottom and on the right, which the maximum sees
  too. Global tokens: W'' LN(.). No biases.
  """

  features: int
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Tokens) -> Tokens:
    dense = lambda name: nn.Dense(
      self.features,
      use_bias=False,
      kernel_init=INIT,
      dtype=self.dtype,
      name=name,
    )
    b, height, width, c = x.image.shape
    image = jnp.pad(x.image, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    h, w = -(-height // 2), -(-width // 2)
    # Order of the four: (0, 0), (1, 0), (0, 1), (1, 1), as (row, column).
    four = image.reshape(b, h, 2, w, 2, c).transpose(0, 1, 3, 4, 2, 5)
    four = four.reshape(b, h, w, 4, c)
    merged = norm('norm', self.dtype, 1e-5)(four.reshape(b, h, w, 4 * c))
    most = largest([four[:, :, :, i] for i in range(4)])
    image = dense('reduction')(merged) + dense('pool_proj')(most)
    glob = norm('global_norm', self.dtype, 1e-5)(x.glob)
    return Tokens(dense('global_proj')(glob), image)


class Stage(nn.Module):
  """Blocks at one resolution, after a merging in all stages but the first.

  Attributes:
    features: channels.
    depth: blocks.
    num_heads: see `Block`, as `mlp_ratio`, `window`, `forget`, `dtype`.
    merge: begin with a merging.
    rates: drop path of each block.
    forget: of the last block.
    scan: compile one block for all, with stacked parameters. A last block that
      forgets is another function than the ones before: no scan then.
    remat: as in `layers/transformer.py`, per block.
  """

  features: int
  depth: int
  num_heads: int
  mlp_ratio: float
  window: int
  merge: bool
  rates: tuple[float, ...]
  forget: bool = False
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Tokens, train: bool = False) -> Tokens:
    if self.merge:
      x = Merging(self.features, self.dtype, name='merging')(x)
    scan = self.scan and not self.forget
    block = Block
    if self.remat != 'none':
      # A rate that is scanned over is no constant.
      traced = scan and train and any(self.rates)
      block = nn.remat(
        Block,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not scan,
        static_argnums=(2,) if traced else (2, 3),
      )
    last = f'block_{self.depth - 1}'
    make = lambda name: block(
      self.num_heads,
      self.mlp_ratio,
      self.window,
      self.forget and name == last,
      self.dtype,
      name=name,
    )
    return stack(make, x, self.rates, train, scan=scan)


class LightViT(nn.Module):
  """Three stages at strides 8, 16, 32; the vector is the mean after a neck.

  Maps are taken after the last block of each stage. In the form for dense
  prediction (`dense`) they go through a layer norm of their own, images may
  have any size, the last block ends the global tokens ahead of its MLP, and
  neck and classifier are not there.

  Attributes:
    dims: channels of each stage.
    depths: its blocks.
    heads: its heads.
    num_tokens: global tokens.
    mlp_ratios: of each stage.
    window: side of the windows.
    neck_dim: width of the vector.
    dense: the form for dense prediction.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of the last block; from 0 at the first, linearly.
    scan: see `Stage`.
    remat: likewise.
    dtype: compute dtype.
  """

  dims: tuple[int, ...]
  depths: tuple[int, ...]
  heads: tuple[int, ...]
  num_tokens: int
  mlp_ratios: tuple[float, ...] = (8, 4, 4)
  window: int = 7
  neck_dim: int = 1280
  dense: bool = False
  num_classes: int = 1000
  features_only: bool = False
  drop_path: float = 0.0
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    self.head = nn.Dense(self.num_classes, kernel_init=INIT)

  @nn.compact
  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps of strides 8, 16, 32, and the vector [b, neck_dim].

    The vector of the dense form is the mean of its last map.

    Raises:
      UserError: height or width do not make whole windows in every stage.
    """
    if not self.dense:
      _check_size(
        image.shape[1:3], PATCH * self.window * 2 ** len(self.dims[1:])
      )
    stem = Stem(self.dims[0], self.dtype, name='stem')
    x = stem(image.astype(self.dtype), train)
    token = self.param('global_token', INIT, (self.num_tokens, self.dims[0]))
    x = Tokens(
      jnp.broadcast_to(token.astype(x.dtype), (len(x), *token.shape)), x
    )
    rates = drop_path_rates(self.drop_path, sum(self.depths))
    maps = {}
    for i, depth in enumerate(self.depths):
      before = sum(self.depths[:i])
      x = Stage(
        self.dims[i],
        depth,
        self.heads[i],
        self.mlp_ratios[i],
        self.window,
        merge=i > 0,
        rates=rates[before : before + depth],
        forget=self.dense and i == len(self.depths) - 1,
        scan=self.scan,
        remat=self.remat,
        dtype=self.dtype,
        name=f'stage{i + 1}',
      )(x, train)
      maps[f'stage{i + 1}'] = x.image
    if self.dense:
      maps = {
        name: norm(f'{name}_norm', self.dtype)(x) for name, x in maps.items()
      }
      return Features(maps, global_pool(maps[f'stage{len(maps)}']))
    return Features(maps, self._neck(x))

  def _neck(self, x):
    """Mean over all tokens of gelu(LN(W LN x)): it follows the activation."""
    x = jax.tree.map(norm('norm', self.dtype), x)
    neck = nn.Dense(
      self.neck_dim, kernel_init=INIT, dtype=self.dtype, name='neck'
    )
    x = jax.tree.map(norm('neck_norm', self.dtype, 1e-5), jax.tree.map(neck, x))
    return jax.tree.map(gelu, x).mean().astype(self.dtype)

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(jnp.float32))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


def _check_size(size, multiple):
  if any(side % multiple for side in size):
    near = ' x '.join(str(-(-side // multiple) * multiple) for side in size)
    raise UserError(
      f'LightViT classifies images whose sides are multiples of {multiple}, '
      f'got {size[0]} x {size[1]}: resize to {near}, or take dense=True, which '
      'fills maps up to whole windows'
    )


def build(
  card: ModelCard,
  *,
  num_classes: int | None,
  in_chans: int,
  image_size: tuple[int, int],
  text_length: int,
  features_only: bool,
  dtype: Any,
  **overrides,
) -> Built:
  """A published LightViT, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `LightViT`, or the dense form
      with a classifier.
  """
  del text_length
  module = backbone.make_module(
    LightViT,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  if module.dense and module.num_classes and not features_only:
    raise UserError(
      f'{card.name} with dense=True has no classifier: ask for '
      'features_only=True, or for num_classes=0'
    )
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/stem/conv0/kernel',
    canonical=_without_classifier if module.dense else dict,
  )


def _without_classifier(state_dict):
  """A classifier's state dict for the dense form, which has norms instead."""
  ends = ('norm.', 'neck.', 'head.')
  return {k: x for k, x in state_dict.items() if not k.startswith(ends)}


def rows(module: LightViT) -> list[Row]:
  """The names of hunto/LightViT, of either form."""
  found = to.tensor(
    'global_token',
    'global_token',
    to.reshaped((1, -1, module.dims[0]), (-1, module.dims[0])),
  )
  for i in range(4):
    found += to.conv(f'patch_embed.stem.{3 * i}', f'stem/conv{i}')
    found += to.batch_norm(f'patch_embed.stem.{3 * i + 1}', f'stem/bn{i}')
  found += to.conv('patch_embed.proj', 'stem/proj', bias=True)
  found += to.norm('patch_embed.norm', 'stem/norm')
  for i, depth in enumerate(module.depths):
    if i:
      found += _merging_rows(f'stages.{i}.0', f'stage{i + 1}/merging')
    for j in range(depth):
      theirs = f'stages.{i}.{j + (i > 0)}'
      found += _block_rows(
        theirs, f'stage{i + 1}/block_{j}', module.heads[i]
      )  # fmt: skip
    if module.dense:
      found += to.norm(f'norm{i}', f'stage{i + 1}_norm')
  if module.dense:
    return found
  found += to.norm('norm', 'norm') + to.linear('neck.0', 'neck')
  return found + to.norm('neck.1', 'neck_norm') + to.linear('head', 'head')


def _merging_rows(theirs, ours):
  return [
    *to.norm(f'{theirs}.norm', f'{ours}/norm'),
    *to.linear(f'{theirs}.reduction', f'{ours}/reduction', bias=False),
    *to.linear(f'{theirs}.res_proj', f'{ours}/pool_proj', bias=False),
    *to.norm(f'{theirs}.norm2', f'{ours}/global_norm'),
    *to.linear(f'{theirs}.proj', f'{ours}/global_proj', bias=False),
  ]


def _block_rows(theirs, ours, heads):
  attn, gate = f'{theirs}.attn', f'{theirs}.mlp.attn'
  parts = ('query', 'key', 'value')
  found = [
    *to.norm(f'{theirs}.norm1', f'{ours}/norm1'),
    *to.tensor(
      f'{attn}.relative_position_bias_table', f'{ours}/attn/position_bias/table'
    ),
    *to.projections(f'{attn}.qkv', f'{ours}/attn', parts, heads),
    *to.projections(
      f'{attn}.kv_global', f'{ours}/attn', ('global_key', 'global_value'), heads
    ),
    *to.from_heads(f'{attn}.proj', f'{ours}/attn/out', heads),
    *to.norm(f'{theirs}.norm2', f'{ours}/norm2'),
    *to.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
    *to.norm(f'{gate}.norm', f'{ours}/gate/norm'),
  ]
  for name in ('global_reduce', 'local_reduce', 'channel_select'):
    found += to.linear(f'{gate}.{name}', f'{ours}/gate/{name}')
  return [
    *found,
    *to.tensor(
      f'{gate}.spatial_select.weight', f'{ours}/gate/spatial_kernel', to.DENSE
    ),
    *to.tensor(f'{gate}.spatial_select.bias', f'{ours}/gate/spatial_bias'),
  ]
