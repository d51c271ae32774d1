"""The command that writes the texts of a generator into a file."""

import json

import pytest

from jaxzoo import catalog, main, rewrite
from jaxzoo.data import reviews
from jaxzoo.data.sources.text import read_lines


@pytest.mark.slow
def test_texts_of_a_run_with_its_stages_are_written_and_read_again(
  tmp_path, capsys
):
  config = catalog.get_config('dfkd_t3:tiny').unlock()
  config.epochs = 1.0
  result = main.train(config.lock(), tmp_path / 'run')
  assert {'teacher', 'generator'} == set(result['stages'])
  out = tmp_path / 'generated.jsonl'
  arguments = [f'--workdir={tmp_path}/run', f'--out={out}', '--count=10']
  assert rewrite.main(arguments) == 0
  assert '10 texts' in capsys.readouterr().out
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  known = reviews.load_general(reviews.Settings(**config.data.embedded))
  assert [row['source'] for row in rows] == [x.sentence for x in known[:10]]
  assert {row['teacher_output'] for row in rows} <= set(reviews.LABELS)
  again = tmp_path / 'again.jsonl'
  assert rewrite.main([*arguments[:1], f'--out={again}', '--count=10']) == 0
  assert again.read_text() == out.read_text()
  texts = [row['generated'] for row in rows if row['generated'].strip()]
  assert [x.sentence for x in read_lines(out)] == texts


def test_folder_without_a_run_is_an_error(tmp_path, capsys):
  assert rewrite.main([f'--workdir={tmp_path}', '--out=x.jsonl']) == 2
  assert 'no run in' in capsys.readouterr().err


def test_run_of_another_system_is_an_error(tmp_path, capsys):
  config = catalog.get_config('text_to_text:tiny')
  (tmp_path / 'config.json').write_text(config.to_json_best_effort())
  assert rewrite.main([f'--workdir={tmp_path}', '--out=x.jsonl']) == 2
  assert 'without a generator' in capsys.readouterr().err
