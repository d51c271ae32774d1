"""Dynamic convolution by matrix decomposition: ResNets and MobileNetV2."""

from jaxzoo.models.cards.card import ModelCard


def _dcd(name, variant, parameters, gmacs, results=None):
  return ModelCard(
    name=f'{name}_dcd',
    family='dcd',
    builder='jaxzoo.models.backbones.dcd:build',
    variant=variant,
    paper='arXiv 2103.08756, ICLR 2021',
    parameters=parameters,
    gmacs=gmacs,
    license='academic, non-profit (UC San Diego)',
    results=results or {},
  )


# ResNet-34, 101 and 152: sizes are computed here, multiply-adds unpublished.
CARDS = (
  _dcd('resnet18', 'ResNet-18', 14703332, 1.883, {'ImageNet top-1': 73.1}),
  _dcd('resnet34', 'ResNet-34', 27649068, 0.0),
  _dcd('resnet50', 'ResNet-50', 29835056, 4.373, {'ImageNet top-1': 77.9}),
  _dcd('resnet101', 'ResNet-101', 53227056, 0.0),
  _dcd('resnet152', 'ResNet-152', 72516656, 0.0),
  _dcd(
    'mobilenetv2',
    'MobileNetV2 x1.0',
    5720028,
    0.398,
    {'ImageNet top-1': 75.2},
  ),
  _dcd('mobilenetv2_075', 'MobileNetV2 x0.75', 4081621, 0.285),
  _dcd(
    'mobilenetv2_050',
    'MobileNetV2 x0.5',
    2664300,
    0.132,
    {'ImageNet top-1': 70.2},
  ),
  _dcd('mobilenetv2_035', 'MobileNetV2 x0.35', 2099323, 0.079),
)
