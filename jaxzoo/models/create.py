"""Backbones by name, with random or with published weights.

    module, variables = create_model('clip_vit_b16', weights='ViT-B-16.pt')
    image, text = module.apply(variables, image, text)

What there is: `list_models()`; what is known of each: `model_card(name)`.
"""

import importlib
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxzoo.errors import UserError
from jaxzoo.models.cards import Built, list_models, model_card
from jaxzoo.once import call_once
from jaxzoo.weights import layout
from jaxzoo.weights.merge import Report, merge
from jaxzoo.weights.readers import read_state_dict

__all__ = [
  'build_model',
  'create_model',
  'list_models',
  'load_weights',
  'model_card',
]


def create_model(
  name: str,
  *,
  num_classes: int | None = None,
  in_chans: int = 3,
  image_size: tuple[int, int] | int | None = None,
  text_length: int | None = None,
  features_only: bool = False,
  dtype: str = 'float32',
  weights: str | os.PathLike | None = None,
  fresh: Sequence[str] = (),
  rng: jax.Array | None = None,
  **overrides,
):
  """A network and its variables.

  Args:
    name: one of `list_models()`.
    num_classes: of the classifier, where the model has one; default: as
      published. 0: none, the module gives the vector that it would take. Of
      other classes than published, the classifier starts anew.
    in_chans: channels of the images; the first layer of published weights is
      folded to them.
    image_size: of the images to come, one side or (height, width); positions
      of published weights are resized to it. Default: as published.
    text_length: ids of the texts to come, likewise.
    features_only: the module gives a dict of feature maps by stage and has no
      classifier.
    dtype: of the computation; parameters are float32.
    weights: a published checkpoint or one of ours, as
      `weights.readers.read_state_dict` takes it: a file, a folder of Orbax, the
      work directory of a run, a name on the Hugging Face hub.
    fresh: regexes of variables that `weights` may lack or have in another
      shape; those stay random.
    rng: key of the random variables; default `jax.random.key(0)`.
    **overrides: fields of the module, as its builder takes them: `scan=True`.

  Returns:
    (module, variables), for `module.apply(variables, ...)`. Inputs of the
    module are normalised images; `model_card(name)` has mean and std.

  Raises:
    UserError: an unknown name, an option that the model does not have, or
      weights that do not fit.
  """
  card = model_card(name)
  built = build_model(
    name,
    num_classes=num_classes,
    in_chans=in_chans,
    image_size=image_size,
    text_length=text_length,
    features_only=features_only,
    dtype=dtype,
    **overrides,
  )
  if built.head and num_classes not in (None, 0, card.num_classes):
    fresh = (*fresh, built.head)
  rng = jax.random.key(0) if rng is None else rng

  # Where all comes from the checkpoint nothing random is made.
  if weights and not fresh:
    return built.module, read_weights(built, weights)[0]
  variables = call_once(lambda: _init(built, rng))
  if weights:
    variables, _ = read_weights(built, weights, variables, fresh=fresh)
  return built.module, variables


def read_weights(
  built: Built,
  path: str | os.PathLike,
  variables: dict | None = None,
  *,
  fresh: Sequence[str] = (),
  strict: bool = True,
) -> tuple[dict, Report]:
  """The variables of a network from a checkpoint, and what was found in it.

  Args:
    built: of `build_model`.
    path: as `weights` of `create_model`.
    variables: what stays where nothing is loaded; default abstract arrays.
    fresh: see `create_model`.
    strict: see `weights.merge.merge`.
  """
  if variables is None:
    variables = jax.eval_shape(lambda: _init(built, jax.random.key(0)))
  loaded = layout.to_layout(built.convert(read_state_dict(path)), variables)
  return merge(variables, loaded, fresh=fresh, strict=strict)


def _init(built, rng):
  blank = [jnp.zeros(x.shape, x.dtype) for x in built.inputs]
  return built.module.init(rng, *blank)


def build_model(
  name: str,
  *,
  num_classes: int | None = None,
  in_chans: int = 3,
  image_size: tuple[int, int] | int | None = None,
  text_length: int | None = None,
  features_only: bool = False,
  dtype: str = 'float32',
  **overrides,
) -> Built:
  """A network without variables: the module, its inputs and its name maps.

  Arguments are those of `create_model`.
  """
  card = model_card(name)
  place, _, function = card.builder.partition(':')
  side = image_size or card.image_size
  return getattr(importlib.import_module(place), function)(
    card,
    num_classes=num_classes,
    in_chans=in_chans,
    image_size=(side, side) if isinstance(side, int) else tuple(side),
    text_length=text_length or card.text_length,
    features_only=features_only,
    dtype=_dtype(dtype),
    **overrides,
  )


def load_weights(name: str, path: str | os.PathLike, **options) -> dict:
  """The variables of a model from a published checkpoint or one of ours.

  Args:
    name: one of `list_models()`.
    path: as `weights` of `create_model`.
    **options: of `create_model`.

  Returns:
    For `module.apply`.
  """
  return create_model(name, weights=path, **options)[1]


def _dtype(name):
  try:
    return jnp.dtype(name)
  except TypeError as error:
    raise UserError(
      f"dtype {name!r}: expected 'float32', 'bfloat16' or 'float16'"
    ) from error
