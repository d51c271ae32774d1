"""GENet's parity cases: networks of their structure strings."""

import jax
from thinned import named

from jaxzoo.models.create import build_model


def run(case):
  config = case.config
  built = build_model(
    config['arch'],
    structure=config['structure'],
    epsilon=config['bn_eps'],
    num_classes=config['num_classes'],
    image_size=tuple(config['image_size']),
  )
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  logits, inner = jax.jit(
    lambda variables: built.module.apply(
      variables, image, mutable=['intermediates']
    )
  )(built.convert(case.params))
  outputs = {'logits': logits}
  for name, value in inner['intermediates'].items():
    if name.startswith('output') and value[0].ndim == 4:
      i = name.removeprefix('output')
      outputs[f'module_list{i}'] = value[0].transpose(0, 3, 1, 2)
  return named(outputs, case.outputs)
