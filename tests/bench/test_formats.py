"""The formats hold the same pictures, and the command reports each."""

import json
import math
import sys

import numpy as np
import pytest

from jaxzoo.bench import command, formats
from jaxzoo.data import classification, pipeline

COUNT, SIZE = 12, 32
ARGV = [
  f'--pictures={COUNT}',
  f'--image_size={SIZE}',
  '--batch_size=4',
  '--threads=1',
  '--workers=0',
  '--seconds=0.05',
  '--rounds=2',
]


@pytest.fixture(params=['folder', 'tfds'])
def written(request, tmp_path):
  """(a config that reads the format, files, labels)."""
  if request.param not in formats.formats_here():
    pytest.importorskip('tensorflow_datasets')
  files, labels = formats.photographs(COUNT)
  config = formats.write(request.param, str(tmp_path), files, labels, 4, SIZE)
  return config, files, labels


def test_every_format_gives_every_picture_in_one_order(written, tmp_path):
  config, files, labels = written
  got = classification.train_data(config)
  assert len(got.source) == COUNT
  assert got.source.labels.tolist() == labels
  assert got.source.names == formats.CLASSES
  assert np.bincount(labels).tolist() == [3] * 4
  (tmp_path / 'again').mkdir()
  place = str(tmp_path / 'again')
  folder = formats.write('folder', place, files, labels, 4, SIZE)
  folder = classification.train_data(folder)
  batch, want = (
    pipeline.train_dataset(*x, batch_size=4, seed=0)[0] for x in (got, folder)
  )
  for name, x in want.items():
    np.testing.assert_array_equal(batch[name], x)
  assert batch['image'].shape == (4, SIZE, SIZE, 3)


def test_pictures_are_those_of_the_seed_and_as_large_as_photographs():
  (file,), labels = formats.photographs(1)
  assert 70e3 < len(file) < 150e3 and labels == [0]
  assert formats.photographs(1) == ([file], labels)
  assert formats.photographs(1, seed=1)[0] != [file]


@pytest.mark.parametrize('installed', [False, True])
def test_command_reports_every_format(installed, tmp_path, capsys, monkeypatch):
  if installed:
    pytest.importorskip('tensorflow_datasets')
  else:
    monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  names = formats.formats_here()
  assert len(names) == 1 + installed
  path = tmp_path / 'result.json'
  assert command.run(formats.formats, [*ARGV, f'--json={path}']) == 0
  printed = capsys.readouterr().out
  assert ('pip install "jaxzoo[tfds]"' in printed) is not installed
  result = json.loads(path.read_text())
  assert [row['format'] for row in result['input']] == names
  for row in result['input']:
    assert row['format'] in printed
    assert (row['threads'], row['workers']) == (1, 0)
    assert 0 < row['images_per_second'] < math.inf
    assert 0 < row['images_per_core_second'] < math.inf
    if sys.platform == 'linux':
      assert row['bytes_read'] > 0.9 * result['bytes']


@pytest.mark.parametrize(
  'argument, message',
  [
    ('--pictures=2', '--pictures=2: a batch takes at least 4'),
    ('--rounds=0', '--rounds must be at least 1'),
    ('--threads=', '--threads: write numbers'),
    ('--workers=two', '--workers=two'),
    ('--directory=/dev/null', '--directory=/dev/null: Not a directory'),
  ],
)
def test_mistake_is_one_line(argument, message, monkeypatch, capsys):
  monkeypatch.setattr(formats, 'formats_here', lambda: ['folder'])
  assert command.run(formats.formats, [*ARGV, argument]) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('error: ') and message in line
