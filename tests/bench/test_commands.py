"""The commands run and report; no test asserts a time."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.bench import command, data, torch_process, train_step
from jaxzoo.bench.synthetic import synthetic_batch
from jaxzoo.bench.torch_process import Timing
from jaxzoo.data.transforms import MASK_ID
from jaxzoo.errors import UserError
from jaxzoo.models.backbones.clip import END_TOKEN, START_TOKEN, end_positions

TINY = 'configs/cfam.py:tiny'


@pytest.mark.slow
def test_train_step_reports_the_step_of_a_system(tmp_path, capsys):
  path = tmp_path / 'result.json'
  code = command.run(
    train_step.train_step,
    [
      f'--config={TINY}',
      '--steps=2',
      '--rounds=2',
      '--warmup=1',
      '--peak_tflops=0.5',
      f'--json={path}',
      # Less to compile.
      '--config.optim.name=adam',
      '--config.towers.image_depth=1',
      '--config.towers.text_depth=1',
    ],
  )
  assert code == 0
  result = json.loads(path.read_text())
  ours = result['jaxzoo']
  assert all(0 < value < math.inf for value in ours.values())
  assert ours['step_ms_min'] <= ours['step_ms'] <= ours['step_ms_max']
  seconds = ours['step_ms'] / 1e3
  assert ours['images_per_second'] == pytest.approx(8 / seconds)
  assert ours['tflops'] == pytest.approx(ours['model_tflop'] / seconds)
  assert ours['mfu'] == pytest.approx(ours['tflops'] / (0.5 * 8))
  printed = capsys.readouterr().out
  assert 'images/s' in printed and 'cfam, batch 8, float32' in printed


def test_turns_alternate_and_begin_with_steps_that_do_not_count():
  calls = []

  def runner(name):
    def run(steps):
      calls.append((name, steps))
      return [Timing(10 * len(calls) + i, 0.0) for i in range(steps)]

    return run

  runs = {name: runner(name) for name in 'ab'}
  timings = train_step.alternate(runs, rounds=2, steps=3, warmup=1)
  assert calls == [('a', 4), ('b', 4), ('a', 4), ('b', 4)]
  walls = [[t.wall for t in rows] for rows in timings['a']]
  assert walls == [[11, 12, 13], [31, 32, 33]]


def test_steps_are_timed_from_the_end_of_the_one_before():
  run = train_step.make_run(lambda state, batch: (state + batch, state), 0, 1)
  assert len(run(3)) == 3 and len(run(1)) == 1
  assert all(timing.wall >= 0 for timing in run(2))


def test_speedup_is_the_ratio_within_a_round():
  timings = lambda *seconds: [Timing(x, 0.0) for x in seconds]
  # The machine became twice as slow between the rounds.
  ours = [timings(1, 1, 9), timings(2, 2, 9)]
  theirs = [timings(3, 3, 3), timings(8, 8, 8)]
  want = {'median': 3.5, 'min': 3.0, 'max': 4.0}
  assert train_step.speedup(ours, theirs) == want


@pytest.mark.parametrize(
  'kind, want',
  [
    ('TPU v5 lite', 197.0),
    ('TPU v5', 459.0),
    ('TPU v5p', 459.0),
    ('NVIDIA H100 80GB HBM3', 989.0),
    ('NVIDIA H100 PCIe', 756.0),
    ('cpu', None),
  ],
)
def test_peak_is_of_the_device_or_unknown(kind, want):
  assert train_step.peak_tflops(kind) == want


# PyTorch.


def missing(monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)


def present(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)


F32 = ['--dtype=float32']
SAMPLED = [*F32, '--config.loss.hard_negatives=sampled']
SIGMOID = [*F32, '--config.loss.kind=sigmoid']
NO_ID = [*F32, '--config.loss.id=0']


@pytest.mark.parametrize(
  'state, config, fields, message',
  [
    (missing, 'irra.py:cuhk_pedes', [], r'not installed.*jaxzoo\[torch\]'),
    (present, 'maskd.py:tiny', [], 'written for irra, clip, cfam; leave'),
    (present, 'irra.py:cuhk_pedes', [], '--dtype=float32'),
    (present, 'clip.py:paper,model=RN50', F32, 'towers.image=resnet'),
    (present, 'clip.py:paper', SIGMOID, 'loss.kind=sigmoid'),
    (present, 'cfam.py:cuhk_pedes', SAMPLED, 'loss.hard_negatives=sampled'),
    (present, 'irra.py:cuhk_pedes', NO_ID, 'loss.id=0.0'),
    (present, 'irra.py:tiny', [], 'optim.name=muon.*irra:cuhk_pedes'),
    (present, 'irra.py:cuhk_pedes', F32, '8 x cpu'),
  ],
)
def test_torch_is_refused_before_anything_is_compiled(
  state, config, fields, message, monkeypatch, capsys
):
  state(monkeypatch)
  argv = [f'--config=configs/{config}', '--torch', *fields]
  assert command.run(train_step.train_step, argv) == 2
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 and lines[0].startswith('error: torch: ')
  with pytest.raises(UserError, match=message):
    torch_process.require(
      command.parse(command.make_parser('', ''), [argv[0], *fields])[1]
    )


def test_lean_is_refused_where_it_skips_nothing(monkeypatch, capsys):
  present(monkeypatch)
  argv = ['--config=configs/cfam.py:cuhk_pedes', '--torch=lean', *F32]
  assert command.run(train_step.train_step, argv) == 2
  assert 'cfam has no --torch=lean' in capsys.readouterr().err


# Batches.


def test_synthetic_batch_is_in_the_form_of_the_real_one():
  config = catalog.get_config('irra:tiny')
  config.batch_size = 64
  module = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  sizes = lambda batch: {k: (x.shape, x.dtype) for k, x in batch.items()}
  batch = synthetic_batch(config)
  assert sizes(batch) == sizes(module.example_batch(config))
  again = synthetic_batch(config)
  for name, x in batch.items():
    np.testing.assert_array_equal(x, again[name])


def test_synthetic_captions_have_words_between_start_and_end():
  config = catalog.get_config('irra:tiny')
  config.batch_size = 64
  batch = synthetic_batch(config)
  ends = np.asarray(end_positions(batch['text']))
  assert len(set(ends)) > 5
  for ids, masked, labels, end in zip(
    batch['text'], batch['mlm_text'], batch['mlm_labels'], ends, strict=True
  ):
    assert ids[0] == START_TOKEN and ids[end] == END_TOKEN
    assert (ids[end + 1 :] == 0).all()
    assert ((ids[1:end] > 0) & (ids[1:end] < MASK_ID)).all()
    assert labels.any() and (labels[labels > 0] == ids[labels > 0]).all()
    assert (masked[labels == 0] == ids[labels == 0]).all()
  assert set(batch['pid']) == set(range(config.num_classes))
  assert batch['image'].std() > 50


# Input.


def test_data_reports_every_variant_once(pedestrians_root, tmp_path, capsys):
  del pedestrians_root  # has been made
  path = tmp_path / 'result.json'
  code = command.run(
    data.data,
    [
      f'--config={TINY}',
      '--threads=0,2',
      '--workers=',
      '--seconds=0.1',
      '--no_step',
      f'--json={path}',
    ],
  )
  assert code == 0
  rows = json.loads(path.read_text())['input']
  kinds = [(row['threads'], row['workers'], row['cached']) for row in rows]
  assert kinds == [(4, 0, False), (4, 0, True), (0, 0, False), (2, 0, False)]
  assert all(0 < row['images_per_second'] < math.inf for row in rows)
  assert 'input, 4 threads, pictures in memory' in capsys.readouterr().out


@pytest.mark.parametrize(
  'backend, ratio, want',
  [
    ('cpu', 3.0, 'Reading takes 25% of the time'),
    ('gpu', 0.5, 'The input binds: it gives 50%'),
    ('gpu', 2.0, 'The step binds: the input gives 2.0 times'),
  ],
)
def test_verdict_says_what_a_run_waits_for(backend, ratio, want, monkeypatch):
  monkeypatch.setattr(data.jax, 'default_backend', lambda: backend)
  assert want in data.verdict({'input_by_step': ratio})


def test_numbers_of_threads_are_checked_before_anything_is_read(capsys):
  argv = [f'--config={TINY}', '--threads=two']
  assert command.run(data.data, argv) == 2
  assert '--threads=two' in capsys.readouterr().err


def test_json_that_cannot_be_written_is_a_message(tmp_path):
  with pytest.raises(UserError, match='--json'):
    command.write_json(str(tmp_path), {})
