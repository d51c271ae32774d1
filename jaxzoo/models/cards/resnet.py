"""Residual networks with torchvision's weights."""

from jaxzoo.models.cards.card import ModelCard

# What torchvision keeps its files under.
_FILES = 'https://download.pytorch.org/models'


def _resnet(depth, parameters, gmacs, digest, top1, top5):
  return ModelCard(
    name=f'resnet{depth}',
    family='resnet',
    builder='jaxzoo.models.backbones.resnet:build',
    variant=f'ResNet-{depth}',
    paper='arXiv 1512.03385',
    parameters=parameters,
    gmacs=gmacs,
    license='BSD-3-Clause',
    weights=f'{_FILES}/resnet{depth}-{digest}.pth',
    results={'ImageNet top-1': top1, 'ImageNet top-5': top5},
  )


CARDS = (
  _resnet(18, 11689512, 1.814, 'f37072fd', 69.758, 89.078),
  _resnet(34, 21797672, 3.664, 'b627a593', 73.314, 91.420),
  _resnet(50, 25557032, 4.089, '0676ba61', 76.130, 92.862),
  _resnet(101, 44549160, 7.801, '63fe2227', 77.374, 93.546),
)
