"""MobileNetV3 with torchvision's weights."""

from jaxzoo.models.cards.card import ModelCard


def _mobilenet(size, parameters, gmacs, digest, top1, top5):
  return ModelCard(
    name=f'mobilenet_v3_{size}',
    family='mobilenetv3',
    builder='jaxzoo.models.backbones.mobilenetv3:build',
    variant=f'MobileNetV3-{size.capitalize()}',
    paper='arXiv 1905.02244',
    parameters=parameters,
    gmacs=gmacs,
    license='BSD-3-Clause',
    weights='https://download.pytorch.org/models/'
    f'mobilenet_v3_{size}-{digest}.pth',
    results={'ImageNet top-1': top1, 'ImageNet top-5': top5},
  )


CARDS = (
  _mobilenet('large', 5483032, 0.217, '8738ca79', 74.042, 91.340),
  _mobilenet('small', 2542856, 0.0565, '047dcff4', 67.668, 87.402),
)
