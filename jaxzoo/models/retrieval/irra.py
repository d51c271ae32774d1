"""IRRA: implicit relation reasoning and aligning, for person retrieval by text.

arXiv 2303.12501 (CVPR 2023); reference anosorae/IRRA. Two CLIP towers are
fine-tuned so that the similarities within a batch follow the identities
(similarity distribution matching). Only while training, a cross-modal
transformer fills masked words from image tokens (implicit relation reasoning),
and a classifier tells identities apart. Retrieval uses the two global vectors
of CLIP alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.models.backbones import clip
from jaxzoo.models.layers.activation import quick_gelu
from jaxzoo.models.layers.transformer import (
  Attention,
  Transformer,
  clip_init,
)
from jaxzoo.models.losses.contrastive import (
  cmpm,
  cosine_similarity,
  identity_loss,
  in_batch_top1,
  info_nce,
  sdm,
)
from jaxzoo.models.retrieval import towers
from jaxzoo.system import System, from_loss
from jaxzoo.weights import layers, layout

SHARDING = (
  *clip.SHARDING,
  (r'(^|/)mlm_head/fc/kernel$', (None, 'tensor')),
  (r'(^|/)mlm_head/fc/bias$', ('tensor',)),
  (r'(^|/)classifier/kernel$', (None, 'tensor')),
)


class CrossModalReasoning(nn.Module):
  """Words ask, image tokens answer, a transformer thinks it over.

  x = MHA(LN_t text, LN_i image), without a residual; `depth` blocks of CLIP
  without a mask; LN_post (section 3.2). Padding asks too, as in the released
  code: the blocks see it.
  """

  depth: int = 4
  scan: bool = False
  remat: str = 'none'
  dtype: Any = None

  @nn.compact
  def __call__(
    self,
    text_tokens: Float[Array, 'b t d'],
    image_tokens: Float[Array, 'b n d'],
  ) -> Float[Array, 'b t d']:
    width = text_tokens.shape[-1]
    num_heads, init = towers.num_heads(width), clip_init(width, self.depth)
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)
    x = Attention(num_heads, init.qkv, init.out, self.dtype, name='cross_attn')(
      norm('ln_pre_t')(text_tokens), norm('ln_pre_i')(image_tokens)
    )
    x = Transformer(
      self.depth,
      num_heads,
      init,
      scan=self.scan,
      remat=self.remat,
      dtype=self.dtype,
      name='cross_modal_transformer',
    )(x)
    return norm('ln_post')(x)


class MlmHead(nn.Module):
  """Linear, quick-GELU, LN, Linear to the vocabulary.

  `depth` is that of the reasoning before it, by which the initialisation
  scales.
  """

  vocab_size: int
  depth: int = 4
  dtype: Any = None

  @nn.compact
  def __call__(self, x: Float[Array, '... d']) -> Float[Array, '... v']:
    init = clip_init(x.shape[-1], self.depth)
    x = nn.Dense(
      x.shape[-1], kernel_init=init.fc1, dtype=self.dtype, name='dense'
    )(x)
    x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name='ln')(quick_gelu(x))
    return nn.Dense(
      self.vocab_size, kernel_init=init.fc2, dtype=self.dtype, name='fc'
    )(x)


def masked_positions(
  labels: Int[Array, 'b t'], budget: int
) -> tuple[Int[Array, 'b n'], Int[Array, 'b n']]:
  """Where the masked words are: a fixed number of places, so a fixed shape.

  The vocabulary's logits at all positions would be the peak of the memory; with
  masks at 15 % of them, most are not needed.

  Args:
    labels: the word that was masked, 0 elsewhere.
    budget: places a caption, at least 1.

  Returns:
    Positions and labels, n = min(budget, t): the masked ones from left to
    right, of which those beyond the budget are dropped, then others, label 0.
  """
  # Equal elements come out from left to right.
  _, positions = jax.lax.top_k(
    (labels != 0).astype(jnp.int32), min(budget, labels.shape[1])
  )
  return positions, jnp.take_along_axis(labels, positions, axis=1)


def mlm_loss(
  logits: Float[Array, 'b n v'], labels: Int[Array, 'b n']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """Cross-entropy of the masked words, and the share that is guessed right.

  Means over all positions of the batch whose label is not 0.
  """
  masked = labels != 0
  count = jnp.maximum(masked.sum(), 1)
  loss = optax.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), labels
  )
  right = logits.argmax(axis=-1) == labels
  return (
    loss.sum(where=masked) / count,
    (right & masked).sum() / count,
  )


class Weights(NamedTuple):
  """Of the losses; the paper's are these."""

  sdm: float = 1.0  # similarity distribution matching
  itc: float = 0.0  # InfoNCE in its place
  cmpm: float = 0.0  # cross-modal projection matching in its place
  id: float = 1.0  # classification of the identity
  mlm: float = 1.0  # masked words, filled from the image


def make_heads(config, weights: Weights) -> dict[str, nn.Module]:
  """The modules beside the towers that some loss of positive weight needs."""
  dtype, depth = jnp.dtype(config.dtype), config.cross_modal_depth
  heads = {}
  if weights.mlm:
    heads['reasoning'] = CrossModalReasoning(
      depth, config.scan, config.remat, dtype
    )
    heads['mlm_head'] = MlmHead(config.towers.vocab_size, depth, dtype)
  if weights.id:
    heads['classifier'] = towers.make_classifier(config.num_classes)
  return heads


def irra_losses(
  head: Callable,
  image: towers.Encoded,
  text: towers.Encoded,
  masked: towers.Encoded | None,
  labels: Int[Array, 'b t'] | None,
  pid: Int[Array, ' b'],
  *,
  weights: Weights,
  scale: float,
  mlm_budget: int,
) -> tuple[dict, dict]:
  """The losses of positive weight, and measures of the batch.

  Args:
    head: (name, *inputs) -> output of `reasoning`, `mlm_head`, `classifier`.
    image: tokens and vectors of the images.
    text: tokens and vectors of their captions, for retrieval.
    masked: of the captions with masked words; for mlm only, as `labels`.
    labels: the word that was masked, 0 elsewhere.
    pid: identities.
    weights: which losses to compute.
    scale: inverse temperature.
    mlm_budget: masked words a caption that count.

  Returns:
    The losses by name, not weighted; `top1` and `mlm_accuracy`, in 0..1.
  """
  similarity = cosine_similarity(image.vector, text.vector)
  losses, metrics = {}, {'top1': in_batch_top1(similarity, pid)}
  if weights.sdm:
    losses['sdm'] = sdm(similarity, pid, scale)
  if weights.itc:
    losses['itc'] = info_nce(similarity, scale)
  if weights.cmpm:
    losses['cmpm'] = cmpm(image.vector, text.vector, pid)
  if weights.id:
    losses['id'] = identity_loss(
      head('classifier', image.vector), head('classifier', text.vector), pid
    )
  if weights.mlm:
    filled = head('reasoning', masked.tokens, image.tokens)
    positions, labels = masked_positions(labels, mlm_budget)
    filled = jnp.take_along_axis(filled, positions[..., None], axis=1)
    losses['mlm'], metrics['mlm_accuracy'] = mlm_loss(
      head('mlm_head', filled), labels
    )
  return losses, metrics


def build(config, tx: optax.GradientTransformation) -> System:
  """IRRA as a system.

  Args:
    config: `towers`, `num_classes`, `cross_modal_depth` (4), `dtype`, `scan`,
      `remat`, `microbatches`;
      loss: the weights `sdm`, `itc`, `cmpm`, `id`, `mlm`, of which one at 0 is
      not computed and has no parameters (itc alone is CLIP, fine-tuned);
      `temperature` (0.02); `mlm_budget`, masked words a caption that count
      (24); `mask_retrieval_text`: whether the other losses see the masked
      captions too. The released code edits captions in place, so the published
      numbers are with True, which also saves a pass of the text tower.
    tx: the optimizer.

  Returns:
    The system. A training batch has `image`, `text`, `pid`, and for mlm
    `mlm_text` and `mlm_labels` [b,t] (the original id of a masked word, else
    0); embeddings are normalised, see `towers.make_predict`.

  Raises:
    UserError: words to be filled from the tokens of a residual network.
  """
  options = config.loss
  weights = towers.read_weights(Weights, config)
  if weights.mlm:
    towers.require_tokens(config, ['mlm'])
  model, heads = towers.make_clip(config), make_heads(config, weights)

  def init(rng, batch):
    return towers.init_params(model, heads, rng, batch, pairwise=['reasoning'])

  def loss(params, extra, batch, rng):
    del rng
    image, extra = towers.encode_image(model, params, extra, batch['image'])
    masked = text = None
    if weights.mlm:
      masked = towers.encode_text(model, params, batch['mlm_text'])
      text = masked if options.mask_retrieval_text else None
    if text is None:
      text = towers.encode_text(model, params, batch['text'])
    losses, metrics = irra_losses(
      towers.apply_heads(heads, params),
      image,
      text,
      masked,
      batch.get('mlm_labels'),
      batch['pid'],
      weights=weights,
      scale=1 / options.temperature,
      mlm_budget=options.mlm_budget,
    )
    total, parts = towers.weigh(losses, weights)
    return total, (extra, metrics | parts)

  return from_loss(
    init,
    loss,
    towers.make_predict(model),
    tx,
    microbatches=config.microbatches,
  )


convert_extra = towers.convert_extra
export = towers.export


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint as parameters: plain CLIP, or all of IRRA.

  Args:
    state_dict: CLIP in OpenAI's or Hugging Face's names; or IRRA in its own,
      see `convert_heads`.
    config: as for `build`, with `image_size` and `text_length`.

  Returns:
    Nested dict of float32 arrays: the towers, and of the modules that the
    losses of the config need those that the checkpoint has.

  Raises:
    UserError: no CLIP in the checkpoint, or a head of it that lacks tensors.
  """
  needed = make_heads(config, towers.read_weights(Weights, config))
  heads = convert_heads(state_dict, scan=config.scan)
  return towers.convert(state_dict, config) | {
    name: params for name, params in heads.items() if name in needed
  }


def convert_heads(
  state_dict: Mapping[str, np.ndarray], *, scan: bool = False
) -> dict:
  """What a checkpoint has beside the towers, as parameters.

  `cross_attn` with `cross_modal_transformer` and their norms, `mlm_head` and
  `classifier`, those that are there. `scan` stacks the blocks.
  """
  there = lambda module: any(n.startswith(f'{module}.') for n in state_dict)
  norm = lambda name: layers.layer_norm(state_dict, name)
  linear = lambda name: layers.linear(state_dict, name)
  params = {}
  if there('cross_attn'):
    transformer = layers.blocks(
      state_dict, 'cross_modal_transformer.resblocks', towers.num_heads
    )
    params['reasoning'] = {
      'cross_attn': layers.attention(
        state_dict, 'cross_attn', towers.num_heads
      ),
      'cross_modal_transformer': (
        layout.stack_blocks(transformer) if scan else transformer
      ),
      **{name: norm(name) for name in ('ln_pre_t', 'ln_pre_i', 'ln_post')},
    }
  if there('mlm_head'):
    params['mlm_head'] = {
      'dense': linear('mlm_head.dense'),
      'ln': norm('mlm_head.ln'),
      'fc': linear('mlm_head.fc'),
    }
  if there('classifier'):
    params['classifier'] = linear('classifier')
  return params
