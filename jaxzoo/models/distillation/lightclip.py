"""LightCLIP: three losses that make small CLIP models better.

arXiv 2312.00674. Softened labels of the contrastive loss, an alignment of words
with patches, and masked language modelling that sees the image. The paper gives
the parts and their roles; details without a published formula are this
project's.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones.clip import (
  SHARDING,
  end_positions,
)
from jaxzoo.models.layers.activation import gelu
from jaxzoo.models.layers.attention import causal_mask
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.transformer import Attention, Block, clip_init
from jaxzoo.models.losses.contrastive import (
  cosine_similarity,
  info_nce,
  l2_normalize,
)
from jaxzoo.models.retrieval import towers
from jaxzoo.models.retrieval.clip import MAX_SCALE
from jaxzoo.models.retrieval.irra import masked_positions, mlm_loss
from jaxzoo.models.supervised import classification
from jaxzoo.system import System, from_loss

RAMPS = ('constant', 'cosine', 'linear')


def softened_info_nce(
  logits: Float[Array, 'b b'], softness: float | Float[Array, '']
) -> Float[Array, '']:
  """InfoNCE whose negatives get a share of the label, by their similarity.

  y_ii = 1 - a, y_ij = a softmax_{j != i}(Z_i)_j without a gradient; the cross
  entropy of each row, and the same of each column with labels of its own,
  averaged. Softness 0 is `contrastive.info_nce`.

  Args:
    logits: Z, cosines times the learned scale.
    softness: a, in [0, 1); it grows from 0 in the course of training, since
      early similarities say nothing.
  """
  logits = logits.astype(jnp.float32)
  eye = jnp.eye(len(logits), dtype=bool)

  def rows(z):
    others = jax.lax.stop_gradient(jnp.where(eye, -jnp.inf, z))
    labels = jnp.where(
      eye, 1 - softness, softness * jax.nn.softmax(others, axis=1)
    )
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(z, axis=1), axis=1))

  return 0.5 * (rows(logits) + rows(logits.T))


def token_similarity(
  patches: Float[Array, 'm p d'],
  words: Float[Array, 'n w d'],
  lengths: Int[Array, ' n'],
  *,
  one_to_one: bool = False,
) -> Float[Array, 'm n']:
  """s_ij: the mean over the words of text j of their cosine with a patch of i.

  The relaxed matching gives every word its best patch. `one_to_one` gives
  distinct patches to the words, by the Hungarian algorithm on fixed shapes;
  words beyond the number of patches stay without one and count as 0.

  Texts come one after the other, so that no array has all pairs of texts and
  patches; the backward pass makes the cosines again.

  Args:
    patches: of the images.
    words: of the texts, padding at the end.
    lengths: words of each text, at least 1.
    one_to_one: the exact matching instead of the relaxed.
  """
  patches, words = l2_normalize(patches), l2_normalize(words)
  match = _assigned if one_to_one else lambda cosines, _: cosines.max(1)

  @jax.checkpoint
  def one_text(text):
    vectors, length = text
    cosines = jnp.einsum(
      'mpd,wd->mpw', patches, vectors, precision=jax.lax.Precision.HIGHEST
    )
    valid = jnp.arange(vectors.shape[0]) < length
    scores = jnp.where(valid, match(cosines, valid), 0)
    return scores.sum(1) / length

  return jax.lax.map(one_text, (words, lengths)).T


def _assigned(cosines: Float[Array, 'm p w'], valid) -> Float[Array, 'm w']:
  """The cosine of every word with its own patch in the best assignment."""
  count, words = cosines.shape[1:]
  spare = max(0, words - count)

  def one_image(cosines):
    # Padding costs the same everywhere, so it takes what the words leave; a
    # spare column is worse for a word than any patch.
    cost = jnp.where(valid[:, None], 1 - cosines.T, 0.0)
    unmatched = jnp.where(valid[:, None], 4.0, 0.0)
    cost = jnp.concatenate(
      [cost, jnp.broadcast_to(unmatched, (words, spare))], axis=1
    )
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(words, jnp.int32).at[rows].set(columns)

  chosen = jax.vmap(one_image)(jax.lax.stop_gradient(cosines))
  padded = jnp.pad(cosines, ((0, 0), (0, spare), (0, 0)))
  return jnp.take_along_axis(padded, chosen[:, None], axis=1)[:, 0]


# The towers.


class Seen(NamedTuple):
  """What the image tower makes of a batch, float32.

  Attributes:
    map: of the last stage, its positions in a row.
    patches: the same in the common space.
    vector: the pooled one there.
  """

  map: Float[Array, 'b p c']
  patches: Float[Array, 'b p d']
  vector: Float[Array, 'b d']


class ImageTower(nn.Module):
  """Images to patches and vectors in the common space.

  Attributes:
    backbone: any of `list_models()`, without classes.
    output_dim: D.
  """

  backbone: Any
  output_dim: int

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> Seen:
    """Of normalised images."""
    features = self.backbone.features(image, train)
    last = [*features.maps.values()][-1].astype(jnp.float32)
    patches = last.reshape(last.shape[0], -1, last.shape[-1])
    project = nn.Dense(
      self.output_dim,
      use_bias=False,
      kernel_init=nn.initializers.normal(last.shape[-1] ** -0.5),
      name='projection',
    )
    vector = features.vector.astype(jnp.float32)
    if vector.shape[-1] != last.shape[-1]:
      raise UserError(
        f'the vector of {type(self.backbone).__name__} has {vector.shape[-1]} '
        f'channels and its last map {last.shape[-1]}: LightCLIP projects both '
        'by one matrix; choose another model'
      )
    return Seen(patches, project(patches), project(vector))


class Fusion(nn.Module):
  """h + W_o Attn(LN h; V patches), W_o zero at first: nothing is changed."""

  num_heads: int
  dtype: Any = None

  @nn.compact
  def __call__(
    self, h: Float[Array, 'b t w'], patches: Float[Array, 'b p c']
  ) -> Float[Array, 'b t w']:
    seen = nn.Dense(h.shape[-1], dtype=self.dtype, name='patches')(patches)
    return h + Attention(
      self.num_heads,
      out_init=nn.initializers.zeros,
      dtype=self.dtype,
      name='cross_attn',
    )(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln')(h), seen)


class TextTower(nn.Module):
  """CLIP's text transformer, of fewer layers, that may look at an image.

  Attributes:
    width: channels.
    depth: layers; 8 instead of CLIP's 12.
    num_heads: heads of each.
    vocab_size: rows of the token table.
    output_dim: D.
    every: layers between two fusions, 2.
    dtype: compute dtype.
  """

  width: int
  depth: int
  num_heads: int
  vocab_size: int
  output_dim: int
  every: int = 2
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    text: Int[Array, 'b t'],
    patches: Float[Array, 'b p c'] | None = None,
  ) -> tuple[Float[Array, 'b t w'], Float[Array, 'b t d']]:
    """(hidden states after the last norm, the same projected)."""
    normal = nn.initializers.normal
    embed = nn.Embed(
      self.vocab_size,
      self.width,
      embedding_init=normal(0.02),
      name='token_embedding',
    )
    x = embed(text)
    x = x + self.param('position_embedding', normal(0.01), x.shape[1:])
    x, mask = x.astype(self.dtype), causal_mask(text.shape[-1])
    for i in range(self.depth):
      x = Block(
        self.num_heads,
        clip_init(self.width, self.depth),
        dtype=self.dtype,
        name=f'block_{i}',
      )(x, mask)
      if patches is not None and (i + 1) % self.every == 0:
        x = Fusion(self.num_heads, self.dtype, name=f'fusion_{i}')(x, patches)
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln_final')(x)
    tokens = nn.Dense(
      self.output_dim,
      use_bias=False,
      kernel_init=normal(self.width**-0.5),
      dtype=self.dtype,
      name='projection',
    )(x)
    return x.astype(jnp.float32), tokens.astype(jnp.float32)


class WordHead(nn.Module):
  """Linear, GELU, LN, then the table of words and a bias."""

  @nn.compact
  def __call__(
    self, h: Float[Array, 'b n w'], table: Float[Array, 'v w']
  ) -> Float[Array, 'b n v']:
    h = gelu(nn.Dense(h.shape[-1], name='dense')(h))
    h = nn.LayerNorm(epsilon=1e-5, name='ln')(h)
    bias = self.param('bias', nn.initializers.zeros, table.shape[:1])
    return h @ table.T + bias


def words_of(
  text: Int[Array, 'b t'],
) -> tuple[Int[Array, 'b t'], Int[Array, ' b']]:
  """(positions of the words first, how many): start, end, padding excluded.

  The words are positions 1 to end - 1; an empty caption counts its first
  position, so that no mean is over nothing.
  """
  end = end_positions(text)
  return (
    jnp.minimum(jnp.arange(text.shape[-1]) + 1, text.shape[-1] - 1),
    jnp.maximum(end - 1, 1),
  )


class Weights(NamedTuple):
  """Of the losses."""

  instance: float = 1.0
  token: float = 1.0
  mlm: float = 1.0


def softness_at(
  step: Int[Array, ''], total: int, largest: float, ramp: str
) -> Float[Array, '']:
  """a_t: from 0 to `largest` over the run, or constant."""
  t = jnp.clip(step / total, 0, 1)
  shapes = {
    'constant': jnp.ones_like(t),
    'cosine': (1 - jnp.cos(jnp.pi * t)) / 2,
    'linear': t,
  }
  return largest * shapes[ramp]


def build(config, tx: optax.GradientTransformation) -> System:
  """LightCLIP; with `token` and `mlm` at 0 and no softness it is CLIP.

  Args:
    config: the image tower as for `classification.make_backbone`; `text`:
      `width`, `depth`, `num_heads`, `vocab_size`; `output_dim`; `image_size`,
      `text_length`, `mean`, `std`, `dtype`, `total_steps`, `microbatches`;
      loss: the weights `instance`, `token`, `mlm`, of which one at 0 is not
      computed; `softness`, the largest, and its `ramp`; `one_to_one`;
      `mlm_budget`, masked words a caption that count.
    tx: the optimizer.

  Returns:
    The system. A batch has `image`, `text` and for mlm `mlm_text` and
    `mlm_labels`; `predict` gives unit vectors `image`, `text`.

  Raises:
    UserError: weights that are all 0, or no such ramp.
  """
  weights = towers.read_weights(Weights, config)
  if config.loss.ramp not in RAMPS:
    raise UserError(
      f'loss.ramp: no {config.loss.ramp!r}; ' + nearest(config.loss.ramp, RAMPS)
    )
  image_tower, text_tower = make_towers(config)
  prepare = lambda image: normalize(
    image, config.mean, config.std, jnp.dtype(config.dtype)
  )

  def loss(params, extra, batch, rng):
    image, updated = image_tower.apply(
      {'params': params['image'], **classification.statistics(extra)},
      prepare(batch['image']),
      True,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    encode_text = lambda text, patches=None: text_tower.apply(
      {'params': params['text']}, text, patches
    )
    losses, metrics = lightclip_losses(
      params, image, encode_text, batch, extra['calls'], config, weights
    )
    total, parts = towers.weigh(losses, weights)
    return total, ({**extra, **updated}, metrics | parts)

  def predict(params, extra, batch):
    outputs = {}
    if 'image' in batch:
      image = image_tower.apply(
        {'params': params['image'], **classification.statistics(extra)},
        prepare(batch['image']),
      )
      outputs['image'] = l2_normalize(image.vector)
    if 'text' in batch:
      _, tokens = text_tower.apply({'params': params['text']}, batch['text'])
      outputs['text'] = l2_normalize(at_end(tokens, batch['text']))
    return outputs

  def advance(params, extra):
    bounded = jnp.minimum(params['logit_scale'], math.log(MAX_SCALE))
    return (
      {**params, 'logit_scale': bounded},
      {**extra, 'calls': extra['calls'] + 1},
    )

  return from_loss(
    make_init(image_tower, text_tower, weights),
    loss,
    predict,
    tx,
    advance=advance,
    microbatches=config.microbatches,
  )


def make_init(image_tower, text_tower, weights: Weights):
  """(rng, batch) -> (params, extra); fusion and word head only for mlm."""

  def init(rng, batch):
    keys = jax.random.split(rng, 3)
    image = jnp.zeros((1, *batch['image'].shape[1:]))
    text = jnp.zeros((1, *batch['text'].shape[1:]), jnp.int32)
    seen, variables = image_tower.init_with_output(keys[0], image)
    patches = seen.map if weights.mlm else None
    params = {
      'image': variables['params'],
      'text': text_tower.init(keys[1], text, patches)['params'],
      'logit_scale': jnp.float32(math.log(1 / 0.07)),
    }
    if weights.mlm:
      table = params['text']['token_embedding']['embedding']
      hidden = jnp.zeros((1, 1, table.shape[1]))
      params['mlm_head'] = WordHead().init(keys[2], hidden, table)['params']
    stats = classification.statistics(variables)
    return params, {**stats, 'calls': jnp.int32(0)}

  return init


def lightclip_losses(
  params, image, encode_text, batch, calls, config, weights: Weights
) -> tuple[dict, dict]:
  """The losses of positive weight, and measures of the batch.

  Args:
    params: for the scale, the table of words and its head.
    image: `Seen`, of the batch.
    encode_text: (ids, patches) -> (hidden, tokens).
    batch: see `build`.
    calls: updates so far, by which labels soften.
    config: as for `build`.
    weights: which losses to compute.
  """
  options = config.loss
  _, tokens = encode_text(batch['text'])
  scale = jnp.exp(params['logit_scale'])
  similarity = cosine_similarity(image.vector, at_end(tokens, batch['text']))
  softness = softness_at(
    calls, config.total_steps or 1, options.softness, options.ramp
  )
  right = similarity.argmax(1) == jnp.arange(len(similarity))
  losses, metrics = {}, {'scale': scale, 'softness': softness}
  metrics['accuracy'] = right.mean(dtype=jnp.float32)
  if weights.instance:
    losses['instance'] = softened_info_nce(scale * similarity, softness)
  if weights.token:
    order, lengths = words_of(batch['text'])
    found = token_similarity(
      image.patches, tokens[:, order], lengths, one_to_one=options.one_to_one
    )
    losses['token'] = info_nce(found, scale)
  if weights.mlm:
    hidden, _ = encode_text(batch['mlm_text'], image.map)
    positions, labels = masked_positions(
      batch['mlm_labels'], options.mlm_budget
    )
    hidden = jnp.take_along_axis(hidden, positions[..., None], axis=1)
    table = params['text']['token_embedding']['embedding']
    logits = WordHead().apply({'params': params['mlm_head']}, hidden, table)
    losses['mlm'], metrics['mlm_accuracy'] = mlm_loss(logits, labels)
  return losses, metrics


def make_towers(config) -> tuple[ImageTower, TextTower]:
  """Both towers of a config."""
  built = classification.make_backbone(config, num_classes=0)
  text = config.text
  return (
    ImageTower(built.module, config.output_dim),
    TextTower(
      text.width,
      text.depth,
      text.num_heads,
      text.vocab_size,
      config.output_dim,
      dtype=jnp.dtype(config.dtype),
    ),
  )


def at_end(
  tokens: Float[Array, 'b t d'], text: Int[Array, 'b t']
) -> Float[Array, 'b d']:
  """The token at which each caption ends."""
  end = end_positions(text)
  return jnp.take_along_axis(tokens, end[:, None, None], axis=1)[:, 0]


def sharding(config) -> tuple:
  """The rules of the text tower, and of the image tower's network."""
  return (*SHARDING, *classification.sharding(config))


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published classifier as the image tower; the rest starts fresh."""
  built = classification.make_backbone(config, num_classes=0)
  found = classification.converter(built)(state_dict)
  return {'image': {'backbone': found['params']}}


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Statistics of its batch norms."""
  built = classification.make_backbone(config, num_classes=0)
  found = classification.converter(built)(state_dict)
  if 'batch_stats' not in found:
    return {}
  return {'batch_stats': {'backbone': found['batch_stats']}}


def fresh(config) -> tuple[str, ...]:
  """What no published classifier has."""
  del config
  return ('^(text|mlm_head|logit_scale)', '^image/projection/')
