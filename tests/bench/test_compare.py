"""The table of docs/results.md, from result.json files."""

import json

from jaxzoo.bench import compare


def _run(folder, value):
  folder.mkdir()
  metrics = {'test/R@1': value, 'cross/R@1': value - 10}
  (folder / 'result.json').write_text(json.dumps({'metrics': metrics}))
  return str(folder)


def test_means_and_sample_deviations_stand_in_the_table(tmp_path, capsys):
  runs = [_run(tmp_path / str(value), value) for value in (50.0, 52.0, 57.0)]
  assert compare.main([f'ours={",".join(runs)}']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[2] == '| test | ours | 53.0 ± 3.6 |'
  assert lines[3] == '| cross | ours | 43.0 ± 3.6 |'


def test_pairs_have_a_row_of_their_differences(tmp_path, capsys):
  ours = [_run(tmp_path / f'a{x}', x) for x in (50.0, 54.0)]
  other = [_run(tmp_path / f'b{x}', x) for x in (49.0, 51.0)]
  for folder in ours:  # an evaluation that the others do not have
    path = tmp_path / folder / 'result.json'
    found = json.loads(path.read_text())
    found['metrics']['more/R@1'] = 1.0
    path.write_text(json.dumps(found))
  compare.main([f'ours={",".join(ours)}', f'other={",".join(other)}'])
  lines = capsys.readouterr().out.splitlines()
  assert '| test | difference | 2.0 ± 1.4 |' in lines
  assert [line for line in lines if line.startswith('| more')] == [
    '| more | ours | 1.0 ± 0.0 |'
  ]


def test_an_unfinished_run_is_named(tmp_path, capsys):
  assert compare.main([f'ours={tmp_path}']) == 2
  assert str(tmp_path / 'result.json') in capsys.readouterr().err
