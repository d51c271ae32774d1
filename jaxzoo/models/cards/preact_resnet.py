"""Pre-activation residual networks for pictures of 32 x 32."""

from jaxzoo.models.cards.card import ModelCard

CARDS = (
  ModelCard(
    name='preact_resnet18',
    family='preact_resnet',
    builder='jaxzoo.models.backbones.preact_resnet:build',
    variant='PreActResNet-18',
    paper='arXiv 1603.05027',
    parameters=11171146,
    image_size=(32, 32),
    num_classes=10,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    crop=1.0,
  ),
)
