"""Image classification from config to pipeline: which set, which transforms."""

import functools
import math

import numpy as np

from jaxzoo.data import augment, shapes, transforms
from jaxzoo.data.autoaugment import POLICIES, auto_augment
from jaxzoo.data.pipeline import Data
from jaxzoo.data.randaugment import rand_augment
from jaxzoo.data.sources import labelled
from jaxzoo.data.taught import with_teacher
from jaxzoo.data.transforms import Transform
from jaxzoo.errors import UserError, nearest

# What `data.dataset` may be; those of `ON_DISK` need `data.root`.
DATASETS = ('cifar10', 'cifar100', 'digits', 'folder', 'shapes', 'tfds')
ON_DISK = ('cifar10', 'cifar100', 'folder')
CROPS = ('none', 'pad', 'random_resized')


def read_source(config, split: str):
  """`open_source`, with as many classes as the config says.

  Raises:
    UserError: anything wrong with the files, or classes other than the
      config's `num_classes`.
  """
  source = open_source(config, split)
  if len(source.names) != config.num_classes:
    raise UserError(
      f'{source!r} has {len(source.names)} classes, but num_classes='
      f'{config.num_classes}: set --config.num_classes={len(source.names)}'
    )
  return source


def open_source(config, split: str):
  """A split of the config's data set, a source of `sources/labelled.py`.

  Reads of `config.data`: `dataset`; `root`, the folder (of TFDS its
  `data_dir`); `name`, what TFDS calls it; `train_split`; `cache_images`, of a
  folder; `embedded`, the settings of `shapes`.

  Raises:
    UserError: anything wrong with the files.
  """
  data = config.data
  if data.dataset not in DATASETS:
    raise UserError(
      f'data.dataset: no {data.dataset!r}; ' + nearest(data.dataset, DATASETS)
    )
  if data.dataset in ON_DISK and not data.root:
    raise UserError(
      f'data.root is empty: say where {data.dataset} lies with '
      '--config.data.root=DIR'
    )
  return _open(
    data.dataset,
    split,
    data.root,
    data.name,
    data.train_split,
    data.cache_images,
    tuple(sorted(data.embedded.items())),
  )


# An evaluation and the training may use the same files; listing those of
# ImageNet takes seconds. Sources do not change.
@functools.lru_cache(maxsize=8)
def _open(dataset, split, root, name, train_split, cache, embedded):
  if dataset == 'folder':
    return labelled.read_folder(root, split, train_split, cache)
  if dataset == 'tfds':
    return labelled.Tfds(name, split, root)
  if dataset == 'digits':
    return labelled.read_digits(split)
  if dataset == 'shapes':
    settings = shapes.Settings(**dict(embedded))
    images, labels = shapes.load(settings, split)
    return labelled.Arrays(
      f'shapes {tuple(settings)}, {split}', images, labels, shapes.NAMES
    )
  return labelled.read_cifar(dataset, root, split)


def train_transforms(config) -> tuple[Transform, ...]:
  """Augmentation in the order of the published recipes.

  Reads of `config.data`: `crop`, 'random_resized' (with `crop_scale`,
  `crop_ratio`, `interpolation`), 'pad' (resized, then shifted by up to `pad`
  pixels over a margin of `padding`) or 'none'; `flip`; `randaugment`, as timm
  writes it, or a policy of AutoAugment, or '' for none; `color_jitter`, of brightness, contrast and saturation;
  `random_erase`, the probability of a rectangle of noise.
  """
  data, (height, width) = config.data, config.image_size
  if data.crop not in CROPS:
    raise UserError(
      f'data.crop: no {data.crop!r}; ' + nearest(data.crop, CROPS)
    )
  if data.crop == 'random_resized':
    steps = [
      augment.random_resized_crop(
        height,
        width,
        tuple(data.crop_scale),
        tuple(data.crop_ratio),
        data.interpolation,
      )
    ]
  else:
    steps = [*middle(config)]
    if data.crop == 'pad':
      steps.append(transforms.pad_crop(data.pad, data.padding))
  steps.append(transforms.flip(data.flip))
  if data.randaugment:
    fill = np.broadcast_to(config.mean, 3)
    found = auto_augment if data.randaugment in POLICIES else rand_augment
    steps.append(found(data.randaugment, data.interpolation, fill))
  if data.color_jitter:
    steps.append(augment.color_jitter(*3 * [data.color_jitter]))
  if data.random_erase:
    steps.append(
      transforms.random_erase(
        data.random_erase,
        area=(0.02, 1 / 3),
        aspect=(0.3, 1 / 0.3),
        value=augment.noise(config.mean, config.std),
      )
    )
  return (*steps, *channels(config))


def middle(config) -> tuple[Transform, ...]:
  """The middle of a picture, in the image size.

  The shorter side is resized to the image size over `data.eval_crop`, by
  `data.eval_interpolation`, then the middle is cut out; with `eval_crop` 0 the
  whole picture is resized, whatever its proportions.
  """
  data, (height, width) = config.data, config.image_size
  if not 0 <= data.eval_crop <= 1:
    raise UserError(f'data.eval_crop={data.eval_crop}: it must be in [0, 1]')
  if not data.eval_crop:
    return (transforms.resize(height, width, data.eval_interpolation),)
  if height != width:
    raise UserError(
      f'image_size={height, width}: the middle that data.eval_crop cuts out '
      'is a square; set data.eval_crop=0 to resize whole pictures'
    )
  return (
    transforms.resize_shorter(
      math.floor(height / data.eval_crop), data.eval_interpolation
    ),
    transforms.center_crop(height),
  )


def channels(config) -> tuple[Transform, ...]:
  """What brings pictures to `in_chans`."""
  if config.in_chans not in (1, 3):
    raise UserError(f'in_chans={config.in_chans}: pictures have 1 or 3')
  return () if config.in_chans == 3 else (augment.grayscale(1),)


def train_data(config) -> Data:
  """The training split, augmented, with the fields of `config.data`.

  Raises:
    UserError: see `read_source` and `with_teacher`, or a setting that no
      transform can have.
  """
  source = read_source(config, config.data.train_split)
  return Data(with_teacher(source, config), train_transforms(config))


def eval_data(config, split: str) -> Data:
  """Every picture of a split once, as at test time."""
  return Data(read_source(config, split), eval_transforms(config))


def eval_transforms(config) -> tuple[Transform, ...]:
  """The middle of a picture, as at test time."""
  return (*middle(config), *channels(config))


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, size = config.batch_size, tuple(config.image_size)
  batch = {
    'image': np.zeros((b, *size, config.in_chans), np.uint8),
    'label': np.zeros(b, np.int32),
  }
  if config.data.get('teacher_logits', ''):
    batch['teacher_logits'] = np.zeros((b, config.num_classes), np.float32)
  return batch
