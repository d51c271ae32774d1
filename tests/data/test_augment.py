"""Augmentation against Pillow, pixel by pixel, and its randomness."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxzoo.data import augment, autoaugment, randaugment, transforms
from jaxzoo.errors import UserError


def picture(height=24, width=18, seed=0, spread=255):
  rng = np.random.default_rng(seed)
  low = (255 - spread) // 2
  image = rng.integers(low, low + spread + 1, (height, width, 3), np.uint8)
  image.flags.writeable = False  # as a source that keeps pictures gives them
  return image


PICTURES = [picture(), picture(seed=1, spread=60), picture(9, 31, 2, 120)]
FLAT = np.full((6, 5, 3), 77, np.uint8)


def apply(transform, image, seed=0):
  return transform({'image': image}, np.random.default_rng(seed))['image']


# Operations.


@pytest.mark.parametrize('image', [*PICTURES, FLAT], ids=range(4))
@pytest.mark.parametrize(
  'ours, theirs',
  [
    (randaugment.autocontrast, ImageOps.autocontrast),
    (randaugment.equalize, ImageOps.equalize),
    (randaugment.invert, ImageOps.invert),
    (augment.luma, ImageOps.grayscale),
  ],
  ids=['autocontrast', 'equalize', 'invert', 'luma'],
)
def test_operation_gives_pillows_pixels(ours, theirs, image):
  np.testing.assert_array_equal(
    ours(image), np.asarray(theirs(Image.fromarray(image)))
  )


@pytest.mark.parametrize('bits', range(1, 9))
def test_posterize_gives_pillows_pixels(bits):
  want = np.asarray(ImageOps.posterize(Image.fromarray(PICTURES[0]), bits))
  np.testing.assert_array_equal(randaugment.posterize(PICTURES[0], bits), want)


@pytest.mark.parametrize('threshold', [0, 1, 128, 255, 256])
def test_solarize_gives_pillows_pixels(threshold):
  want = ImageOps.solarize(Image.fromarray(PICTURES[0]), threshold)
  got = randaugment.solarize(PICTURES[0], threshold)
  np.testing.assert_array_equal(got, np.asarray(want))


def test_solarize_add_brightens_the_dark_half():
  image = PICTURES[0]
  got = randaugment.solarize_add(image, 100).astype(int)
  dark = image < 128
  np.testing.assert_array_equal(got[dark], image[dark].astype(int) + 100)
  np.testing.assert_array_equal(got[~dark], image[~dark])


@pytest.mark.parametrize('factor', [0.0, 0.1, 0.5, 1.0, 1.37, 1.9])
@pytest.mark.parametrize(
  'ours, theirs',
  [
    (augment.adjust_brightness, ImageEnhance.Brightness),
    (augment.adjust_contrast, ImageEnhance.Contrast),
    (augment.adjust_saturation, ImageEnhance.Color),
    (augment.adjust_sharpness, ImageEnhance.Sharpness),
  ],
  ids=['brightness', 'contrast', 'saturation', 'sharpness'],
)
def test_enhancement_gives_pillows_pixels(ours, theirs, factor):
  for image in PICTURES:
    want = np.asarray(theirs(Image.fromarray(image)).enhance(factor))
    # Compilers may fuse the product and the sum, which moves a rounding.
    difference = np.abs(ours(image, factor).astype(int) - want)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_hue_goes_round():
  image = PICTURES[0]
  for shift in (0.0, 1.0):
    difference = np.abs(augment.adjust_hue(image, shift).astype(int) - image)
    assert difference.max() <= 12, 'what HSV in 8 bits loses'
  red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
  turned = augment.adjust_hue(red, 1 / 3)
  assert turned[0, 0].argmax() == 1, 'a third of the circle on: green'


# Crops.


def coordinates(height, width):
  """A picture whose first two channels are row and column."""
  rows, columns = np.indices((height, width))
  return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def test_parts_have_the_areas_and_proportions_that_are_asked():
  rng = np.random.default_rng(0)
  seen = []
  for _ in range(2000):
    top, left, height, width = augment._part(
      200, 240, (0.08, 1.0), (3 / 4, 4 / 3), 10, rng
    )
    assert 0 <= top <= 200 - height and 0 <= left <= 240 - width
    seen.append((height * width / 48000, width / height))
  area, ratio = np.transpose(seen)
  assert 0.07 < area.min() < 0.1 and area.max() > 0.85
  assert 0.72 < ratio.min() and ratio.max() < 1.37
  assert abs(np.log(ratio).mean()) < 0.03


def test_part_that_fits_nowhere_is_the_middle():
  rng = np.random.default_rng(0)
  got = augment._part(10, 100, (1.0, 1.0), (3 / 4, 4 / 3), 10, rng)
  assert got == (0, 43, 10, 13)
  got = augment._part(100, 10, (1.0, 1.0), (3 / 4, 4 / 3), 10, rng)
  assert got == (43, 0, 13, 10)


def test_random_resized_crop_shows_a_part_in_its_order():
  for seed in range(10):
    got = apply(
      augment.random_resized_crop(16, 12), coordinates(60, 80), seed
    ).astype(int)
    assert got.shape == (16, 12, 3)
    assert (np.diff(got[..., 0], axis=0) >= 0).all()
    assert (np.diff(got[..., 1], axis=1) >= 0).all()


def test_whole_picture_of_the_size_passes_untouched():
  whole = augment.random_resized_crop(24, 18, (1.0, 1.0), (0.75, 0.75))
  np.testing.assert_array_equal(apply(whole, picture()), picture())


def test_reflected_margin_repeats_the_picture():
  shifted = transforms.pad_crop(3, 'reflect')
  padded = np.pad(coordinates(8, 8), ((3, 3), (3, 3), (0, 0)), 'reflect')
  for seed in range(10):
    got = apply(shifted, coordinates(8, 8), seed)
    assert any(
      np.array_equal(got, padded[i : i + 8, j : j + 8])
      for i in range(7)
      for j in range(7)
    )


# Erasing.


def test_erased_rectangle_is_normal_noise():
  mean, std = (0.5, 0.4, 0.3), (0.05, 0.1, 0.02)
  fill = augment.noise(mean, std)
  got = fill(80, 90, np.random.default_rng(0)) / 255
  np.testing.assert_allclose(got.mean((0, 1)), mean, atol=0.01)
  np.testing.assert_allclose(got.std((0, 1)), std, rtol=0.1)
  black = np.zeros((40, 40, 3), np.uint8)
  erase = transforms.random_erase(1.0, (0.1, 0.3), (0.5, 2.0), fill)
  rows, columns = np.nonzero(apply(erase, black).any(-1))
  area = np.ptp(rows + 1) * np.ptp(columns + 1) / 1600
  assert 0.08 < area < 0.33 and black.sum() == 0


# RandAugment.


def test_policy_of_the_published_recipes():
  assert randaugment.parse('rand-m9-mstd0.5-inc1') == randaugment.Policy(
    m=9.0, mstd=0.5, inc=1
  )
  assert randaugment.parse('rand-m7-n3-p1-mmax12') == randaugment.Policy(
    m=7.0, n=3, p=1.0, mmax=12.0
  )


@pytest.mark.parametrize(
  'text, words',
  [
    ('augmix-m3', 'rand-m9'),
    ('rand-mm9', "'mm9'.*mmax"),
    ('rand-m', "'m'"),
    ('rand-p2', 'p must be at most 1'),
    ('rand-m11', 'm at most 10'),
  ],
)
def test_policy_that_cannot_be_read_is_an_error(text, words):
  with pytest.raises(UserError, match=words):
    randaugment.rand_augment(text)


def test_levels_are_drawn_around_the_magnitude_and_cut_off():
  rng = np.random.default_rng(0)
  draw = lambda text: np.array(
    [randaugment._level(randaugment.parse(text), rng) for _ in range(2000)]
  )
  got = draw('rand-m9-mstd0.5')
  assert 8.9 < np.median(got) < 9.1 and got.max() == 10.0
  assert 0.4 < got[got < 9].std() / 0.6 < 0.7
  assert draw('rand-m9').tolist() == 2000 * [9.0]
  got = draw('rand-m8-mstd101')
  assert got.min() < 0.1 and 7.9 < got.max() <= 8


@pytest.mark.parametrize('increasing', [False, True])
def test_operations_grow_with_the_level_where_they_are_said_to(increasing):
  image, resample = picture(40, 40), Image.Resampling.BILINEAR
  names = (
    'autocontrast equalize invert rotate posterize solarize solarize_add color '
    'contrast brightness sharpness shear_x shear_y translate_x translate_y'
  ).split()
  moved = {}
  operations = randaugment.make_operations(increasing)
  for name, operation in zip(names, operations, strict=True):
    at = lambda level, do=operation: np.abs(
      do(image, level, np.random.default_rng(3), resample, (9, 9, 9)).astype(
        int
      )
      - image
    ).mean()
    moved[name] = at(0.0), at(5.0), at(10.0)
  always = {'rotate', 'solarize_add', 'shear_x', 'shear_y'}
  always |= {'translate_x', 'translate_y'}
  growing = {'solarize', 'color', 'contrast', 'brightness', 'sharpness'}
  for name in always | (growing if increasing else set()):
    assert moved[name][0] <= 1 and moved[name][0] < moved[name][2], name
  if not increasing:
    assert moved['brightness'][1] < 1 < moved['brightness'][0]
    assert moved['solarize'][2] == 0 < moved['solarize'][0]


def test_what_comes_in_from_outside_has_the_fill_colour():
  colour = (1, 2, 3)
  got = randaugment.affine(
    picture(20, 20), (1, 0, 10, 0, 1, 0), Image.Resampling.BICUBIC, colour
  )
  assert (got[:, 11:] == colour).all()
  np.testing.assert_array_equal(got[:, :9], picture(20, 20)[:, 10:19])


# AutoAugment.


@pytest.mark.parametrize('name', autoaugment.POLICIES)
def test_policies_are_25_pairs_of_known_operations(name):
  policy = autoaugment.POLICIES[name]
  assert len(policy) == 25
  for operation, p, level in (each for pair in policy for each in pair):
    assert operation in autoaugment.NAMES
    assert 0 <= p <= 1 and 0 <= level <= 10


@pytest.mark.parametrize(
  'operation, level, want',
  [
    ('posterize', 6, lambda x: randaugment.posterize(x, 6)),
    ('solarize', 5, lambda x: randaugment.solarize(x, 128)),
    ('invert', 0, randaugment.invert),
    ('auto_contrast', 0, randaugment.autocontrast),
    ('color', 0, lambda x: augment.adjust_saturation(x, 0.1)),
    ('brightness', 10, lambda x: augment.adjust_brightness(x, 1.9)),
  ],
)
def test_operations_of_a_policy_are_those_of_their_names(
  monkeypatch, operation, level, want
):
  pair = ((operation, 1.0, level), ('invert', 0.0, 0))
  monkeypatch.setitem(autoaugment.POLICIES, 'one', (pair,))
  got = autoaugment.auto_augment('one')(
    {'image': PICTURES[0]}, np.random.default_rng(0)
  )
  np.testing.assert_array_equal(got['image'], want(PICTURES[0]))


# All of them.

RANDOM = {
  'auto': autoaugment.auto_augment('imagenet'),
  'crop': augment.random_resized_crop(8, 8),
  'crop_random': augment.random_resized_crop(8, 8, interpolation='random'),
  'jitter': augment.color_jitter(0.4, 0.4, 0.4, 0.1),
  'some_jitter': augment.color_jitter(0.4, p=0.5),
  'gray': augment.grayscale(p=0.5),
  'rand': randaugment.rand_augment('rand-m9-mstd0.5-inc1'),
  'erase': transforms.random_erase(value=augment.noise(3 * [0.5], 3 * [0.2])),
  'shift': transforms.pad_crop(4, 'reflect'),
}


@pytest.mark.parametrize('name', RANDOM)
def test_result_depends_on_record_and_generator_alone(name):
  image = picture()
  before = image.copy()
  record = {'image': image, 'label': 3}
  results = []
  for seed in [*range(12), *range(12)]:
    result = RANDOM[name](record, np.random.default_rng(seed))
    assert result['label'] == 3 and result['image'].dtype == np.uint8
    assert result['image'].ndim == 3
    results.append(result['image'].tobytes())
  assert results[:12] == results[12:]
  assert len(set(results)) > 1
  np.testing.assert_array_equal(image, before)


def test_one_channel_is_left_where_it_is_asked():
  assert apply(augment.grayscale(1), picture()).shape == (24, 18, 1)


@pytest.mark.parametrize(
  'make, words',
  [
    (lambda: augment.random_resized_crop(0, 4), 'positive'),
    (lambda: augment.random_resized_crop(4, 4, (0, 1)), 'scale'),
    (lambda: augment.random_resized_crop(4, 4, ratio=(2, 1)), 'ratio'),
    (
      lambda: augment.random_resized_crop(4, 4, interpolation='bicubik'),
      'did you mean bicubic',
    ),
    (lambda: augment.color_jitter(-0.1), 'must not be negative'),
    (lambda: augment.color_jitter(hue=0.6), 'hue at most 0.5'),
    (lambda: augment.grayscale(2), 'channels=2'),
    (lambda: autoaugment.auto_augment('imagnet'), 'did you mean imagenet'),
    (lambda: augment.grayscale(1, p=0.5), 'p=0.5'),
    (lambda: transforms.pad_crop(1, 'mirror'), "no padding 'mirror'"),
    (lambda: transforms.resize(4, 4, 'nearest'), "no interpolation 'nearest'"),
  ],
)
def test_setting_that_no_transform_can_have_is_an_error(make, words):
  with pytest.raises(UserError, match=words):
    make()
