"""What training time buys: a metric against seconds, over finished runs.

    python -m jaxzoo.bench.curves test/loss GreenMIM=runs/g-0,runs/g-1 \\
        baseline=runs/b-0,runs/b-1

Prints two Markdown tables. The first has for each group and evaluation the
seconds of training up to it (without compilation, evaluations and checkpoints),
the milliseconds that an example took, and the metric: mean and sample standard
deviation. The second has the seconds until each group came to the values that
the last group had.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxzoo.errors import UserError


class Point(NamedTuple):
  """An evaluation.

  Attributes:
    step: after which it came.
    seconds: of training until then.
    examples: trained on until then.
    value: of the metric.
  """

  step: int
  seconds: float
  examples: float
  value: float


def read_history(run: str) -> list[dict]:
  """The lines of metrics.jsonl; UserError where there are none."""
  path = pathlib.Path(run) / 'metrics.jsonl'
  if not path.is_file():
    raise UserError(f'{path} is not there: no such run')
  return [json.loads(line) for line in path.read_text().splitlines()]


def curve(history: Iterable[Mapping[str, float]], metric: str) -> list[Point]:
  """The evaluations of one run.

  >>> lines = [
  ...   {'step': 4, 'steps_per_second': 2.0, 'examples_per_second': 16.0},
  ...   {'step': 4, 'test/loss': 0.5},
  ... ]
  >>> curve(lines, 'test/loss')
  [Point(step=4, seconds=2.0, examples=32.0, value=0.5)]

  Args:
    history: of `read_history`.
    metric: 'EVALUATION/NAME'.

  Raises:
    UserError: no line has the metric.
  """
  points, last, seconds, examples = [], 0, 0.0, 0.0
  known = set()
  for line in history:
    known |= {name for name in line if '/' in name}
    if 'steps_per_second' in line:
      spent = (line['step'] - last) / line['steps_per_second']
      seconds += spent
      examples += spent * line['examples_per_second']
      last = line['step']
    if metric in line:
      points.append(Point(line['step'], seconds, examples, line[metric]))
  if not points:
    raise UserError(
      f'no evaluation has {metric!r}; there are ' + ', '.join(sorted(known))
    )
  return points


def seconds_to(points: Sequence[Point], value: float) -> float | None:
  """Seconds until the metric first came to `value`, from point to point.

  Which side it comes from is what lies between its first and last value; None
  where it never comes there.
  """
  sign = 1 if points[-1].value >= points[0].value else -1
  before = None
  for point in points:
    if sign * (point.value - value) >= 0:
      if before is None:
        return point.seconds
      share = (value - before.value) / (point.value - before.value)
      return before.seconds + share * (point.seconds - before.seconds)
    before = point
  return None


def spread(values: Sequence[float], form: str) -> str:
  """'mean ± sample standard deviation', without the latter for one value."""
  mean = format(statistics.fmean(values), form)
  if len(values) == 1:
    return mean
  return f'{mean} ± {statistics.stdev(values):{form}}'


def tables(groups: Mapping[str, Sequence[Sequence[Point]]], metric: str) -> str:
  """The two tables. Runs of a group have the same evaluations."""
  lines = [
    f'| system | step | seconds | ms an example | {metric} |',
    '|---|---|---|---|---|',
  ]
  for label, runs in groups.items():
    for points in zip(*runs, strict=True):
      cells = (
        str(points[0].step),
        spread([p.seconds for p in points], '.0f'),
        spread([1000 * p.seconds / p.examples for p in points], '.2f'),
        spread([p.value for p in points], '.3f'),
      )
      lines.append(f'| {label} | ' + ' | '.join(cells) + ' |')
  lines += [
    '',
    f'| {metric} | ' + ' | '.join(f'{x}: seconds' for x in groups) + ' |',
    '|---|' + '---|' * len(groups),
  ]
  means = {label: mean_curve(runs) for label, runs in groups.items()}
  for point in list(means.values())[-1]:
    times = [seconds_to(points, point.value) for points in means.values()]
    cells = ['never' if x is None else f'{x:.0f}' for x in times]
    lines.append(f'| {point.value:.3f} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def mean_curve(runs: Sequence[Sequence[Point]]) -> list[Point]:
  """Means over runs, evaluation by evaluation."""
  return [
    Point(*np.mean(points, axis=0).tolist())
    for points in zip(*runs, strict=True)
  ]


def main(argv: Sequence[str]) -> int:
  try:
    metric, *arguments = argv or ['']
    if not metric or not arguments or '=' in metric:
      raise UserError('write METRIC LABEL=RUN,RUN,... for each group')
    groups = {}
    for argument in arguments:
      label, equals, runs = argument.partition('=')
      if not equals:
        raise UserError(f'{argument!r}: write LABEL=RUN,RUN,...')
      groups[label] = [curve(read_history(x), metric) for x in runs.split(',')]
    print(tables(groups, metric))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
