"""Published weights, and those of earlier runs, as the beginning of a run."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxzoo import catalog
from jaxzoo.system import State
from jaxzoo.weights.merge import Report, merge
from jaxzoo.weights.readers import read_state_dict

NOTHING = Report((), (), (), (), ())


def load_weights(config, states: Mapping = {}):
  """(params, extra) that a run begins with, in our layout, or None.

  Published ones of `config.init.weights`; a teacher's of
  `config.teacher.weights`, by the system's `convert_teacher`; and what its
  `from_stages` takes of the runs before it.

  Args:
    config: of the run.
    states: see `stages.read_states`.
  """
  module = catalog.load(config.system)
  params, extra = {}, {}
  if config.init.weights:
    params, extra = convert_weights(
      read_state_dict(config.init.weights), config
    )
  if 'teacher' in config and config.teacher.weights:
    state_dict = read_state_dict(config.teacher.weights)
    extra = {**extra, 'teacher': module.convert_teacher(state_dict, config)}
  if states:
    more = module.from_stages(states, config)
    params, extra = {**params, **more[0]}, {**extra, **more[1]}
  return (params, extra) if params or extra else None


def convert_weights(state_dict: Mapping, config) -> tuple[dict, dict]:
  """(params, extra) of a published checkpoint in the layout of the system."""
  module = catalog.load(config.system)
  extra = getattr(module, 'convert_extra', lambda *_: {})
  return module.convert(state_dict, config), extra(state_dict, config)


def put_weights(state: State, weights, config) -> tuple[State, Report]:
  """A first state with `weights` of `load_weights` in their places.

  Averages of the parameters begin with them. What the patterns of
  `config.init.fresh` match, and those that the system adds to them for the
  config (its function `fresh`), may stay random.

  Raises:
    UserError: weights that do not fit, see `weights.merge.merge`.
  """
  params, extra = weights
  own = getattr(catalog.load(config.system), 'fresh', lambda _: ())(config)
  report, merged, averages = NOTHING, {}, {}
  if params:
    params, report = merge(
      state.params, params, fresh=(*config.init.fresh, *own)
    )
    averages['ema'] = params
    state = state._replace(params=params)
  for name, loaded in extra.items():
    merged[name], found = merge(state.extra[name], loaded, fresh=own)
    if not params:
      report = Report(*(a + b for a, b in zip(report, found, strict=True)))
  averages['ema_stats'] = merged.get('batch_stats')
  for name, loaded in averages.items():
    if name in state.extra and loaded is not None:
      # A copy: the state is donated, and no buffer may be donated twice.
      merged[name] = jax.tree.map(jnp.copy, loaded)
  return state._replace(extra={**state.extra, **merged}), report
