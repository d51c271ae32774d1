"""What the retrieval systems share: CLIP's towers between config and vectors.

The parameters of a system are one flat dict: CLIP's own (`image`, `text`) and
beside them the modules that only training uses, each under its name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from jaxzoo.errors import UserError
from jaxzoo.models.backbones.clip import Clip, Towers
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.weights.clip import (
  convert_batch_stats,
  convert_clip,
  export_clip,
  token_grid,
)

# Where IRRA and its descendants keep CLIP in their checkpoints.
FINE_TUNED = 'base_model.'


class Encoded(NamedTuple):
  """One modality of a batch, in the common space, not normalised."""

  tokens: Float[Array, 'b n d'] | None  # None for a residual network
  vector: Float[Array, 'b d']


def make_clip(config) -> Clip:
  """The towers of `config`, without CLIP's learned scale of the cosines.

  Reads `towers` (the fields of `Towers`), `dtype`, `scan` and `remat`.
  """
  fields = dict(config.towers)
  if not isinstance(fields['image_depth'], int):
    fields['image_depth'] = tuple(fields['image_depth'])
  return Clip(
    Towers(**fields),
    use_logit_scale=False,
    scan=config.scan,
    remat=config.remat,
    dtype=jnp.dtype(config.dtype),
  )


def make_classifier(num_classes: int) -> nn.Dense:
  """Logits of the training identities, float32; N(0, 0.001) at first."""
  return nn.Dense(num_classes, kernel_init=nn.initializers.normal(0.001))


def num_heads(width: int) -> int:
  """Attention heads of 64 channels, as in CLIP; one below that width."""
  return max(1, width // 64)


def require_tokens(config, losses: Sequence[str]) -> None:
  """Raises a UserError where the image tower gives one vector and no tokens."""
  if config.towers.image == 'resnet':
    raise UserError(
      f'loss.{" and loss.".join(losses)} need image tokens, which the '
      "residual network of towers.image='resnet' does not give: set them to 0 "
      'or take a vit'
    )


def init_params(
  clip: Clip,
  heads: Mapping[str, nn.Module],
  rng: jax.Array,
  batch: Mapping[str, jax.Array],
  *,
  pairwise: Sequence[str] = (),
) -> tuple[dict, dict]:
  """Parameters and `extra` for the shapes of a batch.

  Args:
    clip: the towers.
    heads: the modules beside them, by parameter name.
    rng: a key.
    batch: `image` [b,h,w,3] and `text` [b,t].
    pairwise: the heads that take the tokens of two modalities, not of one.

  Returns:
    (params, extra); `extra` has `batch_stats` when the image tower is a
    residual network.
  """
  image = jnp.zeros((1, *batch['image'].shape[1:]))
  text = jnp.zeros((1, *batch['text'].shape[1:]), jnp.int32)
  clip_rng, *rngs = jax.random.split(rng, 1 + len(heads))
  extra = dict(clip.init(clip_rng, image, text))
  params = dict(extra.pop('params'))
  tokens = jnp.zeros((1, 1, clip.towers.output_dim))
  for head_rng, (name, head) in zip(rngs, heads.items(), strict=True):
    inputs = (tokens, tokens) if name in pairwise else (tokens,)
    params[name] = head.init(head_rng, *inputs)['params']
  return params, extra


def apply_heads(heads: Mapping[str, nn.Module], params) -> Callable:
  """(name, *inputs) -> what the head of that name makes of them."""
  return lambda name, *inputs: heads[name].apply(
    {'params': params[name]}, *inputs
  )


def read_weights(kind: type[NamedTuple], config) -> NamedTuple:
  """The fields of `kind`, a system's weights, from `config.loss`.

  Raises:
    UserError: all of them are 0.
  """
  weights = kind(*(config.loss[name] for name in kind._fields))
  if not any(weights):
    raise UserError(
      f'loss.{", loss.".join(kind._fields)} are all 0: nothing to train; '
      'set one at least'
    )
  return weights


def weigh(
  losses: Mapping[str, Float[Array, '']], weights: NamedTuple
) -> tuple[Float[Array, ''], dict[str, Float[Array, '']]]:
  """The weighted sum of the losses, and each alone as `loss_NAME`."""
  total = sum(getattr(weights, name) * x for name, x in losses.items())
  return total, {f'loss_{name}': x for name, x in losses.items()}


def encode_image(
  clip: Clip,
  params,
  extra: dict,
  image: UInt8[Array, 'b h w 3'],
  train: bool = True,
) -> tuple[Encoded, dict]:
  """The image tower on a batch, and `extra` with its statistics."""
  encoded, updated = clip.apply(
    _variables(params, extra),
    normalize(image, dtype=clip.dtype),
    train=train,
    method='encode_image',
    mutable=['batch_stats'],
  )
  return Encoded(*encoded), {**extra, **updated}


def encode_text(clip: Clip, params, text: Int[Array, 'b t']) -> Encoded:
  """The text tower on token ids."""
  return Encoded(*clip.apply({'params': params}, text, method='encode_text'))


def make_predict(clip: Clip) -> Callable:
  """(params, extra, batch) -> embeddings of what the batch has.

  `image` uint8 [b,h,w,3] gives `image` [b,D], `text` [b,t] gives `text` [b,D]:
  float32, of length 1, so that their products are cosines.
  """

  def predict(params, extra, batch):
    outputs = {}
    if 'image' in batch:
      image = normalize(batch['image'], dtype=clip.dtype)
      _, vector = clip.apply(
        _variables(params, extra), image, method='encode_image'
      )
      outputs['image'] = l2_normalize(vector)
    if 'text' in batch:
      vector = encode_text(clip, params, batch['text']).vector
      outputs['text'] = l2_normalize(vector)
    return outputs

  return predict


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The towers of a published checkpoint as parameters.

  Args:
    state_dict: plain CLIP, in OpenAI's or Hugging Face's names, or the
      checkpoint of a descendant that keeps CLIP under `base_model.`
    config: `image_size`, `text_length` and `scan`, to which positions and
      blocks are brought, and `towers`.

  Returns:
    `image` and `text`. CLIP's learned scale of the cosines is dropped: these
    systems have a constant one.

  Raises:
    UserError: no CLIP in the checkpoint.
  """
  prefix, sizes = _prefix(state_dict), config.towers
  grid = token_grid(config.image_size, sizes.image, sizes.patch_size)
  params = convert_clip(
    state_dict,
    image_size=config.image_size,
    text_length=config.text_length,
    scan=config.scan,
    prefix=prefix,
    # Plain CLIP has seen squares; a descendant what it was trained with.
    grid=grid if prefix else None,
    head_width=sizes.text_width // sizes.text_heads,
  )
  return {name: params[name] for name in ('image', 'text')}


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """What `extra` holds of a published checkpoint: batch norms' statistics.

  {} where the image tower is a transformer.
  """
  del config
  stats = convert_batch_stats(state_dict, prefix=_prefix(state_dict))
  return {'batch_stats': stats} if stats else {}


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """The towers as CLIP in OpenAI's names; what is beside them is left out."""
  del config
  towers = {
    name: params[name]
    for name in ('image', 'text', 'logit_scale')
    if name in params
  }
  return export_clip(towers, extra.get('batch_stats'))


def _prefix(state_dict):
  fine_tuned = any(name.startswith(FINE_TUNED) for name in state_dict)
  return FINE_TUNED if fine_tuned else ''


def _variables(params, extra):
  return {'params': params} | {
    name: extra[name] for name in ('batch_stats',) if name in extra
  }
