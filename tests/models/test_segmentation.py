"""Classes of pixels: data, network, loss, metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxzoo import catalog
from jaxzoo.data import scenes
from jaxzoo.data import segmentation as data
from jaxzoo.errors import CorruptRecord, UserError
from jaxzoo.eval import segmentation as evaluation
from jaxzoo.models.supervised import segmentation

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def small():
  return scenes.Settings(train=6, test=4, size=32, kinds=3)


def test_scenes_have_the_class_of_every_pixel_and_splits_differ(small):
  train, test = scenes.load(small, 'train'), scenes.load(small, 'test')
  assert train.image.shape == (6, 32, 32, 3)
  assert set(np.unique(train.classes)) == {0, 1, 2, 3}
  assert (train.image[:4] != test.image).any()
  again = scenes.draw(np.random.default_rng((0, 0, 2)), small)
  np.testing.assert_array_equal(again.image, train.image[2])


def test_colour_does_not_tell_the_class(small):
  many = scenes.load(small._replace(train=60), 'train')
  means = [many.image[many.classes == k].mean(0) for k in (1, 2, 3)]
  assert np.std(means, axis=0).max() < 25


def test_picture_and_classes_stay_together_under_augmentation():
  classes = np.kron(np.eye(2, dtype=np.uint8), np.ones((8, 8), np.uint8))
  record = {
    'image': np.repeat(255 * classes[..., None], 3, 2),
    'classes': classes,
  }
  transform = data.random_scale_crop(12, 12, 0.5, 2.0, (0.5, 0.5, 0.5))
  for seed in range(20):
    out = transform(record, np.random.default_rng(seed))
    out = data.flip(0.5)(out, np.random.default_rng(seed))
    assert out['image'].shape == (12, 12, 3)
    known = out['classes'] != data.IGNORED
    outside = out['image'][~known]
    assert outside.size == 0 or (outside == 128).all()
    bright = out['image'][..., 0][known] > 127
    agree = bright == (out['classes'][known] == 1)
    assert agree.mean() > 0.85  # but for blurred edges


@pytest.fixture
def folder(tmp_path):
  for split in ('train',):
    for part in ('images', 'classes'):
      (tmp_path / part / split / 'town').mkdir(parents=True)
  image = RNG.integers(0, 256, (10, 12, 3)).astype(np.uint8)
  classes = RNG.integers(0, 3, (10, 12)).astype(np.uint8)
  Image.fromarray(image).save(tmp_path / 'images/train/town/a.png')
  Image.fromarray(classes).save(tmp_path / 'classes/train/town/a.png')
  return tmp_path, image, classes


def test_folder_gives_pictures_with_their_maps(folder):
  root, image, classes = folder
  source = data.read_folder(root, 'train', 3)
  assert len(source) == 1
  np.testing.assert_array_equal(source[0]['image'], image)
  np.testing.assert_array_equal(source[0]['classes'], classes)


def test_map_of_another_size_is_a_corrupt_record(folder):
  root, _, classes = folder
  Image.fromarray(classes[:5]).save(root / 'classes/train/town/a.png')
  with pytest.raises(CorruptRecord, match='one channel'):
    data.read_folder(root, 'train', 3)[0]


def test_missing_map_and_folder_are_named(folder):
  root, *_ = folder
  (root / 'classes/train/town/a.png').unlink()
  with pytest.raises(UserError, match='no map of classes'):
    data.read_folder(root, 'train', 3)
  with pytest.raises(UserError, match='ROOT/images/test'):
    data.read_folder(root, 'test', 3)


def test_map_outside_of_the_folder_is_refused(folder, tmp_path_factory):
  root, _, classes = folder
  elsewhere = tmp_path_factory.mktemp('elsewhere') / 'a.png'
  Image.fromarray(classes).save(elsewhere)
  inside = root / 'classes/train/town/a.png'
  inside.unlink()
  inside.symlink_to(elsewhere)
  with pytest.raises(UserError, match='leads out of'):
    data.read_folder(root, 'train', 3)


def test_loss_is_over_pixels_that_have_a_class():
  logits = RNG.standard_normal((2, 4, 4, 3)).astype(np.float32)
  classes = RNG.integers(0, 3, (2, 4, 4)).astype(np.uint8)
  classes[0, :2] = data.IGNORED
  known = classes != data.IGNORED
  log_p = np.log(np.asarray(jax.nn.softmax(logits)))
  want = -np.mean(
    np.take_along_axis(log_p[known], classes[known][:, None].astype(int), 1)
  )
  value, right = segmentation.pixel_loss(logits, classes)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(
    right, (logits.argmax(-1) == classes)[known].mean(), rtol=1e-6
  )
  grad = jax.grad(lambda z: segmentation.pixel_loss(z, classes)[0])(logits)
  np.testing.assert_array_equal(grad[~known], 0)


def test_miou_is_that_of_counted_sets():
  classes = RNG.integers(0, 4, (5, 6)).astype(np.uint8)
  classes[0, :3] = data.IGNORED
  classes[classes == 3] = 2  # class 3 never occurs
  predicted = RNG.integers(0, 3, (5, 6)).astype(np.uint8)
  known = classes != data.IGNORED
  wants = []
  for k in range(3):
    a, b = (classes == k) & known, (predicted == k) & known
    wants.append((a & b).sum() / (a | b).sum())
  parts = [
    evaluation.confusion(predicted[rows], classes[rows], 4)
    for rows in (slice(2), slice(2, 5))
  ]
  got = evaluation.metrics(parts[0] + parts[1])
  np.testing.assert_allclose(got['miou'], 100 * np.mean(wants), rtol=1e-6)
  assert np.isnan(evaluation.ious(parts[0] + parts[1])[3])


def test_decoded_levels_are_those_of_the_pyramid():
  config = catalog.get_config('segmentation:tiny')
  module = segmentation.make_segmenter(config)
  image = jnp.asarray(RNG.standard_normal((1, 16, 16, 3)), jnp.float32)
  variables = module.init(jax.random.key(0), image)
  levels, logits = module.apply(variables, image)
  assert [x.shape for x in levels.values()] == [(1, 16, 16, 8), (1, 8, 8, 8)]
  again = module.apply(variables, levels, method='decode')
  np.testing.assert_allclose(logits, again, rtol=1e-5)


def test_published_classifier_becomes_the_backbone():
  config = catalog.get_config('segmentation:tiny')
  system = segmentation.build(config, optax.sgd(0.1))
  batch = data.example_batch(config)
  state = system.init(jax.random.key(0), batch)
  from jaxzoo.models.supervised import classification

  built = classification.make_backbone(config)
  variables = built.module.init(jax.random.key(5), batch['image'] * 1.0)
  state_dict = built.export(variables)
  loaded = segmentation.convert(state_dict, config)
  np.testing.assert_array_equal(
    loaded['backbone']['stem_conv']['kernel'],
    variables['params']['stem_conv']['kernel'],
  )
  assert loaded['backbone'].keys() == state.params['backbone'].keys()


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    'resnet18',
    'mobilenet_v3_small',
    'efficientnet_b0',
    'shufflenet_v2_x0_5',
    'swin_tiny',
    'lightvit_tiny',
    'deit_tiny_patch16_224',
    'stvit_deit_tiny',
    'resnet18_dcd',
    'genet_small',
  ],
)
def test_any_backbone_carries_a_pyramid(name):
  config = catalog.get_config(f'segmentation:folder,model={name}').unlock()
  config.image_size = (224, 224)
  config.num_classes = 5
  system = segmentation.build(config, optax.sgd(0.1))
  batch = jax.eval_shape(lambda: data.example_batch(config))
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  outputs = jax.eval_shape(system.predict, state, batch)
  assert outputs['classes'].shape == (config.batch_size, 224, 224)
