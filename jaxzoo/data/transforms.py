"""Transforms of records: `(record, rng) -> record`, made by factories.

A record is a dict; `image` is uint8 [h, w, 3] RGB, `caption` a string, `text`
int32 [t]. All randomness comes from `rng`, a `numpy.random.Generator` of the
record's own, so the same record at the same step is the same picture on any
number of workers. Arrays that come in are never written into: sources may keep
them in memory.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.layers.image import IMAGE_MEAN, IMAGE_STD

Transform = Callable[[dict, np.random.Generator], dict]

# The published person-retrieval recipe writes CLIP's mean into the picture
# AFTER normalisation. The pixel that normalises to `mean` is 255 (mean std +
# mean), so that erasing here, in uint8, gives the same training pictures.
ERASE_VALUE = tuple(
  round(255 * (mean * std + mean))
  for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True)
)

# The last word of CLIP's vocabulary, given up to stand for a masked word.
MASK_ID = 49405


def compose(*transforms: Transform) -> Transform:
  """The transforms one after another, with one generator."""

  def transform(record, rng):
    for each in transforms:
      record = each(record, rng)
    return record

  return transform


def keep(*keys: str) -> Transform:
  """Only these keys of the record; a missing one is a KeyError."""

  def transform(record, rng):
    del rng
    missing = [key for key in keys if key not in record]
    if missing:
      raise KeyError(f'record has {sorted(record)}, but no {missing}')
    return {key: record[key] for key in keys}

  return transform


INTERPOLATIONS = {
  'bilinear': Image.Resampling.BILINEAR,
  'bicubic': Image.Resampling.BICUBIC,
}


def resize(
  height: int, width: int, interpolation: str = 'bilinear'
) -> Transform:
  """To [height, width, 3] by one of Pillow's anti-aliased filters.

  The aspect ratio is not kept. A picture of that size passes untouched.
  """
  check_size('resize', height, width)
  resample = filter_of('resize', interpolation)

  def transform(record, rng):
    del rng
    image = _resize(record['image'], height, width, resample)
    return {**record, 'image': image}

  return transform


def resize_shorter(size: int, interpolation: str = 'bicubic') -> Transform:
  """The shorter side to `size`, aspect ratio kept, anti-aliased.

  Bicubic and with `center_crop` it is CLIP's own preparation (Radford et al.
  2021). The longer side is rounded down.
  """
  check_size('resize_shorter', size)
  resample = filter_of('resize_shorter', interpolation)

  def transform(record, rng):
    del rng
    height, width = record['image'].shape[:2]
    shorter = min(height, width)
    image = _resize(
      record['image'],
      size * height // shorter,
      size * width // shorter,
      resample,
    )
    return {**record, 'image': image}

  return transform


def center_crop(size: int) -> Transform:
  """The middle [size, size, 3]; an odd remainder is rounded to even.

  Raises:
    UserError: when applied to a smaller picture.
  """
  check_size('center_crop', size)

  def transform(record, rng):
    del rng
    image = record['image']
    height, width = image.shape[:2]
    if min(height, width) < size:
      raise UserError(
        f'center_crop({size}) got an image of {width} x {height}: '
        f'put resize_shorter({size}) before it'
      )
    top, left = round((height - size) / 2), round((width - size) / 2)
    return {**record, 'image': image[top : top + size, left : left + size]}

  return transform


def flip(p: float = 0.5) -> Transform:
  """Mirrors left and right with probability `p`."""
  check_probability('flip', p)

  def transform(record, rng):
    if rng.random() >= p:
      return record
    return {**record, 'image': np.ascontiguousarray(record['image'][:, ::-1])}

  return transform


PADDINGS = {'zero': 'constant', 'reflect': 'reflect'}


def pad_crop(pixels: int, padding: str = 'zero') -> Transform:
  """A margin of `pixels` on each side, then a random crop of the size.

  In other words a shift by up to `pixels`, uniform in both directions. The
  margin is black ('zero') or the picture mirrored in its border ('reflect').
  """
  if pixels < 0:
    raise UserError(f'pad_crop: pixels must not be negative, got {pixels}')
  if padding not in PADDINGS:
    raise UserError(
      f'pad_crop: no padding {padding!r}; ' + nearest(padding, PADDINGS)
    )

  def transform(record, rng):
    image = record['image']
    height, width = image.shape[:2]
    top, left = rng.integers(0, 2 * pixels + 1, size=2)
    margins = ((pixels, pixels), (pixels, pixels), (0, 0))
    padded = np.pad(image, margins, PADDINGS[padding])
    return {**record, 'image': padded[top : top + height, left : left + width]}

  return transform


def random_erase(
  p: float = 0.5,
  area: tuple[float, float] = (0.02, 0.4),
  aspect: tuple[float, float] = (0.3, 3.3),
  value: Sequence[int] | Callable = ERASE_VALUE,
  tries: int = 10,
) -> Transform:
  """Fills a random rectangle with one colour (Zhong et al. 2020).

  Its share of the picture is uniform in `area`, its height over width
  log-uniform in `aspect`, its place uniform. A rectangle that does not fit
  inside is drawn again, up to `tries` times; then the picture stays whole.

  Args:
    p: probability of erasing at all.
    area: smallest and largest share of the picture, in (0, 1].
    aspect: smallest and largest height over width.
    value: uint8 RGB. The default is the pixel that normalises to CLIP's mean,
      as in the published recipe; rounding to 8 bits moves it by at most
      1/(510 std) = 0.008 in normalised units. Or a function (height, width,
      rng) -> uint8 [height, width, 3].
    tries: rectangles drawn before giving up.
  """
  check_probability('random_erase', p)
  for name, (low, high) in (('area', area), ('aspect', aspect)):
    if not 0 < low <= high:
      raise UserError(
        f'random_erase: {name} must be a rising pair of positive numbers, '
        f'got ({low}, {high})'
      )
  colour = np.zeros(3) if callable(value) else np.asarray(value)
  if colour.shape not in ((), (3,)) or not np.all(
    (colour >= 0) & (colour <= 255)
  ):
    raise UserError(
      f'random_erase: value must be 3 numbers of 0..255, got {value}'
    )
  fill = value if callable(value) else lambda height, width, rng: colour

  def transform(record, rng):
    if rng.random() >= p:
      return record
    image = record['image']
    rows, columns = image.shape[:2]
    for _ in range(tries):
      pixels = rows * columns * rng.uniform(*area)
      ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
      height = round(math.sqrt(pixels * ratio))
      width = round(math.sqrt(pixels / ratio))
      if height < rows and width < columns:
        top = rng.integers(0, rows - height + 1)
        left = rng.integers(0, columns - width + 1)
        image = image.copy()
        image[top : top + height, left : left + width] = fill(
          height, width, rng
        )
        return {**record, 'image': image}
    return record

  return transform


def tokenize(tokenizer: Callable, length: int) -> Transform:
  """`caption` becomes `text`, int32 [length].

  Args:
    tokenizer: any `(caption, length) -> int32 [length]`.
    length: ids a caption, padding included.

  Raises:
    ValueError: when applied, if the tokenizer returns another shape.
  """
  if length < 2:
    raise UserError(f'tokenize: length must be at least 2, got {length}')

  def transform(record, rng):
    del rng
    record = dict(record)
    text = np.asarray(tokenizer(record.pop('caption'), length), np.int32)
    if text.shape != (length,):
      raise ValueError(f'tokenizer gave shape {text.shape}, want ({length},)')
    record['text'] = text
    return record

  return transform


def mask_words(
  p: float = 0.15,
  mask_id: int = MASK_ID,
  replace: float = 0.8,
  random: float = 0.1,
  mask_retrieval_text: bool = True,
) -> Transform:
  """Adds `mlm_text` and `mlm_labels`, int32 [t], by masking words of `text`.

  The rule is `mask_tokens`'s. In the released training code the masking
  edits the caption in place, so that the retrieval losses see masked captions
  as well, and the published numbers contain that; it is the default here.

  Args:
    p, mask_id, replace, random: see `mask_tokens`.
    mask_retrieval_text: whether `text` is masked too. False keeps the whole
      caption for retrieval.
  """
  check_probability('mask_words', p)
  check_probability('mask_words', replace + random)

  def transform(record, rng):
    ids = record['text']
    masked, labels = mask_tokens(
      ids,
      rng.random(ids.shape),
      rng.integers(1, mask_id, ids.shape),
      p=p,
      mask_id=mask_id,
      replace=replace,
      random=random,
    )
    text = masked if mask_retrieval_text else ids
    return {**record, 'text': text, 'mlm_text': masked, 'mlm_labels': labels}

  return transform


def mask_tokens(
  ids: Int[np.ndarray, '*b t'],
  u: Float[np.ndarray, '*b t'],
  random_ids: Int[np.ndarray, '*b t'],
  *,
  p: float = 0.15,
  mask_id: int = MASK_ID,
  replace: float = 0.8,
  random: float = 0.1,
) -> tuple[Int[np.ndarray, '*b t'], Int[np.ndarray, '*b t']]:
  """Masked language modelling as IRRA does it (Jiang & Ye 2023, section 3.3).

  A position is eligible when 0 < id < mask_id: no padding, start, end or mask.
  It is selected when u < p. Of the selected, a share `replace` becomes
  `mask_id`, a share `random` the id of `random_ids`, and the rest stays; which
  of the three, u / p tells. When a caption has no selected position, position
  1 (its first word) is masked.

  Args:
    ids: token ids, start token first, t >= 2.
    u: uniform in [0, 1), one number a position.
    random_ids: replacements, uniform in 1..mask_id-1.
    p: share of the eligible positions that is selected.
    mask_id: the mask token.
    replace: share of the selected that is masked.
    random: share of the selected that is replaced by a random word.

  Returns:
    masked: int32, the ids with the chosen ones replaced.
    labels: int32, the original ids where selected, else 0.
  """
  ids = np.asarray(ids, np.int32)
  share = np.asarray(u, np.float64)
  selected = (ids > 0) & (ids < mask_id) & (share < p)
  share = share / p if p else share
  masked = np.where(selected & (share < replace), mask_id, ids)
  masked = np.where(
    selected & (share >= replace) & (share < replace + random),
    random_ids,
    masked,
  )
  labels = np.where(selected, ids, 0)
  none = ~selected.any(axis=-1)
  labels[..., 1] = np.where(none, ids[..., 1], labels[..., 1])
  masked[..., 1] = np.where(none, mask_id, masked[..., 1])
  return masked.astype(np.int32), labels.astype(np.int32)


def _resize(image, height, width, resample) -> np.ndarray:
  if image.shape[:2] == (height, width):
    return image
  resized = Image.fromarray(image).resize((width, height), resample)
  return np.asarray(resized)


def filter_of(name: str, interpolation: str) -> Image.Resampling:
  """Pillow's filter called 'bilinear' or 'bicubic'."""
  if interpolation not in INTERPOLATIONS:
    raise UserError(
      f'{name}: no interpolation {interpolation!r}; '
      + nearest(interpolation, INTERPOLATIONS)
    )
  return INTERPOLATIONS[interpolation]


def check_size(name, *sizes) -> None:
  """Raises UserError for sizes that no picture has."""
  if min(sizes) < 1:
    raise UserError(f'{name}: sizes must be positive, got {sizes}')


def check_probability(name, p) -> None:
  """Raises UserError for what is no probability."""
  if not 0 <= p <= 1:
    raise UserError(f'{name}: a probability must be in [0, 1], got {p}')
