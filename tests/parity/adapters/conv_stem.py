"""The convolutional stem's parity cases on this project's network."""

import jax
from plain_transformer import build, outputs
from thinned import named


def run(case):
  config = case.config
  host = config['arch'].split()[0]
  built = build(
    f'conv_stem_{host}',
    config,
    norm='batch' if config['stem_bn'] else 'none',
    activation='relu' if config['stem_relu'] else 'none',
    hidden=config['stem_hidden'],
  )
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  found, inner = jax.jit(
    lambda variables: built.module.apply(
      variables, image, method=outputs, mutable=['intermediates']
    )
  )(built.convert(case.params))
  (convolved,) = inner['intermediates']['patch_embed']['convolved']
  found['stem_conv'] = convolved.transpose(0, 3, 1, 2)
  return named(found, case.outputs)
