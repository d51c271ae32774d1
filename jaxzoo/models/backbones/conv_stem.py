"""DeiT with a convolutional stem, and what of it makes training stable.

Wang et al., arXiv 2109.03810: not the convolutions but the scaled ReLU among
them, batch norm and then ReLU. The stem takes the place of `patch_embed`, all
else is `ViT`. The paper has no code; the layout is the one that this group uses
throughout (VOLO's, TransReID-SSL's). Initialisation of the convolutions is
PyTorch's default, which is chosen here: the transformer's own touches linear
layers and norms only.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import backbone, vit
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers import activation
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, conv, uniform_bias
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.layers.patch_embed import PatchEmbed, check_divisible
from jaxzoo.models.layers.token_metrics import token_similarity
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

SHARDING = vit.SHARDING

PUBLISHED = {
  f'{host} conv stem': vit.PUBLISHED[host]
  for host in ('DeiT-Ti', 'DeiT-S', 'DeiT-B')
}

# (norm, activation) after each of the three convolutions; V0 is `PatchEmbed`.
VARIANTS = {
  'V0': None,
  'V1': ('none', 'none'),
  'V2': ('batch', 'none'),
  'V3': ('none', 'relu'),
  'V4': ('batch', 'relu'),
}

# Size and stride of the convolutions before the projection.
CONVOLUTIONS = ((7, 2), (3, 1), (3, 1))

NORMS = ('batch', 'layer', 'instance_batch', 'none')
ACTIVATIONS = {
  **activation.ACTIVATIONS,
  'leaky_relu': nn.leaky_relu,
  'none': lambda x: x,
}


class InstanceBatchNorm(nn.Module):
  """Instance norm of the first half of the channels, batch norm of the rest.

  Instance norm has the statistics of one image and one channel, in training
  and after it; both are followed by a trained scale and shift. Of use to
  re-identification, where cameras differ in colour. (IBN-Net, arXiv
  1807.09441.)
  """

  epsilon: float = 1e-5
  dtype: Any = None

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h w c']:
    half = x.shape[-1] // 2
    instance = nn.InstanceNorm(
      epsilon=self.epsilon, dtype=self.dtype, name='instance'
    )(x[..., :half])
    batch = BatchNorm(epsilon=self.epsilon, dtype=self.dtype, name='batch')(
      x[..., half:], train
    )
    return jnp.concatenate([instance, batch], axis=-1)


class ConvStem(nn.Module):
  """Three convolutions at half the size, then patches of the result.

  7x7 with stride 2, 3x3, 3x3, each without bias and followed by norm and
  activation; then a convolution as large as its stride, half a patch.

  Attributes:
    width: channels of a patch's token.
    patch_size: pixels of a patch, each way; even.
    hidden: channels of the convolutions.
    norm: 'batch'; 'layer', over channels (epsilon 1e-5, chosen); 'none'; or
      'instance_batch', `InstanceBatchNorm` after the first two and batch norm
      after the third.
    activation: 'relu', 'gelu', 'leaky_relu' (slope 0.01) or 'none'.
    dtype: compute dtype.
  """

  width: int
  patch_size: int = 16
  hidden: int = 64
  norm: str = 'batch'
  activation: str = 'relu'
  dtype: Any = None

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Float[Array, 'b h2 w2 d']:
    """Patches, and `convolved` [b, h/2, w/2, hidden] as an intermediate."""
    check_divisible(image.shape[1:3], self.patch_size)
    x = image
    for i, (size, stride) in enumerate(CONVOLUTIONS, 1):
      x = conv(
        self.hidden,
        size,
        stride,
        kernel_init=TORCH_DEFAULT,
        dtype=self.dtype,
        name=f'conv{i}',
      )(x)
      x = self._normalize(i, x, train)
      x = ACTIVATIONS[self.activation](x)
    self.sow('intermediates', 'convolved', x)
    side = self.patch_size // 2
    return conv(
      self.width,
      side,
      side,
      padding=0,
      bias=True,
      kernel_init=TORCH_DEFAULT,
      bias_init=uniform_bias(side**2 * self.hidden),
      dtype=self.dtype,
      name='proj',
    )(x)

  def _normalize(self, i, x, train):
    name, kind = f'norm{i}', norm_of(self.norm, i)
    if kind == 'layer':
      return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(x)
    if kind == 'batch':
      return BatchNorm(dtype=self.dtype, name=name)(x, train)
    if kind == 'instance_batch':
      return InstanceBatchNorm(dtype=self.dtype, name=name)(x, train)
    return x


def norm_of(norm: str, i: int) -> str:
  """The norm after convolution i = 1, 2, 3."""
  last = i == len(CONVOLUTIONS)
  return 'batch' if norm == 'instance_batch' and last else norm


def make_stem(
  variant: str = 'V4',
  norm: str | None = None,
  activation: str | None = None,
  hidden: int = 64,
):
  """A stem for `ViT(stem=...)`.

  Args:
    variant: of the study, 'V0' .. 'V4', see `VARIANTS`.
    norm: in place of the variant's, see `ConvStem`.
    activation: likewise.
    hidden: channels of the convolutions.

  Raises:
    UserError: a name that there is not, or V0 with a norm or an activation.
  """
  options = {
    'stem': (variant, VARIANTS),
    'norm': (norm, NORMS),
    'activation': (activation, ACTIVATIONS),
  }
  for option, (name, known) in options.items():
    if name is not None and name not in known:
      raise UserError(f'no {option} {name!r}; ' + nearest(name, known))
  if variant == 'V0':
    if norm or activation:
      raise UserError("stem='V0', plain patches, has no norm and no activation")
    return PatchEmbed
  default_norm, default_activation = VARIANTS[variant]
  return functools.partial(
    ConvStem,
    hidden=hidden,
    norm=norm or default_norm,
    activation=activation or default_activation,
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
  stem: str = 'V4',
  norm: str | None = None,
  activation: str | None = None,
  hidden: int = 64,
  positions: str = 'bicubic',
  antialias: bool = True,
  **overrides,
) -> Built:
  """A DeiT with a convolutional stem, for `models.create.create_model`.

  Args:
    stem: see `make_stem`, as `norm`, `activation` and `hidden`.
    positions: see `vit.build`, as `antialias`.
    **overrides: fields of `ViT`.

  Raises:
    UserError: an override that is no field of `ViT`, or a stem that there is
      not.
  """
  del text_length
  make = make_stem(stem, norm, activation, hidden)
  module = backbone.make_module(
    vit.ViT,
    card,
    {**PUBLISHED[card.variant], 'stem': make},
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  options = dict(
    image_size=image_size,
    in_chans=in_chans,
    positions=positions,
    antialias=antialias,
  )
  if make is PatchEmbed:
    return vit.built(module, **options)
  return vit.built(
    module,
    stem_rows=stem_rows(make.keywords['norm']),
    stem='params/patch_embed/conv1/kernel',
    **options,
  )


def rows(module: vit.ViT) -> list[Row]:
  """Names of the whole network."""
  if module.stem is PatchEmbed:
    return vit.rows(module)
  return vit.rows(module, stem_rows(module.stem.keywords['norm']))


def stem_rows(
  norm: str, theirs: str = 'patch_embed', ours: str = 'patch_embed'
) -> list[Row]:
  """VOLO's and TransReID-SSL's names: `conv` counts absent layers, too."""
  found = []
  for i in range(1, len(CONVOLUTIONS) + 1):
    first, kind = 3 * (i - 1), norm_of(norm, i)
    found += to.conv(f'{theirs}.conv.{first}', f'{ours}/conv{i}')
    name, path = f'{theirs}.conv.{first + 1}', f'{ours}/norm{i}'
    if kind == 'batch':
      found += to.batch_norm(name, path)
    elif kind == 'layer':
      found += to.norm(name, path)
    elif kind == 'instance_batch':
      found += to.norm(f'{name}.IN', f'{path}/instance')
      found += to.batch_norm(f'{name}.BN', f'{path}/batch')
  return found + to.conv(f'{theirs}.proj', f'{ours}/proj', bias=True)


# What the study looks at.


def token_similarities(
  module: vit.ViT, variables: PyTree, image: Float[Array, 'b h w c']
) -> Float[Array, ' l']:
  """`token_similarity` of the patches after each block; for a few images.

  Lower with the scaled ReLU than with convolutions alone.
  """
  tokens = module.apply(variables, image, method='every_block')
  return jax.vmap(token_similarity)(tokens[:, :, module.prefix :])


def stem_gradient_norm(
  grads: PyTree, stem: str = 'patch_embed'
) -> Float[Array, '']:
  """Euclidean norm of the gradient of all parameters of the stem, float32.

  Args:
    grads: of the parameters, nested dicts.
    stem: name of the stem, a part of the paths.

  Raises:
    ValueError: no path has that part.
  """
  leaves = [
    leaf
    for path, leaf in layout.flatten(grads).items()
    if stem in path.split('/')
  ]
  if not leaves:
    raise ValueError(f'no parameters under {stem!r}')
  return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype('float32'))) for x in leaves))
