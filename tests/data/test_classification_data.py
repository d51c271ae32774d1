"""Sets of pictures with classes: what is read, and what is said of the rest."""

import pickle
import sys
import types

import numpy as np
import pytest
from PIL import Image

from jaxzoo import catalog
from jaxzoo.data import classification, pipeline, shapes
from jaxzoo.data.sources import labelled
from jaxzoo.errors import CorruptRecord, UserError


def config_of(dataset, **fields):
  config = catalog.get_config('classification:tiny').unlock()
  config.data.dataset = dataset
  for name, value in fields.items():
    setattr(config.data if name in config.data else config, name, value)
  classification._open.cache_clear()
  return config


def picture(value=0, size=(10, 8)):
  return np.full((*size, 3), value, np.uint8)


# Folders.


@pytest.fixture
def folder(tmp_path):
  """train: cat 3, dog 2; test: dog 1. Pixels count the files of a class."""
  for place, count in (('train/dog', 2), ('train/cat', 3), ('test/dog', 1)):
    (tmp_path / place).mkdir(parents=True)
    for i in range(count):
      Image.fromarray(picture(i)).save(tmp_path / place / f'{i}.png')
  (tmp_path / 'train/.hidden').mkdir()
  (tmp_path / 'train/notes.txt').write_text('')
  return tmp_path


def test_class_is_the_place_of_the_folder_among_the_sorted(folder):
  source = labelled.read_folder(folder, 'train')
  assert source.names == ('cat', 'dog')
  assert source.labels.tolist() == [0, 0, 0, 1, 1]
  assert source.labels.dtype == np.int32
  for i, value in enumerate([0, 1, 2, 0, 1]):
    record = source[i]
    np.testing.assert_array_equal(record['image'], picture(value))
    assert record['label'] == source.labels[i]


def test_other_splits_have_the_classes_of_the_training_split(folder):
  source = labelled.read_folder(folder, 'test')
  assert source.names == ('cat', 'dog') and source.labels.tolist() == [1]
  (folder / 'test/cow').mkdir()
  with pytest.raises(UserError, match="the class 'cow'.*known: cat, dog"):
    labelled.read_folder(folder, 'test')


def test_pictures_may_lie_below_the_folder_of_their_class(folder):
  (folder / 'train/cat/more').mkdir()
  Image.fromarray(picture()).save(folder / 'train/cat/more/x.JPEG')
  assert len(labelled.read_folder(folder, 'train')) == 6


def test_damaged_picture_is_told_by_its_path(folder):
  (folder / 'train/dog/1.png').write_bytes(b'\x89PNG')
  source = labelled.read_folder(folder, 'train')
  with pytest.raises(CorruptRecord, match='train/dog/1.png'):
    source[4]
  assert source[-2]['label'] == 1


def test_cached_pictures_are_read_once_and_cannot_be_changed(folder):
  source = labelled.read_folder(folder, 'train', cache=True)
  first = source[0]['image']
  assert source[0]['image'] is first and not first.flags.writeable
  copy = pickle.loads(pickle.dumps(source))
  assert repr(copy) == repr(source) and copy._kept == {}
  assert labelled.read_folder(folder, 'train')[0]['image'] is not first


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda root: root / 'no', 'no folder .*/no: expected .*/no/test/CLASS'),
    (lambda root: root / 'train', 'no folders of classes.*cat, dog'),
    (lambda root: emptied(root), 'no images in the 1 folders of .*/test'),
  ],
)
def test_folder_that_is_not_as_expected_is_an_error(folder, change, words):
  with pytest.raises(UserError, match=f'(?s){words}'):
    labelled.read_folder(change(folder), 'test')


def emptied(root):
  (root / 'test/dog/0.png').rename(root / 'test/dog/0.txt')
  return root


# CIFAR.


def write_cifar(place, files, labels, names, meta):
  place.mkdir()
  rng = np.random.default_rng(0)
  rows = []
  for name in files:
    pixels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    own = rng.integers(0, len(names), (4, labels), np.uint8)
    (place / name).write_bytes(
      np.concatenate([own, pixels.reshape(4, -1)], 1).tobytes()
    )
    rows.append((pixels, own))
  (place / meta).write_text('\n'.join(names) + '\n\n')
  return rows


def test_cifar10_in_its_binary_form(tmp_path):
  names = [f'class{i}' for i in range(10)]
  files = [f'data_batch_{i}.bin' for i in range(1, 6)]
  place = tmp_path / 'cifar-10-batches-bin'
  rows = write_cifar(place, files, 1, names, 'batches.meta.txt')
  source = labelled.read_cifar('cifar10', tmp_path, 'train')
  assert len(source) == 20 and source.names == tuple(names)
  pixels, own = rows[2]
  record = source[4 * 2 + 3]
  np.testing.assert_array_equal(record['image'], pixels[3].transpose(1, 2, 0))
  assert record['label'] == own[3, 0]
  with pytest.raises(UserError, match='test_batch.bin.*kriz/cifar'):
    labelled.read_cifar('cifar10', tmp_path, 'test')
  with pytest.raises(UserError, match="no split 'val'"):
    labelled.read_cifar('cifar10', tmp_path, 'val')


def test_cifar100_has_the_fine_labels(tmp_path):
  names = [f'c{i}' for i in range(100)]
  place = tmp_path / 'cifar-100-binary'
  meta = 'fine_label_names.txt'
  ((_, own),) = write_cifar(place, ['test.bin'], 2, names, meta)
  source = labelled.read_cifar('cifar100', tmp_path, 'test')
  assert source.labels.tolist() == own[:, 1].tolist()


@pytest.mark.parametrize('change', [lambda x: x[:-1], lambda x: b''])
def test_damaged_cifar_is_an_error(tmp_path, change):
  place = tmp_path / 'cifar-100-binary'
  names = [f'c{i}' for i in range(100)]
  write_cifar(place, ['test.bin'], 2, names, 'fine_label_names.txt')
  path = place / 'test.bin'
  path.write_bytes(change(path.read_bytes()))
  with pytest.raises(UserError, match='test.bin is damaged'):
    labelled.read_cifar('cifar100', tmp_path, 'test')


# scikit-learn's digits.


def test_digits_are_split_without_overlap():
  train, test = labelled.read_digits('train'), labelled.read_digits('test')
  assert (len(train), len(test)) == (1438, 359)
  assert train[0]['image'].shape == (8, 8, 3)
  assert max(train[i]['image'].max() for i in range(20)) == 255
  counts = np.bincount(test.labels)
  assert len(counts) == 10 and counts.min() > 20


def test_parts_of_the_digits_are_written_as_of_tfds():
  read = labelled.read_digits
  whole, first, rest = (read(f'train{x}') for x in ('', '[:200]', '[200:]'))
  assert (len(first), len(rest)) == (200, 1238)
  joined = np.concatenate([first.labels, rest.labels])
  np.testing.assert_array_equal(joined, whole.labels)
  np.testing.assert_array_equal(
    read('train[5:9]')[1]['image'], whole[6]['image']
  )
  for split in ('val', 'train[200]', 'train[:x]', 'test[400:]'):
    with pytest.raises(UserError, match='digits'):
      read(split)


@pytest.mark.parametrize(
  'module, read, words',
  [
    ('sklearn.datasets', lambda: labelled.read_digits('train'), 'sklearn'),
    (
      'tensorflow_datasets',
      lambda: labelled.Tfds('imagenet2012', 'train'),
      'tfds',
    ),
  ],
)
def test_missing_extra_is_an_error_that_names_it(
  monkeypatch, module, read, words
):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(UserError, match=rf'pip install "jaxzoo\[{words}\]"'):
    read()


# TFDS.


class Builder:
  """As much of a TFDS builder as is used."""

  def __init__(self, codes, labels):
    self._codes, self._labels = codes, labels
    label = types.SimpleNamespace(names=['a', 'b'])
    self.info = types.SimpleNamespace(features={'label': label})

  def as_data_source(self, split, decoders):
    assert decoders['image'] == 'skip'
    if split != 'train':
      raise ValueError(f'Unknown split {split!r}')
    return [
      {'image': code, 'label': np.int64(label), 'file_name': 'x'}
      for code, label in zip(self._codes, self._labels, strict=True)
    ]


@pytest.fixture
def tfds(monkeypatch, tmp_path):
  Image.fromarray(picture(7)).save(tmp_path / 'x.png')
  code = (tmp_path / 'x.png').read_bytes()
  module = types.ModuleType('tensorflow_datasets')
  module.asked = []

  def builder(name, data_dir):
    module.asked.append((name, data_dir))
    return Builder([code, code[:-30], code], [1, 0, 1])

  module.builder = builder
  module.decode = types.SimpleNamespace(SkipDecoding=lambda: 'skip')
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', module)
  return module


def test_tfds_gives_pictures_labels_and_the_place_of_damage(tfds):
  source = labelled.Tfds('birds', 'train', '/data')
  assert tfds.asked == [('birds', '/data')]
  assert (len(source), source.names) == (3, ('a', 'b'))
  assert source.labels.tolist() == [1, 0, 1]
  record = source[np.int64(2)]
  assert set(record) == {'image', 'label'} and record['label'] == 1
  np.testing.assert_array_equal(record['image'], picture(7))
  with pytest.raises(CorruptRecord, match='birds, train, record 1'):
    source[1]


def test_tfds_that_is_not_prepared_says_how_to(tfds):
  with pytest.raises(UserError, match='(?s)Unknown split.*tfds build birds'):
    labelled.Tfds('birds', 'dev')


# Shapes.


def test_shapes_are_those_of_their_settings(tmp_path):
  settings = shapes.Settings(train=20, test=10, size=16)
  images, labels = shapes.load(settings, 'train', tmp_path)
  assert images.shape == (20, 16, 16, 3) and images.dtype == np.uint8
  assert labels.tolist() == 2 * list(range(10))
  again, _ = shapes.make(settings, 'train')
  np.testing.assert_array_equal(images, again)
  kept, _ = shapes.load(settings, 'train', tmp_path)
  np.testing.assert_array_equal(images, kept)
  assert len(list(tmp_path.iterdir())) == 1
  other, _ = shapes.make(settings._replace(seed=1), 'train')
  test, _ = shapes.make(settings, 'test')
  assert not np.array_equal(images, other)
  assert not np.array_equal(images[:10], test)
  # More of them begin with the same ones.
  more, _ = shapes.make(settings._replace(train=30), 'train')
  np.testing.assert_array_equal(more[:20], images)


def test_damaged_file_of_shapes_is_drawn_again(tmp_path):
  settings = shapes.Settings(train=2, test=2, size=8)
  images, _ = shapes.load(settings, 'test', tmp_path)
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:100])
  again, _ = shapes.load(settings, 'test', tmp_path)
  np.testing.assert_array_equal(images, again)


@pytest.mark.parametrize(
  'easier, limit',
  [
    ({}, 0.25),
    (
      dict(turn=15.0, clutter=0.0, hidden=0.0, texture=False, bright=True),
      0.4,
    ),
  ],
  ids=str,
)
def test_shapes_are_too_hard_for_a_linear_model_but_in_easier_settings(
  easier, limit
):
  settings = shapes.Settings(train=800, test=400, size=16, **easier)
  x, y = shapes.make(settings, 'train')
  z, t = shapes.make(settings, 'test')
  x, z = (a.reshape(len(a), -1) / 255.0 - 0.5 for a in (x, z))
  # Ridge regression on the labels, by the kernel of the 800 pictures.
  dual = np.linalg.solve(x @ x.T + 100 * np.eye(len(x)), np.eye(10)[y])
  right = ((z @ x.T @ dual).argmax(1) == t).mean()
  assert right < limit if easier == {} else right > limit


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(size=4), 'size=4'),
    (dict(train=0), 'train=0'),
    (dict(seed=-1), 'seed'),
    (dict(turn=181.0), 'turn=181'),
    (dict(clutter=-0.1), 'clutter'),
    (dict(hidden=1.5), 'hidden=1.5'),
  ],
)
def test_shapes_that_cannot_be_drawn_are_an_error(tmp_path, fields, words):
  with pytest.raises(UserError, match=words):
    shapes.load(shapes.Settings(**fields), 'train', tmp_path)
  with pytest.raises(UserError, match='no split'):
    shapes.load(shapes.Settings(), 'val', tmp_path)


# From config to pipeline.


def test_batch_is_as_the_example_says():
  for channels, mean in ((3, (0.5, 0.5, 0.5)), (1, (0.5,))):
    config = config_of('shapes', in_chans=channels, mean=mean, std=mean)
    config.data.update(
      randaugment='rand-m9-mstd0.5-inc1', color_jitter=0.4, random_erase=1.0
    )
    data = classification.train_data(config)
    batch = dict(
      pipeline.train_dataset(
        data.source, data.transforms, batch_size=config.batch_size, seed=0
      )[0]
    )
    for name, like in classification.example_batch(config).items():
      assert batch[name].shape == like.shape, name
      assert batch[name].dtype == like.dtype, name


def test_test_pictures_are_the_middle_of_the_resized_ones():
  config = config_of('shapes', image_size=(8, 8), eval_crop=0.5)
  data = classification.eval_data(config, 'test')
  record = data.source[0]
  got = record
  for step in data.transforms:
    got = step(got, np.random.default_rng(0))
  np.testing.assert_array_equal(got['image'], record['image'][4:12, 4:12])
  config.data.eval_crop = 0.0
  config.image_size = (8, 4)
  (whole,) = classification.eval_data(config, 'test').transforms
  assert whole(record, None)['image'].shape == (8, 4, 3)


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(dataset='folders'), "no 'folders'; did you mean folder"),
    (dict(dataset='folder', root=''), 'root is empty'),
    (dict(num_classes=3), 'has 10 classes.*--config.num_classes=10'),
    (dict(crop='padded'), "data.crop: no 'padded'"),
    (dict(eval_crop=1.5, crop='none'), 'eval_crop=1.5'),
    (dict(image_size=(8, 4), crop='none'), 'data.eval_crop=0'),
    (dict(in_chans=2), 'in_chans=2'),
    (dict(randaugment='rand-x1'), "'x1'"),
    (dict(flip=2.0), 'flip'),
  ],
  ids=str,
)
def test_setting_that_does_not_fit_is_an_error(fields, words):
  fields = dict(dataset='shapes') | fields
  with pytest.raises(UserError, match=words):
    classification.train_data(config_of(**fields))


# Repeated augmentation.


def test_copies_of_a_picture_come_together_and_are_augmented_apart():
  class Numbers:
    def __len__(self):
      return 12

    def __getitem__(self, i):
      return {'x': np.int32(i)}

  jitter = lambda record, rng: {**record, 'noise': np.float32(rng.random())}
  make = lambda **options: pipeline.train_dataset(
    Numbers(), [jitter], batch_size=6, seed=0, **options
  )
  data = make(repeats=3)
  epochs = [
    np.concatenate([data[2 * e]['x'], data[2 * e + 1]['x']]) for e in range(3)
  ]
  for epoch in epochs:
    assert (epoch.reshape(4, 3) == epoch[::3, None]).all()
    assert len(set(epoch)) == 4, 'a third of the pictures, as long as ever'
  assert len({tuple(epoch) for epoch in epochs}) == 3
  noise = np.concatenate([data[i]['noise'] for i in range(6)])
  assert len(set(noise)) == 36
  # Two processes make the batches of one.
  parts = [make(repeats=3, shard=s, shards=2)[0]['x'] for s in range(2)]
  whole = np.concatenate([data[i]['x'] for i in range(2)])
  np.testing.assert_array_equal(np.stack(parts, 1).ravel(), whole)
