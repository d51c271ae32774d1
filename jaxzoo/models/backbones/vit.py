"""ViT and DeiT: a plain transformer over patches.

Dosovitskiy et al., arXiv 2010.11929; Touvron et al., arXiv 2012.12877, whose
distillation token learns from a teacher (`losses/distillation.py`). Names of
the checkpoints are timm's and DeiT's; others are brought to them by
`weights/vit.py`.

What is built on it (k-NN attention, other stems, masked images, several images
at once) calls the parts: `patches`, `embed`, `encode`, `normalize`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.compress.channels import ChannelGroup
from jaxzoo.errors import UserError
from jaxzoo.models.backbones import backbone
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.knn_attention import knn_attention
from jaxzoo.models.layers.patch_embed import PatchEmbed
from jaxzoo.models.layers.transformer import Transformer, vit_init
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row
from jaxzoo.weights.vit import canonical, fit_positions

# As CLIP's, with the classifier.
SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/(query|key|value)/bias$', ('tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'(^|/)head(_dist)?/kernel$', (None, 'tensor')),
)

_TINY = dict(width=192, depth=12, num_heads=3)
_SMALL = dict(width=384, depth=12, num_heads=6)
_BASE = dict(width=768, depth=12, num_heads=12)
PUBLISHED = {
  'ViT-Ti/16': _TINY,
  'ViT-S/16': _SMALL,
  'ViT-B/16': _BASE,
  'DeiT-Ti': _TINY,
  'DeiT-S': _SMALL,
  'DeiT-B': _BASE,
  'DeiT-Ti distilled': dict(_TINY, distilled=True),
  'DeiT-S distilled': dict(_SMALL, distilled=True),
  'DeiT-B distilled': dict(_BASE, distilled=True),
}

INIT = nn.initializers.normal(0.02)  # of tables and classifiers


class ViT(nn.Module):
  """A vision transformer; maps are the patches after each quarter of blocks.

  Maps are taken before the last norm and are all of one size.

  Tokens are [b, p + n, width]: the class token, the distillation token where
  there is one, then the patches row by row. The table of positions is as large
  as the image that the module is initialised with.

  Attributes:
    width: channels.
    depth: blocks.
    num_heads: heads of each.
    mlp_ratio: width of the MLP's hidden layer over `width`.
    patch_size: pixels to a patch, each way.
    distilled: whether there is a distillation token with a head of its own.
    global_pool: 'token', the classifier takes the class token after the norm;
      or 'avg', the norm (then named `fc_norm`) of the patches' mean.
    num_classes: see `backbone`, as `features_only`.
    drop_path: rate of stochastic depth of the last block; it grows linearly
      from 0 at the first.
    knn: keys that a query keeps, see `layers/knn_attention.py`; 0: all.
    stem: (width, patch_size, dtype=, name=) -> module that makes patches
      [b, h, w, width] of (image, train).
    epsilon: of all layer norms.
    widths: heads and hidden units that are left of a compact network, by the
      names of `channel_groups`.
    scan: see `layers/transformer.py`, as `remat`.
    dtype: compute dtype.
  """

  width: int
  depth: int
  num_heads: int
  mlp_ratio: float = 4.0
  patch_size: int = 16
  distilled: bool = False
  global_pool: str = 'token'
  num_classes: int = 1000
  features_only: bool = False
  drop_path: float = 0.0
  knn: int = 0
  stem: Callable[..., nn.Module] = PatchEmbed
  epsilon: float = 1e-6
  widths: Any = ()
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @property
  def prefix(self) -> int:
    """How many tokens come before the patches, p."""
    return 1 + self.distilled

  def setup(self):
    if self.global_pool not in ('token', 'avg'):
      raise UserError(f"global_pool={self.global_pool!r}: not 'token' or 'avg'")
    if self.distilled and self.global_pool != 'token':
      raise UserError("a distilled network has global_pool='token'")
    self.patch_embed = self.stem(self.width, self.patch_size, dtype=self.dtype)
    self.transformer = Transformer(
      self.depth,
      self.num_heads,
      vit_init(),
      self.mlp_ratio,
      gelu,
      self.scan,
      self.remat,
      self.dtype,
      self.epsilon,
      self.drop_path,
      functools.partial(knn_attention, k=self.knn)
      if self.knn
      else dot_product_attention,
      _kept(self),
    )
    norm = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
    if self.global_pool == 'avg':
      self.fc_norm = norm
    else:
      self.norm = norm
    self.head = nn.Dense(self.num_classes, kernel_init=INIT)
    if self.distilled:
      self.head_dist = nn.Dense(self.num_classes, kernel_init=INIT)

  def patches(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 d']:
    """What the stem makes of images, without positions."""
    return self.patch_embed(image.astype(self.dtype), train)

  @nn.compact
  def embed(self, patches: Float[Array, 'b h w d']) -> Float[Array, 'b p+n d']:
    """Patches as tokens: with the tokens before them, and positions.

    Raises:
      UserError: the table of positions is for another number of patches.
    """
    b, h, w, d = patches.shape
    count = self.prefix + h * w
    if self.has_variable('params', 'pos_embed'):
      rows = self.get_variable('params', 'pos_embed').shape[0]
      if rows != count:
        raise UserError(
          f'an image of {h}x{w} patches, but positions for '
          f'{rows - self.prefix} patches: make the network with image_size= of '
          'these images, which resizes the positions of a checkpoint'
        )
    # 1e-6 is timm's; DeiT's own code has 0.02.
    first = [self.param('cls_token', nn.initializers.normal(1e-6), (d,))]
    if self.distilled:
      first.append(self.param('dist_token', INIT, (d,)))
    first = jnp.stack(first).astype(patches.dtype)
    x = jnp.concatenate(
      [
        jnp.broadcast_to(first, (b, *first.shape)),
        patches.reshape(b, h * w, d),
      ],
      axis=1,
    )
    return x + self.param('pos_embed', INIT, (count, d)).astype(x.dtype)

  def encode(
    self,
    tokens: Float[Array, 'b n d'],
    train: bool = False,
    *,
    every: bool = False,
  ):
    """Tokens after all blocks, any number of them, without the last norm.

    With `every` those after each block: see `layers.transformer.Transformer`.
    """
    return self.transformer(tokens, None, train, every=every)

  def normalize(self, tokens: Float[Array, 'b n d']) -> Float[Array, 'b n d']:
    """The last norm of all tokens, the identity with global_pool='avg'."""
    return tokens if self.global_pool == 'avg' else self.norm(tokens)

  def pool(self, tokens: Float[Array, 'b p+n d']) -> Float[Array, 'b *p d']:
    """The vector of normalised tokens: see `features`."""
    if self.global_pool == 'avg':
      mean = tokens[:, self.prefix :].mean(1, dtype=jnp.float32)
      return self.fc_norm(mean.astype(tokens.dtype))
    return tokens[:, :2] if self.distilled else tokens[:, 0]

  def tokens(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b p+n d']:
    """All tokens of images after the last norm."""
    x = self.embed(self.patches(image, train))
    return self.normalize(self.encode(x, train))

  def every_block(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'l b p+n d']:
    """All tokens of images after each block, for metrics."""
    x = self.embed(self.patches(image, train))
    return jnp.stack(list(self.encode(x, train, every=True)))

  def features(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Features:
    """Maps 'stage1' .. 'stage4', and the vector.

    The vector is [b, width]; of a distilled network [b, 2, width], class and
    distillation token.
    """
    patches = self.patches(image, train)
    b, h, w, d = patches.shape
    every = self.encode(self.embed(patches), train, every=True)
    ends = sorted({-(-self.depth * i // 4) - 1 for i in (1, 2, 3, 4)})
    maps = {
      f'stage{i}': every[end][:, self.prefix :].reshape(b, h, w, d)
      for i, end in enumerate(ends, 1)
    }
    return Features(maps, self.pool(self.normalize(every[-1])))

  def classify(self, vector: Float[Array, 'b *p d'], train: bool = False):
    """Logits, float32.

    Of a distilled network the mean of both heads' logits (not of their
    probabilities); in training the pair: of the class token, which learns from
    the labels, and of the distillation token, which learns from the teacher.
    """
    vector = vector.astype(jnp.float32)
    if not self.distilled:
      return self.head(vector)
    pair = self.head(vector[:, 0]), self.head_dist(vector[:, 1])
    return pair if train else (pair[0] + pair[1]) / 2

  def __call__(self, image: Float[Array, 'b h w c'], train: bool = False):
    """See `backbone`."""
    if self.features_only:
      return self.features(image, train).maps
    # Not `features`: a scan would stack the tokens of every block.
    vector = self.pool(self.tokens(image, train))
    return backbone.finish(self, Features({}, vector), train)


def _kept(module: ViT) -> tuple[tuple[int, int], ...]:
  """(heads, hidden units) of each block; () of a whole network."""
  widths = dict(module.widths)
  if not widths:
    return ()
  if module.scan:
    raise UserError('widths: blocks of a scan are of one size; set scan=False')
  hidden = int(module.mlp_ratio * module.width)
  return tuple(
    (
      widths.get(f'transformer/block_{i}/attn', module.num_heads),
      widths.get(f'transformer/block_{i}/mlp', hidden),
    )
    for i in range(module.depth)
  )


def channel_groups(module: ViT) -> tuple[ChannelGroup, ...]:
  """The heads ('transformer/block_0/attn') and hidden units ('.../mlp').

  Raises:
    UserError: the blocks are scanned, so that they cannot differ in size.
  """
  if module.scan:
    raise UserError(
      'channel groups are of single blocks: set scan=False to prune them'
    )
  groups, hidden = [], int(module.mlp_ratio * module.width)
  for i in range(module.depth):
    block = f'transformer/block_{i}'
    parts = [f'{block}/attn/{part}' for part in ('query', 'key', 'value')]
    groups += [
      ChannelGroup(
        f'{block}/attn',
        module.num_heads,
        (
          *((f'{part}/kernel', 1) for part in parts),
          *((f'{part}/bias', 0) for part in parts),
        ),
        consumers=((f'{block}/attn/out/kernel', 0, 1),),
      ),
      ChannelGroup(
        f'{block}/mlp',
        hidden,
        ((f'{block}/mlp/fc1/kernel', 1), (f'{block}/mlp/fc1/bias', 0)),
        consumers=((f'{block}/mlp/fc2/kernel', 0, 1),),
      ),
    ]
  return tuple(groups)


def build(
  card: ModelCard,
  *,
  num_classes: int | None,
  in_chans: int,
  image_size: tuple[int, int],
  text_length: int,
  features_only: bool,
  dtype: Any,
  positions: str = 'bicubic',
  antialias: bool = True,
  **overrides,
) -> Built:
  """A published ViT or DeiT, for `models.create.create_model`.

  Args:
    positions: how the table of a checkpoint for images of another size is
      resized, 'bicubic' or 'bilinear'.
    antialias: as timm does; DeiT's own code does not.
    **overrides: fields of `ViT`.

  Raises:
    UserError: an override that is no field of `ViT`.
  """
  del text_length
  module = backbone.make_module(
    ViT,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  return built(
    module,
    image_size=image_size,
    in_chans=in_chans,
    positions=positions,
    antialias=antialias,
  )


def built(
  module: ViT,
  *,
  image_size: tuple[int, int],
  in_chans: int = 3,
  positions: str = 'bicubic',
  antialias: bool = True,
  stem_rows: Sequence[Row] | None = None,
  stem: str = 'params/patch_embed/proj/kernel',
) -> Built:
  """A builder's answer, from a module; for networks built on it too.

  Args:
    module: the network.
    image_size: (height, width).
    in_chans: channels of the images.
    positions: see `build`.
    antialias: see `build`.
    stem_rows: name map of a stem that is not `PatchEmbed`.
    stem: path of the kernel that sees the image.

  Raises:
    UserError: the stem cannot cut images of this size into patches, or they
      are fewer than `knn`.
  """
  image = jax.ShapeDtypeStruct((1, *image_size, in_chans), jnp.float32)
  patches, _ = jax.eval_shape(
    lambda x: module.init_with_output(jax.random.key(0), x, method='patches'),
    image,
  )
  grid = patches.shape[1:3]
  tokens = module.prefix + math.prod(grid)
  if module.knn > tokens:
    raise UserError(
      f'knn={module.knn} keys are to be kept, but images of {image_size[0]}x'
      f'{image_size[1]} have {tokens} tokens: set knn, to about {tokens // 2}'
    )

  def adapt(flat):
    table = flat.get('params/pos_embed')
    if table is not None:
      flat['params/pos_embed'] = fit_positions(
        table,
        grid,
        prefix=module.prefix,
        method=positions,
        antialias=antialias,
      )
    return flat

  return backbone.built(
    module,
    rows(module, stem_rows),
    image_size=image_size,
    in_chans=in_chans,
    stem=stem,
    canonical=canonical,
    adapt=adapt,
  )


def rows(module: ViT, stem_rows: Sequence[Row] | None = None) -> list[Row]:
  """timm's and DeiT's names."""
  token = to.reshaped((1, 1, -1), (-1,))
  table = to.reshaped((1, -1, module.width), (-1, module.width))
  found = to.tensor('cls_token', 'cls_token', token)
  found += to.tensor('pos_embed', 'pos_embed', table)
  if module.distilled:
    found += to.tensor('dist_token', 'dist_token', token)
  if stem_rows is None:
    stem_rows = to.conv('patch_embed.proj', 'patch_embed/proj', bias=True)
  found += stem_rows
  for i in range(module.depth):
    found += block_rows(
      f'blocks.{i}', f'transformer/block_{i}', module.num_heads
    )
  norm = 'fc_norm' if module.global_pool == 'avg' else 'norm'
  found += to.norm(norm, norm) + to.linear('head', 'head')
  if module.distilled:
    found += to.linear('head_dist', 'head_dist')
  return found


def block_rows(theirs: str, ours: str, num_heads: int) -> list[Row]:
  """timm's names of a block, for `layers.transformer.Block`."""
  return [
    *to.norm(f'{theirs}.norm1', f'{ours}/ln_1'),
    *attention_rows(f'{theirs}.attn', f'{ours}/attn', num_heads),
    *to.norm(f'{theirs}.norm2', f'{ours}/ln_2'),
    *to.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
  ]


def attention_rows(theirs: str, ours: str, num_heads: int) -> list[Row]:
  """timm's names of an attention layer, for `layers.transformer.Attention`."""
  parts = ('query', 'key', 'value')
  return [
    *to.projections(f'{theirs}.qkv', ours, parts, num_heads),
    *to.from_heads(f'{theirs}.proj', f'{ours}/out', num_heads),
  ]
