"""Swin's parity cases on this project's network and name map."""

import jax
from thinned import named

from jaxzoo.models.create import build_model


def run(case):
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
    drop_path=config['drop_path_rate'],
  )
  module, image = built.module, case.inputs['x'].transpose(0, 2, 3, 1)

  @jax.jit
  def forward(variables):
    (maps, vector), inner = module.apply(
      variables, image, method='features', mutable=['intermediates']
    )
    logits = module.apply(variables, vector, method='classify')
    return maps, inner['intermediates'], vector, logits

  maps, inner, vector, logits = forward(built.convert(case.params))
  outputs = {
    f'stage{i}_before_downsample': tokens(x)
    for i, x in enumerate(maps.values())
  }
  return named(
    outputs
    | {
      'patch_embed': tokens(inner['embedded'][0]),
      'features_after_norm': tokens(inner['normed'][0]),
      'pooled': vector,
      'logits': logits,
    },
    case.outputs,
  )


def tokens(x):
  """[b, h, w, c] -> [b, h w, c]."""
  return x.reshape(x.shape[0], -1, x.shape[-1])
