"""ZenNet's parity cases: networks of their structure strings."""

import jax
from thinned import named

from jaxzoo.models.create import build_model


def run(case):
  config = case.config
  built = build_model(
    config['arch'],
    structure=config['structure'],
    use_se=config['use_se'],
    epsilon=config['bn_eps'],
    num_classes=config['num_classes'],
    image_size=config['image_size'],
  )
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  logits, inner = jax.jit(
    lambda variables: built.module.apply(
      variables, image, mutable=['intermediates']
    )
  )(built.convert(case.params))
  outputs, inner = {'logits': logits}, inner['intermediates']
  for name, value in inner.items():
    if name.startswith('output'):
      i = name.removeprefix('output')
      maps = {
        f'module_list{i}': value[0],
        f'module_list{i}_first_residual': inner[f'super{i}']['first']['unit0'][
          'sum'
        ][0],
      }
      outputs |= {key: x.transpose(0, 3, 1, 2) for key, x in maps.items()}
  return named(outputs, case.outputs)
