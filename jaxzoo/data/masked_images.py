"""Pictures under masks of patches: what masked pre-training reads.

Of training batches one mask serves many images, so that masks, and the groups
of windows that they leave, are made once they are batched. Labels are not read.
"""

import functools

import numpy as np

from jaxzoo.data import classification
from jaxzoo.data.pipeline import BatchedData, Data
from jaxzoo.data.sources import labelled
from jaxzoo.data.transforms import Transform
from jaxzoo.errors import UserError
from jaxzoo.models.self_supervised import window_groups


def read_source(config, split: str):
  """A split of the config's data set, see `data/classification.py`.

  A `folder` is any tree of pictures below ROOT/SPLIT, with or without folders
  of classes; `num_classes` is not looked at.

  Raises:
    UserError: anything wrong with the files.
  """
  data = config.data
  if data.dataset == 'folder' and data.root:
    return _open_folder(data.root, split, data.cache_images)
  return classification.open_source(config, split)


@functools.lru_cache(maxsize=8)
def _open_folder(root, split, cache):
  return labelled.read_pictures(root, split, cache)


def mask_settings(config) -> dict:
  """`grid`, `ratio` and `plans` of `window_groups.draw_masks`.

  Reads `image_size`, `mask_ratio`, and of `encoder` `depths`, `window` and
  `patch_size` (4); without `visible_only` there are no plans, since an encoder
  of all patches needs no groups.

  Raises:
    UserError: images that are no whole patches, or a mask of none or of all.
  """
  encoder = config.encoder
  stages = len(encoder.depths)
  side = 2 ** (stages - 1)
  unit = side * encoder.get('patch_size', 4)
  grid = window_groups.patch_grid(tuple(config.image_size), unit)
  kept = window_groups.kept_patches(grid, config.mask_ratio)
  if not 0 < kept <= grid[0] * grid[1]:
    raise UserError(
      f'mask_ratio={config.mask_ratio} leaves {kept} of the '
      f'{grid[0] * grid[1]} patches: it must be in [0, 1), and leave some'
    )
  plans = ()
  if config.visible_only:
    plans = window_groups.plan_stages(grid, kept, encoder.window, side, stages)
  return dict(grid=grid, ratio=config.mask_ratio, plans=plans)


def mask_batch(images: int, settings: dict) -> Transform:
  """Of a batch: a mask for every `images` of it, one after another."""

  def transform(batch, rng):
    count = len(batch['image'])
    if count % images:
      raise UserError(
        f'{count} images of a process do not divide over masks of {images}: '
        'make masks a multiple of the number of processes'
      )
    drawn = window_groups.draw_masks(rng, count // images, **settings)
    return {**batch, **drawn}

  return transform


def mask_record(settings: dict) -> Transform:
  """Of a record: a mask of its own."""

  def transform(record, rng):
    drawn = window_groups.draw_masks(rng, 1, **settings)
    return {**record, **{name: x[0] for name, x in drawn.items()}}

  return transform


def without_label(record: dict, rng) -> dict:
  """All of a record but `label`."""
  del rng
  return {name: value for name, value in record.items() if name != 'label'}


def images_per_mask(config) -> int:
  """How many of a batch are under one of its `masks`; UserError if none fit."""
  if config.masks < 1 or config.batch_size % config.masks:
    raise UserError(
      f'masks={config.masks} do not divide a batch of {config.batch_size}'
    )
  if config.masks % config.microbatches:
    raise UserError(
      f'masks={config.masks} do not divide over {config.microbatches} '
      'microbatches'
    )
  return config.batch_size // config.masks


def train_data(config) -> BatchedData:
  """The training split, augmented as in `data/classification.py`, under masks.

  Raises:
    UserError: see `read_source` and `mask_settings`.
  """
  steps = (*classification.train_transforms(config), without_label)
  masks = mask_batch(images_per_mask(config), mask_settings(config))
  source = read_source(config, config.data.train_split)
  return BatchedData(source, steps, (masks,))


def eval_data(config, split: str) -> Data:
  """Every picture of a split once, under a mask that its place decides."""
  steps = (
    *classification.eval_transforms(config),
    without_label,
    mask_record(mask_settings(config)),
  )
  return Data(read_source(config, split), steps)


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  images_per_mask(config)
  batch = classification.example_batch(config)
  masks = window_groups.blank_masks(config.masks, **mask_settings(config))
  return {'image': batch['image'], **masks}
