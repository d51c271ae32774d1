"""STViT's parity cases on this project's networks and name maps.

Semantic tokens are kept by windows; the cases have them row by row.
"""

import jax
import jax.numpy as jnp
from thinned import named

from jaxzoo.models.backbones.stvit import UNIT, ConvStem
from jaxzoo.models.backbones.stvit_block import (
  SAMPLES,
  WINDOW,
  CrossBlock,
  SemanticUnit,
)
from jaxzoo.models.backbones.stvit_deit import Blocks
from jaxzoo.models.backbones.swin import PatchMerging, SwinBlock
from jaxzoo.models.create import build_model
from jaxzoo.models.layers import windows

PARTS = (Blocks, ConvStem, CrossBlock, PatchMerging, SemanticUnit, SwinBlock)


def run(case):
  config = case.config
  on_deit = 'deit' in config['arch']
  built = _on_deit(config) if on_deit else _on_swin(config)
  image = case.inputs['x'].transpose(0, 2, 3, 1)

  @jax.jit
  def forward(variables):
    (maps, vector), inner = built.module.apply(
      variables,
      image,
      method='features',
      capture_intermediates=lambda module, method: (
        isinstance(module, PARTS) and method == '__call__'
      ),
      mutable=['intermediates'],
    )
    logits = None
    if not built.module.features_only:
      logits = built.module.apply(variables, vector, method='classify')
    return maps, vector, logits, inner['intermediates']

  maps, vector, logits, inner = forward(built.convert(case.params))
  if on_deit:
    outputs = {
      'image_tokens': _output(inner['base']),
      'pooled': inner['pooled'][0],
      'semantic_tokens_1': _output(inner['generate1']),
      'semantic_tokens_2': _output(inner['generate2']),
    }
    return named(outputs | {'logits': logits}, case.outputs)
  outputs = _third_stage(inner)
  outputs['patch_embed'] = _sequence(_output(inner['patch_embed']))
  for i, x in enumerate(maps.values()):
    outputs[f'out{i}'] = x.transpose(0, 3, 1, 2)
  return named(outputs | {'pooled': vector, 'logits': logits}, case.outputs)


def _third_stage(inner):
  units = inner['stage3']
  entered = _output(inner['merge2'])
  size = windows.padded(entered.shape[1:3], WINDOW)
  grid = tuple(side * SAMPLES // WINDOW for side in size)
  outputs = {'stage2_in': _sequence(entered)}
  for i, name in enumerate(UNIT):
    x = _output(units['block_0'][name])
    if name not in ('regular', 'recover'):
      x = x.reshape(len(x), -1, SAMPLES**2, x.shape[-1])
      x = windows.reverse(x, SAMPLES, grid)
    outputs[f'stage2_block{i}'] = _sequence(x)
  last = max(units, key=lambda name: int(name.removeprefix('block_')))
  outputs['stage2_last_block'] = _sequence(_output(units[last]))
  return outputs


def _on_swin(config):
  name, _, form = config['arch'].partition(' ')
  dense, size = 'dense' in form, config['image_size']
  if config.get('use_conv_pos'):
    raise NotImplementedError('use_conv_pos: no weights are published with it')
  return build_model(
    name,
    num_classes=config.get('num_classes'),
    image_size=(size, size) if isinstance(size, int) else tuple(size),
    features_only=dense,
    width=config['embed_dim'],
    depths=tuple(config['depths']),
    num_heads=tuple(config['num_heads']),
    window=config['window_size'],
    epsilon=config['layer_norm_eps'],
    dense=dense,
    mask='published' if config.get('pad_mask', True) else 'none',
    shortcut=config.get('shortcut', False),
    use_global=config.get('use_global', False),
    relative_pos=config.get('relative_pos', False),
  )


def _on_deit(config):
  size = config['image_size']
  return build_model(
    'stvit_deit_small',
    num_classes=config['num_classes'],
    image_size=(size, size) if isinstance(size, int) else tuple(size),
    width=config['embed_dim'],
    num_heads=config['num_heads'],
    depth=config['depth'],
    base_blocks=config['base_blocks'],
    tokens=round(config['semantic_tokens'] ** 0.5),
    epsilon=config['layer_norm_eps'],
  )


def _output(node):
  return node['__call__'][0]


def _sequence(x):
  return jnp.reshape(x, (x.shape[0], -1, x.shape[-1]))
