"""CFAM: text-based person retrieval with ultra-fine granularity.

UFineBench, arXiv 2312.03441 (CVPR 2024). Two CLIP towers are fine-tuned on
pairs of person images and long descriptions. Only while training, a decoder
with 16 learned queries, shared by both modalities, turns image tokens and word
tokens into comparable granules, and a matcher learns to tell matched pairs
from the hardest mismatched pairs of the batch. Published retrieval uses the two
global vectors of CLIP alone; here the granules can be searched as well.

The authors' training code is unpublished. What the paper leaves open follows
the system it descends from, IRRA (arXiv 2303.12501), or was chosen here; the
docstrings say which.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import clip
from jaxzoo.models.losses.contrastive import (
  cosine_similarity,
  identity_loss,
  in_batch_top1,
  info_nce,
  sdm,
)
from jaxzoo.models.retrieval import towers
from jaxzoo.models.retrieval.granules import (
  GranularityDecoder,
  Matcher,
  granule_vector,
  local_similarity,
)
from jaxzoo.system import System, from_loss
from jaxzoo.weights import layers

# The decoder and the matcher have the layer names of CLIP's towers.
SHARDING = (*clip.SHARDING, (r'(^|/)classifier/kernel$', (None, 'tensor')))


class HardNegatives(NamedTuple):
  """For every sample of a batch its most similar counterparts that mismatch."""

  text_of_image: Int[Array, ' b']  # index of a text of another identity
  image_of_text: Int[Array, ' b']  # index of an image of another identity
  exist: Bool[Array, ' b']  # False where the batch has no other identity


def hard_negatives(
  similarity: Float[Array, 'b b'],
  pid: Int[Array, ' b'],
  *,
  rng: jax.Array | None = None,
  scale: float = 50.0,
) -> HardNegatives:
  """The hardest mismatches of the batch.

  That they are of the batch is the paper's, how they are found is chosen here.

  Identities are compared, not positions: two captions of one image, or two
  images of one person, are never each other's negatives.

  Args:
    similarity: G, images by texts. No gradient flows into it.
    pid: identities.
    rng: without it, the negative is the one of largest similarity; with it, j
      is drawn with probability softmax_j(scale G_ij) over other identities.
    scale: see `rng`.
  """
  other = pid[:, None] != pid[None, :]
  scores = jnp.where(other, scale * jax.lax.stop_gradient(similarity), -jnp.inf)
  if rng is not None:
    rows, columns = jax.random.split(rng)
    text_of_image = jax.random.categorical(rows, scores, axis=1)
    image_of_text = jax.random.categorical(columns, scores, axis=0)
  else:
    text_of_image = scores.argmax(axis=1)
    image_of_text = scores.argmax(axis=0)
  return HardNegatives(
    text_of_image.astype(jnp.int32),
    image_of_text.astype(jnp.int32),
    other.any(axis=1),
  )


def match_pairs(
  image_granules: Float[Array, 'b k d'],
  text_granules: Float[Array, 'b k d'],
  negatives: HardNegatives,
) -> tuple[Float[Array, '3b k d'], Float[Array, '3b k d']]:
  """What the matcher sees: b matched pairs, then 2 b mismatched ones.

  The mismatched pairs are every image with its hard text, then every text with
  its hard image.
  """
  hard_texts = jnp.take(text_granules, negatives.text_of_image, axis=0)
  hard_images = jnp.take(image_granules, negatives.image_of_text, axis=0)
  return (
    jnp.concatenate([image_granules, image_granules, hard_images]),
    jnp.concatenate([text_granules, hard_texts, text_granules]),
  )


def match_loss(
  logits: Float[Array, '3b'], exist: Bool[Array, ' b']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Binary cross-entropy of `match_pairs`, and the share that is told right.

  Means over the pairs that there are: a sample without another identity in the
  batch has no mismatched ones.
  """
  labels = jnp.concatenate([jnp.ones_like(exist), *2 * [jnp.zeros_like(exist)]])
  counts = jnp.concatenate([jnp.ones_like(exist), exist, exist])
  loss = optax.sigmoid_binary_cross_entropy(
    logits.astype(jnp.float32), labels.astype(jnp.float32)
  )
  right = (logits > 0) == labels
  return loss.mean(where=counts), right.mean(where=counts)


class Weights(NamedTuple):
  """L = gs L_gs + ls L_ls + m L_m + cid L_cid. The paper's are not known."""

  gs: float = 1.0  # global similarity, between the vectors
  ls: float = 1.0  # local similarity, between granules
  m: float = 1.0  # match of the pairs with hard negatives
  cid: float = 1.0  # classification of the identity


def make_heads(config, weights: Weights) -> dict[str, nn.Module]:
  """The modules beside the towers that some loss of positive weight needs."""
  dtype, sizes = jnp.dtype(config.dtype), config.granularity
  heads = {}
  if weights.ls or weights.m:
    heads['decoder'] = GranularityDecoder(
      sizes.queries, sizes.decoder_depth, dtype
    )
  if weights.m:
    heads['matcher'] = Matcher(sizes.matcher_depth, config.remat, dtype)
  if weights.cid:
    heads['classifier'] = towers.make_classifier(config.num_classes)
  return heads


def cfam_losses(
  head: Callable,
  image: towers.Encoded,
  text: towers.Encoded,
  words: Bool[Array, 'b t'],
  pid: Int[Array, ' b'],
  *,
  weights: Weights,
  compare: Callable,
  scale: float,
  rng: jax.Array | None = None,
) -> tuple[dict, dict]:
  """The losses of positive weight, and measures of the batch.

  Args:
    head: (name, *inputs) -> output of `decoder`, `matcher` or `classifier`.
    image: tokens and vectors of the images.
    text: tokens and vectors of their descriptions.
    words: True where `text` is not padding.
    pid: identities.
    weights: which losses to compute.
    compare: (similarities, pid, scale) -> loss, for gs and ls.
    scale: inverse temperature.
    rng: draws the hard negatives; without it they are the hardest.

  Returns:
    The losses by name, not weighted; `top1` and `match_accuracy`, in 0..1.
  """
  similarity = cosine_similarity(image.vector, text.vector)
  losses, metrics = {}, {'top1': in_batch_top1(similarity, pid)}
  if weights.gs:
    losses['gs'] = compare(similarity, pid, scale)
  if weights.ls or weights.m:
    image_granules = head('decoder', image.tokens)
    text_granules = head('decoder', text.tokens, words)
  if weights.ls:
    local = local_similarity(image_granules, text_granules)
    losses['ls'] = compare(local, pid, scale)
  if weights.m:
    negatives = hard_negatives(similarity, pid, rng=rng, scale=scale)
    pairs = match_pairs(image_granules, text_granules, negatives)
    losses['m'], metrics['match_accuracy'] = match_loss(
      head('matcher', *pairs), negatives.exist
    )
  if weights.cid:
    losses['cid'] = identity_loss(
      head('classifier', image.vector), head('classifier', text.vector), pid
    )
  return losses, metrics


SIMILARITY_LOSSES = {
  'infonce': lambda similarity, pid, scale: info_nce(similarity, scale),
  'sdm': sdm,
}
HARD_NEGATIVES = ('hardest', 'sampled')


def build(config, tx: optax.GradientTransformation) -> System:
  """CFAM as a system.

  Args:
    config: `towers`, `num_classes`, `dtype`, `scan`, `remat`, `microbatches`;
      granularity: `queries` (16), `decoder_depth` (2), `matcher_depth` (2);
      loss: the weights `gs`, `ls`, `m`, `cid`, of which one at 0 is not
      computed and has no parameters (gs alone is CLIP, fine-tuned);
      `similarity`, 'infonce' or 'sdm', for gs and ls; `temperature` (0.02);
      `hard_negatives`, 'hardest' or 'sampled'.
    tx: the optimizer.

  Returns:
    The system. A training batch has `image`, `text` and `pid`; embeddings are
    normalised, see `towers.make_predict`. Where one of `evals` compares
    `vectors='granules'`, `image_granules` and `text_granules` are beside them,
    see `granule_vector`.

  Raises:
    UserError: an option that does not exist, granules of a residual network,
      or granules to be searched that no loss trains.
  """
  options = config.loss
  for field, known in (
    ('similarity', SIMILARITY_LOSSES),
    ('hard_negatives', HARD_NEGATIVES),
  ):
    if options[field] not in known:
      raise UserError(
        f'loss.{field}: no {options[field]!r}; '
        + nearest(options[field], known)
      )
  weights = towers.read_weights(Weights, config)
  if weights.ls or weights.m:
    towers.require_tokens(config, ['ls', 'm'])
  model, heads = towers.make_clip(config), make_heads(config, weights)
  global_vectors = towers.make_predict(model)
  granules = any(
    fields.get('vectors') == 'granules'
    for fields in config.get('evals', {}).values()
  )
  if granules and 'decoder' not in heads:
    raise UserError(
      "evals with vectors='granules' need loss.ls or loss.m above 0: without "
      'them there is no decoder. Raise one, or compare global vectors instead: '
      '--config.evals.NAME.vectors=global'
    )

  def init(rng, batch):
    return towers.init_params(model, heads, rng, batch, pairwise=['matcher'])

  def loss(params, extra, batch, rng):
    image, extra = towers.encode_image(model, params, extra, batch['image'])
    losses, metrics = cfam_losses(
      towers.apply_heads(heads, params),
      image,
      towers.encode_text(model, params, batch['text']),
      clip.text_padding_mask(batch['text']),
      batch['pid'],
      weights=weights,
      compare=SIMILARITY_LOSSES[options.similarity],
      scale=1 / options.temperature,
      rng=rng if options.hard_negatives == 'sampled' else None,
    )
    total, parts = towers.weigh(losses, weights)
    return total, (extra, metrics | parts)

  def predict(params, extra, batch):
    outputs = global_vectors(params, extra, batch)
    head = towers.apply_heads(heads, params)
    if granules and 'image' in batch:
      image, _ = towers.encode_image(
        model, params, extra, batch['image'], train=False
      )
      outputs['image_granules'] = granule_vector(head('decoder', image.tokens))
    if granules and 'text' in batch:
      text = towers.encode_text(model, params, batch['text'])
      words = clip.text_padding_mask(batch['text'])
      outputs['text_granules'] = granule_vector(
        head('decoder', text.tokens, words)
      )
    return outputs

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


convert_extra = towers.convert_extra
export = towers.export


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint as parameters: plain CLIP, or all of CFAM.

  Args:
    state_dict: CLIP in OpenAI's or Hugging Face's names; or CFAM, with CLIP
      under `base_model.`, see `convert_heads`.
    config: as for `build`, with `image_size` and `text_length`.

  Returns:
    Nested dict of float32 arrays: the towers, and of the modules that the
    losses of the config need those that the checkpoint has.

  Raises:
    UserError: no CLIP in the checkpoint, or a head of it that lacks tensors.
  """
  needed = make_heads(config, towers.read_weights(Weights, config))
  heads = convert_heads(state_dict)
  return towers.convert(state_dict, config) | {
    name: params for name, params in heads.items() if name in needed
  }


def convert_heads(state_dict: Mapping[str, np.ndarray]) -> dict:
  """What a checkpoint has beside the towers, as parameters.

  `granularity_decoder`, `matcher` and `classifier`, those that are there. The
  authors have published no weights; the names are those of the parity cases.
  """
  there = lambda module: any(n.startswith(f'{module}.') for n in state_dict)
  params = {}
  if there('granularity_decoder'):
    params['decoder'] = _convert_decoder(state_dict, 'granularity_decoder')
  if there('matcher'):
    params['matcher'] = {
      'transformer': layers.blocks(
        state_dict, 'matcher.blocks', towers.num_heads
      ),
      'ln_post': layers.layer_norm(state_dict, 'matcher.ln_post'),
      'fc1': layers.linear(state_dict, 'matcher.fc1'),
      'fc2': layers.linear(state_dict, 'matcher.fc2'),
    }
  if there('classifier'):
    params['classifier'] = layers.linear(state_dict, 'classifier')
  return params


def _convert_decoder(state_dict, name):
  def layer(prefix):
    norm = lambda x: layers.layer_norm(state_dict, f'{prefix}.{x}')
    attention = lambda x: layers.attention(
      state_dict, f'{prefix}.{x}', towers.num_heads
    )
    return {
      **{x: norm(x) for x in ('ln_1', 'ln_2', 'ln_kv', 'ln_3')},
      **{x: attention(x) for x in ('self_attn', 'cross_attn')},
      'mlp': layers.mlp(state_dict, f'{prefix}.mlp'),
    }

  return {
    'queries': layers.tensor(state_dict, f'{name}.queries'),
    'ln_post': layers.layer_norm(state_dict, f'{name}.ln_post'),
    **{
      f'layer_{i}': layer(f'{name}.layers.{i}')
      for i in range(layers.depth(state_dict, f'{name}.layers'))
    },
  }
