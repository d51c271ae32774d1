"""MobileNetV2 with torchvision's weights."""

from jaxzoo.models.cards.card import ModelCard

CARDS = (
  ModelCard(
    name='mobilenet_v2',
    family='mobilenetv2',
    builder='jaxzoo.models.backbones.mobilenetv2:build',
    variant='MobileNetV2',
    paper='arXiv 1801.04381',
    parameters=3504872,
    gmacs=0.301,
    license='BSD-3-Clause',
    weights='https://download.pytorch.org/models/mobilenet_v2-b0353104.pth',
    results={'ImageNet top-1': 71.878, 'ImageNet top-5': 90.286},
  ),
)
