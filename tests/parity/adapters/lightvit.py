"""LightViT's parity cases on this project's network and name map."""

import jax
import jax.numpy as jnp
import numpy as np
from thinned import named

from jaxzoo.models.backbones.lightvit import Block, Merging, Stem
from jaxzoo.models.create import build_model


def run(case):
  built = _built(case.config)
  image = case.inputs['x'].transpose(0, 2, 3, 1)

  @jax.jit
  def forward(variables):
    return built.module.apply(
      variables,
      image,
      capture_intermediates=lambda module, method: (
        isinstance(module, Block | Merging | Stem) and method == '__call__'
      ),
      mutable=['intermediates'],
    )

  result, inner = forward(built.convert(case.params))
  if built.module.dense:
    outputs = {
      f'out{i}': x.transpose(0, 3, 1, 2) for i, x in enumerate(result.values())
    }
    return named(outputs, case.outputs)
  outputs = {'logits': result}
  inner = inner['intermediates']
  outputs['patch_embed'] = _sequence(_output(inner['stem']))
  for i, depth in enumerate(built.module.depths):
    stage = inner[f'stage{i + 1}']
    first = _output(stage['merging' if i else 'block_0'])
    last = _output(stage[f'block_{depth - 1}'])
    outputs[f'stages{i}_0'] = _tokens(first)
    outputs[f'stage{i}'] = _tokens(last)
    outputs[f'stage{i}_global_tokens_first2'] = last.glob[:, :2, ::3]
  return named(outputs, case.outputs)


def _built(config):
  name, _, form = config['arch'].partition(' ')
  dense, size = 'dense' in form, config['image_size']
  # What a configuration leaves out is as published.
  fields = {
    'dims': config.get('embed_dims'),
    'depths': config.get('num_layers'),
    'heads': config.get('num_heads'),
    'mlp_ratios': config.get('mlp_ratios'),
    'num_tokens': config.get('num_tokens'),
    'window': config.get('window_size'),
    'neck_dim': config.get('neck_dim'),
  }
  fields = {
    key: tuple(value) if isinstance(value, list) else value
    for key, value in fields.items()
    if value is not None
  }
  return build_model(
    name,
    num_classes=config.get('num_classes'),
    image_size=(size, size) if isinstance(size, int) else tuple(size),
    dense=dense,
    features_only=dense,
    **fields,
  )


def _output(node):
  return node['__call__'][0]


def _sequence(x):
  return jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))


def _tokens(x):
  """Global tokens first, then the map row by row."""
  return np.concatenate([x.glob, _sequence(x.image)], 1)
