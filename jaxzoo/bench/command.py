"""What the commands of this package share: a config, a table, JSON, errors."""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable

from absl import logging

from jaxzoo import configuration, huge_pages
from jaxzoo.errors import UserError
from jaxzoo.train import host


def bare_parser(name: str, description: str) -> argparse.ArgumentParser:
  """A parser of `python -m jaxzoo.bench.NAME` without a config."""
  return argparse.ArgumentParser(
    prog=f'python -m jaxzoo.bench.{name}',
    description=description,
    allow_abbrev=False,
  )


def make_parser(name: str, description: str) -> argparse.ArgumentParser:
  """A parser of `python -m jaxzoo.bench.NAME` with the common options."""
  parser = bare_parser(name, description)
  parser.epilog = 'Any field of the config: --config.FIELD=VALUE.'
  add = parser.add_argument
  add('--config', required=True, metavar='FILE[:VARIANT]')
  add('--batch_size', type=int, help='as --config.batch_size')
  add('--dtype', help='as --config.dtype')
  add('--json', metavar='FILE', help='write the numbers')
  return parser


def parse(parser: argparse.ArgumentParser, argv):
  """(arguments, config) of a command line.

  Raises:
    UserError: a config that there is not, or a value that no run can have.
  """
  own = [a for a in argv if not a.startswith('--config.')]
  arguments = parser.parse_args(own)
  fields = [a for a in argv if a.startswith('--config.')]
  for name in ('batch_size', 'dtype'):
    if getattr(arguments, name) is not None:
      fields.append(f'--config.{name}={getattr(arguments, name)}')
  config, _ = configuration.parse([f'--config={arguments.config}', *fields])
  configuration.check(config)
  return arguments, config


def require_positive(arguments, *names: str) -> None:
  """Raises UserError where one of these options is below 1."""
  for name in names:
    if getattr(arguments, name) < 1:
      raise UserError(f'--{name} must be at least 1')


def write_json(path: str, result: dict) -> None:
  """Writes the numbers.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    pathlib.Path(path).expanduser().write_text(
      json.dumps(result, indent=2) + '\n'
    )
  except OSError as error:
    raise UserError(f'--json {path}: {error.strerror}') from error


def run(command: Callable[[list[str]], None], argv=None) -> int:
  """Runs a command; 0, or 2 for a mistake that the message says how to mend.

  Args:
    command: takes the arguments.
    argv: the arguments; default: those of the process, which is the command.
  """
  if argv is None:
    huge_pages.restart()
  logging.set_verbosity(logging.WARNING)
  host.keep_freed_memory()  # both as training does
  try:
    command(sys.argv[1:] if argv is None else argv)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0
