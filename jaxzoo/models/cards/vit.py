"""ViT and DeiT: plain transformers over patches of 16 pixels."""

from jaxzoo.models.cards.card import ModelCard

_DEIT = 'https://dl.fbaipublicfiles.com/deit'
_VIT = 'https://storage.googleapis.com/vit_models/augreg'
_HALF = (0.5, 0.5, 0.5)


def _deit(size, variant, parameters, gmacs, digest, top1, side=224):
  return ModelCard(
    name=f'deit_{size}_patch16_{side}',
    family='vit',
    builder='jaxzoo.models.backbones.vit:build',
    variant=variant,
    paper='arXiv 2012.12877',
    parameters=parameters,
    image_size=(side, side),
    gmacs=gmacs,
    interpolation='bicubic',
    crop=0.875 if side == 224 else 1.0,
    license='Apache-2.0',
    weights=f'{_DEIT}/deit_{size}_patch16_{side}-{digest}.pth',
    results={'ImageNet top-1': top1},
  )


def _vit(size, variant, parameters, gmacs, file):
  # Trained on ImageNet-21k, then on ImageNet: arXiv 2106.10270.
  return ModelCard(
    name=f'vit_{size}_patch16_224',
    family='vit',
    builder='jaxzoo.models.backbones.vit:build',
    variant=variant,
    paper='arXiv 2010.11929',
    parameters=parameters,
    gmacs=gmacs,
    mean=_HALF,
    std=_HALF,
    interpolation='bicubic',
    crop=0.9,
    license='Apache-2.0',
    weights=f'{_VIT}/{file}-res_224.npz',
  )


CARDS = (
  _deit('tiny', 'DeiT-Ti', 5717416, 1.2536832, 'a1311bcf', 72.2),
  _deit('small', 'DeiT-S', 22050664, 4.598882304, 'cd65a155', 79.8),
  _deit('base', 'DeiT-B', 86567656, 17.563828224, 'b5f2ef4d', 81.8),
  _deit(
    'tiny_distilled',
    'DeiT-Ti distilled',
    5910800,
    1.261003776,
    'b40b3cf7',
    74.5,
  ),
  _deit(
    'small_distilled',
    'DeiT-S distilled',
    22436432,
    4.624140288,
    '649709d9',
    81.2,
  ),
  _deit(
    'base_distilled',
    'DeiT-B distilled',
    87338192,
    17.65681152,
    'df68dfff',
    83.4,
  ),
  _deit('base', 'DeiT-B', 86859496, 55.484350464, '8de9b5d1', 82.9, 384),
  _deit(
    'base_distilled',
    'DeiT-B distilled',
    87630032,
    55.59134208,
    'd0272ac0',
    85.2,
    384,
  ),
  _vit(
    'tiny',
    'ViT-Ti/16',
    5717416,
    1.2536832,
    'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
    '--imagenet2012-steps_20k-lr_0.03',
  ),
  _vit(
    'small',
    'ViT-S/16',
    22050664,
    4.598882304,
    'S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0'
    '--imagenet2012-steps_20k-lr_0.03',
  ),
  _vit(
    'base',
    'ViT-B/16',
    86567656,
    17.563828224,
    'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0'
    '--imagenet2012-steps_20k-lr_0.01',
  ),
)
