"""`config.compress`: the fields of the command line, and the method they name.

Times are shares of the run, so that one setting serves runs of any length.
"""

import functools
import re
from collections.abc import Callable

import ml_collections

from jaxzoo.compress.masks import default_eligible
from jaxzoo.compress.methods import gap_parallel
from jaxzoo.compress.methods.chex import chex
from jaxzoo.compress.methods.gap import gap
from jaxzoo.compress.methods.magnitude import magnitude
from jaxzoo.compress.methods.n_m import n_m
from jaxzoo.compress.methods.random import random
from jaxzoo.compress.methods.regrow import rigl, sparse_evolution
from jaxzoo.compress.methods.rpg import rpg, rpg_schedule
from jaxzoo.compress.methods.saliency import saliency
from jaxzoo.compress.schedules import CURVES, Schedule, constant
from jaxzoo.compress.transform import Method
from jaxzoo.errors import UserError, nearest
from jaxzoo.system import System


def defaults() -> ml_collections.ConfigDict:
  """The fields that every config has under `compress`."""
  return ml_collections.ConfigDict(
    dict(
      method='',  # '' for none: a name of METHODS
      sparsity=0.9,  # final, of the eligible entries
      schedule='',  # constant, cubic, exponential, cosine; '': the method's
      begin=0.0,  # of the run: the first change of masks
      end=0.0,  # of the run: the density is final; 0: the method's own
      last=0.0,  # of the run: last regrowth; 0: the method's own
      every=0,  # steps between changes of masks; 0: a hundredth of the run
      eligible=(),  # regexes of parameters; (): all kernels
      exclude=(),  # regexes of parameters that stay dense
      allocation='',  # uniform, erk, global; '': the method's own
      min_per_layer=1,  # entries that a layer keeps under 'global', and rpg
      alpha=0.3,  # rigl, set, rpg: the share that is exchanged at first
      strength=-1.0,  # rpg: of the rank loss; negative: the published one
      delta=0.0,  # rpg: energy left out; 0: the published one
      every_step=False,  # rpg: the rank loss trains, too
      partitions=4,  # gap: of consecutive layers
      partition=(),  # gap: instead, regexes, one a partition
      phases=8,  # gap: in which one partition is dense
      parallel=False,  # gap: all at once, each in a copy; merged after a phase
      batches=1,  # saliency: whose gradients are summed
      n=2,  # n_m: entries kept
      m=4,  # n_m: of so many
      axis=(),  # n_m: (regex, axis) pairs where it is not the second last
      groups='^(?!stream)',  # chex: regex of channel groups that are pruned
      regrow=0.3,  # chex: share of the channels that comes back at first
      score='leverage',  # chex: of the channels; or 'l1'
      budget='channels',  # chex: what the sparsity is of; or 'macs'
      at_start=True,  # chex: pruned to sparsity - regrow before the first step
      as_published=False,  # chex: one channel fewer
      decay=0.0,  # n_m: of what the final pattern would prune
      seed=0,  # of random choices
    )
  )


def _steps(share: float, otherwise: float, total: int) -> int:
  return round((share or otherwise) * total)


def _every(fields, total: int) -> int:
  return fields.every or max(1, total // 100)


def _schedule(fields, total: int, kind: str, last: bool = False) -> Schedule:
  """The schedule of the fields, of the method's own kind by default."""
  kind = fields.schedule or kind
  begin = round(fields.begin * total)
  end = max(begin, _steps(fields.end, 0.75, total))
  every = _every(fields, total)
  if kind == 'constant':
    stop = max(begin, _steps(fields.last, 0.75, total)) if last else None
    return constant(begin, every, stop)
  if kind not in CURVES:
    known = ('constant', *CURVES)
    raise UserError(f'compress.schedule: no {kind!r}; ' + nearest(kind, known))
  stop = max(end, _steps(fields.last, 0.75, total)) if last else None
  return CURVES[kind](begin, end, every, stop)


def _scored(make: Callable, kind: str, allocation: str, fields, total):
  return make(
    fields.sparsity,
    _schedule(fields, total, kind),
    allocation=fields.allocation or allocation,
  )


def _magnitude(fields, total):
  return magnitude(
    fields.sparsity,
    _schedule(fields, total, 'cubic'),
    allocation=fields.allocation or 'uniform',
    min_per_leaf=fields.min_per_layer,
  )


def _saliency(fields, total):
  return saliency(
    fields.sparsity,
    _schedule(fields, total, 'constant'),
    allocation=fields.allocation or 'global',
    batches=fields.batches,
  )


def _n_m(fields, total):
  return n_m(
    fields.n,
    fields.m,
    _schedule(fields, total, 'constant'),
    axis=tuple(tuple(pair) for pair in fields.axis) or -2,
    decay=fields.decay,
  )


def _regrow(make: Callable, fields, total):
  return make(
    fields.sparsity,
    _schedule(fields, total, 'constant', last=True),
    allocation=fields.allocation or 'erk',
    alpha=fields.alpha,
  )


def _rpg(fields, total):
  """The published ramp, 0.9 of the run, and one update after it."""
  every = _every(fields, total)
  ramp = _steps(fields.end, 0.9, total)
  stop = max(_steps(fields.last, 0.901, total), (ramp // every + 1) * every + 1)
  return rpg(
    fields.sparsity,
    rpg_schedule(ramp, stop, every),
    strength=None if fields.strength < 0 else fields.strength,
    delta=fields.delta or None,
    alpha=fields.alpha,
    stop=stop,
    min_per_layer=fields.min_per_layer,
    rank_loss_every_step=fields.every_step,
  )


def _phase_steps(fields, total: int) -> int:
  return fields.every or max(
    1, _steps(fields.end, 0.85, total) // fields.phases
  )


def _partition(fields):
  return tuple(fields.partition) or fields.partitions


def _gap(fields, total):
  every = _phase_steps(fields, total)
  return gap(
    fields.sparsity,
    constant(1, every, fields.phases * every + 1),
    partition=_partition(fields),
    allocation=fields.allocation or 'uniform',
    reset_inner='moments',
    parallel=fields.parallel,
  )


def in_parallel(fields) -> bool:
  """Whether the method trains several copies: `gap_parallel`."""
  return fields.method == 'gap' and fields.parallel


def copies(fields) -> int:
  """The partitions of `gap`, each of which has a copy."""
  return len(fields.partition) or fields.partitions


def grow_in_parallel(system: System, fields, total: int) -> System:
  """The system of all copies, where the method has them; else itself."""
  if not in_parallel(fields):
    return system
  every = _phase_steps(fields, total)
  merge = gap_parallel.merge_copies(
    fields.sparsity,
    _partition(fields),
    allocation=fields.allocation or 'uniform',
    eligible=eligible(fields),
  )
  return gap_parallel.grow_in_parallel(
    system,
    copies(fields),
    every=every,
    merge=merge,
    until=fields.phases * every,
  )


def _chex(fields, total, structure):
  """The published exploration, 0.72 of the run."""
  every, (groups, positions) = _every(fields, total), structure
  chosen = [g for g in groups if re.search(fields.groups, g.name)]
  begin = round(fields.begin * total) or every
  end = max(begin, _steps(fields.end, 0.72, total))
  return chex(
    chosen,
    fields.sparsity,
    constant(begin, every, end)._replace(end=end),
    regrow=fields.regrow,
    allocation=fields.allocation or 'scale',
    score=fields.score,
    budget=fields.budget,
    positions=positions,
    as_published=fields.as_published,
    at_start=fields.at_start,
  )


# name -> (fields, steps of the run, (channel groups, positions of the kernels))
# -> Method: those that prune channels, see `channels.ChannelGroup`.
STRUCTURED = {'chex': _chex}

# name -> (fields, steps of the run) -> Method.
METHODS = {
  'gap': _gap,
  'magnitude': _magnitude,
  'n_m': _n_m,
  'random': functools.partial(_scored, random, 'constant', 'uniform'),
  'rigl': functools.partial(_regrow, rigl),
  'rpg': _rpg,
  'saliency': _saliency,
  'set': functools.partial(_regrow, sparse_evolution),
}


def make_method(fields, total_steps: int, structure=None) -> Method:
  """The method of `config.compress`.

  Args:
    fields: see `defaults`.
    total_steps: of the run.
    structure: (channel groups, positions of the kernels) of the network, for
      the methods of `STRUCTURED`.

  Raises:
    UserError: an unknown name, or numbers that no method takes.
  """
  name = fields.method
  if name not in METHODS | STRUCTURED:
    known = METHODS | STRUCTURED
    raise UserError(f'compress.method: no {name!r}; ' + nearest(name, known))
  for field in ('begin', 'end', 'last', 'sparsity'):
    if not 0 <= fields[field] <= 1:
      raise UserError(f'compress.{field}={fields[field]}: it must be in [0, 1]')
  for field in ('phases', 'partitions', 'batches'):
    if fields[field] < 1:
      raise UserError(
        f'compress.{field}={fields[field]}: it must be at least 1'
      )
  try:
    if name in STRUCTURED:
      return STRUCTURED[name](fields, total_steps, structure)
    return METHODS[name](fields, total_steps)
  except ValueError as error:
    raise UserError(f'compress: {error}') from error


def periods(fields, total_steps: int) -> list[int]:
  """Lengths of the parts of a run in each of which the rate starts afresh.

  GaP restarts its schedule with every phase and for the tuning after them.
  """
  if fields.method != 'gap':
    return [total_steps]
  every = _phase_steps(fields, total_steps)
  rest = total_steps - fields.phases * every
  return [every] * fields.phases + ([rest] if rest > 0 else [])


def last_update(fields, total_steps: int) -> int:
  """The step of the last change of masks."""
  if fields.method == 'gap':
    return fields.phases * _phase_steps(fields, total_steps) + 1
  if fields.method == 'rpg':
    every = _every(fields, total_steps)
    return (_steps(fields.end, 0.9, total_steps) // every + 1) * every
  return 0


def eligible(fields) -> Callable:
  """(path, leaf) -> bool, of the patterns of `config.compress`."""

  def chosen(name, leaf):
    if any(re.search(pattern, name) for pattern in fields.exclude):
      return False
    if not fields.eligible:
      return default_eligible(name, leaf)
    return any(re.search(pattern, name) for pattern in fields.eligible)

  return chosen
