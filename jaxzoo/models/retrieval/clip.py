"""CLIP: two towers trained on pairs of an image and a text.

Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, arXiv 2103.00020. The batch is a list of pairs; every image is told
its own text from all other texts of the batch, and the reverse.
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import clip
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce
from jaxzoo.models.losses.large_batch import chunked_info_nce, chunked_sigmoid
from jaxzoo.models.retrieval import towers
from jaxzoo.system import System, from_loss, in_microbatches
from jaxzoo.weights.clip import convert_batch_stats, convert_clip, export_clip

SHARDING = clip.SHARDING

# The learned scale of the cosines may not grow beyond this (section 2.5).
MAX_SCALE = 100.0
# Where SigLIP's scale and bias begin (arXiv 2303.15343, section 3.2).
SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0


LOSSES = ('softmax', 'sigmoid')


class Loss(NamedTuple):
  """`config.loss`; all three give exact values and gradients.

  Attributes:
    kind: 'softmax' (InfoNCE) or 'sigmoid' (SigLIP, arXiv 2303.15343, with a
      learned `logit_bias`).
    chunk: texts whose cosines are in memory at once, see
      `losses/large_batch.py`; 0 for all.
    tower_microbatches: in which the towers see the batch, while every pair is
      compared with all others, see `system.in_microbatches`.
  """

  kind: str = 'softmax'
  chunk: int = 0
  tower_microbatches: int = 1


def build(config, tx: optax.GradientTransformation) -> System:
  """CLIP, with `extra['batch_stats']` if the image tower is a residual network.

  Metrics: `scale`, and, where the whole matrix of cosines is made, `accuracy`,
  the share of images and texts whose own partner is the nearest of the batch.

  Args:
    config: reads `towers`, `dtype`, `scan`, `remat`, `loss` (the fields of
      `Loss`) and `microbatches`. With microbatches, a pair is compared with its
      own microbatch only.
    tx: the optimizer.

  Raises:
    UserError: no such loss, or a batch that does not divide.
  """
  fields = read_loss(config)
  model = towers.make_clip(config).clone(use_logit_scale=True)
  sigmoid = fields.kind == 'sigmoid'

  def init(rng, batch):
    params, extra = towers.init_params(model, {}, rng, batch)
    if sigmoid:
      params['logit_scale'] = jnp.float32(math.log(SIGMOID_SCALE))
      params['logit_bias'] = jnp.float32(SIGMOID_BIAS)
    return params, extra

  def encode(params, extra, batch):
    image, extra = towers.encode_image(model, params, extra, batch['image'])
    text = towers.encode_text(model, params, batch['text'])
    return extra, (image.vector, text.vector)

  def loss(params, extra, batch, rng):
    del rng  # nothing is random
    extra, (image, text) = in_microbatches(
      functools.partial(encode, params),
      extra,
      {'image': batch['image'], 'text': batch['text']},
      fields.tower_microbatches,
    )
    scale = jnp.exp(params['logit_scale'])
    value, metrics = compare(
      image, text, scale, params.get('logit_bias'), chunk=fields.chunk
    )
    return value, (extra, {'scale': scale, **metrics})

  def advance(params, extra):
    bounded = jnp.minimum(params['logit_scale'], math.log(MAX_SCALE))
    return dict(params, logit_scale=bounded), extra

  return from_loss(
    init,
    loss,
    towers.make_predict(model),
    tx,
    advance=advance,
    microbatches=config.microbatches,
  )


def compare(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  scale: Float[Array, ''],
  bias: Float[Array, ''] | None = None,
  *,
  chunk: int = 0,
) -> tuple[Float[Array, ''], dict]:
  """The loss of a batch of pairs, and `accuracy` where all cosines are made.

  Args:
    image: vectors of any length.
    text: of the same pairs.
    scale: of the cosines.
    bias: of the sigmoid's logits; None for the softmax.
    chunk: see `build`.
  """
  if bias is not None:
    chunk = chunk or len(text)
    return chunked_sigmoid(image, text, scale, bias, chunk=chunk), {}
  if chunk:
    return chunked_info_nce(image, text, scale, chunk=chunk), {}
  similarity = cosine_similarity(image, text)
  return info_nce(similarity, scale), {'accuracy': pair_accuracy(similarity)}


def read_loss(config) -> Loss:
  """`config.loss`, whose fields may be absent.

  Raises:
    UserError: no such loss, or parts that do not divide the batch.
  """
  given = config.get('loss', {})
  fields = Loss(**{k: given[k] for k in Loss._fields if k in given})
  if fields.kind not in LOSSES:
    raise UserError(
      f'loss.kind: no {fields.kind!r}; ' + nearest(fields.kind, LOSSES)
    )
  batch = config.batch_size // config.microbatches
  for name, parts in (
    ('chunk', fields.chunk or 1),
    ('tower_microbatches', fields.tower_microbatches),
  ):
    if parts < 1 or batch % parts:
      raise UserError(
        f'loss.{name}={parts} does not divide the {batch} pairs that are '
        'compared'
      )
  return fields


def pair_accuracy(similarity: Float[Array, 'b b']) -> Float[Array, '']:
  """How often the diagonal is the largest of its row and of its column.

  The mean over both, in [0, 1]. A tie with another pair counts as a miss.
  """
  own = jnp.diagonal(similarity)
  is_pair = jnp.eye(similarity.shape[0], dtype=bool)
  others = jnp.where(is_pair, -jnp.inf, similarity)
  hits = [own > others.max(axis=axis) for axis in (0, 1)]
  return jnp.mean(jnp.stack(hits).astype(jnp.float32))


def fresh(config) -> tuple[str, ...]:
  """Paths that published weights may lack: CLIP has no bias."""
  return ('^logit_bias$',) if read_loss(config).kind == 'sigmoid' else ()


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Published weights (OpenAI or Hugging Face names) as parameters.

  Positions are resized to `config.image_size` and `config.text_length`.
  """
  return convert_clip(
    state_dict,
    image_size=config.image_size,
    text_length=config.text_length,
    scan=config.scan,
    head_width=config.towers.text_width // config.towers.text_heads,
  )


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """What `extra` takes from published weights: statistics of the batch norms.

  {} where the image tower is a transformer.
  """
  del config  # the statistics do not depend on sizes
  stats = convert_batch_stats(state_dict)
  return {'batch_stats': stats} if stats else {}


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """`convert` and `convert_extra` undone, in OpenAI's names."""
  del config
  return export_clip(params, extra.get('batch_stats'))
