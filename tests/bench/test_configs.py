"""A config beside its baseline: ratios, counts and the table."""

import json

import pytest

from jaxzoo.bench import command, configs
from jaxzoo.bench.torch_process import Timing


@pytest.mark.slow
def test_two_configs_are_measured_in_turn(tmp_path, capsys):
  path = tmp_path / 'result.json'
  names = ['configs/classification.py:tiny', 'configs/genet.py:tiny']
  code = command.run(
    configs.compare,
    [
      f'--config={names[0]}',
      f'--against={names[1]}',
      '--batch_size=8',
      '--steps=1',
      '--rounds=2',
      '--warmup=1',
      f'--json={path}',
    ],
  )
  assert code == 0
  ours, theirs = (json.loads(path.read_text())[name] for name in names)
  for mode in ('training', 'prediction'):
    assert ours[mode]['images_per_second'] > 0
    ratio = theirs[mode]['speedup']
    assert 0 < ratio['min'] <= ratio['median'] <= ratio['max']
    assert theirs[mode]['speedup_cpu']['min'] > 0
    assert 'speedup' not in ours[mode]
  assert ours['mmacs'] != theirs['mmacs']
  printed = capsys.readouterr().out
  assert 'prediction' in printed and 'images/s' in printed


def test_seconds_of_the_cores_take_the_place_of_the_clocks():
  rounds = [[Timing(9.0, 1.0)], [Timing(9.0, 4.0)]]
  assert configs._cpu(rounds) == [[Timing(1.0, 1.0)], [Timing(4.0, 4.0)]]


@pytest.mark.parametrize('option', ['--steps=0', '--rounds=0'])
def test_numbers_of_rounds_that_measure_nothing_are_an_error(option, capsys):
  name = 'configs/genet.py:tiny'
  arguments = [f'--config={name}', f'--against={name}', option]
  assert command.run(configs.compare, arguments) == 2
  assert 'must be at least 1' in capsys.readouterr().err
