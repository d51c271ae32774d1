"""DeiT with a stem of convolutions and scaled ReLU; no checkpoints."""

from jaxzoo.models.cards.card import ModelCard


def _conv_stem(size, host, parameters, gmacs):
  return ModelCard(
    name=f'conv_stem_deit_{size}_patch16_224',
    family='conv_stem',
    builder='jaxzoo.models.backbones.conv_stem:build',
    variant=f'{host} conv stem',
    paper='arXiv 2109.03810',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
  )


CARDS = (
  _conv_stem('tiny', 'DeiT-Ti', 6439912, 2.42178048),
  _conv_stem('small', 'DeiT-S', 23412136, 5.89221888),
  _conv_stem('base', 'DeiT-B', 89207080, 19.107643392),
)
