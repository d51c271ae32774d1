"""Semantic segmentation: a backbone, a feature pyramid, a class for each pixel.

The pyramid is FPN's (arXiv 1612.03144) and its head the semantic branch of
panoptic FPN (arXiv 1901.02446) without its depth: levels are brought to the
size of the finest and added. It is there for what works on dense features;
published numbers of DeepLab or PSPNet are not its aim.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.models.layers.convolution import conv
from jaxzoo.models.layers.image import normalize, resized
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.supervised import classification
from jaxzoo.system import System, from_loss

SHARDING = ()  # the network's own, see `sharding`
sharding = classification.sharding
Maps = dict[str, Float[Array, 'b h w c']]


class Segmenter(nn.Module):
  """Images to classes of pixels.

  Attributes:
    backbone: any of `list_models()`, without classes.
    num_classes: of the pixels.
    width: channels of every level of the pyramid.
  """

  backbone: Any
  num_classes: int
  width: int = 64

  @nn.compact
  def pyramid(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Maps:
    """The levels, named as the backbone's stages, `width` channels each.

    P_i = lateral(C_i) + upsampled P_{i+1}.
    """
    maps = self.backbone.features(image, train).maps
    levels, above = {}, None
    for name in reversed(maps):
      x = conv(self.width, 1, bias=True, name=f'lateral_{name}')(
        maps[name].astype(jnp.float32)
      )
      above = x if above is None else x + resized(above, x.shape[1:3])
      levels[name] = above
    return {name: levels[name] for name in maps}

  @nn.compact
  def decode(
    self, levels: Maps, train: bool = False
  ) -> Float[Array, 'b h w k']:
    """Logits at the size of the finest level."""
    size = next(iter(levels.values())).shape[1:3]
    x = sum(resized(level, size) for level in levels.values())
    x = conv(self.width, 3, name='head_conv')(x)
    x = nn.relu(BatchNorm(name='head_bn')(x, train))
    return conv(self.num_classes, 1, bias=True, name='head')(x)

  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> tuple[Maps, Float[Array, 'b h w k']]:
    """(levels, logits)."""
    levels = self.pyramid(image, train)
    return levels, self.decode(levels, train)


def pixel_loss(
  logits: Float[Array, 'b h w k'], classes: Int[Array, 'b h2 w2']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """(cross entropy, accuracy), means over the pixels with a class below k."""
  logits = resized(logits.astype(jnp.float32), classes.shape[1:])
  known = classes < logits.shape[-1]
  labels = jnp.where(known, classes, 0).astype(jnp.int32)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  right = logits.argmax(-1) == labels
  count = jnp.maximum(known.sum(), 1)
  mean = lambda x: jnp.sum(jnp.where(known, x, 0)) / count
  return mean(losses), mean(right)


def predicted(
  logits: Float[Array, 'b h w k'], size: tuple[int, int]
) -> Int[Array, 'b h2 w2']:
  """The most probable class of every pixel of an image of this size."""
  logits = resized(logits.astype(jnp.float32), size)
  return logits.argmax(-1).astype(jnp.uint8)


def make_segmenter(config) -> Segmenter:
  """The network of a config: `model` and its options, `pyramid_width`."""
  built = classification.make_backbone(config, num_classes=0)
  return Segmenter(built.module, config.num_classes, config.pyramid_width)


def build(config, tx: optax.GradientTransformation) -> System:
  """Segmentation; `predict` gives `classes` uint8 [b, h, w].

  A batch has `image` uint8 [b,h,w,3] and `classes` uint8 [b,h,w], 255 for none.

  Args:
    config: as for `classification.make_backbone`, and `pyramid_width`, `mean`,
      `std`, `microbatches`.
    tx: the optimizer.
  """
  module = make_segmenter(config)
  prepare = lambda image: normalize(
    image, config.mean, config.std, jnp.dtype(config.dtype)
  )

  def init(rng, batch):
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    variables = dict(module.init(rng, blank))
    return variables.pop('params'), variables

  def loss(params, extra, batch, rng):
    (_, logits), updated = module.apply(
      {'params': params, **classification.statistics(extra)},
      prepare(batch['image']),
      True,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    value, right = pixel_loss(logits, batch['classes'])
    return value, ({**extra, **updated}, {'pixel_accuracy': right})

  def predict(params, extra, batch):
    _, logits = module.apply(
      {'params': params, **classification.statistics(extra)},
      prepare(batch['image']),
    )
    return {'classes': predicted(logits, batch['image'].shape[1:3])}

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


def convert(state_dict, config) -> dict:
  """A published classifier as the backbone; pyramid and head start fresh."""
  return {'backbone': _backbone(state_dict, config)['params']}


def convert_extra(state_dict, config) -> dict:
  """Statistics of the backbone's batch norms."""
  stats = _backbone(state_dict, config).get('batch_stats')
  return {'batch_stats': {'backbone': stats}} if stats else {}


def _backbone(state_dict, config) -> dict:
  built = classification.make_backbone(config, num_classes=0)
  return classification.converter(built)(state_dict)


def fresh(config) -> tuple[str, ...]:
  """What no published classifier has."""
  del config
  return ('^(lateral|head)_?',)
