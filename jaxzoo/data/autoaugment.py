"""AutoAugment (Cubuk et al., arXiv 1805.09501): policies found by search.

    auto_augment('imagenet')

One of 25 pairs of operations for every picture; each operation has its own
probability and a fixed magnitude of 10. Operations and their ranges are those
of timm, as in `randaugment.py`; signs are drawn.
"""

from collections.abc import Sequence

import numpy as np

from jaxzoo.data.randaugment import LEVELS, make_operations, posterize
from jaxzoo.data.transforms import INTERPOLATIONS, Transform, filter_of
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards.card import IMAGENET_MEAN

# What `make_operations` gives, in its order.
NAMES = (
  'auto_contrast', 'equalize', 'invert', 'rotate', 'posterize', 'solarize',
  'solarize_add', 'color', 'contrast', 'brightness', 'sharpness', 'shear_x',
  'shear_y', 'translate_x', 'translate_y',
)  # fmt: skip

# Operation, probability, magnitude: twice a line. (Tables 7 and 9.)
_IMAGENET = """
  posterize .4 8      rotate .6 9
  solarize .6 5       auto_contrast .6 5
  equalize .8 8       equalize .6 3
  posterize .6 7      posterize .6 6
  equalize .4 7       solarize .2 4
  equalize .4 4       rotate .8 8
  solarize .6 3       equalize .6 7
  posterize .8 5      equalize 1. 2
  rotate .2 3         solarize .6 8
  equalize .6 8       posterize .4 6
  rotate .8 8         color .4 0
  rotate .4 9         equalize .6 2
  equalize .0 7       equalize .8 8
  invert .6 4         equalize 1. 8
  color .6 4          contrast 1. 8
  rotate .8 8         color 1. 2
  color .8 8          solarize .8 7
  sharpness .4 7      invert .6 8
  shear_x .6 5        equalize 1. 9
  color .4 0          equalize .6 3
  equalize .4 7       solarize .2 4
  solarize .6 5       auto_contrast .6 5
  invert .6 4         equalize 1. 8
  color .6 4          contrast 1. 8
  equalize .8 8       equalize .6 3
"""
_CIFAR10 = """
  invert .1 7         contrast .2 6
  rotate .7 2         translate_x .3 9
  sharpness .8 1      sharpness .9 3
  shear_y .5 8        translate_y .7 9
  auto_contrast .5 8  equalize .9 2
  shear_y .2 7        posterize .3 7
  color .4 3          brightness .6 7
  sharpness .3 9      brightness .7 9
  equalize .6 5       equalize .5 1
  contrast .6 7       sharpness .6 5
  color .7 7          translate_x .5 8
  equalize .3 7       auto_contrast .4 8
  translate_y .4 3    sharpness .2 6
  brightness .9 6     color .2 8
  solarize .5 2       invert .0 3
  equalize .2 0       auto_contrast .6 0
  equalize .2 8       equalize .6 4
  color .9 9          equalize .6 6
  auto_contrast .8 4  solarize .2 8
  brightness .1 3     color .7 0
  solarize .4 5       auto_contrast .9 3
  translate_y .9 9    translate_y .7 9
  auto_contrast .9 2  solarize .8 3
  equalize .8 8       invert .1 3
  translate_y .7 9    auto_contrast .9 1
"""


def _read(table):
  """((name, probability, magnitude), (...)) of every line."""
  pairs = []
  for line in table.strip().splitlines():
    words = line.split()
    pairs.append(
      tuple(
        (words[i], float(words[i + 1]), float(words[i + 2])) for i in (0, 3)
      )
    )
  return tuple(pairs)


POLICIES = {'imagenet': _read(_IMAGENET), 'cifar10': _read(_CIFAR10)}


def auto_augment(
  name: str,
  interpolation: str = 'random',
  fill: Sequence[float] = IMAGENET_MEAN,
) -> Transform:
  """A policy as a transform.

  Args:
    name: a key of `POLICIES`.
    interpolation: see `randaugment.rand_augment`.
    fill: likewise.

  Raises:
    UserError: no such policy or interpolation.
  """
  if name not in POLICIES:
    raise UserError(
      f'autoaugment: no policy {name!r}; ' + nearest(name, POLICIES)
    )
  filters = tuple(INTERPOLATIONS.values())
  if interpolation != 'random':
    filters = (filter_of('auto_augment', interpolation),)
  colour = tuple(min(255, round(255 * x)) for x in fill)
  operations = dict(zip(NAMES, make_operations(False), strict=True))
  # The paper keeps 4 to 8 bits, where RandAugment keeps 0 to 4.
  operations['posterize'] = lambda image, level, *_: posterize(
    image, 4 + int(level / LEVELS * 4)
  )
  policy = POLICIES[name]

  def transform(record, rng):
    image = record['image']
    for operation, p, level in policy[rng.integers(len(policy))]:
      if rng.random() < p:
        resample = filters[rng.integers(len(filters))]
        image = operations[operation](image, level, rng, resample, colour)
    return {**record, 'image': np.asarray(image)}

  return transform
