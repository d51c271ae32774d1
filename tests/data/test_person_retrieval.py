import json
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from jaxzoo.data.sources import person_retrieval
from jaxzoo.data.sources.person_retrieval import (
  DATASETS,
  Gallery,
  Pairs,
  Queries,
  read_split,
)
from jaxzoo.errors import CorruptRecord, UserError


def objects_of(name):
  """Three training identities, two test ones; the last image has 3 captions."""
  layout = DATASETS[name]
  ids = [0, 0, 1, 2, 1, 900, 901]
  splits = ['train'] * 5 + ['test'] * 2
  return [
    {
      'split': split,
      'id': pid + layout.first_id,
      layout.path_key: f'images/{i}.png',
      'captions': [f'{name} {i} {j}' for j in range(3 if i == 6 else 2)],
      'processed_tokens': [['a', 'person']],
      'source': 'elsewhere',
    }
    for i, (pid, split) in enumerate(zip(ids, splits, strict=True))
  ]


def write(root, name, objects, images=True):
  layout = DATASETS[name]
  path = root / layout.annotations
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(objects), encoding='utf-8')
  (root / layout.images / 'images').mkdir(parents=True, exist_ok=True)
  for i in range(len(objects) if images else 0):
    picture = np.full((6, 4, 3), i, np.uint8)
    Image.fromarray(picture).save(root / layout.images / f'images/{i}.png')
  return path


@pytest.fixture(params=sorted(DATASETS))
def name(request):
  return request.param


def test_the_training_split_of_every_data_set(tmp_path, name):
  write(tmp_path, name, objects_of(name))
  split = read_split(name, tmp_path, 'train')
  folder = tmp_path / DATASETS[name].images
  assert split.image_paths == tuple(
    str(folder / f'images/{i}.png') for i in range(5)
  )
  assert split.image_pids.tolist() == [0, 0, 1, 2, 1]
  assert split.image_pids.dtype == split.caption_pids.dtype == np.int32
  assert split.captions[2:4] == (f'{name} 1 0', f'{name} 1 1')
  assert split.caption_images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
  assert split.caption_images.dtype == np.int32
  np.testing.assert_array_equal(
    split.caption_pids, split.image_pids[split.caption_images]
  )


def test_test_identities_stay_as_in_the_file(tmp_path, name):
  write(tmp_path, name, objects_of(name))
  split = read_split(name, tmp_path, 'test')
  first = DATASETS[name].first_id
  assert split.image_pids.tolist() == [900 + first, 901 + first]
  assert len(split.captions) == 5
  assert split.caption_images.tolist() == [0, 0, 1, 1, 1]


def test_the_sources_hold_what_the_split_says(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  split = read_split('rstpreid', tmp_path, 'train')
  pairs, gallery, queries = Pairs(split), Gallery(split), Queries(split)
  assert (len(pairs), len(gallery), len(queries)) == (10, 5, 10)
  record = pairs[7]
  assert set(record) == {'image', 'caption', 'pid'}
  assert record['image'].shape == (6, 4, 3)
  assert record['image'].dtype == np.uint8
  assert (record['image'] == 3).all()
  assert (record['caption'], record['pid']) == ('rstpreid 3 1', 2)
  assert set(gallery[4]) == {'image', 'pid'}
  assert (gallery[4]['image'] == 4).all() and gallery[4]['pid'] == 1
  assert queries[7] == {'caption': 'rstpreid 3 1', 'pid': 2}
  with pytest.raises(IndexError):
    pairs[10]
  with pytest.raises(IndexError):
    gallery[5]


def test_pairs_without_decoding_give_the_path(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  split = read_split('rstpreid', tmp_path, 'train')
  record = Pairs(split, decode=False)[7]
  assert set(record) == {'path', 'caption', 'pid'}
  assert record['path'] == split.image_paths[3]


def test_representations_are_stable_and_tell_sources_apart(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  train = read_split('rstpreid', tmp_path, 'train')
  test = read_split('rstpreid', tmp_path, 'test')
  texts = [
    repr(kind(split))
    for kind in (Pairs, Gallery, Queries)
    for split in (train, test)
  ]
  assert len(set(texts)) == 6
  assert texts == [
    repr(kind(read_split('rstpreid', tmp_path, split)))
    for kind in (Pairs, Gallery, Queries)
    for split in ('train', 'test')
  ]
  assert '0x' not in ''.join(texts)


def test_cached_images_are_read_once_and_protected(tmp_path, monkeypatch):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  reads = []
  read = person_retrieval.read_image
  monkeypatch.setattr(
    person_retrieval, 'read_image', lambda p: reads.append(p) or read(p)
  )
  split = read_split('rstpreid', tmp_path, 'train')
  pairs = Pairs(split, cache_images=True)
  first, second = pairs[2]['image'], pairs[np.int64(3)]['image']
  assert first is second and len(reads) == 1
  with pytest.raises(ValueError, match='read-only'):
    first[0] = 0
  gallery = Gallery(split, cache_images=True)
  assert gallery[-1]['image'] is gallery[4]['image']
  plain = Pairs(split)
  assert plain[2]['image'] is not plain[2]['image']


def test_cached_images_are_the_same_for_all_threads(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  pairs = Pairs(read_split('rstpreid', tmp_path, 'train'), cache_images=True)
  gate, seen = threading.Barrier(8), []

  def look():
    gate.wait()
    seen.append([id(pairs[i]['image']) for i in range(10)])

  threads = [threading.Thread(target=look) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(seen) == 8 and all(row == seen[0] for row in seen)


def test_sources_travel_to_workers_without_their_cache(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  pairs = Pairs(read_split('rstpreid', tmp_path, 'train'), cache_images=True)
  size = len(pickle.dumps(pairs))
  pairs[0]
  assert len(pickle.dumps(pairs)) == size
  copy = pickle.loads(pickle.dumps(pairs))
  assert copy[3]['caption'] == pairs[3]['caption']
  assert copy[3]['image'] is copy[3]['image']
  assert repr(copy) == repr(pairs)


def test_a_damaged_picture_is_one_corrupt_record(tmp_path):
  write(tmp_path, 'rstpreid', objects_of('rstpreid'))
  split = read_split('rstpreid', tmp_path, 'train')
  with open(split.image_paths[1], 'r+b') as file:
    file.truncate(50)
  for source in (Pairs(split), Pairs(split, cache_images=True)):
    with pytest.raises(CorruptRecord) as info:
      source[2]
    assert info.value.path == split.image_paths[1]
    assert source[4]['pid'] == 1


def test_an_image_listed_twice_is_one_image(tmp_path):
  objects = objects_of('rstpreid')
  again = {**objects[0], 'captions': ['once more']}
  write(tmp_path, 'rstpreid', [*objects, again])
  split = read_split('rstpreid', tmp_path, 'train')
  assert len(split.image_paths) == 5
  assert split.captions[:3] == ('rstpreid 0 0', 'rstpreid 0 1', 'once more')
  assert split.caption_images[:4].tolist() == [0, 0, 0, 1]
  again['id'] = 2
  write(tmp_path, 'rstpreid', [*objects, again])
  with pytest.raises(UserError, match='object 7: .*before with id 0'):
    read_split('rstpreid', tmp_path, 'train')


def test_a_missing_split_names_those_that_exist(tmp_path):
  write(tmp_path, 'icfg_pedes', objects_of('icfg_pedes'))
  read_split('icfg_pedes', tmp_path, 'train')
  with pytest.raises(UserError, match="no split 'val'; it has: train, test"):
    read_split('icfg_pedes', tmp_path, 'val')
  write(tmp_path, 'icfg_pedes', [])
  with pytest.raises(UserError, match='no images at all'):
    read_split('icfg_pedes', tmp_path, 'test')


@pytest.mark.parametrize(
  'asked, answer',
  [
    ('CUHK-PEDES', 'cuhk_pedes'),
    ('icfg_pedse', 'icfg_pedes'),
    ('zzz', 'known'),
  ],
)
def test_an_unknown_data_set_gets_the_nearest_name(tmp_path, asked, answer):
  with pytest.raises(UserError, match=answer):
    read_split(asked, tmp_path, 'train')


def test_an_unknown_split_gets_the_nearest_name(tmp_path):
  with pytest.raises(UserError, match='did you mean train'):
    read_split('cuhk_pedes', tmp_path, 'training')


def test_a_missing_root_tells_the_layout(tmp_path):
  with pytest.raises(UserError) as info:
    read_split('cuhk_pedes', tmp_path / 'absent', 'train')
  assert str(tmp_path / 'absent/CUHK-PEDES/reid_raw.json') in str(info.value)
  assert str(tmp_path / 'absent/CUHK-PEDES/imgs') in str(info.value)


def test_a_missing_annotation_file_tells_what_is_there(tmp_path):
  path = write(tmp_path, 'icfg_pedes', objects_of('icfg_pedes'))
  path.rename(path.with_name('ICFG_PEDES.json'))
  with pytest.raises(UserError, match='found there: ICFG_PEDES.json') as info:
    read_split('icfg_pedes', tmp_path, 'train')
  assert str(path) in str(info.value)


def test_the_data_set_folder_as_root_is_recognised(tmp_path):
  path = write(tmp_path, 'icfg_pedes', objects_of('icfg_pedes'))
  with pytest.raises(UserError, match='folder of the data set itself'):
    read_split('icfg_pedes', path.parent, 'train')


def test_malformed_json_tells_line_and_column(tmp_path):
  path = write(tmp_path, 'icfg_pedes', [])
  path.write_text('[\n {"split": "train",\n  "id": }\n]')
  with pytest.raises(UserError, match='line 3, column 9') as info:
    read_split('icfg_pedes', tmp_path, 'train')
  assert str(path) in str(info.value)


@pytest.mark.parametrize(
  'data, message',
  [
    (b'[{"split": "tr\xe9in"}]', r'not UTF-8 text \(byte 14\)'),
    (b'', 'line 1, column 1'),
    (b'{"train": []}', 'a list with one object an image, not an object'),
    (b'null', 'not null'),
    (b'[' * 200_000, 'nested too deeply'),
    (b'[3]', 'object 0: a number'),
    (b'[{"id": 1}]', "object 0: key 'split' .* no such key"),
    (b'[{"split": "dev"}]', "object 0: key 'split' .*'dev'"),
  ],
)
def test_files_that_are_no_annotations_say_why(tmp_path, data, message):
  path = write(tmp_path, 'icfg_pedes', [])
  path.write_bytes(data)
  with pytest.raises(UserError, match=message) as info:
    read_split('icfg_pedes', tmp_path, 'train')
  assert str(path) in str(info.value)


def test_a_byte_order_mark_is_no_error(tmp_path):
  path = write(tmp_path, 'icfg_pedes', objects_of('icfg_pedes'))
  path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
  assert len(read_split('icfg_pedes', tmp_path, 'train').captions) == 10


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('file_path', None, "key 'file_path' must be a path, got None"),
    ('file_path', '', "key 'file_path' must be a path"),
    ('file_path', 'a\0b', "key 'file_path' must be a path"),
    ('file_path', '../../secret.png', 'leaves its folder'),
    ('file_path', '..', 'leaves its folder'),
    ('file_path', '/etc/passwd', 'leaves its folder'),
    ('file_path', 'away/0.png', 'leaves its folder'),
    ('file_path', 'away.png', 'leaves its folder'),
    ('id', '7', "key 'id' must be a whole number from 0, got '7'"),
    ('id', True, "key 'id' must be a whole number"),
    ('id', 1.5, "key 'id' must be a whole number"),
    ('id', -1, "key 'id' must be a whole number"),
    ('id', 2**31, "key 'id' must be a whole number"),
    ('captions', 'one string', "key 'captions' must be a list"),
    ('captions', [], "key 'captions' must be a list of one or more"),
    ('captions', ['fine', ''], 'entry 1 must be a string that is not empty'),
    ('captions', [' \n'], 'entry 0 must be a string that is not empty'),
    ('captions', [['a', 'b']], 'entry 0 must be a string'),
    ('captions', ['half \ud800'], 'entry 0 is not valid Unicode'),
  ],
)
def test_a_wrong_object_is_named_with_its_key(tmp_path, key, value, message):
  objects = objects_of('cuhk_pedes')
  objects[3][key] = value
  path = write(tmp_path, 'cuhk_pedes', objects)
  (path.parent / 'imgs' / 'away').symlink_to(tmp_path)
  (path.parent / 'imgs' / 'away.png').symlink_to('/etc/hosts')
  with pytest.raises(UserError, match=message) as info:
    read_split('cuhk_pedes', tmp_path, 'train')
  assert f'{path}, object 3: ' in str(info.value)


@pytest.mark.parametrize('key', ['img_path', 'id', 'captions'])
def test_a_missing_key_is_named(tmp_path, key):
  objects = objects_of('rstpreid')
  del objects[2][key]
  write(tmp_path, 'rstpreid', objects)
  with pytest.raises(UserError, match=f"object 2: .*'{key}'.*no such key"):
    read_split('rstpreid', tmp_path, 'train')


def test_a_linked_image_folder_is_no_escape(tmp_path):
  path = write(tmp_path / 'a', 'cuhk_pedes', objects_of('cuhk_pedes'))
  (path.parent / 'imgs').rename(tmp_path / 'disk')
  (path.parent / 'imgs').symlink_to(tmp_path / 'disk')
  split = read_split('cuhk_pedes', tmp_path / 'a', 'train')
  assert Gallery(split)[2]['image'].shape == (6, 4, 3)


def test_gaps_in_the_training_identities_are_named(tmp_path):
  objects = objects_of('cuhk_pedes')
  for each in objects:
    each['id'] = {2: 5}.get(each['id'], each['id'])
  write(tmp_path, 'cuhk_pedes', objects)
  with pytest.raises(
    UserError, match=r'1\.\.3 without gaps; missing 2 .*1\.\.5'
  ):
    read_split('cuhk_pedes', tmp_path, 'train')
  read_split('cuhk_pedes', tmp_path, 'test')


def test_identities_that_start_at_the_wrong_number_are_refused(tmp_path):
  for name, wrong in (('cuhk_pedes', -1), ('icfg_pedes', 1)):
    objects = objects_of(name)
    for each in objects:
      each['id'] += wrong
    write(tmp_path, name, objects)
    with pytest.raises(UserError, match='without gaps; missing'):
      read_split(name, tmp_path, 'train')


def test_images_that_are_all_missing_fail_at_once(tmp_path):
  write(tmp_path, 'ufine6926', objects_of('ufine6926'), images=False)
  with pytest.raises(
    UserError, match='none of the 5 images looked for'
  ) as info:
    read_split('ufine6926', tmp_path, 'train')
  assert str(tmp_path / 'UFine6926/images/0.png') in str(info.value)


def test_some_missing_images_are_left_to_the_pipeline(tmp_path):
  write(tmp_path, 'ufine6926', objects_of('ufine6926'))
  (tmp_path / 'UFine6926/images/1.png').unlink()
  split = read_split('ufine6926', tmp_path, 'train')
  with pytest.raises(CorruptRecord, match='No such file'):
    Gallery(split)[1]
