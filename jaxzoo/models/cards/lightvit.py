"""LightViT with the weights of its authors."""

from jaxzoo.models.cards.card import ModelCard

# Where hunto/LightViT keeps its files; those of LightViT-B are unpublished.
_FILES = 'https://drive.google.com/file/d'


def _lightvit(name, letter, parameters, gmacs, file, top1, top5):
  return ModelCard(
    name=f'lightvit_{name}',
    family='lightvit',
    builder='jaxzoo.models.backbones.lightvit:build',
    variant=f'LightViT-{letter}',
    paper='arXiv 2207.05557',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
    license='Apache-2.0',
    weights=f'{_FILES}/{file}/view' if file else '',
    results={'ImageNet top-1': top1, 'ImageNet top-5': top5},
  )


CARDS = (
  _lightvit(
    'tiny', 'T', 9377698, 0.772, '1NasAnHYK6bkmj0-rzYvxQSEUiKAOW3j9', 78.7, 94.4
  ),
  _lightvit(
    'small', 'S', 19200248, 1.825, '16EZUth-wZ7rKR6tI67_Smp6GGzaODp16',
    80.9, 95.3,
  ),
  _lightvit('base', 'B', 35195653, 4.107, '', 82.1, 95.9),
)  # fmt: skip
