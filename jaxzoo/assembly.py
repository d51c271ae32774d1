"""From a config to the parts of a run: system, optimizer, data, evaluators."""

import itertools
import json
import math
from collections.abc import Sequence

import jax
import optax

from jaxzoo import catalog, compression
from jaxzoo.data import pipeline
from jaxzoo.errors import UserError
from jaxzoo.runs import build_system
from jaxzoo.system import System
from jaxzoo.train import loop, optim


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
  system = build_system(
    config, create_optimizer(config, total_steps, steps_per_epoch)
  )
  return compression.with_masks(system, config)


def create_optimizer(config, total_steps: int, steps_per_epoch: int):
  """The optimizer of a config, pruned where `config.compress` says so."""
  parts = compression.periods(config, total_steps)
  tx = make_optimizer(config.optim, parts, steps_per_epoch)
  return compression.wrap(tx, config, total_steps)


def make_schedule(fields, total_steps: int, steps_per_epoch: int):
  """step -> learning rate, of `config.optim`."""
  return optim.make_schedule(
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


def make_optimizer(fields, parts: Sequence[int], steps_per_epoch: int):
  """The optimizer of `config.optim`, whose schedule begins anew in each part.

  Args:
    fields: `config.optim`.
    parts: steps of the parts of the run; most runs are one.
    steps_per_epoch: for warm-up and milestones.
  """
  schedules = [make_schedule(fields, steps, steps_per_epoch) for steps in parts]
  return optim.make_optimizer(
    fields.name,
    optax.join_schedules(schedules, list(itertools.accumulate(parts[:-1]))),
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
    fields.pop('at_end', None)
    module = catalog.part(catalog.EVALUATORS, kind, f'evals.{name}.kind')
    evaluators[name] = module.make_evaluator(config, **fields)
  return evaluators


def at_end(config) -> list[str]:
  """Names of the evaluators that wait for the end of the run.

  They get the parameters of the best evaluation, where `checkpoint.best` says
  what is best, with the optimizer's last state.
  """
  evals = config.evals.items()
  return [name for name, fields in evals if fields.get('at_end', False)]


def make_dataset(config, data):
  """The endless stream of this process's part of the batches."""
  return pipeline.train_dataset(
    *data,
    batch_size=config.batch_size // jax.process_count(),
    seed=config.seed,
    shard=jax.process_index(),
    shards=jax.process_count(),
    repeats=config.data.repeats,
  )


def as_json(config) -> dict:
  """The config as it reads back from JSON: lists for tuples."""
  return json.loads(config.to_json_best_effort())
