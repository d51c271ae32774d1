"""MobileNet with timm's weights."""

from jaxzoo.models.cards.card import ModelCard

CARDS = (
  ModelCard(
    name='mobilenet_v1',
    family='mobilenetv1',
    builder='jaxzoo.models.backbones.mobilenetv1:build',
    variant='MobileNet 1.0',
    paper='arXiv 1704.04861',
    parameters=4231976,
    gmacs=0.569,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    interpolation='bicubic',
    license='Apache-2.0',
    weights='https://huggingface.co/timm/mobilenetv1_100.ra4_e3600_r224_in1k',
    results={'ImageNet top-1': 70.6},
  ),
)
