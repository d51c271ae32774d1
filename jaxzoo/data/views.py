"""Views of unlabelled pictures: what contrastive pre-training reads.

The augmentation of MoCo v2 (arXiv 2003.04297) and, for small crops, of SwAV
(arXiv 2006.09882). Labels are read along for those who look at representations;
no loss sees them.
"""

import numpy as np

from jaxzoo.data import augment, transforms
from jaxzoo.data.classification import channels, open_source
from jaxzoo.data.pipeline import Data
from jaxzoo.data.transforms import Transform, compose


def train_data(config) -> Data:
  """The training split with the views of `config.data`.

  Reads of it: `views`, 1 or 2 (`image`, `view2`); `crop_scale` of the area;
  `color_jitter`, of brightness, contrast and saturation, and `hue`; `blur`, the
  probability of it; `small_crops`, how many, of `small_size` pixels and
  `small_scale` of the area (`small`).

  Raises:
    UserError: anything wrong with the files or the settings.
  """
  data, (height, width) = config.data, config.image_size
  view = _augmented(config, height, width, data.crop_scale)
  made = {'image': view}
  if data.views == 2:
    made['view2'] = view
  small = _augmented(config, data.small_size, data.small_size, data.small_scale)
  source = open_source(config, data.train_split)
  return Data(source, (_views(made, data.small_crops, small),))


def _augmented(config, height, width, scale) -> Transform:
  data = config.data
  return compose(
    augment.random_resized_crop(
      height, width, tuple(scale), interpolation='bilinear'
    ),
    augment.color_jitter(*3 * [data.color_jitter], data.hue, p=0.8),
    augment.grayscale(p=0.2),
    augment.gaussian_blur(p=data.blur),
    transforms.flip(data.flip),
    *channels(config),
  )


def _views(made, count, small) -> Transform:
  """A record's picture as several, each with draws of its own."""

  def transform(record, rng):
    views = {name: view(record, rng)['image'] for name, view in made.items()}
    if count:
      crops = [small(record, rng)['image'] for _ in range(count)]
      views['small'] = np.stack(crops)
    return {**record, **views}

  return transform


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros: names, shapes and types without any data."""
  b, data = config.batch_size, config.data
  blank = lambda *size: np.zeros((b, *size, config.in_chans), np.uint8)
  batch = {
    'image': blank(*config.image_size),
    'label': np.zeros(b, np.int32),
  }
  if data.views == 2:
    batch['view2'] = batch['image']
  if data.small_crops:
    size = 2 * (data.small_size,)
    batch['small'] = blank(data.small_crops, *size)
  return batch
