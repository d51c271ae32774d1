"""ELSA-Swin with the authors' weights."""

from jaxzoo.models.cards.card import ModelCard


def _elsa(name, variant, parameters, gmacs, top1):
  return ModelCard(
    name=f'elsa_swin_{name}',
    family='elsa',
    builder='jaxzoo.models.backbones.elsa:build',
    variant=variant,
    paper='arXiv 2112.12786',
    parameters=parameters,
    # Without the application of the filters: 2 x 49 an element of the maps.
    gmacs=gmacs,
    interpolation='bicubic',
    crop=0.9,
    license='MIT',
    # The files are linked on that page.
    weights='https://github.com/damo-cv/ELSA',
    results={'ImageNet top-1': top1},
  )


CARDS = (
  _elsa('tiny', 'ELSA-Swin-T', 29140978, 4.637, 82.7),
  _elsa('small', 'ELSA-Swin-S', 52874626, 9.335, 83.5),
  _elsa('base', 'ELSA-Swin-B', 92682464, 16.369, 84.0),
)
