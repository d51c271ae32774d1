"""What every image backbone offers, and how its builder is put together.

A backbone is a linen module with the fields `num_classes`, `features_only` and
`dtype` among its own, and three methods on normalised images [b, h, w, c]:

  features(image, train=False) -> Features: maps by stage, and the vector that
    the classifier takes;
  classify(vector, train=False) -> logits [b, num_classes], float32;
  __call__(image, train=False) -> logits; without classes (num_classes=0) the
    vector; with `features_only` the maps alone, and no classifier is made.

Batch statistics are in the collection `batch_stats`; drop path and dropout draw
from the keys `dropout`. The classifier's parameters lie under `head`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards import Built, ModelCard
from jaxzoo.weights import layout
from jaxzoo.weights.rows import Row, fold_channels, load, save

HEAD = r'^params/head(_dist)?/'


class Features(NamedTuple):
  """What a backbone makes of images.

  Attributes:
    maps: 'stage1', 'stage2', ... -> [b, h, w, c], from fine to coarse; those
      of a plain transformer have one size. What they are taken after (last
      activation of a stage, before its merging, ...) the backbone says.
    vector: what the classifier takes, [b, d].
  """

  maps: dict[str, Float[Array, 'b h w c']]
  vector: Float[Array, 'b d']


def finish(module, features: Features, train: bool = False) -> Any:
  """What `__call__` of a backbone returns, by the fields of the module."""
  if module.features_only:
    return features.maps
  if not module.num_classes:
    return features.vector
  return module.classify(features.vector, train)


def make_module(
  kind: type,
  card: ModelCard,
  sizes: Mapping[str, Any],
  *,
  num_classes: int | None,
  features_only: bool,
  dtype: Any,
  overrides: Mapping[str, Any],
):
  """The module of a card: the sizes of its paper, with overrides.

  Raises:
    UserError: an override that is no field of the module.
  """
  own = set(kind.__dataclass_fields__) - {'parent', 'name'}
  for name in overrides.keys() - own:
    raise UserError(f'{card.name} has no field {name!r}; ' + nearest(name, own))
  fields = {
    'num_classes': card.num_classes if num_classes is None else num_classes,
    'features_only': features_only,
    'dtype': dtype,
    **sizes,
    **overrides,
  }
  return kind(**fields)


def built(
  module,
  rows: Iterable[Row],
  *,
  image_size: tuple[int, int],
  in_chans: int = 3,
  stem: str,
  head: str = HEAD,
  canonical: Callable[[Mapping], Mapping] = dict,
  adapt: Callable[[dict], dict] = dict,
) -> Built:
  """A builder's answer, from a module and its rows.

  Args:
    module: the backbone.
    rows: a row for each tensor of the published state dict, the classifier's
      included; blocks unrolled (`block_0`, ...), scanned or not.
    image_size: (height, width).
    in_chans: channels of the images; the stem of published weights is folded.
    stem: path of the kernel [h, w, 3, out] that sees the image, or '' where
      the channels cannot be folded.
    head: regex of the classifier's paths.
    canonical: brings other spellings of the state dict to the rows' own.
    adapt: changes the flat tree of loaded arrays, path -> array: tables of
      positions to this size of images.

  Returns:
    For `models.create.create_model`.
  """
  rows = tuple(rows)
  is_head = re.compile(head).search
  headless = not module.num_classes or module.features_only
  paths = {path for row in rows for path in row_paths(row)}

  def convert(state_dict):
    # A checkpoint of our own, by our paths, needs no rows.
    flat = own_paths(state_dict)
    if 2 * len(paths & flat.keys()) <= len(flat):
      flat = layout.flatten(load(canonical(state_dict), rows))
    flat = adapt(flat)
    if stem in flat:
      flat[stem] = np.asarray(fold_channels(flat[stem], in_chans))
    if headless:
      flat = {path: x for path, x in flat.items() if not is_head(path)}
    return layout.unflatten(flat)

  def export(variables):
    there = layout.flatten(layout.unstack_blocks(variables))
    kept = [
      row for row in rows if not (headless and is_head(row_paths(row)[0]))
    ]
    return save(layout.unflatten(there), kept)

  image = jax.ShapeDtypeStruct((1, *image_size, in_chans), jnp.float32)
  return Built(module, (image,), convert, export, head)


def own_paths(state_dict: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays by our paths, blocks unrolled; {} where names are no paths."""
  try:
    return layout.flatten(layout.unstack_blocks(layout.unflatten(state_dict)))
  except ValueError:
    return {}


def row_paths(row: Row) -> tuple[str, ...]:
  """Our paths of a row."""
  return (row.ours,) if isinstance(row.ours, str) else row.ours
