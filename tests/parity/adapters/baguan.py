"""Baguan's parity cases on this project's networks, loss and scores."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.models.forecasting import baguan
from jaxzoo.models.forecasting.baguan_codes import CONSTANTS
from jaxzoo.models.losses import weather
from jaxzoo.weights.merge import merge


def run(case):
  if 'img_size' not in case.config:
    outputs = losses(case)
  elif 'mask_ratio' in case.config:
    outputs = masked(case)
  else:
    outputs = forecasts(case)
  return named(outputs, case.outputs)


def config_of(config, kind='paper'):
  """The project's config of the networks that a case describes."""
  dynamic = [v for v in config['variables'] if v not in CONSTANTS]
  constants = [v for v in config['variables'] if v in CONSTANTS]
  heads = config['num_heads']
  return ml_collections.ConfigDict(
    dict(
      variables=tuple(dynamic),
      constants=tuple(constants),
      grid=tuple(config['img_size']),
      patch=config['patch_size'],
      pad=config['pad'],
      encoder=dict(
        width=config['embed_dim'],
        depth=config['depth'],
        num_heads=heads,
        mlp_ratio=config['mlp_ratio'],
      ),
      decoder=dict(
        width=config['dec_embed_dim'],
        depth=config['dec_depth'],
        num_heads=config['dec_num_heads'],
        mlp_ratio=config['mlp_ratio'],
        kind=kind,
      ),
      task='forecast',
      stages={},
      scan=True,
      remat='none',
      dtype='float32',
    )
  )


def field_of(case):
  """The model's input, channels last: the variables, then the constants."""
  names = case.config['variables']
  order = [v for v in names if v not in CONSTANTS]
  order += [v for v in names if v in CONSTANTS]
  channels = [names.index(v) for v in order]
  x = case.config['x_scale'] * case.inputs['x'][:, channels]
  return jnp.asarray(np.moveaxis(x, 1, -1))


def params_of(case, config, networks):
  """The case's parameters; tables that it leaves out as they start."""
  field, lead = field_of(case)[:1], jnp.zeros(1)
  init = lambda rng: baguan.init_params(
    networks, 'forecast', rng, {'field': field, 'lead': lead}
  )[0]
  loaded = baguan.convert(case.params, config)
  start = jax.jit(init)(jax.random.key(0))
  start = {name: start[name] for name in loaded}
  params, _ = merge(start, loaded, fresh=baguan.fresh(config))
  return params


def forecasts(case):
  outputs = {}
  dynamic = [v for v in case.config['variables'] if v not in CONSTANTS]
  wanted = [dynamic.index(v) for v in case.config['out_variables']]
  for name, kind in (('paper', 'paper'), ('released', 'identity')):
    config = config_of(case.config, kind)
    networks = baguan.make_networks(config)
    assert list(networks.encoder.names) == case.config['model_variables']
    params = params_of(case, config, networks)
    y = jax.jit(lambda *args, n=networks: baguan.forecast(n, *args))(
      params, field_of(case), case.inputs['lead_times']
    )
    y = np.moveaxis(np.asarray(y)[..., wanted], -1, 1)
    outputs[f'forecast_{name}'] = y
  return outputs


def masked(case):
  config = config_of({**case.config, 'dec_depth': 1})
  networks = baguan.make_networks(config)
  encoder = networks.encoder
  params = params_of(case, config, networks)['encoder']
  ratio = case.config['mask_ratio']

  @jax.jit
  def encode(params, field, lead, noise):
    hidden, places = baguan.masked_places(noise, ratio)
    patches = encoder.apply({}, field, method='patches')
    raw = jnp.take_along_axis(patches, hidden[..., None, None], 1)
    tokens = encoder.apply({'params': params}, field, lead, places)
    return tokens, raw, hidden, places

  tokens, raw, hidden, places = encode(
    params, field_of(case), case.inputs['lead_times'], case.inputs['noise']
  )
  # Back to the case's order of channels.
  names, order = case.config['variables'], baguan.input_names(config)
  raw = np.asarray(raw)[:, :, [order.index(v) for v in names]]
  return {
    'tokens': tokens,
    'masked_patches': raw.swapaxes(1, 2),
    'masked_indices': hidden,
    'visible_indices': places,
  }


def losses(case):
  inputs, names = case.inputs, case.config['variables']
  last = lambda x: jnp.asarray(np.moveaxis(x, -3, -1))
  truth, drawn = last(inputs['y']), last(inputs['pred'])
  rows = weather.latitude_weights(inputs['lat'])
  variables = weather.variable_weights(names)
  mean, std = inputs['mean'], inputs['std']

  @jax.jit
  def run(truth, drawn, climatology):
    forecast = 0.6 * truth + 0.5 * drawn
    loss, gradient = jax.value_and_grad(baguan.weighted_loss)(
      forecast, truth, rows, variables
    )
    scores = weather.scores(
      forecast * std + mean, truth * std + mean, climatology, rows
    )
    total = jax.tree.map(lambda x: x.sum(0), scores)
    rmse, acc = weather.rmse_and_acc(total)
    mae = weather.field_errors(forecast, truth, rows)
    return loss, gradient, mae, rmse, acc

  loss, gradient, mae, rmse, acc = run(truth, drawn, last(inputs['clim']))
  return {
    'loss': loss,
    'grad_pred': np.moveaxis(np.asarray(gradient), -1, 1),
    'mae': mae,
    'rmse': rmse,
    'acc': acc,
  }
