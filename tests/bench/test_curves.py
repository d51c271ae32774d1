"""Metrics against seconds, from metrics.jsonl files."""

import json

import pytest

from jaxzoo.bench import curves
from jaxzoo.bench.curves import Point


def run(folder, rate, losses):
  """4 steps of 8 examples between evaluations, at `rate` steps a second."""
  folder.mkdir()
  lines = []
  for i, loss in enumerate(losses, 1):
    fast = {'steps_per_second': 2 * rate, 'examples_per_second': 16 * rate}
    slow = {'steps_per_second': rate, 'examples_per_second': 8 * rate}
    lines += [
      {'step': 4 * i - 2, **fast},
      {'step': 4 * i, **slow},
      {'step': 4 * i, 'test/loss': loss},
    ]
  text = '\n'.join(map(json.dumps, lines))
  (folder / 'metrics.jsonl').write_text(text + '\n')
  return str(folder)


def test_seconds_are_those_of_the_steps(tmp_path):
  history = curves.read_history(run(tmp_path / 'a', 2.0, [1.0, 0.5]))
  assert curves.curve(history, 'test/loss') == [
    Point(4, 1.5, 32.0, 1.0),
    Point(8, 3.0, 64.0, 0.5),
  ]


@pytest.mark.parametrize(
  'values, value, seconds',
  [
    ((4, 2, 1), 3, 15),
    ((4, 2, 1), 2, 20),
    ((4, 2, 1), 5, 10),
    ((4, 2, 1), 0.5, None),
    ((1, 2, 4), 3, 25),
    ((1, 2, 4), 0, 10),
    ((4, 1, 2), 1.5, 10 + 10 * 5 / 6),
  ],
)
def test_seconds_to_a_value_come_from_the_first_crossing(
  values, value, seconds
):
  points = [Point(i, 10.0 * (i + 1), 1.0, x) for i, x in enumerate(values)]
  got = curves.seconds_to(points, value)
  assert got == (None if seconds is None else pytest.approx(seconds))


def test_tables_have_all_evaluations_and_the_times_to_equal_values(
  tmp_path, capsys
):
  fast = [run(tmp_path / f'f{x}', 2.0, [1.0, x]) for x in (0.4, 0.6)]
  slow = [run(tmp_path / 's', 1.0, [1.0, 0.6])]
  assert (
    curves.main(
      ['test/loss', f'fast={",".join(fast)}', f'slow={",".join(slow)}']
    )
    == 0
  )
  lines = capsys.readouterr().out.splitlines()
  assert '| fast | 8 | 3 ± 0 | 46.88 ± 0.00 | 0.500 ± 0.141 |' in lines
  assert '| slow | 8 | 6 | 93.75 | 0.600 |' in lines
  assert lines[-2:] == ['| 1.000 | 2 | 3 |', '| 0.600 | 3 | 6 |']


@pytest.mark.parametrize(
  'arguments, words',
  [
    ([], 'METRIC'),
    (['a=b'], 'METRIC'),
    (['test/loss', 'runs/a'], 'LABEL=RUN'),
    (['test/loss', 'a=nowhere'], 'metrics.jsonl'),
  ],
)
def test_mistakes_are_told(arguments, words, capsys):
  assert curves.main(arguments) == 2
  assert words in capsys.readouterr().err


def test_unknown_metric_is_an_error_that_names_those_there_are(
  tmp_path, capsys
):
  assert curves.main(['test/los', f'a={run(tmp_path / "a", 1.0, [1.0])}']) == 2
  assert 'there are test/loss' in capsys.readouterr().err
