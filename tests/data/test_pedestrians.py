"""The generated pedestrians: reproducible, true to their captions, whole."""

import concurrent.futures
import functools
import importlib
import json
import re
import shutil

import cv2
import numpy as np
import pytest

from jaxzoo.data import pedestrians
from jaxzoo.data.pedestrians import __main__ as command
from jaxzoo.data.pedestrians import attributes, captions, draw, render, words
from jaxzoo.errors import UserError

# The package's `write` is the function.
writing = importlib.import_module('jaxzoo.data.pedestrians.write')

TINY = pedestrians.Settings(
  train_identities=6,
  test_identities=4,
  cross_identities=6,
  images_per_identity=2,
  height=96,
  width=32,
)


def _people(count, siblings=0.4, seed=0):
  return attributes.people(seed, 0, count, siblings, set())


def _shot(i, view=None, **fields):
  at = render.shot(np.random.default_rng(i))
  return at._replace(view=view or at.view, hidden_below=0.0, **fields)


def _files(root):
  """Every file below root: relative path -> bytes."""
  return {
    str(path.relative_to(root)): path.read_bytes()
    for path in sorted(root.rglob('*'))
    if path.is_file()
  }


def _records(root, name):
  return json.loads((root / name / f'{name}_Annotations.json').read_text())


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  folder = tmp_path_factory.mktemp('pedestrians')
  pedestrians.write(folder, TINY)
  return folder


def test_same_seed_gives_same_bytes_with_any_number_of_workers(root, tmp_path):
  pedestrians.write(tmp_path, TINY, workers=2)
  assert _files(tmp_path) == _files(root)


def test_other_seed_gives_other_people_and_pictures(root, tmp_path):
  pedestrians.write(tmp_path, TINY._replace(seed=1))
  ours, theirs = _files(root), _files(tmp_path)
  assert ours.keys() == theirs.keys()
  assert not [name for name in ours if ours[name] == theirs[name]]


def test_pictures_do_not_depend_on_how_many_people_there_are(root, tmp_path):
  pedestrians.write(tmp_path, TINY._replace(train_identities=2))
  few, many = _records(tmp_path, 'UFine6926'), _records(root, 'UFine6926')
  assert few[:4] == many[:4]
  for number in (1, 4):
    name = f'UFine6926/images/{number}.jpg'
    assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
  # The cross set is the same altogether.
  assert _records(tmp_path, 'UFine3C') == _records(root, 'UFine3C')


def test_no_two_identities_are_described_alike():
  settings = TINY._replace(
    train_identities=300, test_identities=100, cross_identities=100
  )
  seen = {}
  for picture in writing._pictures(settings):
    key = attributes.described(picture.person)
    who = (picture.split, picture.pid)
    assert seen.setdefault(key, who) == who
  assert len(seen) == 500


def test_people_avoid_the_descriptions_already_given_away():
  taken = set()
  first, second = (attributes.people(0, 0, 50, 0.4, taken) for _ in range(2))
  first, second = (
    {attributes.described(who) for who in group} for group in (first, second)
  )
  assert not first & second and len(taken) == 100


def test_annotations_have_the_real_data_sets_form(root):
  main, cross = _records(root, 'UFine6926'), _records(root, 'UFine3C')
  assert all(list(r) == ['split', 'id', 'file_path', 'captions'] for r in main)
  assert all(
    list(r) == ['id', 'source', 'split', 'file_path', 'captions'] for r in cross
  )
  assert {r['split'] for r in cross} == {'test'}
  assert {r['source'] for r in cross} == set(pedestrians.CROSS_DOMAINS)
  assert {len(r['captions']) for r in main} == {2}
  assert {len(r['captions']) for r in cross} == {5}
  for name, records in (('UFine6926', main), ('UFine3C', cross)):
    paths = [r['file_path'] for r in records]
    assert paths == [f'images/{i + 1}.jpg' for i in range(len(records))]
    for path in paths:
      image = cv2.imread(str(root / name / path))
      assert image.shape == (96, 32, 3)


def test_training_ids_are_1_to_n_and_test_ids_follow(root):
  records = _records(root, 'UFine6926')
  ids = [(r['split'], r['id']) for r in records]
  assert ids == [('train', i) for i in range(1, 7) for _ in range(2)] + [
    ('test', i) for i in range(7, 11) for _ in range(2)
  ]
  cross = [r['id'] for r in _records(root, 'UFine3C')]
  assert cross == [i for i in range(1, 7) for _ in range(2)]


@pytest.mark.parametrize(
  'kind, low, high', [(captions.coarse, 22, 30), (captions.fine, 75, 88)]
)
def test_captions_have_the_promised_length(kind, low, high):
  for styles in (captions.TRAIN_STYLES, captions.CROSS_STYLES):
    lengths = [
      len(kind(np.random.default_rng(i), who, _shot(i), style).split())
      for i, who in enumerate(_people(100))
      for style in styles
    ]
    assert low <= np.mean(lengths) <= high
    assert max(lengths) < 115


@functools.cache
def _all_captions():
  """(person, shot, caption), both granularities, all styles."""
  return tuple(_drawn_captions(100))


def _drawn_captions(count):
  for i, who in enumerate(_people(count)):
    at = _shot(i)
    for k, style in enumerate(captions.CROSS_STYLES):
      for kind in (captions.coarse, captions.fine):
        yield who, at, kind(np.random.default_rng((i, k)), who, at, style)


def test_captions_are_clean_ascii_sentences():
  for _, _, text in _all_captions():
    assert text.isascii() and text[0].isupper() and text.endswith('.')
    assert not re.search(r'[{}]|  |\.\.| [.,;]|\ba [aeiou]|\ban [^aeiou]', text)
    assert all(s[0].isupper() for s in re.split(r'(?<=[.?]) ', text))


_COLOUR = {
  word: name
  for name, all_words in words.COLOUR_WORDS.items()
  for word in all_words
}
_ANY_COLOUR = '|'.join(sorted(_COLOUR, key=len, reverse=True))
_COLOUR_FIELDS = {
  'upper': 'upper_colour',
  'lower': 'lower_colour',
  'shoes': 'shoes_colour',
  'bag': 'bag_colour',
  'hat': 'hat_colour',
  'item': 'item_colour',
}


def test_every_colour_in_a_caption_is_one_of_the_persons():
  fields = [*_COLOUR_FIELDS.values(), 'accent', 'inner', 'side_stripe']
  fields += ['socks', 'scarf', 'headphones', 'hair_colour']
  for who, _, text in _all_captions():
    text = text.lower()
    said = {_COLOUR[c] for c in re.findall(rf'\b({_ANY_COLOUR})\b', text)}
    assert said <= {getattr(who, field) for field in fields}, (who, text)


def _known_garments():
  """(field, kind, pattern that finds the colour before the garment)."""
  for field in _COLOUR_FIELDS:
    kinds = {getattr(who, field) for who in _people(300)} - {'', 'bare'}
    for kind in kinds:
      for name in words.GARMENT_WORDS[kind]:
        first, _, rest = name.partition(' ')
        adjective = first in words._FIRST
        body = rest if adjective else name
        lead = f'{first} ' if adjective else ''
        # Not 'red skirt' in 'long red skirt', nor 'blue' in 'dark blue'.
        before = {*words._FIRST, *(c.split()[0] for c in _COLOUR if ' ' in c)}
        alone = r'\b' + ''.join(f'(?<!{word} )' for word in sorted(before))
        yield field, kind, rf'{alone}{lead}({_ANY_COLOUR}) {body}\b'


def test_garments_are_named_with_their_own_colours():
  known = [(f, k, re.compile(p)) for f, k, p in _known_garments()]
  second = re.compile(
    rf' and (half ({_ANY_COLOUR})|({_ANY_COLOUR}) (striped|checked|dotted)) '
  )
  found = set()
  for who, _, text in _all_captions()[:800]:
    # In 'red and blue striped shirt' the second colour is the pattern's.
    text = second.sub(' ', text.lower())
    for field, kind, pattern in known:
      for tone in pattern.findall(text):
        if kind == 'shirt' and who.inner == _COLOUR[tone]:
          continue  # the one under a jacket
        assert getattr(who, field) == kind, (field, kind, who, text)
        assert getattr(who, _COLOUR_FIELDS[field]) == _COLOUR[tone], text
        found.add(field)
  assert found == set(_COLOUR_FIELDS)


def test_sleeves_are_said_as_they_are_and_a_vest_has_none():
  sentence = re.compile(r'sleeves of the (.*?) are (short|long)')
  said = set()
  for who, _, text in _all_captions():
    for garment, length in sentence.findall(text):
      assert who.sleeves == length and 'vest' not in garment, text
      said.add(length)
    assert ('Long sleeves' not in text) or who.sleeves == 'long'
    assert ('with short sleeves' not in text) or who.sleeves == 'short'
  assert said == {'short', 'long'}


@pytest.mark.parametrize(
  'field, denial',
  [
    ('bag', r'carries no bag|have a bag with'),
    ('hat', r'wears no hat|no hat on'),
    ('glasses', r'wears no glasses|not wear glasses'),
    ('scarf', r'no scarf'),
    ('item', r'hands are empty|holds nothing'),
    ('accent', r'no pattern'),
  ],
)
def test_what_a_caption_denies_the_person_lacks(field, denial):
  denied = [who for who, _, text in _all_captions() if re.search(denial, text)]
  assert denied
  assert not [who for who in denied if getattr(who, field)]


def _changed(who, field):
  """`who` with one field made another, so that it would show."""
  if field == 'beard':
    return who._replace(gender='man', beard=not who.beard)
  other = {'glasses': 'sunglasses', 'inner': 'pink', 'shoes_colour': 'pink'}
  return who._replace(**{field: '' if getattr(who, field) else other[field]})


@pytest.mark.parametrize('field', ['glasses', 'beard', 'inner'])
def test_what_counts_as_hidden_leaves_no_trace_in_the_picture(field):
  for i, who in enumerate(_people(30)):
    who = who._replace(gender='man', upper='coat', glasses='', pattern='plain')
    for view, seen in (('back', False), ('front', True)):
      at = _shot(i, view)
      assert (field in render.hidden(who, at)) != seen
      pictures = [
        render.render(each, at, 96, 32) for each in (who, _changed(who, field))
      ]
      assert np.array_equal(*pictures) != seen


def test_covered_feet_are_not_described():
  for i, who in enumerate(_people(60)):
    at = _shot(i, 'front')._replace(hidden_below=0.2)
    assert {'shoes', 'socks'} <= render.hidden(who, at)
  who = _people(1)[0]
  tones = [
    who._replace(shoes='sneakers', shoes_colour=c) for c in ('red', 'blue')
  ]
  at = _shot(0, 'front', stride=0.0, bottom=0.95, size=0.9)
  high = at._replace(hidden_below=0.2)
  assert np.array_equal(*(render.render(p, high, 96, 32) for p in tones))
  assert not np.array_equal(*(render.render(p, at, 96, 32) for p in tones))


def test_siblings_have_the_asked_share_and_differ_in_little():
  for share in (0.0, 0.5, 1.0):
    who = _people(200, share)
    differing = [
      sum(a != b for a, b in zip(*pair, strict=True))
      for pair in zip(who[::2], who[1::2], strict=True)
    ]
    near = np.mean([count <= 5 for count in differing])
    assert abs(near - share) < 0.15, share
    assert min(differing) >= 1


def test_siblings_differ_in_fine_attributes_and_in_all_of_them():
  changed = set()
  who = _people(400, 1.0)
  for pair in zip(who[::2], who[1::2], strict=True):
    fields = zip(attributes.Person._fields, *pair, strict=True)
    changed |= {name for name, a, b in fields if a != b}
  assert changed == {
    *('shoes_colour', 'bag', 'bag_colour', 'bag_side', 'pattern', 'accent'),
    *('inner', 'scarf', 'hat_colour', 'glasses'),
  }


def test_siblings_can_be_told_apart_in_a_picture_128_high():
  for i, (who, other) in enumerate(
    zip(_people(80, 1.0)[::2], _people(80, 1.0)[1::2], strict=True)
  ):
    at = _shot(i, 'front')
    a, b = (render.render(p, at, 128, 48).astype(int) for p in (who, other))
    assert (np.abs(a - b).max(-1) > 24).sum() >= 6, (who, other)


def test_garment_colours_are_recognisable_at_96_by_32():
  names = list(attributes.COLOURS)
  colours = np.array(list(attributes.COLOURS.values()), float)
  base = _people(1)[0]._replace(
    upper='t-shirt', pattern='plain', accent='', inner='', bag='', scarf='',
    item='', hair='short', sleeves='short', build='average', upper_colour=''
  )  # fmt: skip
  right = []
  for i in range(20):
    for name in names:
      at = _shot(i, 'front', size=0.9, bottom=0.95, x=0.5)
      who = base._replace(upper_colour=name, shade=i)
      chest = render.render(who, at, 96, 32)[28:44, 13:19].reshape(-1, 3)
      near = np.abs(colours - np.median(chest, 0)).sum(1)
      right.append(names[int(near.argmin())] == name)
  assert np.mean(right) > 0.85


@pytest.mark.parametrize('size', [(96, 32), (192, 64), (256, 96)])
def test_a_picture_shows_the_same_at_every_size(size):
  who = _people(1)[0]
  at = _shot(0)._replace(domain='day')
  small = render.render(who, at, *size).astype(np.float32)
  large = render.render(who, at, 384, 128).astype(np.float32)
  shrink = [
    cv2.resize(image, (8, 32), interpolation=cv2.INTER_AREA)
    for image in (small, large)
  ]
  assert np.abs(shrink[0] - shrink[1]).mean() < 10


def test_a_shape_off_the_canvas_is_cut_not_an_error():
  frame = draw.Frame(np.zeros((20, 10, 3), np.uint8), 20.0, 5.0, 0.0)
  stuff = draw.Cloth((255, 0, 0), 'checks', (0, 255, 0))
  draw.cloth(frame, draw.box(-9.0, -9.0, -8.0, -8.0), stuff)
  assert not frame.canvas.any()
  draw.cloth(frame, draw.box(-9.0, -9.0, 9.0, 9.0), stuff)
  assert set(map(tuple, frame.canvas.reshape(-1, 3).tolist())) == {
    (255, 0, 0),
    (0, 255, 0),
  }


def test_prepare_generates_once_and_apart_for_other_settings(tmp_path):
  first = pedestrians.prepare(TINY, tmp_path)
  stamps = {path: path.stat().st_mtime_ns for path in first.rglob('*')}
  assert pedestrians.prepare(TINY, tmp_path) == first
  assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
  other = pedestrians.prepare(TINY._replace(seed=3), tmp_path)
  assert other != first
  assert sorted(tmp_path.iterdir()) == sorted([first, other])


def test_prepare_follows_the_environment(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXZOO_DATA', str(tmp_path / 'data'))
  folder = pedestrians.prepare(TINY)
  assert folder.parent == tmp_path / 'data'
  assert folder.name.startswith('pedestrians-')


def test_an_interrupted_prepare_leaves_nothing_and_can_be_repeated(
  tmp_path, monkeypatch
):
  def interrupted(root, settings, part, parts):
    (root / 'UFine6926' / 'images' / '1.jpg').write_bytes(b'half')
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(writing, '_write_images', interrupted)
    with pytest.raises(KeyboardInterrupt):
      pedestrians.prepare(TINY, tmp_path)
  assert not list(tmp_path.iterdir())
  folder = pedestrians.prepare(TINY, tmp_path)
  assert len(_records(folder, 'UFine6926')) == 20


def test_a_half_written_folder_is_not_taken_for_the_data_set(root, tmp_path):
  folder = pedestrians.prepare(TINY, tmp_path)
  (folder / 'settings.json').unlink()
  (folder / 'UFine6926' / 'images' / '1.jpg').write_bytes(b'half')
  assert pedestrians.prepare(TINY, tmp_path) == folder
  assert _files(folder) == _files(root)
  assert list(tmp_path.iterdir()) == [folder]


def test_preparing_twice_at_once_gives_one_whole_data_set(root, tmp_path):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    jobs = [pool.submit(pedestrians.prepare, TINY, tmp_path) for _ in range(3)]
    folders = {job.result() for job in jobs}
  assert list(tmp_path.iterdir()) == list(folders)
  assert _files(folders.pop()) == _files(root)


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  for call in (
    lambda: pedestrians.prepare(TINY, tmp_path / 'file'),
    lambda: pedestrians.write(tmp_path / 'file' / 'below', TINY),
  ):
    with pytest.raises(UserError, match='cannot write to .*file'):
      call()


def test_a_worker_that_fails_is_a_clear_error_and_leaves_no_mark(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(writing.sys, 'executable', shutil.which('false'))
  with pytest.raises(UserError, match='a worker died'):
    pedestrians.write(tmp_path, TINY, workers=2)
  assert not (tmp_path / 'settings.json').exists()


@pytest.mark.parametrize(
  'field, value',
  [
    ('train_identities', 0),
    ('height', 3),
    ('siblings', 1.5),
    ('images_per_identity', -1),
    ('quality', 101),
  ],
)
def test_senseless_settings_are_refused_by_name(field, value, tmp_path):
  with pytest.raises(UserError, match=field):
    pedestrians.write(tmp_path, TINY._replace(**{field: value}))
  assert not list(tmp_path.iterdir())


def test_command_reports_what_it_wrote_and_draws_a_sheet(tmp_path, capsys):
  options = [f'--{name}={value}' for name, value in TINY._asdict().items()]
  sheet = tmp_path / 'sheet.png'
  out = tmp_path / 'out'
  assert command.main([*options, f'--out={out}', f'--sheet={sheet}']) == 0
  said = capsys.readouterr().out
  assert 'UFine6926 train: 6 people, 12 images, 24 captions of ' in said
  assert 'UFine6926 test: 4 people, 8 images, 16 captions of ' in said
  assert 'UFine3C test: 6 people, 12 images, 60 captions of ' in said
  image = cv2.imread(str(sheet))
  assert image.shape[0] == 12 * 96 and image.shape[1] > 2 * 32


def test_command_fails_with_one_line(tmp_path, capsys):
  assert command.main([f'--out={tmp_path}', '--siblings=2']) == 2
  message = capsys.readouterr().err
  assert 'siblings' in message and message.count('\n') == 1
