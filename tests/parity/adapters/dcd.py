"""DCD's parity cases on this project's networks and name map."""

import jax
from thinned import named

from jaxzoo.models.create import build_model
from jaxzoo.models.layers.dynamic_convolution import DynamicConv
from jaxzoo.weights import layout

# Fields of the networks, and what the cases call them.
FIELDS = {'width': 'width_mult', 'squeeze': 'fc_squeeze'}


def run(case):
  config = case.config
  built = build_model(
    config['arch'],
    num_classes=config['num_classes'],
    image_size=config['image_size'],
    **{field: config[name] for field, name in FIELDS.items() if name in config},
  )
  module = built.module
  image = case.inputs['x'].transpose(0, 2, 3, 1)

  def wanted(layer, _):
    block = 'block' in (layer.name or '')
    return block or isinstance(layer, DynamicConv)

  @jax.jit
  def forward(variables):
    features, inner = module.apply(
      variables, image, method='features', capture_intermediates=wanted
    )
    logits = module.apply(variables, features.vector, method='classify')
    return features.maps, inner['intermediates'], logits

  maps, inner, logits = forward(built.convert(case.params))
  outputs = {f'layer{i}': x for i, x in enumerate(maps.values(), 1)}
  for path, x in layout.flatten(inner).items():
    outputs[_their_name(path)] = x[0]
  outputs = {name: x.transpose(0, 3, 1, 2) for name, x in outputs.items()}
  return named(outputs | {'logits': logits}, case.outputs)


def _their_name(path):
  """'stage2_block0/conv1/__call__' or 'block1/expand/__call__' -> theirs."""
  block, *inside = path.split('/')[:-1]
  if block.startswith('stage'):
    name = block.replace('stage', 'layer').replace('_block', '_')
  else:
    # Theirs counts the stem.
    name = f'features{int(block.removeprefix("block")) + 1}'
  places = {'expand': 'conv0', 'project': 'conv6'}
  return '_'.join([name, *(places.get(x, x) for x in inside)])
