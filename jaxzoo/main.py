"""The one entry point: from a config to a trained and evaluated system.

    python -m jaxzoo.main --config=configs/cfam.py --workdir=runs/cfam
    python -m jaxzoo.main --config=configs/cfam.py:ufine6926 \\
        --config.data.root=/data --config.optim.lr=2e-5
    python -m jaxzoo.main --list
"""

if __name__ == '__main__':
  from jaxzoo import huge_pages

  huge_pages.restart()

import argparse
import contextlib
import functools
import json
import math
import re
import sys
import time

import jax
from absl import logging
from etils import epath
from rich.console import Console
from rich.table import Table

from jaxzoo import (
  catalog,
  compression,
  configuration,
  initial,
  session,
  stages,
)
from jaxzoo.assembly import (
  as_json,
  create_optimizer,
  create_system,
  make_dataset,
  make_evaluators,
  make_plan,
)
from jaxzoo.data import pipeline
from jaxzoo.errors import UserError
from jaxzoo.plan import command as planner
from jaxzoo.train import checkpoint, compiler, distributed, host, loop, optim
from jaxzoo.train import mesh as meshes
from jaxzoo.train.best import Best

# Fields that may change between the parts of one run.
FREE_FIELDS = (
  'baseline',
  'checkpoint',
  'data.max_corrupt',
  'data.threads',
  'eval_batch_size',
  'eval_epochs',
  'evals',
  'log_steps',
  'mesh',
  'patience',
  'profile',
  'save_epochs',
)


def train(config, workdir='', *, force: bool = False, console=None) -> dict:
  """Trains and evaluates what the config says; resumes what `workdir` has.

  Writes into `workdir`: config.json, metrics.jsonl, events/ (TensorBoard),
  checkpoints/, pictures/ and, at the end, result.json.

  Args:
    config: a config, or a name: 'cfam', 'cfam:baseline'.
    workdir: folder of the run, local or `gs://...`; default runs/SYSTEM.
    force: resume although the config has changed.
    console: where to print; default the terminal.

  Returns:
    The contents of result.json.

  Raises:
    UserError: anything that the caller can mend, before compilation.
    loop.NotFinite, loop.Interrupted: see `loop.train`.
  """
  if isinstance(config, str):
    config = catalog.get_config(config)
  console = console or Console(quiet=jax.process_index() != 0)
  workdir = epath.Path(workdir or f'runs/{config.system}').expanduser()

  # What can be wrong with fields and files is found before compilation.
  configuration.check(config)
  mesh = meshes.make_mesh(config.mesh)
  meshes.check_batch(config.batch_size, mesh, config.microbatches)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind').train_data(
    config
  )
  evaluators = make_evaluators(config)
  plan, epoch = make_plan(config, len(data.source))
  compression.check(config, plan.total)
  system = create_system(config, plan.total, epoch)
  dataset = make_dataset(config, data)
  options = compiler.options(config.compiler, mesh.devices.flat)
  checkpoints = open_checkpoints(config, workdir, force)
  say(
    console,
    f'{config.system}: {len(data.source)} examples, {plan.total} steps of '
    f'{config.batch_size} on {describe(mesh)}; writing to {workdir}',
  )
  if options:
    say(console, f'compiler: {options}')
  with contextlib.closing(checkpoints):
    train_again = functools.partial(train, force=force, console=console)
    weights = first_weights(
      config, workdir, checkpoints, mesh, train_again, console
    )
    started = time.perf_counter()
    program = loop.compile_system(
      system,
      jax.random.key(config.seed),
      meshes.abstract_batch(dataset[0], mesh),
      mesh,
      catalog.sharding(config),
      options,
    )
    state, meta = start(program, config, checkpoints, weights, console)
    if weights is not None and config.compress.method:
      tx = create_optimizer(config, plan.total, epoch)
      state = compression.restart(config, tx, state, program.shardings)
    say(
      console,
      f'{count_parameters(state.params):,} parameters, compiled in '
      f'{time.perf_counter() - started:.0f} s, '
      + ('resumed' if meta else 'starting')
      + f' at step {int(state.step)}',
    )
    run_it = session.Session(
      config, system, program, plan, evaluators, checkpoints, workdir, console
    )
    batches = open_batches(config, dataset, len(data.source), mesh, meta)
    with contextlib.closing(batches):
      try:
        return session.run(run_it, state, batches, Best(**meta.get('best', {})))
      except loop.NotFinite as broken:
        broken.workdir = str(workdir)
        raise


def first_weights(config, workdir, checkpoints, mesh, train_again, console):
  """What a new run begins with, see `initial.load_weights`; None to resume.

  Runs that it stands on are trained first.
  """
  if checkpoints.steps():
    return None
  folders = stages.run_stages(
    config, workdir, train_again, functools.partial(say, console)
  )
  return initial.load_weights(config, stages.read_states(config, folders, mesh))


def open_batches(
  config, dataset, examples: int, mesh, meta
) -> pipeline.Prefetch:
  """Batches on the devices, from where the checkpoint's `meta` says."""
  iterator = pipeline.train_iterator(
    dataset, workers=config.data.workers, threads=config.data.threads
  )
  if meta:
    iterator.set_state(meta['data'])
  return pipeline.Prefetch(
    iterator,
    functools.partial(meshes.to_devices, sharding=meshes.batch_sharding(mesh)),
    max_corrupt=math.ceil(config.data.max_corrupt * examples),
  )


def open_checkpoints(config, workdir, force: bool) -> checkpoint.Checkpoints:
  """The checkpoints of the run; refuses those of another configuration."""
  try:
    (workdir / 'checkpoints').mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(
      f'workdir {workdir} cannot be written ({error}): choose another '
      'with --workdir'
    ) from error
  path = workdir / 'config.json'
  if path.exists() and not force:
    try:
      stored = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(
        f'{path} is damaged ({error}): --force goes on without it'
      ) from error
    changes = [
      change
      for change in checkpoint.config_changes(stored, as_json(config))
      if not re.match(rf'({"|".join(FREE_FIELDS)})[.:]', change)
    ]
    if changes:
      raise UserError(
        f'{workdir} holds a run with another configuration:\n  '
        + '\n  '.join(changes)
        + '\nUse another --workdir, or --force to go on with the new one'
      )
  return checkpoint.Checkpoints(workdir / 'checkpoints', **config.checkpoint)


def start(program, config, checkpoints, weights, console):
  """The state to begin with, and what was saved beside it ({} at first)."""
  restored = checkpoints.restore(program.abstract, program.shardings)
  if restored:
    return restored.state, restored.meta
  unused = optim.unmatched(program.abstract.params, config.optim.groups)
  if unused:
    logging.warning(
      'optim.groups: no parameter matches %s', ', '.join(map(repr, unused))
    )
  state = program.init()
  if weights is not None:
    state, report = initial.put_weights(state, weights, config)
    say(
      console,
      f'{len(report.loaded)} arrays loaded, {len(report.fresh)} start fresh',
    )
  return state, {}


def say(console, text: str) -> None:
  """A line as it is: not wrapped, and brackets in paths are no markup."""
  console.print(text, markup=False, highlight=False, soft_wrap=True)


def count_parameters(params) -> int:
  """Numbers that are trained."""
  return sum(x.size for x in jax.tree.leaves(params))


def describe(mesh) -> str:
  """'8 x TPU v5e (data 4, fsdp 2)'."""
  kinds = sorted({device.device_kind for device in mesh.devices.flat})
  axes = ', '.join(f'{k} {v}' for k, v in mesh.shape.items() if v > 1)
  return f'{mesh.size} x {"/".join(kinds)}' + (f' ({axes})' if axes else '')


def print_systems(console) -> None:
  """What `--list` shows."""
  table = Table('system', 'what', 'paper', 'configs')
  for entry in catalog.SYSTEMS.values():
    names = [f'configs/{entry.slug}.py', *(f':{v}' for v in entry.variants)]
    table.add_row(entry.slug, entry.title, entry.paper, ' '.join(names))
  console.print(table)


def parse_arguments(argv):
  """(arguments, those that begin with --config)."""
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.main',
    description='Trains and evaluates a system. Started again on the same '
    'workdir, it resumes.',
    epilog='Any field of the config: --config.FIELD=VALUE, for example '
    '--config.optim.lr=1e-4. Config files are Python and are run.',
    allow_abbrev=False,
  )
  parser.add_argument('--list', action='store_true', help='show all systems')
  parser.add_argument(
    '--config', metavar='FILE[:VARIANT]', help='for example configs/cfam.py'
  )
  parser.add_argument(
    '--workdir', default='', help='folder of the run (default runs/SYSTEM)'
  )
  parser.add_argument(
    '--force',
    action='store_true',
    help='resume although the configuration has changed',
  )
  many = parser.add_argument_group(
    'many processes',
    'Found by itself on Cloud TPU slices, in SLURM and in launch/gke; '
    'elsewhere start the same command once a process with:',
  )
  many.add_argument('--coordinator', default='', metavar='HOST:PORT')
  many.add_argument('--num_processes', type=int)
  many.add_argument('--process_id', type=int)
  plan = parser.add_argument_group(
    'plan',
    'Compiles the step for a machine that need not be there, see '
    'docs/scaling.md; nothing is trained.',
  )
  plan.add_argument(
    '--plan',
    metavar='[search:]TOPOLOGY',
    help='v5e:16x16, v5p:4x4x4, 2xv6e:16x16, h100:8, h200:4x8; search: '
    'proposes mesh, remat and microbatches',
  )
  plan.add_argument(
    '--plan_out', metavar='FILE', help='default WORKDIR/plan.json'
  )
  plan.add_argument(
    '--plan_tries',
    type=int,
    default=planner.TRIES,
    help='compilations to search with, or to find what fits '
    '(default %(default)s)',
  )
  own = [a for a in argv if not a.startswith('--config.')]
  arguments = parser.parse_args(own)
  overrides = [a for a in argv if a.startswith('--config.')]
  if arguments.config is not None:
    overrides.insert(0, f'--config={arguments.config}')
  return arguments, overrides


def main(argv=None) -> int:
  """Runs the command line; returns the exit code.

  0: done, or stopped by SIGTERM with the state saved. 2: a mistake that the
  message says how to mend. 3: training diverged. 130: Ctrl-C.
  """
  logging.set_verbosity(logging.WARNING)
  host.keep_freed_memory()
  console = Console()
  try:
    arguments, overrides = parse_arguments(
      sys.argv[1:] if argv is None else argv
    )
    if arguments.list:
      print_systems(console)
      return 0
    config, source = configuration.parse(overrides)
    workdir = arguments.workdir or default_workdir(source)
    if arguments.plan is not None:
      out = arguments.plan_out or f'{workdir}/plan.json'
      tries = arguments.plan_tries
      planner.run(config, arguments.plan, out, console, tries=tries)
      return 0
    distributed.start(
      arguments.coordinator, arguments.num_processes, arguments.process_id
    )
    console.quiet = jax.process_index() != 0
    train(config, workdir, force=arguments.force)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except loop.Interrupted as interrupted:
    say(
      console,
      f'stopped at step {interrupted.step} with the state saved; the same '
      'command goes on from there',
    )
  except KeyboardInterrupt:
    print('stopped; the last checkpoint stays', file=sys.stderr)
    return 130
  except loop.NotFinite as broken:
    print(
      f'error: {broken}; the last good checkpoint is in '
      f'{broken.workdir}/checkpoints. Lower optim.lr or set optim.clip_norm, and '
      'start again (with --force to go on from that checkpoint)',
      file=sys.stderr,
    )
    return 3
  return 0


def default_workdir(source: str) -> str:
  """'runs/cfam-ufine6926' for 'configs/cfam.py:ufine6926'."""
  path, _, variant = source.partition(':')
  name = path.rpartition('/')[2].removesuffix('.py')
  suffix = re.sub(r'[^\w]+', '-', variant)
  return f'runs/{name}' + (f'-{suffix}' if suffix else '')


if __name__ == '__main__':
  sys.exit(main())
