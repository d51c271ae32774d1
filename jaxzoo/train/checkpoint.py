"""Checkpoints: asynchronous, verified, and never lost to a damaged newest one.

Orbax writes them (a temporary folder, renamed when complete). This file adds
what it does not: a manifest of hashes, so that a flipped bit is noticed; the
fall-back to the step before when the newest is damaged; and the refusal to
resume under another configuration.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from jaxzoo.errors import UserError
from jaxzoo.system import State
from jaxzoo.train.manifest import check_manifest, write_manifest
from jaxzoo.train.mesh import placed
from jaxzoo.train.optim import path_name
from jaxzoo.train.stored import from_stored, stored_shardings, to_stored

ARRAYS = 'arrays'  # key of the JSON: names, dtypes and shapes of the state


class Restored(NamedTuple):
  """A state from disk, and the JSON that was saved beside it."""

  state: State
  meta: dict[str, Any]


def _absolute(directory) -> epath.Path:
  """Orbax takes no relative paths; `gs://...` stays as it is."""
  return epath.Path(directory).expanduser().resolve()


class Checkpoints:
  """The checkpoints of one run, in `directory`/STEP.

  Args:
    directory: local or remote (`gs://...`).
    keep: how many of the newest stay, at least 2: one to fall back to.
    keep_every: steps divisible by it stay for good; 0: none.
    best: name of a metric whose best checkpoint stays too; '' for none.
    best_mode: 'max' or 'min'.
    verify: whether to check the manifest's hashes before reading; costs one
      read of the checkpoint.
  """

  def __init__(
    self,
    directory,
    *,
    keep: int = 2,
    keep_every: int = 0,
    best: str = '',
    best_mode: str = 'max',
    verify: bool = True,
  ):
    if keep < 2:
      raise UserError(
        f'checkpoint.keep={keep}: keep at least 2, so that there is one to '
        'fall back to when the newest is damaged'
      )
    self.directory = _absolute(directory)
    self._verify = verify
    self._saving = None
    policies = [checkpoint_managers.LatestN(keep)]
    if keep_every:
      policies.append(checkpoint_managers.EveryNSteps(keep_every))
    if best:
      # Runs that have not evaluated yet have no such metric: never the best.
      worst = -np.inf if best_mode == 'max' else np.inf
      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: float(metrics.get(best, worst)),
          reverse=best_mode == 'min',
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._manager = ocp.CheckpointManager(
      self.directory,
      item_names=('state', 'meta'),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,  # of a process that was killed
        # Only needed for its type: says that metrics are to be stored.
        best_fn=(lambda metrics: metrics.get(best, 0.0)) if best else None,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._finalized
        ),
      ),
    )

  def save(
    self, state: State, meta: Mapping[str, Any], metrics: Mapping | None = None
  ) -> None:
    """Starts to write `state` as step `state.step`; returns when the arrays are
    copied off the devices. A step that is there already is left alone.

    Args:
      state: of the run.
      meta: JSON that goes with it: config, iterator state, versions.
      metrics: of an evaluation of this state, for `best`.
    """
    step = int(jax.device_get(state.step))
    if step in self.steps():
      return
    self._manager.wait_until_finished()
    self._saving = step
    plain = to_stored(state)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(plain),
        meta=ocp.args.JsonSave({**meta, ARRAYS: _arrays(plain)}),
      ),
      metrics=dict(metrics or {}),
      force=True,
    )

  def _finalized(self):
    """Called by orbax when all is written and before the folder is renamed
    into place: the manifest appears together with the checkpoint."""
    if jax.process_index() == 0:
      name = str(self._saving)
      for folder in self.directory.glob(f'{name}*'):
        if folder.name == name or folder.name.startswith(name + '.orbax'):
          write_manifest(folder)

  def steps(self) -> list[int]:
    """Complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def restore(self, state: State, shardings) -> Restored | None:
    """The newest checkpoint that is whole, or None where there is none.

    A damaged one is reported, renamed to STEP.bad and passed over.

    Args:
      state: abstract: what is expected (`jax.eval_shape` of init).
      shardings: of the same form; the state is read straight into them,
        whatever mesh wrote it.

    Raises:
      UserError: the checkpoint's arrays have other names or shapes than the
        state, or every checkpoint is damaged.
    """

    def move(folder):
      bad = folder.with_name(f'{folder.name}.bad')
      logging.error('moved to %s, falling back to the one before it', bad)
      if jax.process_index() == 0:
        if bad.exists():
          bad.rmtree()
        folder.rename(bad)
      if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f'moved {folder.name}')
      self._manager.reload()

    steps = self.steps()
    if not steps and any(self.directory.glob('*.bad')):
      raise _all_damaged(self.directory)
    return _newest_whole(
      self.directory,
      steps,
      lambda step: self._read(step, state, shardings),
      verify=self._verify,
      damaged=move,
    )

  def meta(self, step: int) -> dict:
    """The JSON saved with `step`, without its arrays."""
    return _meta(self._manager, step)

  def _read(self, step, state, shardings) -> Restored:
    plain = jax.eval_shape(to_stored, state)
    meta = self.meta(step)
    _check_fits(self.directory / str(step), meta.pop(ARRAYS), _arrays(plain))
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(
          placed(plain, stored_shardings(state, shardings))
        )
      ),
    )
    return Restored(from_stored(restored['state'], state, shardings), meta)

  def wait(self):
    """Waits for the last checkpoint to be whole."""
    self._manager.wait_until_finished()

  def close(self):
    """Waits likewise, and ends."""
    self.wait()
    self._manager.close()


def read(
  directory,
  state: State,
  shardings: State,
  *,
  step: int | None = None,
  optimizer: bool = False,
  verify: bool = True,
) -> Restored:
  """What `predict` needs of a checkpoint: `step`, `params` and `extra`.

  The folder is left as it is, so the run may go on at the same time. The
  optimizer's arrays are read only where `optimizer` says so.

  Args:
    directory: of the checkpoints of a run, local or remote.
    state: abstract; its `opt` does not matter without `optimizer`.
    shardings: of the same form.
    step: which; default the newest that is whole.
    optimizer: whether to read `opt` as well.
    verify: whether to check the manifest's hashes first.

  Returns:
    The state with () for `rng` and for what was not read of it, and the JSON
    beside it.

  Raises:
    UserError: no checkpoint (of that step), a damaged one where there is no
      other to turn to, or arrays of other names or shapes.
  """
  directory = _absolute(directory)
  names = ('step', 'params', 'extra', *(['opt'] if optimizer else []))
  parts = lambda state: {name: getattr(state, name) for name in names}
  like, places = parts(state), parts(shardings)
  wanted = jax.eval_shape(to_stored, like)

  def damaged(folder):
    if step is not None:
      raise UserError(f'checkpoint {folder} is damaged: take another step')

  def read_step(step):
    meta = _meta(manager, step)
    stored = {
      name: array
      for name, array in meta.pop(ARRAYS).items()
      if name.split('/')[0] in wanted
    }
    _check_fits(directory / str(step), stored, _arrays(wanted))
    target = placed(wanted, stored_shardings(like, places))
    restored = manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeRestore(
          target,
          restore_args=ocp.checkpoint_utils.construct_restore_args(target),
          partial_restore=True,
        )
      ),
    )
    found = from_stored(restored['state'], like, places)
    return Restored(State(**{'rng': (), 'opt': (), **found}), meta)

  with _read_only(directory) as manager:
    steps = manager.all_steps()
    if step is not None and step not in steps:
      raise UserError(
        f'{directory} has no checkpoint of step {step}, only '
        + ', '.join(map(str, sorted(steps)))
      )
    return _newest_whole(
      directory,
      steps if step is None else [step],
      read_step,
      verify=verify,
      damaged=damaged,
    )


def best_step(directory, metric: str, mode: str = 'max') -> int:
  """The step of the checkpoint whose evaluation was best by `metric`.

  Args:
    directory: of the checkpoints of a run.
    metric: as it is called in metrics.jsonl, like 'test/R@1'.
    mode: 'max' or 'min'.

  Raises:
    UserError: no checkpoint has this metric.
  """
  directory = _absolute(directory)
  with _read_only(directory) as manager:
    found = {step: manager.metrics(step) or {} for step in manager.all_steps()}
  values = {s: each[metric] for s, each in found.items() if metric in each}
  if not values:
    known = sorted({name for each in found.values() for name in each})
    raise UserError(
      f'no checkpoint in {directory} was evaluated by {metric!r}'
      + (f'; there are {", ".join(known)}' if known else '')
    )
  # Of equals the newest.
  sign = 1 if mode == 'max' else -1
  return max(values, key=lambda step: (sign * values[step], step))


@contextlib.contextmanager
def _read_only(directory: epath.Path):
  """A manager of the checkpoints that changes nothing; UserError for none."""
  # Not orbax's `read_only`, which warns at every use of it: a manager writes
  # only what it is told to. The best_fn says that metrics are to be read.
  options = ocp.CheckpointManagerOptions(
    create=False, best_fn=lambda metrics: 0.0
  )
  if not directory.is_dir():
    raise UserError(f'no checkpoints: there is no folder {directory}')
  with contextlib.closing(
    ocp.CheckpointManager(directory, options=options)
  ) as manager:
    if not manager.all_steps():
      raise UserError(f'no checkpoint in {directory} yet')
    yield manager


def _newest_whole(
  directory: epath.Path,
  steps: Iterable[int],
  read_step: Callable[[int], Restored],
  *,
  verify: bool,
  damaged: Callable[[epath.Path], None],
) -> Restored | None:
  """`read_step` of the newest step that can be read; None of no steps.

  A checkpoint that differs from its manifest or does not read is reported and
  given to `damaged`. Raises a UserError when all are.
  """
  steps = sorted(steps, reverse=True)
  for step in steps:
    folder = directory / str(step)
    try:
      if verify:
        _check_by_one(folder)
      return read_step(step)
    except (UserError, MemoryError, jax.errors.JaxRuntimeError):
      raise  # no damage: a device without room, for example
    except Exception as error:  # orbax raises bare Exceptions
      reason = str(error).splitlines()[0] if str(error) else repr(error)
      logging.error('checkpoint %s is damaged: %s', folder, reason[:300])
      damaged(folder)
  if steps:
    raise _all_damaged(directory)
  return None


def _all_damaged(directory) -> UserError:
  return UserError(
    f'every checkpoint in {directory} is damaged (see the *.bad there): start '
    'again with another --workdir, or remove the folder'
  )


def _check_by_one(folder: epath.Path) -> None:
  """`check_manifest` by process 0 for all: it reads every byte."""
  error = None
  if jax.process_index() == 0:
    try:
      check_manifest(folder)
    except (OSError, ValueError) as found:
      error = found
  if jax.process_count() > 1:
    if multihost_utils.broadcast_one_to_all(np.bool_(error is not None)):
      error = error or ValueError('process 0 found it damaged')
  if error:
    raise error


def _meta(manager, step: int) -> dict:
  restored = manager.restore(
    step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
  )
  return restored['meta']


def _check_fits(folder, stored: Mapping, expected: Mapping) -> None:
  differing = _differences(stored, expected)
  if differing:
    raise UserError(
      f'checkpoint {folder} does not fit this configuration:\n{differing}\n'
      'Use the configuration that wrote it, or another --workdir'
    )


def _arrays(tree) -> dict[str, str]:
  """name -> 'dtype[shape]' of every array of a (possibly abstract) tree."""
  return {
    path_name(path): f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
  }


def _differences(stored: Mapping, expected: Mapping, most: int = 8) -> str:
  """A line for each array that differs, `most` of them; '' for none."""
  lines = [
    f'  {name}: stored {stored.get(name, "nothing")}, expected '
    f'{expected.get(name, "nothing")}'
    for name in sorted(stored.keys() | expected.keys())
    if stored.get(name) != expected.get(name)
  ]
  if len(lines) > most:
    lines[most:] = [f'  and {len(lines) - most} more']
  return '\n'.join(lines)


def config_changes(stored: Mapping, current: Mapping, prefix='') -> list[str]:
  """'a.b: stored -> current' for every field that differs.

  >>> config_changes({'optim': {'lr': 1.0}}, {'optim': {'lr': 2.0}})
  ['optim.lr: 1.0 -> 2.0']
  """
  lines = []
  for key in sorted(stored.keys() | current.keys()):
    old, new = stored.get(key), current.get(key)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
      lines += config_changes(old, new, f'{prefix}{key}.')
    elif old != new:
      lines.append(f'{prefix}{key}: {old!r} -> {new!r}')
  return lines
