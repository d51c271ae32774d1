"""The command that compares attention in compiled blocks."""

import json
import types

import pytest

from jaxzoo.bench import attention, command
from jaxzoo.errors import UserError
from jaxzoo.models.layers.attention import xla_attention


def test_every_block_is_compared_on_every_chip(monkeypatch, tmp_path, capsys):
  asked = []

  def predict(opened, size, attend, sequences):
    asked.append((opened.name, size.tokens, attend is xla_attention, sequences))
    return {'cycles_ms': 17.0, 'kernels_ms': 0.5, 'mfu': 0.3, 'bytes': 2**30}

  monkeypatch.setattr(attention, 'predict', predict)
  monkeypatch.setattr(
    attention.topology,
    'open_topology',
    lambda target: types.SimpleNamespace(name=target.name),
  )
  path = tmp_path / 'rows.json'
  attention.measure(['v5e', 'v5p', '--sequences=4', f'--json={path}'])
  assert asked[:2] == [('v5e:1x1', 197, True, 4), ('v5e:1x1', 197, False, 4)]
  assert {name for name, *_ in asked} == {'v5e:1x1', 'v5p:2x2x1'}
  rows = json.loads(path.read_text())
  assert len(rows) == len(asked) == 2 * 2 * len(attention.BLOCKS)
  assert '| 17.00 | 0.50 | 30 % | 1.00 |' in capsys.readouterr().out


def test_chip_that_does_not_exist_is_refused(capsys):
  with pytest.raises(UserError):
    attention.measure(['v9'])
  assert command.run(attention.measure, ['v9']) == 2
  assert 'v9' in capsys.readouterr().err
