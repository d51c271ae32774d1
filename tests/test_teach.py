"""What a teacher said of every picture serves as well as the teacher."""

import json

import numpy as np
import pytest

from jaxzoo import catalog, main, teach
from jaxzoo.data import classification as data
from jaxzoo.errors import UserError


def config_of(**changes):
  config = catalog.get_config('distillation:tiny')
  config.data.flip, config.data.crop = 0.0, 'none'
  config.epochs = 1.0
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  return config


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """(folder, file of logits): the teacher was trained in the folder."""
  folder = tmp_path_factory.mktemp('teach')
  path = folder / 'logits.npy'
  overrides = ['--config.data.flip=0.0', '--config.data.crop=none']
  code = teach.command(
    [
      '--config=configs/distillation.py:tiny',
      f'--out={path}',
      f'--workdir={folder / "run"}',
      *overrides,
    ]
  )
  assert code == 0
  return folder, path


def test_file_has_a_row_for_each_picture(written):
  folder, path = written
  config = config_of()
  source = data.read_source(config, config.data.train_split)
  logits = np.load(path, allow_pickle=False)
  assert logits.shape == (len(source), config.num_classes)
  assert logits.dtype == np.float16
  assert np.ptp(logits, axis=0).min() > 0  # pictures differ
  facts = json.loads((folder / 'logits.json').read_text())
  assert facts['source'] == repr(source)


@pytest.mark.slow
def test_student_learns_the_same_from_the_file(written, tmp_path):
  folder, path = written
  teacher = str(folder / 'run/teacher')

  def losses(name, **changes):
    config = config_of(stages__teacher__run=teacher, **changes)
    main.train(config, tmp_path / name)
    lines = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row['kd'] for row in rows if 'kd' in row]

  live = losses('live')
  stored = losses('stored', data__teacher_logits=str(path))
  assert len(live) > 1
  np.testing.assert_allclose(stored, live, rtol=2e-2)  # float16


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(data__crop='random_resized'), 'random_resized'),
    (dict(loss__mixup=0.2), r'loss.mixup=0.2.*leave data.teacher_logits'),
    (dict(data__embedded={'train': 30}), 'jaxzoo.teach'),
    (dict(data__teacher_logits='nowhere.npy'), 'nowhere'),
  ],
)
def test_files_that_do_not_fit_are_refused(written, changes, words):
  config = config_of(data__teacher_logits=str(written[1]))
  config.unlock()
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  with pytest.raises(UserError, match=words):
    data.train_data(config)


def test_configs_without_a_classifier_are_refused(tmp_path, capsys):
  arguments = ['--config=configs/card.py:tiny', f'--out={tmp_path / "x.npy"}']
  assert teach.command(arguments) == 2
  assert 'configs/dist.py' in capsys.readouterr().err
