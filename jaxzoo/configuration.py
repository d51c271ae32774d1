"""Configs from the command line: variants, overrides, and errors that help."""

import ast
import inspect
import operator
from collections.abc import Iterable, Mapping

import ml_collections

from jaxzoo import catalog
from jaxzoo.compress import options
from jaxzoo.errors import UserError, nearest
from jaxzoo.train.compiler import NAMES as COMPILER_SETS

# What the backward pass computes again: less memory, more computation.
REMATS = ('none', 'dots', 'attention', 'full')


def defaults() -> ml_collections.ConfigDict:
  """The fields that every system has, for config files to start from."""
  config = ml_collections.ConfigDict()
  config.job = 'train'
  config.system = ''  # slug
  config.seed = 0
  config.batch_size = 64  # global
  config.epochs = 1.0
  config.total_steps = 0  # of the run: follows from epochs, for schedules
  config.microbatches = 1
  config.dtype = 'float32'  # of the computation; parameters are float32
  config.scan = True  # one compiled block for all layers
  config.remat = 'none'  # one of REMATS
  config.compiler = 'default'  # set of XLA's options, see train/compiler.py
  config.ema = 0.0  # decay of averaged parameters used for evaluation; 0: off

  config.optim = ml_collections.ConfigDict()
  config.optim.name = 'adamw'
  config.optim.lr = 1e-3
  config.optim.b1 = 0.9
  config.optim.b2 = 0.999
  config.optim.eps = 1e-8
  config.optim.momentum = 0.9
  config.optim.nesterov = False
  config.optim.weight_decay = 0.0
  config.optim.clip_norm = 0.0
  config.optim.groups = ()  # (regex, {'lr': x, 'decay': x, 'frozen': bool})
  config.optim.layer_decay = 1.0  # rate of a block over the next one's
  config.optim.mu_dtype = ''
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 0.0
  config.optim.warmup_factor = 0.0
  config.optim.by_epoch = False  # constant within an epoch
  config.optim.end = 0.0  # last learning rate
  config.optim.milestones = ()  # epochs, for the schedule 'step'
  config.optim.gamma = 0.1  # for 'step'
  config.optim.power = 0.9  # for 'poly' and 'exp'

  config.data = ml_collections.ConfigDict()
  config.data.kind = ''  # a key of catalog.DATA
  config.data.unit = 'examples'  # what the rates count
  config.data.threads = 4
  config.data.workers = 0  # processes instead of threads: for heavy decoding
  config.data.repeats = 1  # transformed copies of a record in a batch
  config.data.max_corrupt = 0.01  # share of records that may be unreadable

  config.evals = ml_collections.ConfigDict()  # name -> {'kind': ..., ...}
  config.eval_batch_size = 256
  config.eval_epochs = 1.0  # between two evaluations; 0: at the end alone
  config.save_epochs = 1.0  # between two checkpoints; 0: at the end alone
  config.patience = 0  # evaluations without a new best that end a run; 0: off
  config.log_steps = 50

  config.checkpoint = ml_collections.ConfigDict()
  config.checkpoint.keep = 2
  config.checkpoint.keep_every = 0  # steps
  config.checkpoint.best = ''  # metric whose best checkpoint is kept
  config.checkpoint.best_mode = 'max'  # or 'min', for errors
  config.checkpoint.verify = True

  config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))

  config.init = ml_collections.ConfigDict()
  config.init.weights = ''  # published checkpoint to start from
  config.init.fresh = ()  # regexes of parameters that it does not have

  config.compress = options.defaults()  # pruning, see docs/compression.md

  # Runs to train before this one, by name, see stages.py.
  config.stages = ml_collections.ConfigDict()

  # Metrics of what a demo is compared with, measured as docs/results.md says.
  config.baseline = ml_collections.ConfigDict()
  config.profile = ()  # (first, last) step of a profiler trace
  return config


# The least that a number may be, and what a name may be.
LEAST = {
  'eval_batch_size': 1,
  'log_steps': 1,
  'epochs': 0.0,
  'eval_epochs': 0.0,
  'save_epochs': 0.0,
  'patience': 0,
  'ema': 0.0,
  'optim.warmup_epochs': 0.0,
  'data.threads': 0,
  'data.workers': 0,
  'data.repeats': 1,
  'data.max_corrupt': 0.0,
}
CHOICES = {
  'job': ('train',),
  'checkpoint.best_mode': ('max', 'min'),
  'dtype': ('float32', 'bfloat16'),
  'remat': REMATS,
  'compiler': COMPILER_SETS,
}


def check(config) -> None:
  """Raises UserError for values that no run can have."""
  for field, least in LEAST.items():
    value = operator.attrgetter(field)(config)
    if not value >= least:  # NaN too
      raise UserError(f'{field}={value}: it must be at least {least}')
  for field, known in CHOICES.items():
    value = operator.attrgetter(field)(config)
    if value not in known:
      raise UserError(f'{field}: no {value!r}; ' + nearest(value, known))
  if config.patience and not config.checkpoint.best:
    raise UserError(
      f'patience={config.patience}: say by which metric with checkpoint.best'
    )
  if not config.ema < 1:
    raise UserError(f'ema={config.ema}: it must be less than 1')
  first_last = tuple(config.profile)
  if first_last and (len(first_last) != 2 or first_last[0] >= first_last[1]):
    raise UserError(
      f'profile={first_last}: write the first and the last step, as in '
      '--config.profile=10,20'
    )


def choose_variant(variant: str, variants: Mapping, options: Iterable = ()):
  """Takes the string after a config's colon apart.

  >>> choose_variant('ufine6926,model=l14', {'ufine6926': 1}, ['model'])
  (1, {'model': 'l14'})

  Args:
    variant: 'NAME', 'NAME,OPTION=VALUE' or ''.
    variants: what there is, by name; '' is the demo.
    options: names that may follow.

  Returns:
    (variants[NAME], {option: value}).

  Raises:
    UserError: unknown variant or option, with the nearest names, or an option
      that the variant does not take.
  """
  name, *rest = variant.split(',')
  if name not in variants:
    known = [each for each in variants if each]
    raise UserError(f'no variant {name!r}; ' + nearest(name, known))
  chosen = {}
  for item in rest:
    key, equals, value = item.partition('=')
    if key not in options:
      raise UserError(
        f'variant {variant!r}: no option {key!r}; ' + nearest(key, options)
      )
    if not equals:
      raise UserError(f'variant {variant!r}: write {key}=VALUE')
    chosen[key] = value
  _check_taken(name, variants[name], chosen)
  return variants[name], chosen


def _check_taken(name: str, make, chosen: Mapping) -> None:
  """Raises UserError where a variant's function lacks a chosen option.

  One that takes the whole variant looks at its options itself.
  """
  if not chosen or not callable(make):
    return
  taken = inspect.signature(make).parameters
  if 'variant' in taken:
    return
  for key in chosen:
    if key not in taken:
      raise UserError(f'variant {name!r} takes no option {key!r}')


def parse(arguments: Iterable[str]):
  """The config of `--config=FILE[:VARIANT]` with `--config.a.b=value` applied.

  Args:
    arguments: only those that begin with `--config`.

  Returns:
    (locked ConfigDict, 'FILE[:VARIANT]').

  Raises:
    UserError: no such file, variant or field, or a value of another type.
  """
  source, overrides = '', []
  for argument in arguments:
    name, equals, value = argument.removeprefix('--').partition('=')
    if not equals:
      raise UserError(f'{argument}: write --{name}=VALUE')
    if name == 'config':
      source = value
    elif name.startswith('config.'):
      overrides.append((name.removeprefix('config.'), value))
    else:
      raise UserError(f'no option --{name}; did you mean --config.FIELD?')
  if not source:
    raise UserError(
      'which system? For example --config=configs/cfam.py; --list shows all'
    )
  path, _, variant = source.partition(':')
  if path in catalog.SYSTEMS:
    path = catalog.config_path(path)
  config = catalog.read_config(path, variant)
  for field, value in overrides:
    override(config, field, value)
  return config, source


def override(config: ml_collections.ConfigDict, field: str, text: str) -> None:
  """Sets `field` ('optim.lr') from text, keeping the type that it has.

  Tuples are written as Python writes them: '(384, 128)' or '384,128'.

  Raises:
    UserError: no such field, or text that is not of its type.
  """
  node, place = config, 'the config'
  for name in field.split('.'):
    known = list(node) if isinstance(node, ml_collections.ConfigDict) else []
    if name not in known:
      raise UserError(
        f'--config.{field}: {place} has no field {name!r}; '
        + (nearest(name, known) if known else 'it is a single value')
      )
    parent, node, place = node, node[name], name
  if isinstance(node, ml_collections.ConfigDict):
    raise UserError(
      f'--config.{field} is a group; set one of its fields: '
      + ', '.join(f'{field}.{name}' for name in node)
    )
  parent[name] = _value(field, node, text)


def _value(field: str, old, text: str):
  """`text` as a value of the type of `old`."""
  if isinstance(old, str):
    return text
  try:
    value = ast.literal_eval(text.strip())
  except (ValueError, SyntaxError):
    value = {'true': True, 'false': False, 'none': None}.get(
      text.strip().lower(), text
    )
  if isinstance(old, float) and type(value) is int:
    value = float(value)
  if isinstance(old, tuple) and isinstance(value, (list, int, float)):
    value = tuple(value) if isinstance(value, list) else (value,)
  if type(value) is not type(old) and old is not None:
    raise UserError(
      f'--config.{field}={text}: expected {type(old).__name__} like {old!r}'
    )
  return value
