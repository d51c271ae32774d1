"""Weak scaling as the compiler predicts it: the same work a chip on more chips.

    python -m jaxzoo.bench.scaling \\
        --config=configs/clip.py:paper,model=ViT-B/16 --per_chip=128 \\
        v5e:4x4 v5e:8x8 v5e:16x16 --json=clip_b16.json

compiles the training step for each topology, see `docs/scaling.md`, and prints
the rows of its table. `weak` is the step's time on the first topology over that
on the row's. With `--json` every row is written as soon as it is there, and
rows that the file has are not compiled again: a full-size step takes minutes.
"""

import json
import pathlib
import sys

from jaxzoo.bench import command
from jaxzoo.errors import UserError
from jaxzoo.plan import report, search, step, topology
from jaxzoo.train import mesh as meshes

HEADER = (
  '| topology | mesh | batch | fits | HBM GiB | TFLOP | collectives MiB | '
  'compute ms | HBM ms | network ms (not hidden) | step ms | MFU | '
  'per chip/s | weak |'
)


def scaling(argv: list[str]) -> None:
  """The command; see the module."""
  parser = command.make_parser('scaling', 'predicted weak scaling')
  parser.add_argument('topologies', nargs='+', metavar='TOPOLOGY')
  parser.add_argument(
    '--per_chip', type=int, default=128, help='examples (default %(default)s)'
  )
  arguments, config = command.parse(parser, argv)
  if arguments.batch_size is not None:
    raise UserError('--batch_size: here it follows from --per_chip')
  command.require_positive(arguments, 'per_chip')
  targets = [topology.parse(name) for name in arguments.topologies]
  rows = read_rows(arguments.json)
  print(HEADER)
  print('|---' * HEADER.count(' | ') + '|---|')
  first = None
  for target in targets:
    key = ' '.join(
      [arguments.config, str(arguments.per_chip), target.name]
      + [a for a in argv if a.startswith('--config.')]
      + ([f'--dtype={arguments.dtype}'] if arguments.dtype else [])
    )
    if key not in rows:
      rows[key] = plan(config, target, arguments.per_chip)
      if arguments.json:
        command.write_json(arguments.json, rows)
    first = first or rows[key]
    print(format_row(rows[key], first), flush=True)


def read_rows(path: str | None) -> dict:
  """Rows that an earlier call has written.

  Raises:
    UserError: the file is something else.
  """
  if not path or not pathlib.Path(path).expanduser().exists():
    return {}
  try:
    return json.loads(pathlib.Path(path).expanduser().read_text())
  except ValueError as error:
    raise UserError(f'--json {path}: no JSON ({error})') from error


def plan(config, target: topology.Target, per_chip: int) -> dict:
  """The plan of a config with so many examples a chip."""
  opened = topology.open_topology(target)
  config = search.changed(config, {'batch_size': per_chip * target.devices})
  mesh = meshes.make_mesh(config.mesh, opened.devices)
  fields = {f'mesh.{axis}': size for axis, size in mesh.shape.items()}
  attempt = step.make_attempt(opened)
  return report.as_json(attempt(search.changed(config, fields)))


def format_row(row: dict, first: dict) -> str:
  """A row of the table, beside the first one."""
  mesh = ' '.join(f'{k} {v}' for k, v in row['mesh'].items() if v > 1)
  memory = f'{row["memory"]["needed"] / 2**30:.2f}'
  head = [row['topology'], mesh, f'{row["batch_size"]:,}']
  if not row['seconds']:
    return (
      '| ' + ' | '.join([*head, 'no', memory, *('' for _ in range(9))]) + ' |'
    )
  ms = {name: f'{1e3 * value:,.2f}' for name, value in row['seconds'].items()}
  sent = sum(each['bytes'] for each in row['collectives'])
  weak = ''
  if first['seconds']:
    weak = f'{100 * first["seconds"]["step"] / row["seconds"]["step"]:.1f} %'
  cells = [
    *head,
    'yes' if row['fits'] else 'no',
    memory,
    f'{row["model_flops"] / row["chips"] / 1e12:.2f}',
    f'{sent / 2**20:,.0f}',
    ms['compute'],
    ms['hbm'],
    f'{ms["interconnect"]} ({ms["exposed"]})',
    ms['step'],
    f'{100 * row["mfu"]:.1f} %',
    f'{row["examples_per_second"] / row["chips"]:,.0f}',
    weak,
  ]
  return '| ' + ' | '.join(cells) + ' |'


if __name__ == '__main__':
  sys.exit(command.run(scaling))
