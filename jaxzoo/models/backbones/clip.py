"""CLIP's two towers: an image and a text transformer into one space.

Source: arXiv 2103.00020, section 2; layouts and sizes of openai/CLIP.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones.clip_resnet import CONV_INIT, ModifiedResNet
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.activation import ACTIVATIONS
from jaxzoo.models.layers.attention import causal_mask
from jaxzoo.models.layers.transformer import (
  BlockInit,
  Transformer,
  clip_init,
)
from jaxzoo.weights import layout
from jaxzoo.weights.clip import convert_batch_stats, convert_clip, export_clip

START_TOKEN = 49406
END_TOKEN = 49407


class Towers(NamedTuple):
  """What identifies a published pair of towers.

  Attributes:
    image: 'vit' or 'resnet'.
    image_width: channels of the transformer, or after the stem.
    image_depth: blocks; for 'resnet' those of each of the four stages.
    image_heads: heads of the transformer, or of the attention pool.
    patch_size: pixels to a token, each way; 32 for 'resnet'.
    text_width: channels of the text transformer.
    text_depth: its blocks.
    text_heads: its heads.
    vocab_size: rows of the token table.
    output_dim: D, width of the common space.
  """

  image: str
  image_width: int
  image_depth: int | tuple[int, ...]
  image_heads: int
  patch_size: int
  text_width: int
  text_depth: int
  text_heads: int
  vocab_size: int
  output_dim: int


def _vit(width, depth, patch_size, text_width, output_dim):
  return Towers(
    'vit', width, depth, width // 64, patch_size,
    text_width, 12, text_width // 64, 49408, output_dim,
  )  # fmt: skip


def _resnet(width, depth, text_width, output_dim):
  return Towers(
    'resnet', width, depth, width // 2, 32,
    text_width, 12, text_width // 64, 49408, output_dim,
  )  # fmt: skip


PUBLISHED: dict[str, Towers] = {
  'ViT-B/32': _vit(768, 12, 32, 512, 512),
  'ViT-B/16': _vit(768, 12, 16, 512, 512),
  'ViT-L/14': _vit(1024, 24, 14, 768, 768),
  'ViT-L/14@336px': _vit(1024, 24, 14, 768, 768),
  'RN50': _resnet(64, (3, 4, 6, 3), 512, 1024),
  'RN101': _resnet(64, (3, 4, 23, 3), 512, 512),
  'RN50x4': _resnet(80, (4, 6, 10, 6), 640, 640),
  'RN50x16': _resnet(96, (6, 8, 18, 8), 768, 768),
  'RN50x64': _resnet(128, (3, 15, 36, 10), 1024, 1024),
}

# Side in pixels of the square images that each was trained with.
RESOLUTION: dict[str, int] = {
  'ViT-B/32': 224,
  'ViT-B/16': 224,
  'ViT-L/14': 224,
  'ViT-L/14@336px': 336,
  'RN50': 224,
  'RN101': 224,
  'RN50x4': 288,
  'RN50x16': 384,
  'RN50x64': 448,
}

# (regex on the parameter path, mesh axes). A spec is aligned to the LAST
# dimensions of the array; the missing leading ones (the layer axis of scanned
# blocks) are None. So one rule serves the scanned and the unrolled layout.
SHARDING = (
  (r'attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'attn/(query|key|value)/bias$', ('tensor', None)),
  (r'attn/out/kernel$', ('tensor', None, None)),
  (r'mlp/fc1/kernel$', (None, 'tensor')),
  (r'mlp/fc1/bias$', ('tensor',)),
  (r'mlp/fc2/kernel$', ('tensor', None)),
  (r'token_embedding/embedding$', ('tensor', None)),
)


def end_positions(text: Int[Array, 'b t']) -> Int[Array, ' b']:
  """Where each caption ends: its first END_TOKEN.

  A caption without one ends at its largest id. That is the rule of the
  released code, which holds as long as the end token is the largest id: it
  serves other vocabularies of that kind. With an id above END_TOKEN, such as
  an added token, only the first rule is right.
  """
  is_end = text == END_TOKEN
  return jnp.where(is_end.any(-1), jnp.argmax(is_end, -1), jnp.argmax(text, -1))


def text_padding_mask(text: Int[Array, 'b t']) -> Bool[Array, 'b t']:
  """True up to and including the end token, False on the padding after it."""
  return jnp.arange(text.shape[-1]) <= end_positions(text)[:, None]


def torch_init() -> BlockInit:
  """PyTorch's defaults, which the released ViT image towers start from.

  q, k and v are one Xavier-uniform matrix [3w, w], so of variance 1 / (2w)
  each; the others are kaiming-uniform with a = sqrt(5), variance 1 / (3w).
  """
  uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  qkv = nn.initializers.variance_scaling(1 / 2, 'fan_in', 'uniform')
  return BlockInit(qkv=qkv, out=uniform, fc1=uniform, fc2=uniform)


class VisionTransformer(nn.Module):
  """Image [b,h,w,3], normalised -> all tokens [b,1+n,D], the class token first.

  The last norm and the projection act on every token; CLIP's image vector is
  token 0. The tokens after it are the patches, row by row; pixels that fill no
  patch are not used. The position table is as large as the image that the
  module is initialised with. `layers/image.py` normalises images.

  Attributes:
    width: channels.
    depth: blocks.
    num_heads: heads of each.
    patch_size: pixels to a patch, each way.
    output_dim: D.
    stride: pixels between patches; default: the patch size, no overlap.
    activation: of the blocks, a name in `layers/transformer.py`. OpenAI's
      weights want 'quick_gelu', most of open_clip's 'gelu'.
    scan: see `layers/transformer.py`, as `remat`.
    dtype: compute dtype; parameters are float32.
  """

  width: int
  depth: int
  num_heads: int
  patch_size: int
  output_dim: int
  stride: int | None = None
  activation: str = 'quick_gelu'
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Float[Array, 'b h w 3']) -> Float[Array, 'b 1+n d']:
    stride = self.stride or self.patch_size
    x = nn.Conv(
      self.width,
      (self.patch_size, self.patch_size),
      strides=stride,
      padding='VALID',
      use_bias=False,
      kernel_init=CONV_INIT,
      dtype=self.dtype,
      name='patch_embedding',
    )(image.astype(self.dtype))
    if 0 in x.shape:
      raise ValueError(
        f'an image {image.shape} has no patch of {self.patch_size} pixels'
      )
    x = x.reshape(x.shape[0], -1, self.width)
    init = nn.initializers.normal(self.width**-0.5)
    first = self.param('class_embedding', init, (self.width,))
    first = jnp.broadcast_to(first.astype(x.dtype), (x.shape[0], 1, self.width))
    x = jnp.concatenate([first, x], axis=1)
    positions = self.param('position_embedding', init, x.shape[1:])
    x = x + positions.astype(x.dtype)
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    x = Transformer(
      self.depth,
      self.num_heads,
      torch_init(),
      activation=ACTIVATIONS[self.activation],
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
      name='transformer',
    )(norm('ln_pre')(x))
    return nn.Dense(
      self.output_dim,
      use_bias=False,
      kernel_init=init,
      dtype=self.dtype,
      name='projection',
    )(norm('ln_post')(x))


class TextTransformer(nn.Module):
  """Token ids [b,t] -> all tokens [b,t,D], under a causal mask.

  The last norm and the projection act on every token; CLIP's text vector is
  the token at `end_positions`. Padding is not masked: it lies after the end,
  where no earlier token sees it. The position table has the t rows that the
  module is initialised with.

  Attributes: as of `VisionTransformer`; `vocab_size` rows of the token table.
  """

  width: int
  depth: int
  num_heads: int
  vocab_size: int
  output_dim: int
  activation: str = 'quick_gelu'
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text: Int[Array, 'b t']) -> Float[Array, 'b t d']:
    normal = nn.initializers.normal
    # Looked up in float32: casting rows is cheaper than casting the table.
    x = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=normal(0.02),
      name='token_embedding',
    )(text)
    x = x + self.param('position_embedding', normal(0.01), x.shape[1:])
    x = Transformer(
      self.depth,
      self.num_heads,
      clip_init(self.width, self.depth),
      activation=ACTIVATIONS[self.activation],
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
      name='transformer',
    )(x.astype(self.dtype), causal_mask(text.shape[-1]))
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln_final')(x)
    return nn.Dense(
      self.output_dim,
      use_bias=False,
      kernel_init=normal(self.width**-0.5),
      dtype=self.dtype,
      name='projection',
    )(x)


class Clip(nn.Module):
  """Both towers, under `image` and `text`, and the scale of their cosines.

  Attributes:
    towers: sizes, e.g. PUBLISHED['ViT-B/16'].
    stride: see `VisionTransformer`.
    use_logit_scale: whether there is a parameter `logit_scale`, the logarithm
      of the scale, initially ln(1 / 0.07).
    activation: see `VisionTransformer`; of both transformers.
    scan: see `layers/transformer.py`, as `remat`. A residual network's blocks
      differ and are never scanned.
    dtype: compute dtype; parameters are float32.
  """

  towers: Towers
  stride: int | None = None
  use_logit_scale: bool = True
  activation: str = 'quick_gelu'
  scan: bool = False
  remat: str = 'none'
  dtype: Any = jnp.float32

  def setup(self):
    towers = self.towers
    if towers.image == 'vit':
      self.image = VisionTransformer(
        towers.image_width,
        towers.image_depth,
        towers.image_heads,
        towers.patch_size,
        towers.output_dim,
        self.stride,
        self.activation,
        self.scan,
        self.remat,
        self.dtype,
      )
    elif towers.image == 'resnet':
      self.image = ModifiedResNet(
        towers.image_width,
        towers.image_depth,
        towers.image_heads,
        towers.output_dim,
        self.remat,
        self.dtype,
      )
    else:
      raise ValueError(f"image tower {towers.image!r}: not 'vit' or 'resnet'")
    self.text = TextTransformer(
      towers.text_width,
      towers.text_depth,
      towers.text_heads,
      towers.vocab_size,
      towers.output_dim,
      self.activation,
      self.scan,
      self.remat,
      self.dtype,
    )
    if self.use_logit_scale:
      self.logit_scale = self.param(
        'logit_scale', nn.initializers.constant(math.log(1 / 0.07)), ()
      )

  def encode_image(
    self, image: Float[Array, 'b h w 3'], train: bool = False
  ) -> tuple[Float[Array, 'b 1+n d'] | None, Float[Array, 'b d']]:
    """All tokens (None for a residual network) and the image vector.

    `image` is normalised; the vector is not. `train` makes a residual network
    use and update the statistics of the batch.
    """
    if self.towers.image == 'resnet':
      return None, self.image(image, train)
    tokens = self.image(image)
    return tokens, tokens[:, 0]

  def encode_text(
    self, text: Int[Array, 'b t']
  ) -> tuple[Float[Array, 'b t d'], Float[Array, 'b d']]:
    """All tokens and the text vector (not normalised), at the end token."""
    tokens = self.text(text)
    ends = end_positions(text)[:, None, None]
    return tokens, jnp.take_along_axis(tokens, ends, axis=1)[:, 0]

  def __call__(
    self,
    image: Float[Array, 'b h w 3'],
    text: Int[Array, 'c t'],
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """The vectors of both, [b,D] and [c,D]."""
    return self.encode_image(image, train)[1], self.encode_text(text)[1]


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
  """Both towers of a published model, for `models.create.create_model`.

  Args:
    card: its row; `variant` is a key of `PUBLISHED`.
    num_classes: must be None.
    in_chans: must be 3.
    image_size: (height, width).
    text_length: ids.
    features_only: must be False.
    dtype: of the computation.
    **overrides: fields of `Clip` and of `Towers`.

  Raises:
    UserError: a classifier is asked for, or a field that there is not.
  """
  if num_classes is not None:
    raise UserError(
      f'{card.name} has no classifier: leave num_classes out. Classes are '
      'captions, and an image belongs to the one it is most similar to'
    )
  if features_only or in_chans != 3:
    raise UserError(
      f'{card.name} has two towers for RGB images and texts: features_only and '
      'other in_chans do not go with it. Image tokens: '
      "module.apply(variables, image, method='encode_image')"
    )
  fields = {'stride', 'use_logit_scale', 'activation', 'scan', 'remat'}
  for name in overrides.keys() - fields - set(Towers._fields):
    raise UserError(
      f'{card.name} has no field {name!r}; '
      + nearest(name, fields | set(Towers._fields))
    )
  own = {name: overrides[name] for name in fields & overrides.keys()}
  towers = PUBLISHED[card.variant]._replace(
    **{name: x for name, x in overrides.items() if name not in fields}
  )
  module = Clip(towers, dtype=dtype, **own)

  def convert(state_dict):
    if 'params/text/position_embedding' in state_dict:  # a file of ours
      state_dict = export(layout.unflatten(state_dict))
    params = convert_clip(
      state_dict,
      image_size=image_size,
      text_length=text_length,
      scan=module.scan,
      stride=module.stride,
      head_width=towers.text_width // towers.text_heads,
    )
    if not module.use_logit_scale:
      params.pop('logit_scale', None)
    stats = convert_batch_stats(state_dict)
    return {'params': params, **({'batch_stats': stats} if stats else {})}

  def export(variables):
    return export_clip(variables['params'], variables.get('batch_stats'))

  inputs = (
    jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, text_length), jnp.int32),
  )
  return Built(module, inputs, convert, export)
