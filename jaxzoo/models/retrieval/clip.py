"""CLIP: two towers trained on pairs of an image and a text.

Radford et al., Learning Transferable Visual Models From Natural Language
Supervision, arXiv 2103.00020. The batch is a list of pairs; every image is told
its own text from all other texts of the batch, and the reverse.
"""

import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxzoo.models.backbones import clip
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce
from jaxzoo.models.retrieval import towers
from jaxzoo.system import System, from_loss
from jaxzoo.weights.clip import convert_batch_stats, convert_clip, export_clip

SHARDING = clip.SHARDING

# The learned scale of the cosines may not grow beyond this (section 2.5).
MAX_SCALE = 100.0


def build(config, tx: optax.GradientTransformation) -> System:
  """CLIP, with `extra['batch_stats']` if the image tower is a residual network.

  Metrics: `scale`, and `accuracy`, the share of images and texts whose own
  partner is the nearest of the batch.

  Args:
    config: reads `towers`, `dtype`, `scan`, `remat` and `microbatches`. With
      microbatches, a pair is compared with its own microbatch only.
    tx: the optimizer.
  """
  model = towers.make_clip(config).clone(use_logit_scale=True)

  def init(rng, batch):
    return towers.init_params(model, {}, rng, batch)

  def loss(params, extra, batch, rng):
    del rng  # nothing is random
    image, extra = towers.encode_image(model, params, extra, batch['image'])
    text = towers.encode_text(model, params, batch['text'])
    similarity = cosine_similarity(image.vector, text.vector)
    scale = jnp.exp(params['logit_scale'])
    metrics = {'scale': scale, 'accuracy': pair_accuracy(similarity)}
    return info_nce(similarity, scale), (extra, metrics)

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


def pair_accuracy(similarity: Float[Array, 'b b']) -> Float[Array, '']:
  """How often the diagonal is the largest of its row and of its column.

  The mean over both, in [0, 1]. A tie with another pair counts as a miss.
  """
  own = jnp.diagonal(similarity)
  is_pair = jnp.eye(similarity.shape[0], dtype=bool)
  others = jnp.where(is_pair, -jnp.inf, similarity)
  hits = [own > others.max(axis=axis) for axis in (0, 1)]
  return jnp.mean(jnp.stack(hits).astype(jnp.float32))


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
