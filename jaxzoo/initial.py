"""Published weights as the beginning of a run."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxzoo import catalog
from jaxzoo.system import State
from jaxzoo.weights.merge import Report, merge
from jaxzoo.weights.readers import read_state_dict


def load_weights(config):
  """(params, extra) of `config.init.weights` in our layout, or None."""
  if not config.init.weights:
    return None
  return convert_weights(read_state_dict(config.init.weights), config)


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
  params, report = merge(state.params, params, fresh=(*config.init.fresh, *own))
  merged = {
    name: merge(state.extra[name], loaded, fresh=own)[0]
    for name, loaded in extra.items()
  }
  averages = {'ema': params, 'ema_stats': merged.get('batch_stats')}
  for name, loaded in averages.items():
    if name in state.extra and loaded is not None:
      # A copy: the state is donated, and no buffer may be donated twice.
      merged[name] = jax.tree.map(jnp.copy, loaded)
  return state._replace(params=params, extra={**state.extra, **merged}), report
