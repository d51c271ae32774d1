"""Swin Transformers with the authors' weights."""

from jaxzoo.models.cards.card import ModelCard

_FILES = (
  'https://github.com/SwinTransformer/storage/releases/download/v1.0.0'
)  # fmt: skip


def _swin(name, variant, size, parameters, gmacs, file, top1, top5):
  return ModelCard(
    name=f'swin_{name}',
    family='swin',
    builder='jaxzoo.models.backbones.swin:build',
    variant=variant,
    paper='arXiv 2103.14030',
    parameters=parameters,
    image_size=(size, size),
    gmacs=gmacs,
    interpolation='bicubic',
    # At 384 the whole picture is resized, whatever its aspect ratio.
    crop=0.875 if size == 224 else 1.0,
    license='MIT',
    weights=f'{_FILES}/swin_{file}.pth',
    results={'ImageNet top-1': top1, 'ImageNet top-5': top5},
  )


_T, _S, _B, _B384 = 28288354, 49606258, 87768224, 87903584
_L, _L384 = 196532476, 196735516
_W7, _W12 = 'patch4_window7_224', 'patch4_window12_384'
# Pretrained on ImageNet-22k where the name says so; the large ones all are.
_22K = '22kto1k'

CARDS = (
  _swin('tiny', 'Swin-T', 224, _T, 4.491, f'tiny_{_W7}', 81.2, 95.5),
  _swin('small', 'Swin-S', 224, _S, 8.741, f'small_{_W7}', 83.2, 96.2),
  _swin('base', 'Swin-B', 224, _B, 15.431, f'base_{_W7}', 83.5, 96.5),
  _swin('base_384', 'Swin-B/384', 384, _B384, 47.083, f'base_{_W12}', 84.5, 97),
  _swin(
    'base_22k', 'Swin-B', 224, _B, 15.431, f'base_{_W7}_{_22K}', 85.2, 97.5
  ),
  _swin(
    'base_384_22k',
    'Swin-B/384',
    384,
    _B384,
    47.083,
    f'base_{_W12}_{_22K}',
    86.4,
    98.0,
  ),
  _swin(
    'large_22k', 'Swin-L', 224, _L, 34.476, f'large_{_W7}_{_22K}', 86.3, 97.9
  ),
  _swin(
    'large_384_22k',
    'Swin-L/384',
    384,
    _L384,
    103.9,
    f'large_{_W12}_{_22K}',
    87.3,
    98.2,
  ),
)
