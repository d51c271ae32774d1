"""Every backbone, one row each: what it is, where it was published, how good.

Rows are text and numbers: reading them imports no network. A new backbone is a
row in the file of its family here, and in its own file a builder, which
`ModelCard.builder` names:

    build(card, *, num_classes, in_chans, image_size, text_length, dtype,
          features_only, **overrides) -> Built
"""

import fnmatch
import importlib

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards.card import Built, ModelCard

__all__ = ['MODELS', 'Built', 'ModelCard', 'list_models', 'model_card']

# Files of this folder, each with a tuple CARDS.
FAMILIES = (
  'clip',
  'resnet',
  'preact_resnet',
  'lightvit',
  'stvit',
  'dcd',
  'swin',
  'elsa',
  'vit',
  'kvt',
  'conv_stem',
  'mobilenetv1',
  'mobilenetv2',
  'mobilenetv3',
  'efficientnet',
  'shufflenetv2',
  'genet',
  'zennet',
)

_CARDS = tuple(
  card
  for family in FAMILIES
  for card in importlib.import_module(f'{__name__}.{family}').CARDS
)
MODELS: dict[str, ModelCard] = {card.name: card for card in _CARDS}


def list_models(
  pattern: str = '*',
  family: str | None = None,
  *,
  with_weights: bool = False,
) -> list[str]:
  """Names that match a shell pattern, of one family or of all.

  >>> list_models('clip_vit_l*')
  ['clip_vit_l14', 'clip_vit_l14_336']

  Args:
    pattern: as the shell's: `*vit*`.
    family: architecture.
    with_weights: only those whose checkpoint is published.

  Raises:
    UserError: no such family.
  """
  families = {card.family for card in _CARDS}
  if family is not None and family not in families:
    raise UserError(f'no family {family!r}; ' + nearest(family, families))
  return [
    card.name
    for card in _CARDS
    if fnmatch.fnmatch(card.name, pattern)
    and family in (None, card.family)
    and (card.weights or not with_weights)
  ]


def model_card(name: str) -> ModelCard:
  """The row of a model; a UserError with the nearest names where none is.

  >>> model_card('clip_vit_b16').parameters
  149620737
  """
  if name not in MODELS:
    raise UserError(f'no model {name!r}; ' + nearest(name, MODELS))
  return MODELS[name]
