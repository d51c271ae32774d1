"""OneNet's parity cases on this project's networks and online step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from thinned import named

from jaxzoo.models.forecasting import ensemble, fsnet, onenet
from jaxzoo.models.forecasting.convert import convert, convert_extra
from jaxzoo.models.forecasting.tcn import convolve, scaled, unstack

# Parts of the reference's methods, by the names of their tables.
METHODS = {
  'onenet_fsnet': ('fsnet', 'both'),
  'onenet_tcn': ('tcn', 'both'),
  'fsnet': ('fsnet', 'variable'),
  'fsnet_time': ('fsnet', 'time'),
  'nomem': ('fsnet_nomem', 'variable'),
  'tcn': ('tcn', 'variable'),
  'online_tcn': ('tcn', 'variable'),
  'tcn_time': ('tcn', 'time'),
  'time_tcn': ('tcn', 'time'),
}


def run(case):
  outputs = _online(case) if 'series' in case.inputs else _conv(case)
  return named(outputs, case.outputs)


# One convolution.


def _conv(case):
  config, inputs = case.config, case.inputs
  ci, co, k = (
    config[name] for name in ('in_channels', 'out_channels', 'kernel')
  )
  # As the one layer of a stack of a network.
  prefix = 'encoder.encoder.feature_extractor.net.0.conv1.'
  tensors = {prefix + name: x for name, x in case.params.items()}
  for name, source in (('grads', 'grads'), ('f_grads', 'f_grads')):
    tensors[prefix + name] = 0.05 * inputs[source]
  lengths = {'variable': inputs['x'].shape[-1]}
  params = convert(tensors, lengths=lengths)['network']['widen_3']
  state = convert_extra(tensors, lengths=lengths)['fsnet']['widen_3']
  state |= {
    'query': 0.1 * inputs['q_ema'][None],
    'created': np.array(True),
    'triggered': np.array([bool(config['trigger'])]),
  }
  module = fsnet.AdaptiveConvs(
    1, ci, co, config['controller_hidden'], config['memory_slots']
  )
  x = inputs['x'].swapaxes(1, 2)
  cotangent = inputs['cotangent'].swapaxes(1, 2)

  @jax.jit
  def forward_and_back(params, state, x, cotangent):
    def loss(params):
      stack, updated = module.apply(
        {'params': params, fsnet.COLLECTION: state},
        True,
        mutable=[fsnet.COLLECTION],
      )
      (conv,) = unstack(scaled(stack))
      y = convolve(x, conv, config['dilation'])
      return jnp.mean(y * cotangent), (y, updated[fsnet.COLLECTION])

    grads, (y, after) = jax.grad(loss, has_aux=True)(params)
    return y, grads, after, fsnet.remember_gradients(after, grads, True)

  y, grads, after, new = forward_and_back(params, state, x, cotangent)
  theirs = lambda x: np.asarray(x[0]).transpose(2, 0, 1)
  memory = np.asarray(after['memory'][0])
  return {
    'y': np.swapaxes(y, 1, 2),
    'q_ema': after['query'][0],
    'memory': memory,
    'memory_norm': np.linalg.norm(memory),
    'conv_grad': theirs(grads['kernel']),
    'conv_grad_x1000': 1000 * theirs(grads['kernel']),
    'grads_new': theirs(new['slow']).reshape(-1),
    'f_grads_new': theirs(new['fast']).reshape(-1),
  }


# The online protocol.


def _online(case):
  config = case.config
  history, horizon = config['seq_len'], config['pred_len']
  convs, branches = METHODS[config['method']]
  both = branches == 'both'
  learner = onenet.Learner(
    onenet.Forecasters(
      horizon,
      convs,
      branches,
      config['hidden'],
      config['output'],
      config['depth'],
    ),
    ensemble.Decision(config.get('decision_width', 32)) if both else None,
    'gradient',
    None,
  )
  system = onenet.make_system(
    learner,
    optax.adamw(config['lr'], weight_decay=config.get('weight_decay', 0.01)),
    lr_weight=config.get('lr_weight', 1e-3),
    lr_bias=config.get('lr_bias', 1e-3),
  )
  series, marks = case.inputs['series'], case.inputs['marks']

  def window(i):
    cut = lambda x, start, size: jax.lax.dynamic_slice_in_dim(x, start, size)
    return {
      'history': cut(series, i, history)[None],
      'history_marks': cut(marks, i, history)[None],
      'target': cut(series, i + history, horizon)[None],
      'first': (i == 0)[None],
    }

  @jax.jit
  def stream(state):
    def body(state, i):
      batch = window(i)
      outputs = system.predict(state, batch)
      state, _ = system.step(state, batch)
      kept = {'target': batch['target'], **outputs}
      if both:
        kept |= {'w': state.params['weight'], 'beta': state.extra['bias']}
      return state, kept

    return jax.lax.scan(body, state, jnp.arange(config['steps']))[1]

  state = system.init(jax.random.key(0), window(jnp.int32(0)))
  lengths = {'time': series.shape[1], 'variable': history}
  params = convert(case.params, lengths=lengths)
  extra = convert_extra(case.params, lengths=lengths)
  params = {**state.params, **params}
  extra = {
    name: _over(tree, extra.get(name, {})) for name, tree in state.extra.items()
  }
  found = stream(state._replace(params=params, extra=extra))
  flat = lambda x: np.asarray(x).reshape(config['steps'], -1)
  error = np.square(found['forecast'] - found['target']).mean((1, 2, 3))
  outputs = {
    'predictions': flat(found['forecast']),
    'mse_per_step': error,
    'cumulative_mse': np.cumsum(error) / np.arange(1, len(error) + 1),
  }
  if both:
    outputs |= {
      'branch_time': flat(found['time']),
      'branch_variable': flat(found['variable']),
      'weights': found['w'],
      'biases': found['beta'],
    }
  return outputs


def _over(tree, loaded):
  """`tree` with the leaves of `loaded` in their places."""
  if not isinstance(tree, dict):
    return loaded if isinstance(loaded, np.ndarray) else tree
  return {name: _over(x, loaded.get(name, {})) for name, x in tree.items()}
