"""The command that makes the table of docs/scaling.md; nothing is compiled."""

import json

import pytest

from jaxzoo.bench import command, scaling
from jaxzoo.plan.topology import parse

ARGUMENTS = ['--config=configs/clip.py:tiny', '--per_chip=4', 'v5e:4x4']


def row(target, step):
  return {
    'topology': target.name,
    'chips': target.devices,
    'mesh': {'data': target.devices, 'fsdp': 1},
    'batch_size': 4 * target.devices,
    'fits': step is not None,
    'memory': {'needed': 2**31},
    'model_flops': 1e12 * target.devices,
    'collectives': [{'bytes': 2.0**20}, {'bytes': 2.0**20}],
    'seconds': step
    and dict(compute=step, hbm=0.0, interconnect=0.0, exposed=0.0, step=step),
    'mfu': 0.25,
    'examples_per_second': 4 * target.devices / (step or 1),
  }


@pytest.fixture
def compiled(monkeypatch):
  """Names of the topologies that were compiled."""
  names = []

  def plan(config, target, per_chip):
    names.append(target.name)
    return row(target, 0.1 if target.devices == 16 else 0.125)

  monkeypatch.setattr(scaling, 'plan', plan)
  return names


def test_rows_are_compared_with_the_first(compiled, capsys):
  assert command.run(scaling.scaling, [*ARGUMENTS, 'v5e:8x8']) == 0
  header, rule, first, second = capsys.readouterr().out.splitlines()
  assert header.count('|') == rule.count('|') == first.count('|')
  assert '| 64 | yes | 2.00 | 1.00 | 2 | 100.00 |' in first
  assert first.endswith('| 25.0 % | 40 | 100.0 % |')
  assert second.endswith('| 32 | 80.0 % |')


def test_rows_that_are_there_are_not_compiled_again(compiled, tmp_path, capsys):
  path = tmp_path / 'rows.json'
  arguments = [f'--json={path}', *ARGUMENTS]
  assert command.run(scaling.scaling, arguments) == 0
  assert command.run(scaling.scaling, [*arguments, 'v5e:8x8']) == 0
  assert compiled == ['v5e:4x4', 'v5e:8x8']
  assert len(json.loads(path.read_text())) == 2
  other = [*arguments, '--config.remat=full']
  assert command.run(scaling.scaling, other) == 0
  assert command.run(scaling.scaling, [*arguments, '--dtype=float32']) == 0
  assert compiled[2:] == ['v5e:4x4', 'v5e:4x4']


def test_row_of_what_does_not_fit_is_as_long_as_the_others():
  text = scaling.format_row(
    row(parse('v5e:4x4'), None), row(parse('v5e:4x4'), 1.0)
  )
  assert text.count('|') == scaling.HEADER.count('|') and '| no |' in text


def test_mistakes_come_before_anything_is_compiled(compiled, tmp_path, capsys):
  assert command.run(scaling.scaling, [*ARGUMENTS, 'v5e:3x3']) == 2
  assert command.run(scaling.scaling, ['--batch_size=8', *ARGUMENTS]) == 2
  assert command.run(scaling.scaling, [*ARGUMENTS, '--per_chip=0']) == 2
  path = tmp_path / 'rows.json'
  path.write_text('{')
  assert command.run(scaling.scaling, [*ARGUMENTS, f'--json={path}']) == 2
  assert not compiled
