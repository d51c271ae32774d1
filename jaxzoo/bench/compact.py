"""How much faster a network is without its dead channels.

    python -m jaxzoo.bench.compact runs/chex --batch_size=64

Of a run with a `compress.method` that prunes channels: removes them, checks
that the outputs are the same, and times both forward passes.
"""

import sys

from jaxzoo import compaction
from jaxzoo.bench import command
from jaxzoo.compress import options
from jaxzoo.compress.__main__ import read_sparse
from jaxzoo.errors import UserError


def main(argv) -> None:
  parser = command.bare_parser('compact', __doc__.splitlines()[0])
  add = parser.add_argument
  add('run', metavar='RUN', help='workdir of a finished run')
  add('--batch_size', type=int, default=64)
  add('--repeats', type=int, default=30)
  add('--multiple_of', type=int, default=1, help='of the channels kept')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  config, state = read_sparse(arguments.run)
  if config.compress.method not in options.STRUCTURED:
    raise UserError(
      f'{arguments.run}: {config.compress.method} prunes no channels; '
      + ', '.join(options.STRUCTURED)
      + ' does'
    )
  found = compaction.measure(
    config,
    state,
    batch_size=arguments.batch_size,
    repeats=arguments.repeats,
    multiple_of=arguments.multiple_of,
  )
  for name, value in found.items():
    print(f'{name:20} {value:,.4g}')
  if arguments.json:
    command.write_json(arguments.json, found)


if __name__ == '__main__':
  sys.exit(command.run(main))
