"""Every backbone, one row each: what it is, where it was published, how good.

Rows are text and numbers: reading them imports no network. A new backbone is a
row here, and in its own file a builder, which `ModelCard.builder` names:

    build(card, *, num_classes, image_size, text_length, dtype, **overrides)
      -> Built
"""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxzoo.errors import UserError, nearest


class ModelCard(NamedTuple):
  """One published model.

  Attributes:
    name: what `create_model` takes.
    family: architecture, as in `list_models(family=...)`.
    builder: 'MODULE:FUNCTION' that makes it.
    variant: its name in the paper, and what the builder goes by.
    paper: arXiv number or venue.
    image_size: (height, width) that it was published with.
    text_length: ids of a text; 0 for a model of images alone.
    mean: of the pictures' three channels, for values in [0, 1].
    std: likewise.
    interpolation: of the resizing at test time.
    crop: what is kept of the shorter side before the middle is cut out.
    parameters: how many numbers are trained, with the published head.
    license: of the published weights.
    weights: where they are published.
    results: what the paper reports, in percent.
  """

  name: str
  family: str
  builder: str
  variant: str
  paper: str
  image_size: tuple[int, int]
  text_length: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  interpolation: str
  crop: float
  parameters: int
  license: str
  weights: str
  results: Mapping[str, float]


class Built(NamedTuple):
  """What a builder returns.

  Attributes:
    module: the network.
    inputs: `jax.ShapeDtypeStruct`s that it is initialised with.
    convert: published state dict -> variables, as numpy arrays.
  """

  module: Any
  inputs: tuple
  convert: Callable[[Mapping], dict]


def _clip(name, variant, size, parameters, digest, zero_shot):
  file = variant.replace('/', '-').replace('@', '-')
  return ModelCard(
    name=f'clip_{name}',
    family='clip',
    builder='jaxzoo.models.backbones.clip:build',
    variant=variant,
    paper='arXiv 2103.00020',
    image_size=(size, size),
    text_length=77,
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
    interpolation='bicubic',
    crop=1.0,
    parameters=parameters,
    license='MIT',
    # The folder is the file's SHA-256.
    weights='https://openaipublic.azureedge.net/clip/models/'
    f'{digest}/{file}.pt',
    results={'ImageNet zero-shot top-1': zero_shot},
  )


_CARDS = (
  _clip(
    'rn50',
    'RN50',
    224,
    102007137,
    'afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762',
    59.6,
  ),
  _clip(
    'rn101',
    'RN101',
    224,
    119688033,
    '8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599',
    62.2,
  ),
  _clip(
    'rn50x4',
    'RN50x4',
    288,
    178300601,
    '7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd',
    65.8,
  ),
  _clip(
    'rn50x16',
    'RN50x16',
    384,
    290979217,
    '52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa',
    70.5,
  ),
  _clip(
    'rn50x64',
    'RN50x64',
    448,
    623258305,
    'be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c',
    73.6,
  ),
  _clip(
    'vit_b32',
    'ViT-B/32',
    224,
    151277313,
    '40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af',
    63.2,
  ),
  _clip(
    'vit_b16',
    'ViT-B/16',
    224,
    149620737,
    '5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f',
    68.6,
  ),
  _clip(
    'vit_l14',
    'ViT-L/14',
    224,
    427616513,
    'b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836',
    75.3,
  ),
  _clip(
    'vit_l14_336',
    'ViT-L/14@336px',
    336,
    427944193,
    '3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02',
    76.2,
  ),
)
MODELS: dict[str, ModelCard] = {card.name: card for card in _CARDS}


def list_models(pattern: str = '*', family: str | None = None) -> list[str]:
  """Names that match a shell pattern, of one family or of all.

  >>> list_models('clip_vit_l*')
  ['clip_vit_l14', 'clip_vit_l14_336']

  Raises:
    UserError: no such family.
  """
  families = {card.family for card in _CARDS}
  if family is not None and family not in families:
    raise UserError(f'no family {family!r}; ' + nearest(family, families))
  return [
    card.name
    for card in _CARDS
    if fnmatch.fnmatch(card.name, pattern) and family in (None, card.family)
  ]


def model_card(name: str) -> ModelCard:
  """The row of a model; a UserError with the nearest names where none is.

  >>> model_card('clip_vit_b16').parameters
  149620737
  """
  if name not in MODELS:
    raise UserError(f'no model {name!r}; ' + nearest(name, MODELS))
  return MODELS[name]
