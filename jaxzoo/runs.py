"""Runs on disk, read by others than the one who trains them."""

import json

import jax
import ml_collections
import optax
from etils import epath

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.system import State, System, with_ema
from jaxzoo.train import checkpoint
from jaxzoo.train import mesh as meshes


def build_system(config, tx) -> System:
  """The System of a config, trained by the optimizer `tx`."""
  system = catalog.load(config.system).build(config, tx)
  return with_ema(system, config.ema) if config.ema else system


def read_run(
  workdir,
  step: int | str,
  mesh: jax.sharding.Mesh,
  config: ml_collections.ConfigDict | None = None,
) -> tuple[ml_collections.ConfigDict, State]:
  """The config of a run and, of one of its states, what `predict` needs.

  Args:
    workdir: of `python -m jaxzoo.main`, which may still be at work; nothing in
      it is changed.
    step: of a checkpoint; or 'newest', passing over damaged ones; or 'best' by
      the metric that the run's config names in `checkpoint.best`.
    mesh: where the state is to lie.
    config: instead of the run's own: read by `read_config`, with fields
      changed that no parameter depends on.

  Returns:
    The config, and a state without optimizer, see `checkpoint.read`.

  Raises:
    UserError: there is no such run or step.
  """
  workdir = epath.Path(workdir).expanduser()
  config = config or read_config(workdir)
  directory = workdir / 'checkpoints'
  if step == 'best':
    if not config.checkpoint.best:
      raise UserError(
        f'{workdir} does not say what is best (checkpoint.best): give a '
        'number as the step'
      )
    step = checkpoint.best_step(
      directory,
      config.checkpoint.best,
      config.checkpoint.get('best_mode', 'max'),
    )
  elif step == 'newest':
    step = None
  elif not isinstance(step, int):
    raise UserError(f"step {step!r}: expected a number, 'newest' or 'best'")
  state, _ = checkpoint.read(
    directory,
    *expected_state(config, mesh),
    step=step,
    verify=config.checkpoint.verify,
  )
  return config, state


def read_config(workdir: epath.Path) -> ml_collections.ConfigDict:
  """The config that a run was started with; its tuples are lists here."""
  path = workdir / 'config.json'
  if not path.exists():
    raise UserError(
      f'no run in {workdir}: it has no config.json. Train one with '
      f'python -m jaxzoo.main --config=configs/cfam.py --workdir={workdir}'
    )
  try:
    return ml_collections.ConfigDict(json.loads(path.read_text()))
  except ValueError as error:
    raise UserError(f'{path} is damaged: {error}') from error


def expected_state(config, mesh) -> tuple[State, State]:
  """The state of the system, abstract and without optimizer; its shardings."""
  config = config.copy_and_resolve_references()
  config.batch_size = 1  # sizes of parameters do not depend on it
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  system = build_system(config, optax.identity())
  state = jax.eval_shape(
    system.init, jax.random.key(0), data.example_batch(config)
  )
  rules = catalog.sharding(config)
  return state, meshes.infer_shardings(state, mesh, rules)
