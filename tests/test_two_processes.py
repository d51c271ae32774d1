"""Two processes that train together do what one does."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxzoo import main as command

ROOT = pathlib.Path(command.__file__).parents[1]
pytestmark = pytest.mark.slow


def start(workdir, *arguments):
  """Two processes of two devices each: one mesh, cut over all of them."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  flags = re.sub(
    r'--xla_force_host_platform_device_count=\d+', '', os.environ['XLA_FLAGS']
  )
  arguments = [
    '--config=clip:tiny',
    f'--workdir={workdir}',
    '--config.mesh.fsdp=2',
    '--config.log_steps=1',
    *arguments,
  ]
  return [
    subprocess.Popen(
      [
        sys.executable,
        '-m',
        'jaxzoo.main',
        f'--coordinator=localhost:{port}',
        '--num_processes=2',
        f'--process_id={process}',
        *arguments,
      ],
      env={
        **os.environ,
        'XLA_FLAGS': flags,
        'PYTHONPATH': str(ROOT),
        'JAX_NUM_CPU_DEVICES': '2',
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for process in (0, 1)
  ]


def end(processes):
  """[(exit code, stdout, stderr)] of both; a hanging one is killed."""
  try:
    outputs = [each.communicate(timeout=300) for each in processes]
  finally:
    for each in processes:
      each.kill()
  return [
    (each.returncode, *output)
    for each, output in zip(processes, outputs, strict=True)
  ]


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').open())
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def train_alone(workdir):
  arguments = ['--config=clip:tiny', f'--workdir={workdir}']
  assert command.main([*arguments, '--config.log_steps=1']) == 0
  return json.loads((workdir / 'result.json').read_text())


def test_two_processes_equal_one_and_one_resumes_what_two_began(tmp_path):
  alone = train_alone(tmp_path / 'alone')
  workdir = tmp_path / 'together'
  processes = start(workdir)
  path = workdir / 'metrics.jsonl'
  while not (path.exists() and '"step": 6' in path.read_text()):
    assert all(each.poll() is None for each in processes), end(processes)
    time.sleep(0.02)
  processes[1].send_signal(signal.SIGTERM)  # any of them stops all
  (code, out, err), (other, quiet, _) = end(processes)
  assert code == other == 0, err
  assert 'with the state saved' in out and 'parameters' in out
  assert 'step 5/' not in quiet, 'process 0 alone writes and prints'
  together, expected = losses(workdir), losses(tmp_path / 'alone')
  assert together.keys() <= expected.keys() and 5 in together
  for step, loss in together.items():
    assert loss == pytest.approx(expected[step], rel=1e-3), step
  # One process of eight devices goes on where two of two stopped.
  result = train_alone(workdir)
  assert result['metrics'] == pytest.approx(alone['metrics'], abs=15)
  assert losses(workdir)[16] == pytest.approx(expected[16], rel=1e-2)


def test_damaged_checkpoint_is_passed_over_by_both(tmp_path):
  train_alone(tmp_path)
  newest = tmp_path / 'checkpoints/16'
  files = [path for path in newest.rglob('*') if path.is_file()]
  path = max(files, key=lambda path: path.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  before = json.loads((tmp_path / 'result.json').read_text())
  outputs = end(start(tmp_path))
  for code, _, err in outputs:
    assert code == 0 and 'checkpoints/16 is damaged' in err
  assert 'resumed at step 12' in outputs[0][1]
  result = json.loads((tmp_path / 'result.json').read_text())
  assert result['metrics'] == pytest.approx(before['metrics'], abs=15)
  assert (tmp_path / 'checkpoints/16.bad').is_dir()


def test_tensor_axis_across_processes_is_an_error(tmp_path):
  arguments = ['--config.mesh.fsdp=1', '--config.mesh.tensor=4']
  for code, _, err in end(start(tmp_path / 'run', *arguments)):
    assert code == 2 and 'tensor=4 spans processes' in err
