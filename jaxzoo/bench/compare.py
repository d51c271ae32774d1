"""Means and spreads over finished runs, a row for each group.

    python -m jaxzoo.bench.compare CFAM=runs/cfam-0,runs/cfam-1,runs/cfam-2 \\
        baseline=runs/base-0,runs/base-1,runs/base-2

Prints mean and sample standard deviation of every metric in their result.json,
as a Markdown table that goes into docs/results.md as it is.
"""

import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

from jaxzoo.errors import UserError


def read_metrics(run: str) -> dict[str, float]:
  """The metrics of a finished run."""
  path = pathlib.Path(run) / 'result.json'
  if not path.is_file():
    raise UserError(f'{path} is not there: the run has not finished')
  return json.loads(path.read_text())['metrics']


def summary(runs: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
  """name -> (mean, sample standard deviation; 0 for a single run).

  >>> summary([{'R@1': 50.0}, {'R@1': 52.0}])['R@1'][0]
  51.0
  """
  return {
    name: (
      statistics.fmean(run[name] for run in runs),
      statistics.stdev(run[name] for run in runs) if len(runs) > 1 else 0.0,
    )
    for name in runs[0]
  }


def differences(
  runs: Sequence[dict[str, float]], others: Sequence[dict[str, float]]
) -> list[dict[str, float]]:
  """Run by run what the first group is ahead; of what both have."""
  return [
    {name: run[name] - other[name] for name in run if name in other}
    for run, other in zip(runs, others, strict=True)
  ]


def table(groups: dict[str, Sequence[dict[str, float]]]) -> str:
  """Markdown: a row for each evaluation and group, 'mean ± deviation'.

  Two groups of as many runs are taken to be pairs, of one seed each: a third
  row has their differences. An evaluation that a group lacks has no row of it.
  """
  if len(groups) == 2 and len({len(runs) for runs in groups.values()}) == 1:
    groups = {**groups, 'difference': differences(*groups.values())}
  means = {label: summary(runs) for label, runs in groups.items()}
  first = next(iter(means.values()))
  evaluations = list(dict.fromkeys(name.split('/')[0] for name in first))
  names = list(dict.fromkeys(name.split('/')[1] for name in first))
  lines = [
    '| evaluation | system | ' + ' | '.join(names) + ' |',
    '|---|---|' + '---|' * len(names),
  ]
  for evaluation in evaluations:
    for label, values in means.items():
      found = [values.get(f'{evaluation}/{name}') for name in names]
      if any(found):
        cells = ('{:.1f} ± {:.1f}'.format(*x) if x else '' for x in found)
        lines.append(f'| {evaluation} | {label} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def main(argv: Sequence[str]) -> int:
  try:
    groups = {}
    for argument in argv:
      label, equals, runs = argument.partition('=')
      if not equals:
        raise UserError(f'{argument!r}: write LABEL=RUN,RUN,...')
      groups[label] = [read_metrics(run) for run in runs.split(',')]
    if not groups:
      raise UserError('which runs? LABEL=RUN,RUN,... for each group')
    print(table(groups))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
