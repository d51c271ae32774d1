"""Parity cases of MobileNet, EfficientNet and ShuffleNet on our networks."""

import itertools

import jax
from thinned import named

from jaxzoo.models.backbones import efficientnet, mobile
from jaxzoo.models.backbones.shufflenetv2 import ShuffleUnit
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.conv_norm import ConvNorm


def run(case):
  config = case.config
  built = build_model(
    config['arch'],
    num_classes=config['num_classes'],
    image_size=tuple(config['image_size']),
  )
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  kinds = ConvNorm | mobile.InvertedResidual | ShuffleUnit

  @jax.jit
  def forward(variables):
    (maps, vector), inner = built.module.apply(
      variables,
      image,
      method='features',
      capture_intermediates=lambda module, _: isinstance(module, kinds),
      mutable=['intermediates'],
    )
    logits = built.module.apply(variables, vector, method='classify')
    return maps, logits, inner['intermediates']

  maps, logits, inner = forward(built.convert(case.params))
  of = lambda name: inner[name]['__call__'][0]
  if isinstance(built.module, mobile.MobileNet):
    maps = _numbered(built.module, config['arch'], of)
  else:
    maps = {**maps, 'stem': maps['stage1'], 'conv5': of('last')}
  outputs = {name: x.transpose(0, 3, 1, 2) for name, x in maps.items()}
  return named({**outputs, 'logits': logits}, case.outputs)


def _numbered(module, arch, of):
  """torchvision's features: of EfficientNet they are stages, else blocks."""
  names = mobile.block_names(module.blocks)
  if arch.startswith('efficientnet'):
    ends = itertools.accumulate(efficientnet.stages(module))
    names = [names[end - 1] for end in ends]
  return {
    f'features{i}': of(name) for i, name in enumerate(['stem', *names, 'last'])
  }
