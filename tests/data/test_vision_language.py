"""Words, regions and answers as batches; the files that they are read from."""

import json
import types

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import answers, captioned_scenes
from jaxzoo.data import vision_language as data
from jaxzoo.data.captioned_scenes import Settings
from jaxzoo.data.sources import regions as files
from jaxzoo.data.tokenizers.wordpiece import SPECIAL, WordPieceTokenizer
from jaxzoo.errors import CorruptRecord, UserError

RNG = np.random.default_rng(0)
SCENES = Settings(train=12, test=6, asked=12, size=32)


# Words.


def test_words_are_cut_into_the_longest_pieces():
  tokenizer = WordPieceTokenizer([*SPECIAL, 'play', '##ing', '##in', 'p', '.'])
  assert tokenizer.encode('Playing.') == [5, 6, 9]
  assert tokenizer.encode('played') == [1]
  assert tokenizer.decode([2, 5, 6, 9, 3, 5]) == 'playing.'
  assert tokenizer.special_ids == (1, 2, 3, 4)


@pytest.mark.parametrize(
  'pieces, message',
  [
    (SPECIAL[:-1], 'has no'),
    ((*SPECIAL, 'a', 'a'), 'twice'),
    (SPECIAL[::-1], 'first'),
  ],
)
def test_broken_vocabularies_are_told(pieces, message):
  with pytest.raises(UserError, match=message):
    WordPieceTokenizer(pieces)


# Transforms.


def tiny(**fields):
  config = catalog.get_config('distillvlm:tiny').unlock()
  config.data.embedded = SCENES._asdict()
  config.update(fields)
  return config


TOKENIZER = WordPieceTokenizer(captioned_scenes.pieces())


def test_text_and_tags_have_places_of_their_own():
  encode = data.encode_words(TOKENIZER, 6, 4)
  record = {'text': 'a red heart', 'tags': ('star', 'heart')}
  words = encode(record, None)['words']
  ids = TOKENIZER.encode('a red heart')
  assert words[:6].tolist() == [2, *ids, 3, 0]
  assert words[6:].tolist() == [*TOKENIZER.encode('star heart'), 3, 0]
  long = encode({'text': 9 * 'red ', 'tags': 9 * ('star',)}, None)['words']
  assert long[5] == long[9] == 3 and (long != 0).all()


@pytest.mark.parametrize('caption', [False, True])
def test_masking_hides_words_and_says_which(caption):
  mask = data.mask_words(TOKENIZER, 0.3, 6, caption)
  words = np.array([2, 10, 11, 12, 3, 0, 20, 21, 3, 0], np.int32)
  counts, changed = np.zeros(len(words)), 0
  for seed in range(300):
    rng = np.random.default_rng(seed)
    out = mask({'words': words, 'match': np.int32(1)}, rng)
    chosen = out['labels'] > 0
    assert chosen.any()
    np.testing.assert_array_equal(out['labels'][chosen], words[chosen])
    np.testing.assert_array_equal(out['words'][~chosen], words[~chosen])
    counts += chosen
    changed += (out['words'][chosen] == 4).sum()
  never = [0, 5, 9, 6, 7, 8] if caption else [0, 4, 5, 8, 9]
  assert not counts[never].any()
  assert counts[4] if caption else counts[6] > 50
  assert 0.7 < changed / counts.sum() < 0.9
  away = mask({'words': words, 'match': np.int32(0)}, np.random.default_rng(1))
  assert not away['labels'][6:].any()


def test_tags_of_another_picture_come_half_of_the_time():
  source = types.SimpleNamespace(__len__=None, tags=lambda i: (f'tag {i}',))

  class Source(list):
    tags = staticmethod(source.tags)

  corrupt = data.corrupt_tags(Source(range(50)), 0.5)
  found = [
    corrupt({'tags': ('own',)}, np.random.default_rng(i)) for i in range(200)
  ]
  assert all((r['tags'] == ('own',)) == bool(r['match']) for r in found)
  assert 60 < sum(int(r['match']) for r in found) < 140


@pytest.mark.parametrize('task', ['pretrain', 'vqa', 'caption'])
def test_records_are_rows_of_the_example_batch(task):
  config = tiny(task=task)
  config.data.min_answers = 1
  if task == 'vqa':
    found = data.read_pictures(config, 'train').questions
    config.num_answers = len(
      answers.vocabulary([each.answers for each in found], 1)
    )
  source, steps = data.train_data(config)
  record = source[3]
  rng = np.random.default_rng(0)
  for step in steps:
    record = step(record, rng)
  example = data.example_batch(config)
  assert record.keys() == example.keys()
  for name, rows in example.items():
    assert np.shape(record[name]) == rows.shape[1:], name
    assert np.asarray(record[name]).dtype == rows.dtype, name


def test_wrong_sizes_are_told_before_training():
  config = tiny()
  config.data.detectors.weak = 24
  with pytest.raises(UserError, match='data.detectors'):
    data.train_data(config)
  config = tiny(vocab_size=99)
  with pytest.raises(UserError, match='vocab_size=45'):
    data.train_data(config)
  config = tiny(num_answers=3)
  with pytest.raises(UserError, match='num_answers'):
    data.train_data(config)
  config = tiny()
  config.data.regions = 'week'
  with pytest.raises(UserError, match='weak'):
    data.train_data(config)


# Answers.


@pytest.mark.parametrize('matches', range(11))
def test_agreement_is_the_mean_over_the_subsets_of_nine(matches):
  given = [True] * matches + [False] * (10 - matches)
  subsets = [given[:i] + given[i + 1 :] for i in range(10)]
  want = np.mean([min(1, sum(each) / 3) for each in subsets])
  assert answers.agreement(matches) == pytest.approx(want)


@pytest.mark.parametrize(
  'text, want',
  [
    ('The Two dogs.', '2 dogs'),
    ('dont', "don't"),
    ('1,000', '1000'),
    ('2.5', '2.5'),
    ('10:30', '10:30'),
    ('black/white', 'black white'),
    ('  a\tcat! ', 'cat'),
    ('none', '0'),
  ],
)
def test_answers_are_compared_in_one_form(text, want):
  assert answers.normalize(text) == want
  assert answers.normalize(want) == want


def test_targets_are_of_the_vocabulary_alone():
  given = ['red'] * 7 + ['Red.', 'blue', 'pink']
  words = answers.vocabulary([given, ['blue'] * 10, ['blue'] * 10], 1)
  assert words == ('blue', 'red')
  targets = answers.soft_targets(given, {'blue': 0, 'red': 1})
  np.testing.assert_allclose(targets, [0.3, 1.0])


# Scenes.


def test_scenes_are_the_same_again_and_splits_are_not():
  again = captioned_scenes.load.__wrapped__(SCENES, 'train')
  first = captioned_scenes.load(SCENES, 'train')
  np.testing.assert_array_equal(first.pictures, again.pictures)
  assert first.captions == again.captions
  assert first.questions == again.questions
  for name, rows in first.regions.items():
    for a, b in zip(rows, again.regions[name], strict=True):
      np.testing.assert_array_equal(a.features, b.features)
  other = captioned_scenes.load(SCENES, 'test')
  assert (first.pictures[:6] != other.pictures).any()


def test_adapted_regions_are_the_weak_boxes_seen_by_the_strong_detector():
  scenes = captioned_scenes.load(SCENES, 'train')
  weak, adapted = scenes.regions['weak'], scenes.regions['adapted']
  widths = catalog.get_config('distillvlm').data.detectors
  for i in range(SCENES.train):
    np.testing.assert_array_equal(
      weak[i].features[:, -6:], adapted[i].features[:, -6:]
    )
    assert weak[i].tags == adapted[i].tags
    boxes = adapted[i].features[:, -6:-2]
    again = captioned_scenes.features_of(
      scenes.pictures[i], boxes, captioned_scenes.FINE
    )
    np.testing.assert_allclose(again, adapted[i].features, atol=1e-5)
    for name, width in widths.items():
      assert scenes.regions[name][i].features.shape[1] == width


def test_answers_are_true_of_the_scene():
  rng = np.random.default_rng(0)
  asked = set()
  for _ in range(200):
    things = captioned_scenes.place_things(rng, SCENES)
    text, answer, kind = captioned_scenes.ask(rng, things, SCENES)
    asked.add(text.split()[1])
    word = text.split()
    if text.startswith('how many'):
      assert answer == str(len(things)) and kind == 'number'
    elif text.startswith('what colour'):
      (thing,) = [t for t in things if t.kind == word[-1]]
      assert answer == thing.colour
    elif text.startswith('what is the'):
      (thing,) = [t for t in things if t.colour == word[3]]
      assert answer == thing.kind
    elif text.startswith('where'):
      (thing,) = [t for t in things if t.kind == word[-1]]
      middle = (thing.box[0] + thing.box[2]) / 2
      assert captioned_scenes.COLUMNS.index(answer) == int(3 * middle)
    else:
      name = word[3]
      there = any(name in (t.kind, t.colour) for t in things)
      assert (answer == 'yes') == there and kind == 'yes/no'
  assert len(asked) == 4


def test_every_word_of_the_scenes_has_a_piece():
  for split in captioned_scenes.SPLITS:
    scenes = captioned_scenes.load(SCENES, split)
    texts = [text for rows in scenes.captions for text in rows]
    texts += [each.text for each in scenes.questions]
    assert not any(1 in TOKENIZER.encode(text) for text in texts)


# Files.


def write_regions(folder, image, count=3, width=4, **arrays):
  folder.mkdir(parents=True, exist_ok=True)
  boxes = np.sort(RNG.random((count, 2, 2)), axis=1).reshape(count, 4)
  arrays = {
    'features': RNG.standard_normal((count, width)).astype(np.float32),
    'boxes': boxes.astype(np.float32),
    'tags': np.array(['dog', 'red ball', 'sofa'][:count]),
  } | arrays
  np.savez(folder / f'{image}.npz', **arrays)
  return arrays


def test_regions_are_read_with_the_six_numbers(tmp_path):
  wrote = write_regions(tmp_path / 'regions/weak', 7)
  found = files.RegionFiles(tmp_path, 'weak')(7)
  assert found.features.shape == (3, 10)
  np.testing.assert_array_equal(found.features[:, :4], wrote['features'])
  np.testing.assert_allclose(
    found.features[:, -2], wrote['boxes'][:, 2] - wrote['boxes'][:, 0]
  )
  assert found.tags == ('dog', 'red ball', 'sofa')


@pytest.mark.parametrize(
  'arrays',
  [
    {'boxes': np.full((3, 4), 2.0)},
    {'boxes': np.zeros((2, 4))},
    {'tags': np.array([1, 2, 3])},
    {'tags': np.array([{'a': 1}, 2, 3], object)},  # would be unpickled
    {'features': np.full((3, 4), np.nan)},
    {'features': np.zeros(3)},
  ],
  ids=['not shares', 'counts', 'numbers', 'objects', 'not finite', 'one axis'],
)
def test_files_that_are_not_what_they_should_be_are_corrupt(tmp_path, arrays):
  write_regions(tmp_path / 'regions/weak', 1, **arrays)
  with pytest.raises(CorruptRecord):
    files.RegionFiles(tmp_path, 'weak')(1)


def test_damaged_and_missing_files_are_corrupt_and_no_folder_is_an_error(
  tmp_path,
):
  write_regions(tmp_path / 'regions/weak', 1)
  path = tmp_path / 'regions/weak/1.npz'
  path.write_bytes(path.read_bytes()[:60])
  read = files.RegionFiles(tmp_path, 'weak')
  for image in (1, 2):
    with pytest.raises(CorruptRecord):
      read(image)
  with pytest.raises(UserError, match='no folder'):
    files.RegionFiles(tmp_path, 'strong')


def write_root(root, **strong):
  for image in (1, 2):
    wrote = write_regions(root / 'regions/weak', image)
    write_regions(
      root / 'regions/adapted',
      image,
      width=6,
      **({'boxes': wrote['boxes'], 'tags': wrote['tags']} | strong),
    )
  images = [
    {'cocoid': i, 'split': split, 'sentences': [{'raw': 'a red heart'}]}
    for i, split in ((1, 'train'), (2, 'restval'), (3, 'test'))
  ]
  (root / 'dataset_coco.json').write_text(json.dumps({'images': images}))
  asked = [
    {'question_id': 10 + i, 'image_id': i, 'question': 'what is it?'}
    for i in (1, 2)
  ]
  people = [
    {
      'question_id': 10 + i,
      'answer_type': 'other',
      'answers': [{'answer': 'heart'}] * 10,
    }
    for i in (1, 2)
  ]
  (root / 'asked-train.json').write_text(json.dumps({'questions': asked}))
  (root / 'said-train.json').write_text(json.dumps({'annotations': people}))


def of_files(root, task):
  config = tiny(task=task, num_answers=1)
  config.data.dataset, config.data.root = 'files', str(root)
  config.data.questions = 'asked-{split}.json'
  config.data.annotations = 'said-{split}.json'
  config.data.detectors.update(weak=10, adapted=12)
  return config


def test_published_files_make_the_batches_of_every_task(tmp_path):
  write_root(tmp_path)
  for task in ('pretrain', 'vqa', 'caption'):
    source, steps = data.train_data(of_files(tmp_path, task))
    assert len(source) == 2
    record, rng = source[1], np.random.default_rng(0)
    for step in steps:
      record = step(record, rng)
    assert record['regions'].shape == (4, 10)
    assert record['teacher_regions'].shape == (4, 12)
    assert record['region_count'] == 3
  assert record['words'][0] == 2


def test_detectors_with_other_boxes_are_refused(tmp_path):
  boxes = np.tile(np.array([[0.1, 0.1, 0.2, 0.2]]), (3, 1))
  write_root(tmp_path, boxes=boxes)
  with pytest.raises(UserError, match='boxes'):
    data.train_data(of_files(tmp_path, 'vqa'))


def test_annotations_that_do_not_fit_are_told(tmp_path):
  write_root(tmp_path)
  (tmp_path / 'said-train.json').write_text('{"annotations": []}')
  config = of_files(tmp_path, 'vqa')
  config.data.annotations = 'said-{split}.json'
  questions = tmp_path / 'asked-train.json'
  found = files.read_questions(questions, None)
  assert [each.number for each in found] == [11, 12]
  with pytest.raises(UserError, match='JSON object'):
    files.read_questions(tmp_path / 'dataset_coco.json', None)
  with pytest.raises(UserError, match='cannot be read'):
    files.read_captions(tmp_path / 'nothing.json', 'train')
  with pytest.raises(UserError, match='restval, test, train'):
    files.read_captions(tmp_path / 'dataset_coco.json', 'val')
  broken = tmp_path / 'broken.json'
  broken.write_text(json.dumps({'images': [{'split': 'train'}]}))
  with pytest.raises(UserError, match='sentences'):
    files.read_captions(broken, 'train')
