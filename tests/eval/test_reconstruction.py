"""Reconstruction: patches there and back, what is shown, which loss."""

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.eval import reconstruction
from jaxzoo.eval.evaluator import Predictions
from jaxzoo.models.self_supervised.grouped_swin import patches

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def picture(seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (16, 24, 3)).astype(np.uint8)


def normal(image):
  return (image / 255 - np.asarray(MEAN)) / np.asarray(STD)


def test_patches_are_those_of_the_loss_and_come_back():
  image = picture()
  cut = reconstruction.to_patches(image, 8)
  np.testing.assert_array_equal(cut, patches(image[None], 8)[0])
  np.testing.assert_array_equal(
    reconstruction.from_patches(cut, (16, 24)), image
  )


@pytest.mark.parametrize('normalized', [True, False])
def test_right_prediction_shows_the_picture(normalized):
  image, keep = picture(), np.array([4, 1])
  target = reconstruction.to_patches(normal(image), 8)
  if normalized:
    target = target - target.mean(1, keepdims=True)
    target = target / np.sqrt(target.var(1, ddof=1, keepdims=True) + 1e-6)
  whole, masked, filled = reconstruction.triple(
    image, keep, target, MEAN, STD, normalized=normalized
  )
  np.testing.assert_array_equal(whole, image)
  np.testing.assert_array_equal(filled, image)
  hidden = (masked == reconstruction.GREY).all(-1)
  assert hidden[:8, :8].all() and hidden[8:, 16:].all()
  np.testing.assert_array_equal(masked[:8, 8:16], image[:8, 8:16])


def test_visible_patches_are_never_taken_from_the_prediction():
  image, keep = picture(), np.array([0])
  wrong = np.full((6, 192), 9.0)
  *_, filled = reconstruction.triple(
    image, keep, wrong, MEAN, STD, normalized=False
  )
  np.testing.assert_array_equal(filled[:8, :8], image[:8, :8])
  assert (filled[8:] == 255).all()


def test_loss_is_the_mean_over_pictures_that_were_read():
  config = catalog.get_config('greenmim:tiny')
  evaluator = reconstruction.make_evaluator(config, limit=10, sheet=2)
  asked = []

  def predict(source, transforms):
    asked.append(len(source))
    mask = np.ones(10, bool)
    mask[3] = False
    loss = np.arange(10.0)
    prediction = np.zeros((10, 64, 48), np.float32)
    return Predictions(dict(loss=loss, prediction=prediction), mask)

  found = evaluator(predict)
  assert asked == [10]
  assert found.metrics == {'loss': (45 - 3) / 9}
  sheet = found.pictures()['reconstructions']
  assert sheet.dtype == np.uint8 and sheet.ndim == 3
