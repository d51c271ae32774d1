"""Sparse networks of runs into files.

    python -m jaxzoo.compress export RUN OUT.safetensors
    python -m jaxzoo.compress export RUN OUT.safetensors --form=n_m
    python -m jaxzoo.compress export RUN OUT.safetensors --form=compact
    python -m jaxzoo.compress show OUT.safetensors

`jaxzoo.compress.load` reads them.
"""

import argparse
import sys

import jax
from absl import logging
from etils import epath

from jaxzoo import catalog, compaction, compression
from jaxzoo.compress import export, options
from jaxzoo.compress.masks import mask_summary
from jaxzoo.errors import UserError
from jaxzoo.main import create_system
from jaxzoo.runs import read_config
from jaxzoo.train import checkpoint
from jaxzoo.train import mesh as meshes


def read_sparse(workdir, step: int | None = None):
  """(config, state with its optimizer's masks) of a run that was pruned.

  Args:
    workdir: of `python -m jaxzoo.main`; nothing in it is changed.
    step: of a checkpoint; default the newest that is whole.

  Raises:
    UserError: no such run or step, or a run without `config.compress.method`.
  """
  workdir = epath.Path(workdir).expanduser()
  config = read_config(workdir)
  if not config.get('compress') or not config.compress.method:
    raise UserError(f'{workdir}: the run has no compress.method')
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  mesh = meshes.make_mesh({'fsdp': -1})
  state = jax.eval_shape(
    create_system(config).init,
    jax.random.key(0),
    jax.eval_shape(lambda: data.example_batch(config)),
  )
  shardings = meshes.infer_shardings(state, mesh, catalog.sharding(config))
  state, _ = checkpoint.read(
    workdir / 'checkpoints',
    state,
    shardings,
    step=step,
    optimizer=True,
    verify=config.checkpoint.verify,
  )
  return config, state


def export_run(
  workdir, path, *, form: str = 'masks', step: int | None = None
) -> int:
  """Writes the network of a run, averaged parameters where it has them.

  Raises:
    UserError: see `read_sparse`; a form that its masks do not have.
  """
  config, state = read_sparse(workdir, step)
  fields = config.compress
  if form == 'compact':
    if fields.method not in options.STRUCTURED:
      raise UserError(
        f'{workdir}: {fields.method} prunes no channels, so that nothing can '
        'be taken out; --form=masks stores what is kept'
      )
    return compaction.save(path, config, state)
  state = compression.one_network(config, state)
  averaged = 'ema' in state.extra
  statistics = 'ema_stats' if averaged else 'batch_stats'
  masks = compression.masks_of_state(config, state)
  extra = {}
  if statistics in state.extra:
    extra['batch_stats'] = state.extra[statistics]
  try:
    return export.save(
      path,
      state.extra['ema'] if averaged else state.params,
      masks,
      extra=extra,
      form=form,
      n=fields.n,
      m=fields.m,
      axis=compression.axes(config, state.params),
      info={
        'system': config.system,
        'method': fields.method,
        'step': int(state.step),
        'averaged': averaged,
      },
    )
  except ValueError as error:
    raise UserError(f'{workdir} as {form}: {error}') from error


def show(path) -> None:
  """Prints what a file has, layer by layer."""
  loaded = export.load(path)
  print('  '.join(f'{key} {value}' for key, value in loaded.info.items()))
  for name, row in mask_summary(loaded.params, loaded.masks).items():
    print(f'{row.density:8.4f}  {row.nnz:>10,} of {row.size:>10,}  {name}')


def main(argv=None) -> int:
  """Runs the command line; 0, or 2 for a mistake of the user."""
  logging.set_verbosity(logging.WARNING)
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.compress', description=__doc__.splitlines()[0]
  )
  commands = parser.add_subparsers(dest='command', required=True)
  add = commands.add_parser('export', help='a run into a file').add_argument
  add('run', metavar='RUN', help='workdir of a run with compress.method')
  add('out', metavar='OUT.safetensors')
  add('--form', default='masks', choices=(*export.FORMS, 'compact'))
  add('--step', type=int, help='of a checkpoint (default: the newest)')
  add = commands.add_parser('show', help='what a file has').add_argument
  add('file', metavar='FILE.safetensors')
  arguments = parser.parse_args(argv)
  try:
    if arguments.command == 'show':
      show(arguments.file)
    else:
      size = export_run(
        arguments.run, arguments.out, form=arguments.form, step=arguments.step
      )
      print(f'{arguments.out}: {size:,} bytes')
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
