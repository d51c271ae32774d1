"""KVT: DeiT with k-NN attention.

Wang et al., arXiv 2106.00515: `ViT` with `knn`, the same k in every layer, and
nothing else, parameters included: a DeiT's weights load, and its recipe trains.
What is computed, and how, is told by `layers/knn_attention.py`. The class token
and the distillation token are tokens as any other: they may be left out of a
row.

(The released training script builds the ordinary DeiT: its k-NN model is a
file that has to be put in that one's place.)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.models.backbones import backbone, vit
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.models.layers.knn_attention import kept_mass

SHARDING = vit.SHARDING
TOP = 100  # k of 197 tokens; about half of them is robust

PUBLISHED = {
  f'{host} k-NN': dict(vit.PUBLISHED[host], knn=TOP)
  for host in (
    'DeiT-Ti',
    'DeiT-S',
    'DeiT-B',
    'DeiT-Ti distilled',
    'DeiT-S distilled',
    'DeiT-B distilled',
  )
}


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
  """A DeiT with k-NN attention, for `models.create.create_model`.

  Args:
    positions: see `vit.build`, as `antialias`.
    **overrides: fields of `ViT`, `knn` among them: other images have another
      number of tokens.

  Raises:
    UserError: an override that is no field of `ViT`, or fewer tokens than
      `knn`.
  """
  del text_length
  module = backbone.make_module(
    vit.ViT,
    card,
    PUBLISHED[card.variant],
    num_classes=num_classes,
    features_only=features_only,
    dtype=dtype,
    overrides=overrides,
  )
  return vit.built(
    module,
    image_size=image_size,
    in_chans=in_chans,
    positions=positions,
    antialias=antialias,
  )


def rows(module: vit.ViT) -> list:
  """The host's: names of the state dict are those of DeiT."""
  return vit.rows(module)


def kept_masses(
  module: vit.ViT, variables: dict, image: Float[Array, 'b h w c']
) -> Float[Array, ' l']:
  """`kept_mass` of every layer: what dense attention gives to the kept keys.

  Reads queries and keys out of the network, so it is for a few images at a
  time. With `knn=0`, the host, raises a ValueError: there is no k.
  """
  if not module.knn:
    raise ValueError('a network without k-NN attention')
  _, inner = module.apply(
    variables,
    image,
    method='tokens',
    mutable=['intermediates'],
    capture_intermediates=lambda layer, _: layer.name in ('query', 'key'),
  )
  blocks = inner['intermediates']['transformer']
  read = lambda attn, part: attn['attn'][part]['__call__'][0]
  mass = lambda block: kept_mass(
    read(block, 'query'), read(block, 'key'), module.knn
  )
  if module.scan:
    return jax.vmap(mass)(blocks['blocks'])
  return jnp.stack([mass(blocks[f'block_{i}']) for i in range(module.depth)])
