"""The one entry point: from a config to a trained and evaluated system.

    python -m jaxzoo.main --config=configs/cfam.py --workdir=runs/cfam
    python -m jaxzoo.main --config=configs/cfam.py:ufine6926 \\
        --config.data.root=/data --config.optim.lr=2e-5
    python -m jaxzoo.main --list
"""

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

import jaxzoo
from jaxzoo import catalog, configuration, initial
from jaxzoo.data import pipeline
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import make_predict
from jaxzoo.eval.pictures import learning_curves
from jaxzoo.system import System, with_ema
from jaxzoo.train import checkpoint, host, loop, optim
from jaxzoo.train import mesh as meshes
from jaxzoo.train.writers import (
  Display,
  Writer,
  format_scalars,
  result_table,
)

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
  'profile',
  'save_epochs',
)


def make_plan(config, examples: int) -> tuple[loop.Plan, int]:
  """The loop's plan and the steps of an epoch, from the config's epochs."""
  epoch = max(1, examples // config.batch_size)
  total = max(1, round(config.epochs * epoch))
  # Rounded up: else the last of them would come a step before the end.
  steps = lambda epochs: math.ceil(round(epochs * epoch, 6))
  every = lambda epochs: max(1, steps(epochs)) if epochs else 0
  plan = loop.Plan(
    total=total,
    log=config.log_steps,
    evaluate=every(config.eval_epochs),
    save=every(config.save_epochs),
    profile=tuple(config.profile),
  )
  return plan, epoch


def create_system(
  config, total_steps: int = 1, steps_per_epoch: int = 1, **overrides
) -> System:
  """The System of a config: init, step and predict.

  >>> system = create_system('cfam')

  Args:
    config: a config, or a name: 'cfam', 'cfam:cuhk_pedes'.
    total_steps: of the run, for the schedules.
    steps_per_epoch: likewise.
    **overrides: values for fields of the config.

  Raises:
    UserError: an override of no field, or of another type.
  """
  if isinstance(config, str):
    config = catalog.get_config(config)
  config = config.copy_and_resolve_references()
  try:
    config.update(overrides)
  except (KeyError, TypeError) as error:
    raise UserError(f'create_system: {error.args[0]}') from error
  config.total_steps = total_steps
  return build_system(
    config, make_optimizer(config.optim, total_steps, steps_per_epoch)
  )


def build_system(config, tx) -> System:
  """The System of a config, trained by the optimizer `tx`."""
  system = catalog.load(config.system).build(config, tx)
  return with_ema(system, config.ema) if config.ema else system


def make_optimizer(fields, total_steps: int, steps_per_epoch: int):
  """The optimizer of `config.optim`."""
  schedule = optim.make_schedule(
    fields.schedule,
    fields.lr,
    total_steps=total_steps,
    warmup_steps=round(fields.warmup_epochs * steps_per_epoch),
    warmup_factor=fields.warmup_factor,
    steps_per_epoch=steps_per_epoch if fields.by_epoch else None,
    end=fields.end,
    milestones=[round(m * steps_per_epoch) for m in fields.milestones],
    gamma=fields.gamma,
    power=fields.power,
  )
  return optim.make_optimizer(
    fields.name,
    schedule,
    b1=fields.b1,
    b2=fields.b2,
    eps=fields.eps,
    momentum=fields.momentum,
    nesterov=fields.nesterov,
    weight_decay=fields.weight_decay,
    clip_norm=fields.clip_norm,
    groups=fields.groups,
    mu_dtype=fields.mu_dtype or None,
    layer_decay=fields.layer_decay,
  )


def make_evaluators(config) -> dict:
  """name -> evaluator, for every entry of `config.evals`."""
  evaluators = {}
  for name, fields in config.evals.items():
    fields = fields.to_dict()
    kind = fields.pop('kind')
    module = catalog.part(catalog.EVALUATORS, kind, f'evals.{name}.kind')
    evaluators[name] = module.make_evaluator(config, **fields)
  return evaluators


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
  system = create_system(config, plan.total, epoch)
  dataset = make_dataset(config, data)
  checkpoints = open_checkpoints(config, workdir, force)
  say(
    console,
    f'{config.system}: {len(data.source)} examples, {plan.total} steps of '
    f'{config.batch_size} on {describe(mesh)}; writing to {workdir}',
  )
  with contextlib.closing(checkpoints):
    resuming = bool(checkpoints.steps())
    weights = None if resuming else initial.load_weights(config)
    started = time.perf_counter()
    program = loop.compile_system(
      system,
      jax.random.key(config.seed),
      meshes.abstract_batch(dataset[0], mesh),
      mesh,
      catalog.sharding(config),
    )
    state, iterator_state = start(
      program, config, checkpoints, weights, console
    )
    say(
      console,
      f'{count_parameters(state.params):,} parameters, compiled in '
      f'{time.perf_counter() - started:.0f} s, '
      + ('resumed' if iterator_state else 'starting')
      + f' at step {int(state.step)}',
    )
    iterator = pipeline.train_iterator(
      dataset, workers=config.data.workers, threads=config.data.threads
    )
    if iterator_state:
      iterator.set_state(iterator_state)
    batches = pipeline.Prefetch(
      iterator,
      functools.partial(
        meshes.to_devices, sharding=meshes.batch_sharding(mesh)
      ),
      max_corrupt=math.ceil(config.data.max_corrupt * len(data.source)),
    )
    with contextlib.closing(batches):
      return run(
        config,
        system,
        program,
        state,
        batches,
        plan,
        evaluators,
        checkpoints,
        workdir,
        console,
      )


def make_dataset(config, data):
  """The endless stream of this process's part of the batches."""
  return pipeline.train_dataset(
    data.source,
    data.transforms,
    batch_size=config.batch_size // jax.process_count(),
    seed=config.seed,
    shard=jax.process_index(),
    shards=jax.process_count(),
    repeats=config.data.repeats,
  )


def as_json(config) -> dict:
  """The config as it reads back from JSON: lists for tuples."""
  return json.loads(config.to_json_best_effort())


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
  """The state to begin with, and the data iterator's state ({} at first)."""
  restored = checkpoints.restore(program.abstract, program.shardings)
  if restored:
    return restored.state, restored.meta['data']
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
      f'{config.init.weights}: {len(report.loaded)} arrays loaded, '
      f'{len(report.fresh)} start fresh',
    )
  return state, {}


def run(
  config,
  system,
  program,
  state,
  batches,
  plan,
  evaluators,
  checkpoints,
  workdir,
  console,
) -> dict:
  """The loop between a state and result.json."""
  writer = Writer(workdir, int(state.step))
  writer.json('config.json', as_json(config))
  display = Display(plan.total, int(state.step), console, config.data.unit)
  predict = make_predict(system, program.mesh, config.eval_batch_size)
  evaluations = {}

  def evaluate(state):
    started = time.perf_counter()
    predict_now = predict(state)
    metrics = {}
    for name, evaluator in evaluators.items():
      evaluations[name] = evaluator(predict_now)
      for key, value in evaluations[name].metrics.items():
        metrics[f'{name}/{key}'] = value
      display.line(f'  {name}: {format_scalars(evaluations[name].metrics)}')
    display.line(f'  evaluated in {time.perf_counter() - started:.0f} s')
    return metrics

  def save(state, metrics):
    checkpoints.save(
      state, {'data': batches.state, 'jaxzoo': jaxzoo.__version__}, metrics
    )

  with contextlib.closing(writer):
    state, metrics = loop.train(
      program.step,
      state,
      batches,
      plan=plan,
      batch_size=config.batch_size,
      evaluate=evaluate,
      save=save,
      writer=writer,
      display=display,
      profile_to=str(workdir / 'profile'),
    )
    step = int(state.step)
    result = {'system': config.system, 'step': step, 'metrics': metrics}
    if config.baseline:
      result['baseline'] = config.baseline.to_dict()
    writer.json('result.json', result)
    if jax.process_index() == 0:
      for name, evaluation in evaluations.items():
        for picture, image in evaluation.pictures().items():
          writer.picture(f'{name}_{picture}', image, step)
      curves = learning_curves(writer.history())
      writer.picture('learning_curves', curves, step)
  others = {'(baseline)': config.baseline} if config.baseline else {}
  console.print(result_table(metrics, others))
  return result


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
      f'{workdir}/checkpoints. Lower optim.lr or set optim.clip_norm, and '
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
