"""Runs that stand on other runs."""

import json

import jax
import numpy as np
import pytest

from jaxzoo import catalog, main, stages
from jaxzoo.errors import UserError
from jaxzoo.train import loop


def config_of(**fields):
  config = catalog.get_config('distillation:tiny').unlock()
  config.epochs = 1.0
  config.stages.teacher = stages.stage(
    'classification:tiny', **{'epochs': 1.0, **fields}
  )
  return config.lock()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('distillation')
  main.train(config_of(), folder)
  return folder


def test_stage_is_trained_first_with_its_own_fields(workdir):
  result = json.loads((workdir / 'teacher' / 'result.json').read_text())
  assert (result['system'], result['step']) == ('classification', 4)
  assert (
    'teacher' in json.loads((workdir / 'result.json').read_text())['stages']
  )


def test_teacher_is_the_averaged_network_of_its_stage(workdir):
  from jaxzoo.runs import read_run  # after the flags of the session
  from jaxzoo.train import mesh

  on = mesh.make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])
  _, teacher = read_run(workdir / 'teacher', 'newest', on)
  _, student = read_run(workdir, 'newest', on)
  got = student.extra['teacher']
  jax.tree.map(
    np.testing.assert_array_equal, got['params'], teacher.extra['ema']
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    got['batch_stats'],
    teacher.extra['ema_stats'],
  )


def test_finished_stage_is_not_trained_again(workdir, tmp_path):
  config = config_of(epochs=99.0).unlock()
  config.stages.teacher.run = str(workdir / 'teacher')
  folders = stages.run_stages(config, tmp_path, train=None, say=print)
  assert folders['teacher'] == workdir / 'teacher'
  (tmp_path / 'teacher').mkdir()
  (tmp_path / 'teacher' / 'result.json').write_text('{"metrics": {}}')
  config.stages.teacher.run = ''
  assert stages.run_stages(config, tmp_path, train=None, say=print) == {
    'teacher': tmp_path / 'teacher'
  }


def test_folder_without_a_finished_run_is_refused(tmp_path):
  config = config_of().unlock()
  config.stages.teacher.run = str(tmp_path)
  with pytest.raises(UserError, match='no finished run'):
    stages.run_stages(config, tmp_path, train=None, say=print)


def test_unknown_field_of_a_stage_is_named(tmp_path):
  config = config_of(epoch=1.0)
  with pytest.raises(UserError, match='epochs'):
    stages.run_stages(config, tmp_path, train=None, say=print)


def test_teacher_of_another_network_is_refused_before_training(
  workdir, tmp_path
):
  config = config_of().unlock()
  config.stages.teacher.run = str(workdir / 'teacher')
  config.teacher.model_options.width = 16
  with pytest.raises(UserError, match='model_options'):
    main.train(config, tmp_path / 'run')


def test_stage_has_what_it_inherits_from_the_run_above(tmp_path):
  config = config_of().unlock()
  config.stages.teacher = stages.stage(
    'classification:tiny', inherit=('seed', 'data.root')
  )
  config.seed, config.data.root = 7, '/pictures'
  seen = []
  stages.run_stages(
    config, tmp_path, lambda own, folder: seen.append(own), say=print
  )
  assert (seen[0].seed, seen[0].data.root) == (7, '/pictures')


def test_stage_that_diverges_names_its_own_folder(tmp_path):
  config = config_of(optim__lr=1e30)
  with pytest.raises(loop.NotFinite) as broken:
    main.train(config, tmp_path)
  assert broken.value.workdir == str(tmp_path / 'teacher')
