"""ELSA's parity cases on this project's operator, layer, network, name map."""

import jax
import jax.numpy as jnp
from thinned import named

from jaxzoo.models.backbones import elsa
from jaxzoo.models.backbones.elsa import ElsaBlock
from jaxzoo.models.backbones.swin import SwinBlock
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.elsa import Elsa, local_filter
from jaxzoo.weights import rows


def run(case):
  if 'arch' in case.config:
    outputs = _network(case)
  elif case.params:
    outputs = _layer(case)
  else:
    outputs = _operator(case)
  return named(outputs, case.outputs)


def _operator(case):
  """One head, and gradients of sum(y g); maps are [b, c, h, w]."""
  config = case.config
  inputs = dict(case.inputs)
  g = inputs.pop('g')
  last, first = (0, 2, 3, 1), (0, 3, 1, 2)

  def operator(inputs):
    channels = inputs['v'].shape[1]
    matrix = lambda name: inputs[name].reshape(channels, -1)
    multiply = add = None
    if config['lam']:
      multiply = (matrix('ghost_mul') + 0.5) ** config['lam']
    if config['gamma']:
      add = config['gamma'] * matrix('ghost_add')
    attention = jax.nn.softmax(inputs['h_logits'].transpose(last))
    v = inputs['v'].transpose(last)
    y = local_filter(
      v, attention[..., None, :], multiply, add, config['dilation']
    )
    return y.transpose(first)

  @jax.jit
  def both(inputs):
    y, backward = jax.vjp(operator, inputs)
    return y, backward(g)[0]

  y, grads = both(inputs)
  return {'y': y} | {f'grad_{name}': grad for name, grad in grads.items()}


def _layer(case):
  """Channels last; gradients of sum(y g)."""
  config = case.config
  module = Elsa(
    config['num_heads'],
    config['kernel_size'],
    config['dilation'],
    config['group_width'],
    config['qk_scale'] or 0.0,
    config['lam'],
    config['gamma'],
  )
  names = elsa.layer_rows('', 'layer', config['lam'], config['gamma'])
  params = rows.load(case.params, names)['params']['layer']

  @jax.jit
  def both(params):
    apply = lambda params, x: module.apply({'params': params}, x)
    y, backward = jax.vjp(apply, params, jnp.asarray(case.inputs['x']))
    return y, *backward(case.inputs['g'])

  y, grads, grad_x = both(params)
  theirs = rows.save({'params': {'layer': grads}}, names)
  return {'y': y, 'grad_x': grad_x} | {
    f'grad_{name}': grad for name, grad in theirs.items()
  }


def _network(case):
  config = case.config
  built = build_model(
    config['arch'],
    num_classes=config['num_classes'],
    image_size=config['image_size'],
    width=config['embed_dim'],
    depths=tuple(config['depths']),
    num_heads=tuple(config['num_heads']),
    window=config['window_size'],
    patch_size=config['patch_size'],
    mlp_ratio=config['mlp_ratio'],
    epsilon=config['layer_norm_eps'],
    kernel_size=config['elsa_kernel'],
    group_width=config['group_width'],
    qk_scale=float(config['qk_scale'] or 0),
    lam=config['lam'],
    gamma=config['gamma'],
  )
  module, image = built.module, case.inputs['x'].transpose(0, 2, 3, 1)

  @jax.jit
  def forward(variables):
    logits, inner = module.apply(
      variables,
      image,
      capture_intermediates=lambda module, _: isinstance(
        module, (ElsaBlock, SwinBlock)
      ),
      mutable=['intermediates'],
    )
    return logits, inner['intermediates']

  logits, inner = forward(built.convert(case.params))
  outputs = {
    'logits': logits,
    'features_after_norm': _tokens(inner['normed'][0]),
  }
  for i in range(len(config['depths'])):
    first = inner[f'stage{i + 1}']['block_0']
    first = first.get('regular', first)  # of the last stage a pair's
    outputs[f'stage{i}_block0'] = _tokens(first['__call__'][0])
  return outputs


def _tokens(x):
  """[b, h, w, c] -> [b, h w, c]."""
  return x.reshape(x.shape[0], -1, x.shape[-1])
