"""Person retrieval from config to pipeline: which split, which transforms."""

import functools
import pathlib

import numpy as np

from jaxzoo.data import pedestrians, transforms
from jaxzoo.data.pipeline import Data
from jaxzoo.data.sources import person_retrieval as readers
from jaxzoo.data.tokenizers.clip import ClipTokenizer
from jaxzoo.data.transforms import Transform
from jaxzoo.errors import UserError


def root_of(data) -> pathlib.Path:
  """The folder with the data sets; the embedded ones are made first.

  `data.root` where it is given, else the `pedestrians` of `data.embedded`.
  """
  if data.root:
    return pathlib.Path(data.root).expanduser()
  if 'embedded' not in data:
    raise UserError(
      f'data.root is empty: say where {data.dataset} lies with '
      '--config.data.root=DIR'
    )
  return pedestrians.prepare(pedestrians.Settings(**data.embedded))


# An evaluation and the training may use the same file; reading one takes
# seconds at full size. Splits are immutable.
_read_split = functools.lru_cache(readers.read_split)


def read_split(config, dataset: str, split: str) -> readers.Split:
  """A split of a data set below the config's root."""
  return _read_split(dataset, str(root_of(config.data)), split)


def make_tokenizer(config) -> ClipTokenizer:
  """The tokenizer that the system is trained with."""
  return ClipTokenizer(mask_token=config.data.mask_words > 0)


def text_transforms(config) -> tuple[Transform, ...]:
  """Caption to token ids."""
  return (transforms.tokenize(make_tokenizer(config), config.text_length),)


def image_transforms(config) -> tuple[Transform, ...]:
  """What is done to a picture at test time."""
  return (transforms.resize(*config.image_size),)


def train_data(config) -> Data:
  """Pairs of picture and caption, augmented, with the fields of `config.data`.

  Raises:
    UserError: anything wrong with the files, or more identities than the
      config's `num_classes`.
  """
  data = config.data
  split = read_split(config, data.dataset, 'train')
  classes = int(split.image_pids.max()) + 1
  if 0 < config.num_classes < classes:
    raise UserError(
      f'{data.dataset} has {classes} training identities, but '
      f'num_classes={config.num_classes}: set --config.num_classes={classes}'
    )
  steps = [
    *image_transforms(config),
    transforms.flip(data.flip),
    transforms.pad_crop(data.pad_crop),
    transforms.random_erase(data.random_erase),
    *text_transforms(config),
  ]
  if data.mask_words:
    # The whole caption stays beside the masked one: the system chooses.
    steps.append(
      transforms.mask_words(data.mask_words, mask_retrieval_text=False)
    )
  source = readers.Pairs(split, cache_images=data.cache_images)
  return Data(source, tuple(steps))


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, t = config.batch_size, config.text_length
  batch = {
    'image': np.zeros((b, *config.image_size, 3), np.uint8),
    'text': np.zeros((b, t), np.int32),
    'pid': np.zeros(b, np.int32),
  }
  if config.data.mask_words:
    batch |= {
      name: np.zeros((b, t), np.int32) for name in ('mlm_text', 'mlm_labels')
    }
  return batch


def gallery_data(config, split: readers.Split) -> Data:
  """Every picture of a split once."""
  source = readers.Gallery(split, cache_images=config.data.cache_images)
  return Data(source, image_transforms(config))


def query_data(config, split: readers.Split) -> Data:
  """Every caption of a split once."""
  return Data(readers.Queries(split), text_transforms(config))
