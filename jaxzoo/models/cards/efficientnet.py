"""EfficientNet with torchvision's weights, ported from the original ones."""

from jaxzoo.models.cards.card import ModelCard

CARDS = (
  ModelCard(
    name='efficientnet_b0',
    family='efficientnet',
    builder='jaxzoo.models.backbones.efficientnet:build',
    variant='EfficientNet-B0',
    paper='arXiv 1905.11946',
    parameters=5288548,
    gmacs=0.386,
    interpolation='bicubic',
    license='BSD-3-Clause',
    weights='https://download.pytorch.org/models/'
    'efficientnet_b0_rwightman-7f5810bc.pth',
    results={'ImageNet top-1': 77.692, 'ImageNet top-5': 93.532},
  ),
)
