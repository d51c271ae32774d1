"""ShuffleNetV2 with torchvision's weights."""

from jaxzoo.models.cards.card import ModelCard

# What torchvision keeps its files under.
_FILES = 'https://download.pytorch.org/models'


def _shufflenet(factor, parameters, gmacs, file, top1, top5, resize=256):
  return ModelCard(
    name=f'shufflenet_v2_x{factor.replace(".", "_")}',
    family='shufflenetv2',
    builder='jaxzoo.models.backbones.shufflenetv2:build',
    variant=f'ShuffleNetV2 {factor.removesuffix(".0")}x',
    paper='arXiv 1807.11164',
    parameters=parameters,
    gmacs=gmacs,
    crop=224 / resize,
    license='BSD-3-Clause',
    weights=f'{_FILES}/shufflenetv2_{file}.pth',
    results={'ImageNet top-1': top1, 'ImageNet top-5': top5},
  )


# The two larger ones are of a newer recipe, tested with less of a margin.
CARDS = (
  _shufflenet('0.5', 1366792, 0.0405, 'x0.5-f707e7126e', 60.552, 81.746),
  _shufflenet('1.0', 2278604, 0.145, 'x1-5666bf0f80', 69.362, 88.316),
  _shufflenet('1.5', 3503624, 0.296, 'x1_5-3c479a10', 72.996, 91.086, 232),
  _shufflenet('2.0', 7393996, 0.583, 'x2_0-8be3c8ee', 76.230, 93.006, 232),
)
