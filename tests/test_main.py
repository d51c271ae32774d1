"""The command line: what a run leaves behind, and what it says when it cannot.

Runs are CLIP's tiny config: seconds each, on the eight virtual devices.
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxzoo import main as command
from jaxzoo.data import person_retrieval

ROOT = pathlib.Path(command.__file__).parents[1]
STEPS = 16  # 4 epochs of 32 pairs in batches of 8
COMMAND = [sys.executable, '-m', 'jaxzoo.main']
ANNOTATIONS = 'UFine6926/UFine6926_Annotations.json'


@pytest.fixture
def run(capfd, caplog):
  """(*arguments) -> (exit code, stdout, stderr with all that was logged)."""

  def run(*arguments):
    capfd.readouterr()
    caplog.clear()
    try:
      code = command.main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse
      code = left.code
    out, err = capfd.readouterr()
    return code, out, err + caplog.text  # pytest takes the log from stderr

  return run


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The folder, below which a finished run lies where it does by default."""
  folder = tmp_path_factory.mktemp('finished')
  out = subprocess.run(
    [*COMMAND, '--config=clip:tiny'],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert out.returncode == 0, out.stderr
  return folder / 'runs/clip-tiny', out


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of the finished run, to be changed."""
  return shutil.copytree(finished[0], tmp_path / 'run')


def lines_of(workdir):
  return [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]


def result_of(workdir):
  return json.loads((workdir / 'result.json').read_text())


def assert_one_message(code, err, *words):
  """A mistake of the user: code 2, and a message without a traceback."""
  assert code == 2
  assert err.startswith('error: ') and 'Traceback' not in err
  assert err.count('error: ') == 1
  for word in words:
    assert word in err


# A run.


def test_run_leaves_everything_behind(finished):
  workdir, _ = finished
  assert {path.name for path in workdir.iterdir()} == {
    'checkpoints',
    'config.json',
    'events',
    'metrics.jsonl',
    'pictures',
    'result.json',
  }
  assert {path.name for path in (workdir / 'pictures').iterdir()} == {
    'cross_retrieval.png',
    'learning_curves.png',
    'test_retrieval.png',
  }
  assert json.loads((workdir / 'config.json').read_text())['system'] == 'clip'
  steps = [path.name for path in (workdir / 'checkpoints').iterdir()]
  assert str(STEPS) in steps and all(name.isdigit() for name in steps)
  assert (workdir / 'checkpoints' / str(STEPS) / 'manifest.json').exists()
  assert len(list((workdir / 'events').iterdir())) == 1


def test_result_is_the_last_evaluation(finished):
  workdir, _ = finished
  result, lines = result_of(workdir), lines_of(workdir)
  assert result['system'] == 'clip' and result['step'] == STEPS
  (last,) = [x for x in lines if x['step'] == STEPS and 'test/R@1' in x]
  assert result['metrics'].items() <= last.items()
  for name, value in result['metrics'].items():
    assert 0 <= value <= 100, name
  steps = [line['step'] for line in lines]
  assert steps == sorted(steps) and steps[-1] == STEPS


def test_run_says_what_it_does_and_nothing_else(finished):
  _, out = finished
  assert out.stderr == '', 'no warnings on a run where nothing is wrong'
  lines = out.stdout.splitlines()
  assert lines[0].startswith('clip: 32 examples, 16 steps of 8 on 8 x cpu')
  assert lines[0].endswith('writing to runs/clip-tiny')
  assert 'parameters, compiled in' in lines[1]
  assert lines[1].endswith('starting at step 0')
  assert any(line.startswith('step ') and 'loss' in line for line in lines)
  assert any('evaluation' in line and 'R@1' in line for line in lines)


def test_finished_run_is_not_trained_again(workdir, run):
  before, lines = result_of(workdir), lines_of(workdir)
  (workdir / 'result.json').unlink()
  # These fields may change between the parts of a run.
  free = ('log_steps=3', 'save_epochs=2', 'checkpoint.keep=3', 'data.threads=1')
  fields = [f'--config.{field}' for field in free]
  code, out, err = run('--config=clip:tiny', f'--workdir={workdir}', *fields)
  assert (code, err) == (0, '')
  assert f'resumed at step {STEPS}' in out and 'step 1/' not in out
  assert result_of(workdir) == before
  assert lines_of(workdir) == lines


def test_other_configuration_needs_force(workdir, run):
  change = '--config.data.flip=0.25'
  code, _, err = run('--config=clip:tiny', f'--workdir={workdir}', change)
  assert_one_message(
    code, err, 'data.flip: 0.5 -> 0.25', '--force', '--workdir'
  )
  arguments = ['--config=clip:tiny', f'--workdir={workdir}', change, '--force']
  code, _, err = run(*arguments)
  assert (code, err) == (0, '')
  config = json.loads((workdir / 'config.json').read_text())
  assert config['data']['flip'] == 0.25


def test_force_does_not_load_a_checkpoint_of_another_shape(workdir, run):
  code, _, err = run(
    '--config=clip:tiny',
    f'--workdir={workdir}',
    '--config.towers.output_dim=16',
    '--force',
  )
  assert_one_message(
    code, err, 'does not fit this configuration', '[32, 32]', '[32, 16]'
  )


def test_damaged_checkpoint_is_reported_and_its_steps_done_again(workdir, run):
  before = result_of(workdir)
  newest = workdir / 'checkpoints' / str(STEPS)
  path = max(
    (p for p in newest.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  code, out, err = run('--config=clip:tiny', f'--workdir={workdir}')
  assert code == 0 and 'is damaged' in err and f'{STEPS}.bad' in err
  assert f'resumed at step {STEPS - 4}' in out
  assert result_of(workdir) == before


def test_damaged_config_json_is_an_error(workdir, run):
  (workdir / 'config.json').write_text('{"system":')
  code, _, err = run('--config=clip:tiny', f'--workdir={workdir}')
  assert_one_message(code, err, 'config.json is damaged', '--force')


def test_divergence_has_a_code_of_its_own_and_names_the_checkpoint(
  tmp_path, run
):
  code, _, err = run(
    '--config=clip:tiny', f'--workdir={tmp_path}', '--config.optim.lr=1e30'
  )
  assert code == 3 and 'Traceback' not in err
  assert 'at step' in err and f'{tmp_path}/checkpoints' in err
  assert not (tmp_path / 'result.json').exists()


# Mistakes, found before anything is compiled.


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], ['which system', '--list']),
    (['--config=clip:tny'], ["no variant 'tny'", 'tiny']),
    (['--config=configs/clpi.py'], ['no config file', 'configs/clip.py']),
    (['--config=README.md'], ['README.md']),
    (['--config.optm.lr=1'], ["no field 'optm'", 'optim']),
    (['--config.batch_size=many'], ['expected int']),
    (['--config.data.kind=person'], ['data.kind', 'person_retrieval']),
    (['--config.data.dataset=cuhk'], ["data set 'cuhk'", 'cuhk_pedes']),
    (['--config.data.root=/no/such'], ['no folder /no/such']),
    (['--config.data.max_corrupt=-1'], ['data.max_corrupt']),
    (['--config.evals.test.dataset=ufine'], ["data set 'ufine'"]),
    (['--config.evals.test.split=dev'], ["split 'dev'"]),
    (['--config.evals.test.kind=person'], ['evals.test.kind']),
    (['--config.batch_size=12'], ['batch_size=12', '8 devices']),
    (['--config.batch_size=64'], ['fewer than one batch of 64']),
    (['--config.microbatches=3'], ['microbatches', 'multiple of 24']),
    (['--config.mesh.data=3'], ['mesh data=3', '8 devices']),
    (['--config.epochs=-1'], ['epochs=-1']),
    (['--config.dtype=bf16'], ['dtype', 'bfloat16']),
    (['--config.optim.name=adamv'], ['optim.name', 'adamw']),
    (['--config.optim.schedule=cosin'], ['optim.schedule', 'cosine']),
    (['--config.optim.groups=(("(", {}),)'], ['optim.groups', "'('"]),
    (['--config.checkpoint.keep=1'], ['checkpoint.keep=1']),
    (['--config.init.weights=/no/such.pt'], ['/no/such.pt']),
  ],
  ids=lambda value: ' '.join(value) if isinstance(value, list) else None,
)
def test_mistake_is_one_message_and_no_traceback(
  tmp_path, run, arguments, words
):
  if not any(argument.startswith('--config=') for argument in arguments):
    arguments = ['--config=clip:tiny'] * bool(arguments) + arguments
  code, out, err = run(*arguments, f'--workdir={tmp_path / "run"}')
  assert_one_message(code, err, *words)
  assert 'parameters' not in out, 'nothing must be compiled before'


@pytest.mark.parametrize('where', ['file', 'file/run', '/proc/run'])
def test_workdir_that_cannot_be_written_is_an_error(tmp_path, run, where):
  (tmp_path / 'file').write_text('')
  workdir = tmp_path / where
  code, _, err = run('--config=clip:tiny', f'--workdir={workdir}')
  assert_one_message(code, err, f'workdir {workdir}', '--workdir')


def test_unknown_option_shows_the_usage(run):
  code, _, err = run('--confg=clip')
  assert code == 2 and 'usage:' in err and '--confg=clip' in err


def test_list_shows_every_system(run):
  code, out, err = run('--list')
  assert (code, err) == (0, '')
  for slug in command.catalog.SYSTEMS:
    assert slug in out


# Data that is not as it should be.


@pytest.fixture
def broken_root(pedestrians_root, tmp_path, monkeypatch):
  """(change) -> root whose annotations went through `change`."""
  root = shutil.copytree(pedestrians_root, tmp_path / 'data')

  def make(change):
    path = root / ANNOTATIONS
    path.write_text(change(path.read_text()))
    return root

  yield make
  person_retrieval._read_split.cache_clear()


def with_gap(text):
  objects = json.loads(text)
  kept = [each for each in objects if each['id'] != 3]
  return json.dumps(kept)


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda text: text[:-10], ['is not valid JSON: line']),
    (lambda text: '{}', ['must hold a list']),
    (with_gap, ['without gaps', 'missing 3']),
    (lambda text: text.replace('"captions"', '"caption"'), ["'captions'"]),
    (lambda text: text.replace('"images/', '"../../'), ['leaves its folder']),
  ],
)
def test_bad_annotations_are_an_error_with_their_path(
  broken_root, tmp_path, run, change, words
):
  root = broken_root(change)
  code, _, err = run(
    '--config=clip:tiny', f'--config.data.root={root}', f'--workdir={tmp_path}'
  )
  assert_one_message(code, err, str(root / ANNOTATIONS), *words)


@pytest.mark.slow
def test_truncated_images_are_passed_over_up_to_the_limit(
  broken_root, tmp_path, run
):
  root = broken_root(lambda text: text)
  objects = json.loads((root / ANNOTATIONS).read_text())
  broken = [
    root
    / 'UFine6926'
    / next(x for x in objects if x['split'] == split)['file_path']
    for split in ('train', 'test')
  ]
  for path in broken:
    path.write_bytes(path.read_bytes()[:-200])
  arguments = ['--config=clip:tiny', f'--config.data.root={root}']
  arguments += ['--config.eval_epochs=2']
  code, _, err = run(
    *arguments, f'--workdir={tmp_path / "a"}', '--config.data.max_corrupt=0.1'
  )
  assert code == 0 and (tmp_path / 'a/result.json').exists()
  assert f'corrupt record skipped: {broken[0]}' in err
  missing = f'corrupt record left out of the evaluation: {broken[1]}'
  assert err.count(missing) == 1, 'not again in every evaluation'
  code, _, err = run(
    *arguments, f'--workdir={tmp_path / "b"}', '--config.data.max_corrupt=0.0'
  )
  assert code == 2 and 'data.max_corrupt' in err and 'Traceback' not in err


# Interruption.


class Process:
  """The run of `finished` in a process of its own, with every step logged."""

  def __init__(self, workdir):
    self._lines = workdir / 'metrics.jsonl'
    arguments = ['--config=configs/clip.py:tiny', '--config.log_steps=1']
    self._process = subprocess.Popen(
      [*COMMAND, *arguments, f'--workdir={workdir}'],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def wait_for(self, step):
    while not self._has(step):
      assert self._process.poll() is None, self.end()
      time.sleep(0.01)
    return self

  def _has(self, step):
    text = self._lines.read_text() if self._lines.exists() else ''
    return any(f'"step": {k},' in text for k in range(step, STEPS + 1))

  def end(self, signal=None):
    if signal is not None:
      self._process.send_signal(signal)
    out, err = self._process.communicate(timeout=300)
    return self._process.returncode, out, err


@pytest.mark.slow
def test_killed_and_interrupted_run_ends_with_the_same_result(
  finished, tmp_path
):
  first, second = random.randrange(1, 8), random.randrange(9, 14)
  code, _, _ = Process(tmp_path).wait_for(first).end(signal.SIGKILL)
  assert code == -signal.SIGKILL
  code, out, err = Process(tmp_path).wait_for(second).end(signal.SIGTERM)
  assert (code, err) == (0, ''), (first, second)
  assert 'with the state saved' in out
  assert not (tmp_path / 'result.json').exists()
  code, out, err = Process(tmp_path).end()
  assert (code, err) == (0, ''), (first, second)
  assert 'resumed at step' in out and 'resumed at step 0' not in out
  assert result_of(tmp_path) == result_of(finished[0]), (first, second)
  lines = lines_of(tmp_path)
  steps = [line['step'] for line in lines if 'loss' in line]
  assert steps == sorted(set(steps)) and steps[-1] == STEPS
