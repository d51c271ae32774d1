"""STViT on DeiT: a plain transformer that goes on with 16 semantic tokens.

Chang et al., arXiv 2303.08685 (CVPR 2023). Four blocks on all patches; two that
pool them to a few tokens and let those look back; six on the tokens alone. The
code is not public: what the paper leaves open is as the specification chose,
the names of the state dict among it. There is no class token.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.backbones.stvit import cross_rows
from jaxzoo.models.backbones.stvit_block import CrossBlock, adaptive_max_pool
from jaxzoo.models.backbones.swin import INIT
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, uniform_bias
from jaxzoo.models.layers.drop_path import drop_path_rates
from jaxzoo.models.layers.stack import stack
from jaxzoo.models.layers.transformer import REMAT_POLICIES
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
  (r'(^|/)head/kernel$', (None, 'tensor')),
)

PUBLISHED = {
  'STViT-DeiT-T': dict(width=192, num_heads=3),
  'STViT-DeiT-S': dict(width=384, num_heads=6),
  'STViT-DeiT-B': dict(width=768, num_heads=12),
}

GENERATING = 2  # blocks that make the tokens


class Blocks(nn.Module):
  """Self-attention blocks, `block_0`, ... or scanned `blocks`; as `STViTDeiT`."""

  num_heads: int
  epsilon: float = 1e-6
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b n c'], rates, train: bool = False
  ) -> Float[Array, 'b n c']:
    """The tokens after all blocks; `rates` of their stochastic depth."""
    if not rates:
      return x
    block = CrossBlock
    if self.remat != 'none':
      traced = self.scan and train and any(rates)
      block = nn.remat(
        CrossBlock,
        policy=REMAT_POLICIES[self.remat],
        prevent_cse=not self.scan,
        static_argnums=(2,) if traced else (2, 3),
      )
    make = lambda name: block(
      self.num_heads,
      layer_scale=None,
      epsilon=self.epsilon,
      dtype=self.dtype,
      name=name,
    )
    return stack(make, x, rates, train, scan=self.scan)


class STViTDeiT(nn.Module):
  """The vector is the mean of the semantic tokens after the last norm.

  Maps: the patches after the first blocks, and the semantic tokens in their
  grid after the last, both without a norm.

  Attributes:
    width: channels.
    num_heads: of all attention.
    depth: blocks, the two that generate the tokens included.
    base_blocks: ahead of those.
    tokens: side of the grid of semantic tokens.
    patch_size: pixels to a patch, each way.
    grid: rows and columns of patches of the images to come.
    epsilon: of the norms.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of the last block; it rises linearly from 0.
    scan: compile one block for those before and one for those after.
    remat: as in `layers/transformer.py`, of the same blocks.
    dtype: compute dtype.
  """

  width: int
  num_heads: int
  depth: int = 12
  base_blocks: int = 4
  tokens: int = 4
  patch_size: int = 16
  grid: tuple[int, int] = (14, 14)
  epsilon: float = 1e-6
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
    """Two maps, and the vector [b, width].

    Raises:
      UserError: an image of other patches than `grid`.
    """
    rates = drop_path_rates(self.drop_path, self.depth)
    after = self.base_blocks + GENERATING
    x = self._patches(image)
    x = self._blocks('base')(x, rates[: self.base_blocks], train)
    patches = x.reshape(len(x), *self.grid, -1)
    pooled = adaptive_max_pool(patches, self.tokens)
    s = pooled.reshape(len(x), -1, self.width)
    self.sow('intermediates', 'pooled', s)
    block = functools.partial(
      CrossBlock,
      self.num_heads,
      layer_scale=None,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )
    token = self.param('semantic_token', INIT, (self.tokens**2, self.width))
    for i, added in enumerate((0, token.astype(s.dtype)), 1):
      keys = jnp.concatenate([s, x], 1)
      s = block(name=f'generate{i}')(
        s + added, train, rates[self.base_blocks + i - 1], keys
      )
    s = self._blocks('semantic')(s, rates[after:], train)
    maps = {'stage1': patches, 'stage2': s.reshape(pooled.shape)}
    norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name='norm')
    vector = norm(s).mean(1, dtype=jnp.float32).astype(self.dtype)
    return Features(maps, vector)

  def _patches(self, image):
    p = self.patch_size
    size = (p * self.grid[0], p * self.grid[1])
    if image.shape[1:3] != size:
      raise UserError(
        f'images of {image.shape[1]} x {image.shape[2]}, but the model was '
        f'made for {size[0]} x {size[1]}: give create_model that image_size'
      )
    x = conv(
      self.width,
      p,
      p,
      padding=0,
      bias=True,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(p * p * image.shape[-1]),
      dtype=self.dtype,
      name='patch_embed',
    )(image.astype(self.dtype))
    x = x.reshape(len(x), -1, self.width)
    positions = self.param('positions', INIT, x.shape[1:])
    return x + positions.astype(x.dtype)

  def _blocks(self, name):
    return Blocks(
      self.num_heads,
      self.epsilon,
      self.scan,
      self.remat,
      self.dtype,
      name=name,
    )

  def classify(
    self, vector: Float[Array, 'b d'], train: bool = False
  ) -> Float[Array, 'b k']:
    """Logits, float32."""
    del train
    return self.head(vector.astype(jnp.float32))

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    return backbone.finish(self, self.features(image, train), train)


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
  """An STViT on DeiT, for `models.create.create_model`.

  Raises:
    UserError: an override that is no field of `STViTDeiT`, or images that make
      no whole patches.
  """
  del text_length
  patch = overrides.get('patch_size', STViTDeiT.patch_size)
  if any(side % patch for side in image_size):
    raise UserError(
      f'image_size={image_size}: both must be multiples of {patch}, the patches'
    )
  sizes = PUBLISHED[card.variant]
  module = backbone.make_module(
    STViTDeiT,
    card,
    sizes | dict(grid=tuple(side // patch for side in image_size)),
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  if module.depth < module.base_blocks + GENERATING:
    raise UserError(
      f'depth={module.depth} has no room for base_blocks={module.base_blocks} '
      f'and the {GENERATING} that generate tokens'
    )
  return backbone.built(
    module,
    rows(module),
    image_size=image_size,
    in_chans=in_chans,
    stem='params/patch_embed/kernel',
    adapt=functools.partial(_resize_positions, grid=module.grid),
  )


def rows(module: STViTDeiT) -> list[Row]:
  """The names that the specification chose."""
  row_of = to.reshaped((1, -1, module.width), (-1, module.width))
  found = [
    *to.tensor('pos_embed', 'positions', row_of),
    *to.tensor('semantic_token', 'semantic_token', row_of),
    *to.conv('patch_embed.proj', 'patch_embed', bias=True),
  ]
  after = module.base_blocks + GENERATING
  for i in range(module.depth):
    if i < module.base_blocks:
      ours = f'base/block_{i}'
    elif i < after:
      ours = f'generate{i - module.base_blocks + 1}'
    else:
      ours = f'semantic/block_{i - after}'
    found += cross_rows(f'blocks.{i}', ours, module.num_heads, scaled=False)
  return found + to.norm('norm', 'norm') + to.linear('head', 'head')


def _resize_positions(flat, grid):
  """Bicubic, from a square grid of patches to `grid`."""
  name = 'params/positions'
  if name not in flat or len(flat[name]) == grid[0] * grid[1]:
    return flat
  side = round(len(flat[name]) ** 0.5)
  if side * side != len(flat[name]):
    raise UserError(
      f'pos_embed has {len(flat[name])} rows, which is no square grid of patches'
    )
  # The row in front is where other tables keep their class token.
  with_token = np.pad(flat[name], ((1, 0), (0, 0)))
  resized = layout.resize_positions(with_token, (side, side), grid, 'bicubic')
  return {**flat, name: resized[1:]}
