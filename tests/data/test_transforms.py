import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxzoo.data import transforms
from jaxzoo.errors import UserError
from jaxzoo.models.layers.image import IMAGE_MEAN, IMAGE_STD, normalize


def picture(height=24, width=16, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.integers(1, 256, (height, width, 3), np.uint8)  # 0 marks padding
  image.flags.writeable = False  # as a source that keeps pictures gives them
  return image


def apply(transform, image, seed=0):
  return transform({'image': image}, np.random.default_rng(seed))['image']


RANDOM = [
  transforms.flip(),
  transforms.pad_crop(3),
  transforms.random_erase(),
]


@pytest.mark.parametrize('transform', RANDOM)
def test_random_transforms_depend_on_the_generator_alone(transform):
  image = picture()
  results = [apply(transform, image, seed) for seed in range(20)]
  again = [apply(transform, image, seed) for seed in range(20)]
  np.testing.assert_array_equal(results, again)
  assert len({result.tobytes() for result in results}) > 1


@pytest.mark.parametrize(
  'transform',
  [
    *RANDOM,
    transforms.resize(8, 8),
    transforms.resize_shorter(8),
    transforms.center_crop(8),
  ],
)
def test_the_record_that_comes_in_is_left_alone(transform):
  image = picture()
  for seed in range(8):
    record = {'image': image, 'pid': 3, 'caption': 'a'}
    before = image.copy()
    result = transform(record, np.random.default_rng(seed))
    assert record['image'] is image and result['pid'] == 3
    assert result['image'].dtype == np.uint8
    np.testing.assert_array_equal(image, before)


def test_resize_to_the_same_size_is_the_same_array():
  image = picture()
  assert apply(transforms.resize(24, 16), image) is image
  assert apply(transforms.resize_shorter(16), image) is image


def test_resize_averages_what_it_shrinks():
  checkers = np.indices((64, 64)).sum(0) % 2 * np.uint8(200)
  image = np.repeat(checkers[..., None].astype(np.uint8), 3, axis=-1)
  small = apply(transforms.resize(8, 8), image)
  assert small.shape == (8, 8, 3)
  assert np.abs(small.astype(int) - 100).max() <= 2


@pytest.mark.parametrize('height, width', [(30, 10), (10, 31), (7, 7), (1, 9)])
def test_resize_reaches_any_size(height, width):
  assert apply(transforms.resize(12, 5), picture(height, width)).shape == (
    12,
    5,
    3,
  )


@pytest.mark.parametrize(
  'height, width, want',
  [(600, 250, (537, 224)), (211, 87, (543, 224)), (100, 150, (224, 336))],
)
def test_resize_shorter_keeps_the_aspect_ratio(height, width, want):
  image = apply(transforms.resize_shorter(224), picture(height, width))
  assert image.shape == (*want, 3)


@pytest.mark.parametrize('height, width', [(11, 13), (13, 11), (12, 12)])
def test_center_crop_rounds_the_margins_to_even(height, width):
  image = picture(height, width)  # margins of 1.5, 2.5 and 2
  np.testing.assert_array_equal(
    apply(transforms.center_crop(8), image), image[2:10, 2:10]
  )


def test_center_crop_refuses_smaller_pictures():
  image = picture(13, 11)
  with pytest.raises(UserError, match='put resize_shorter'):
    apply(transforms.center_crop(12), image)


def test_flip_mirrors_with_the_given_probability():
  image = picture()
  flipped = [apply(transforms.flip(0.3), image, s) for s in range(400)]
  share = np.mean([(f == image[:, ::-1]).all() for f in flipped])
  assert share == pytest.approx(0.3, abs=0.08)
  for f in flipped:
    assert (f == image).all() or (f == image[:, ::-1]).all()
  assert all(
    (apply(transforms.flip(0), image, s) == image).all() for s in (1, 2)
  )
  np.testing.assert_array_equal(
    apply(transforms.flip(1), apply(transforms.flip(1), image)), image
  )


def test_pad_crop_shifts_with_a_black_margin_every_way():
  image = picture()
  shifts = set()
  for seed in range(300):
    moved = apply(transforms.pad_crop(2), image, seed)
    assert moved.shape == image.shape
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    found = [
      (top, left)
      for top in range(5)
      for left in range(5)
      if (moved == padded[top : top + 24, left : left + 16]).all()
    ]
    assert len(found) == 1
    shifts.add(found[0])
  assert len(shifts) == 25
  np.testing.assert_array_equal(apply(transforms.pad_crop(0), image), image)


def erased(seed, image=None, **options):
  """The box (height, width) that differs, checked to be a full rectangle."""
  image = np.zeros((384, 128, 3), np.uint8) if image is None else image
  options = {'p': 1, 'value': (9, 8, 7)} | options
  result = apply(transforms.random_erase(**options), image, seed)
  rows, columns = np.nonzero((result != image).all(-1))
  if not len(rows):
    return 0, 0
  box = result[rows[0] : rows[-1] + 1, columns.min() : columns.max() + 1]
  assert (box == (9, 8, 7)).all() and box.shape[0] * box.shape[1] == len(rows)
  return box.shape[:2]


def test_random_erase_fills_one_rectangle_within_its_ranges():
  boxes = np.array([erased(seed) for seed in range(300)])
  assert (boxes > 0).all()
  share = boxes.prod(1) / (384 * 128)
  assert share.min() > 0.019 and share.max() < 0.405
  ratio = boxes[:, 0] / boxes[:, 1]
  assert ratio.min() > 0.29 and ratio.max() < 3.4
  assert share.max() > 0.3 and ratio.min() < 0.5 and ratio.max() > 2.5


def test_random_erase_draws_the_aspect_log_uniformly():
  square = np.zeros((400, 400, 3), np.uint8)
  boxes = np.array(
    [
      erased(seed, square, area=(0.05, 0.05), aspect=(0.25, 4))
      for seed in range(400)
    ]
  )
  assert np.mean(boxes[:, 0] > boxes[:, 1]) == pytest.approx(0.5, abs=0.08)


def test_random_erase_obeys_its_probability_and_gives_up():
  touched = [erased(seed, p=0.25) != (0, 0) for seed in range(400)]
  assert np.mean(touched) == pytest.approx(0.25, abs=0.07)
  assert erased(0, area=(5, 5)) == (0, 0)
  assert apply(transforms.random_erase(1), picture(1, 1)).shape == (1, 1, 3)


def test_the_erase_value_is_the_mean_after_normalisation():
  pixel = np.uint8(transforms.ERASE_VALUE)
  assert transforms.ERASE_VALUE == (156, 147, 133)
  value = np.asarray(normalize(pixel.reshape(1, 1, 3)))[0, 0]
  assert np.abs(value - IMAGE_MEAN).max() <= 0.5 / 255 / min(IMAGE_STD)


def test_tokenize_replaces_the_caption():
  def letters(caption, length):
    ids = [ord(c) for c in caption][:length]
    return np.array(ids + [0] * (length - len(ids)), np.int64)

  record = {'caption': 'ab', 'pid': 1}
  result = transforms.tokenize(letters, 4)(record, None)
  assert set(result) == {'text', 'pid'}
  assert result['text'].dtype == np.int32
  assert result['text'].tolist() == [97, 98, 0, 0]
  assert record == {'caption': 'ab', 'pid': 1}
  with pytest.raises(ValueError, match=r'shape \(3,\), want \(4,\)'):
    transforms.tokenize(lambda c, n: np.zeros(3, int), 4)(record, None)


def caption_ids(words, length=77, seed=0):
  rng = np.random.default_rng(seed)
  ids = [49406, *rng.integers(1, 49405, words), 49407]
  return np.array(ids + [0] * (length - len(ids)), np.int32)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), words=st.integers(1, 75))
def test_masking_touches_only_words_and_labels_all_it_selects(seed, words):
  ids = caption_ids(words, seed=seed)
  rng = np.random.default_rng(seed)
  masked, labels = transforms.mask_tokens(
    ids, rng.random(77), rng.integers(1, 49405, 77)
  )
  assert masked.dtype == labels.dtype == np.int32
  selected = labels != 0
  assert selected.any()
  np.testing.assert_array_equal(labels[selected], ids[selected])
  np.testing.assert_array_equal(masked[~selected], ids[~selected])
  word = (ids > 0) & (ids < 49405)
  assert not (selected & ~word).any()
  assert ((masked[word] > 0) & (masked[word] <= 49405)).all()


def test_masking_follows_the_given_numbers():
  ids = np.array([49406, 10, 11, 12, 13, 49405, 49407, 0])
  # Of the selected: below .12 mask, below .135 random, below .15 unchanged.
  u = np.array([0.0, 0.119, 0.121, 0.136, 0.151, 0.0, 0.0, 0.0])
  masked, labels = transforms.mask_tokens(ids, u, np.full(8, 99))
  assert masked.tolist() == [49406, 49405, 99, 12, 13, 49405, 49407, 0]
  assert labels.tolist() == [0, 10, 11, 12, 0, 0, 0, 0]


def test_the_first_word_is_masked_when_no_word_was():
  ids = np.stack([caption_ids(5), caption_ids(7)])
  u = np.full((2, 77), 0.9)
  u[1, 3] = 0.01
  masked, labels = transforms.mask_tokens(ids, u, np.ones((2, 77), int))
  assert masked[0, 1] == 49405 and labels[0, 1] == ids[0, 1]
  assert (labels[0] != 0).sum() == 1
  assert np.flatnonzero(labels[1]).tolist() == [3]
  assert masked[1, 1] == ids[1, 1]


def test_masking_has_the_published_shares():
  ids = np.tile(caption_ids(75), (400, 1))
  rng = np.random.default_rng(0)
  masked, labels = transforms.mask_tokens(
    ids, rng.random(ids.shape), rng.integers(1, 49405, ids.shape)
  )
  selected = labels != 0
  assert selected.sum() / (400 * 75) == pytest.approx(0.15, abs=0.01)
  became = masked[selected]
  assert np.mean(became == 49405) == pytest.approx(0.8, abs=0.03)
  unchanged = became == labels[selected]
  assert np.mean(unchanged) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize('leak', [True, False])
def test_mask_words_masks_the_retrieval_text_only_if_asked(leak):
  ids = caption_ids(40)
  transform = transforms.mask_words(mask_retrieval_text=leak)
  result = transform({'text': ids, 'pid': 1}, np.random.default_rng(0))
  assert set(result) == {'text', 'mlm_text', 'mlm_labels', 'pid'}
  assert (result['mlm_text'] != ids).any()
  want = result['mlm_text'] if leak else ids
  np.testing.assert_array_equal(result['text'], want)
  again = transform({'text': ids, 'pid': 1}, np.random.default_rng(0))
  np.testing.assert_array_equal(again['mlm_text'], result['mlm_text'])


def test_keep_and_compose():
  image = picture()
  record = {'image': image, 'pid': 2, 'caption': 'x'}
  both = transforms.compose(
    transforms.flip(1), transforms.resize(6, 4), transforms.keep('image', 'pid')
  )
  result = both(record, np.random.default_rng(0))
  assert set(result) == {'image', 'pid'}
  want = apply(transforms.resize(6, 4), np.ascontiguousarray(image[:, ::-1]))
  np.testing.assert_array_equal(result['image'], want)
  with pytest.raises(KeyError, match='text'):
    transforms.keep('text')(record, None)


def test_the_training_recipe_gives_batches_of_one_size():
  recipe = transforms.compose(
    transforms.resize(48, 16),
    transforms.flip(),
    transforms.pad_crop(4),
    transforms.random_erase(),
  )
  sizes = [(100, 30), (48, 16), (1, 1), (17, 90)]
  images = [
    apply(recipe, picture(*size), seed) for size in sizes for seed in range(5)
  ]
  assert np.stack(images).shape == (20, 48, 16, 3)


@pytest.mark.parametrize(
  'make',
  [
    lambda: transforms.flip(1.5),
    lambda: transforms.flip(math.nan),
    lambda: transforms.resize(0, 3),
    lambda: transforms.resize_shorter(0),
    lambda: transforms.center_crop(-1),
    lambda: transforms.pad_crop(-1),
    lambda: transforms.random_erase(-0.1),
    lambda: transforms.random_erase(area=(0.4, 0.02)),
    lambda: transforms.random_erase(aspect=(0, 3)),
    lambda: transforms.random_erase(value=(1, 2)),
    lambda: transforms.random_erase(value=(0, 0, 256)),
    lambda: transforms.tokenize(len, 1),
    lambda: transforms.mask_words(2),
    lambda: transforms.mask_words(replace=0.8, random=0.3),
  ],
)
def test_impossible_settings_are_refused_when_made(make):
  with pytest.raises(UserError):
    make()


def test_normalize_is_the_formula_for_bytes_and_fractions():
  image = picture()
  want = (image / 255 - IMAGE_MEAN) / IMAGE_STD
  np.testing.assert_allclose(normalize(image), want, atol=1e-5)
  fractions = np.float32(image / 255)
  np.testing.assert_allclose(normalize(fractions), want, atol=1e-5)
  batch = normalize(np.stack([image, image]), dtype=jnp.bfloat16)
  assert batch.dtype == jnp.bfloat16 and batch.shape == (2, 24, 16, 3)
  with pytest.raises(TypeError, match='uint8'):
    normalize(image.astype(np.int32))


def test_clip_preparation_equals_pillow_step_by_step():
  image = picture(61, 40)
  got = apply(
    transforms.compose(
      transforms.resize_shorter(32), transforms.center_crop(32)
    ),
    image,
  )
  resized = Image.fromarray(image).resize((32, 48), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(got, np.asarray(resized.crop((0, 8, 32, 40))))
