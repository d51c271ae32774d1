"""Masks of batches and of pictures, and pictures without labels."""

import numpy as np
import pytest
from PIL import Image

from jaxzoo import catalog, main
from jaxzoo.data import masked_images, pipeline
from jaxzoo.data.transforms import compose
from jaxzoo.errors import UserError


def config_of(**fields):
  config = catalog.get_config('greenmim:tiny').unlock()
  config.update_from_flattened_dict(fields)
  return config


def batches(config, count=3):
  data = main.make_dataset(config, masked_images.train_data(config))
  return [data[i] for i in range(count)]


def test_batches_have_pictures_and_masks_and_no_labels():
  config = config_of()
  for batch in batches(config):
    assert batch['image'].shape == (16, 32, 32, 3)
    assert batch['keep'].shape == (8, 16)  # a quarter of 8 x 8 patches
    assert 'label' not in batch and 'corrupt' in batch
    for keep in batch['keep']:
      assert len(set(keep.tolist())) == 16
      assert keep.min() >= 0 and keep.max() < 64


def test_masks_differ_within_and_between_batches():
  keep = np.sort(np.concatenate([x['keep'] for x in batches(config_of())]))
  assert len({tuple(row) for row in keep.tolist()}) > 20


def test_example_batch_is_that_of_the_fields():
  for fields in ({}, {'masks': 2}, {'visible_only': False}):
    config = config_of(**fields)
    want = masked_images.example_batch(config)
    got = batches(config, 1)[0]
    got.pop('corrupt')
    form = lambda batch: {k: (x.shape, x.dtype) for k, x in batch.items()}
    assert form(got) == form(want)
    groups = [name for name in want if name.startswith('groups')]
    assert bool(groups) == config.visible_only


def test_masks_of_the_dense_encoder_are_the_same():
  one, other = (batches(config_of(visible_only=x)) for x in (True, False))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a['image'], b['image'])
  # Of one generator: the first mask does not wait for any groups.
  np.testing.assert_array_equal(one[0]['keep'][0], other[0]['keep'][0])


def test_evaluation_masks_every_picture_by_its_place():
  config = config_of()
  source, steps = masked_images.eval_data(config, 'test')
  look = lambda: list(
    pipeline.eval_batches(source, steps, batch_size=16, threads=2)
  )
  one, two = look(), look()
  for a, b in zip(one, two, strict=True):
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  keep = np.concatenate([x['keep'][x['mask']] for x in one])
  assert len({tuple(row) for row in np.sort(keep).tolist()}) > 10
  record = compose(*steps)(source[3], np.random.default_rng(3))
  np.testing.assert_array_equal(record['keep'], one[0]['keep'][3])


def test_pictures_need_no_classes(tmp_path):
  for place in ('train', 'train/deep/er', 'test'):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for i in range(9):
      pixels = np.full((40, 50, 3), 10 * i, np.uint8)
      Image.fromarray(pixels).save(tmp_path / place / f'{i}.png')
  fields = {'data.dataset': 'folder', 'data.root': str(tmp_path)}
  config = config_of(**fields)
  assert len(masked_images.read_source(config, 'train')) == 18
  assert batches(config, 1)[0]['image'].shape == (16, 32, 32, 3)
  with pytest.raises(UserError, match='no folder.*val; .* has test, train'):
    masked_images.read_source(config, 'val')
  (tmp_path / 'val').mkdir()
  with pytest.raises(UserError, match='no images below .*val'):
    masked_images.read_source(config, 'val')


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'masks': 3}, 'masks=3 do not divide a batch of 16'),
    ({'masks': 0}, 'masks=0'),
    ({'microbatches': 16}, 'masks=8 do not divide over 16 microbatches'),
    ({'mask_ratio': 1.0}, 'mask_ratio=1.0 leaves 0 of the 64 patches'),
    ({'mask_ratio': -0.5}, 'mask_ratio'),
    ({'image_size': (32, 34)}, 'multiples of 4'),
    ({'data.dataset': 'folder'}, 'data.root is empty'),
  ],
)
def test_mistakes_are_told_before_anything_is_compiled(fields, words):
  with pytest.raises(UserError, match=words):
    masked_images.train_data(config_of(**fields))


def test_fewer_masks_than_processes_are_an_error():
  data = masked_images.train_data(config_of(masks=1))
  part = pipeline.train_dataset(*data, batch_size=8, seed=0, shard=1, shards=2)
  with pytest.raises(UserError, match='8 images of a process.*masks of 16'):
    part[0]
