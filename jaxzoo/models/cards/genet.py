"""GPU-efficient networks with the weights of idstcv/GPU-Efficient-Networks."""

from jaxzoo.models.cards.card import ModelCard


def _genet(name, variant, size, parameters, gmacs, top1):
  return ModelCard(
    name=f'genet_{name}',
    family='genet',
    builder='jaxzoo.models.backbones.genet:build',
    variant=f'GENet-{variant}',
    paper='arXiv 2006.14090',
    parameters=parameters,
    image_size=(size, size),
    gmacs=gmacs,
    license='Apache-2.0',
    weights='https://github.com/idstcv/GPU-Efficient-Networks',
    results={'ImageNet top-1': top1},
  )


CARDS = (
  _genet('small', 'light', 192, 8173761, 0.547, 75.7),
  _genet('normal', 'normal', 192, 21142920, 2.208, 80.0),
  _genet('large', 'large', 256, 31078280, 4.557, 81.3),
)
