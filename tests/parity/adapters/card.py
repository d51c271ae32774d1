"""CARD's parity cases on this project's network, loss and name map."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.models.forecasting import card


def config_of(case):
  """The project's config of what the case was built with."""
  given = case.config
  return ml_collections.ConfigDict(
    dict(
      history=given['seq_len'],
      horizon=given['pred_len'],
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      loss=dict(kind='decayed_mae'),
      network=dict(
        width=given['d_model'],
        depth=given['layers'],
        heads=given['heads'],
        d_ff=given['d_ff'],
        patch=given['patch_len'],
        stride=given['stride'],
        rank=given['dp_rank'],
        merge=given['merge_size'],
        alpha=given['alpha'],
        use_statistic=given['use_statistic'],
        dropout=0.0,
      ),
    )
  )


def run(case):
  config = config_of(case)
  module = card.make_network(config)
  variables = {
    'params': card.convert(case.params, config),
    **card.convert_extra(case.params, config),
  }
  train = case.config['train']
  if train and 'batch_stats' not in variables:
    blank = jnp.zeros((1, config.history, case.config['channels']))
    variables['batch_stats'] = module.init(jax.random.key(0), blank)[
      'batch_stats'
    ]
  # The input of the cases, made of what they store.
  x = 0.3 * np.cumsum(case.inputs['x'], 1, dtype=np.float64) + case.inputs['x']
  target = case.inputs['y']

  @jax.jit
  def forward(variables, x):
    def loss(x):
      forecast, updated = module.apply(
        variables,
        x,
        train,
        mutable=['batch_stats'],
        rngs={'dropout': jax.random.key(0)},
      )
      error = forecast - target
      outputs = {
        'forecast': forecast.reshape(-1),
        'loss': card.decayed_mae(forecast, target),
        'mse': jnp.mean(error**2),
        'mae': jnp.mean(jnp.abs(error)),
      }
      return outputs['loss'], (outputs, updated)

    gradient, (outputs, updated) = jax.grad(loss, has_aux=True)(x)
    return outputs | {'grad_x': gradient.reshape(-1)}, updated

  outputs, updated = forward(variables, jnp.asarray(x, jnp.float32))
  if train:
    last = updated['batch_stats'][f'block_{config.network.depth - 1}']['norm']
    outputs |= {'running_mean': last['mean'], 'running_var': last['var']}
  return named(strided(outputs, case), case.outputs)


def strided(outputs, case):
  """`outputs` with those that a case stores every n-th value of.

  The n of NAME_stride follows from how many values there are.
  """
  result = dict(outputs)
  for name, want in case.outputs.items():
    if not name.endswith('_stride'):
      continue
    base, _, power = name.removesuffix('_stride').partition('_x1e')
    value = np.asarray(outputs[base]) * 10.0 ** int(power or 0)
    step = next(
      n for n in range(1, value.size + 1)
      if -(-value.size // n) == want.size
    )  # fmt: skip
    result[name] = value[::step]
  return result
