"""KVT: DeiT with k-NN attention; no checkpoints are published."""

from jaxzoo.models.cards.card import ModelCard


def _kvt(size, host, parameters, gmacs, top1=None):
  return ModelCard(
    name=f'kvt_deit_{size}_patch16_224',
    family='kvt',
    builder='jaxzoo.models.backbones.kvt:build',
    variant=f'{host} k-NN',
    paper='arXiv 2106.00515',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
    results={'ImageNet top-1': top1} if top1 else {},
  )


CARDS = (
  _kvt('tiny', 'DeiT-Ti', 5717416, 1.2536832, 73.0),
  _kvt('small', 'DeiT-S', 22050664, 4.598882304, 80.1),
  _kvt('base', 'DeiT-B', 86567656, 17.563828224),
  _kvt('tiny_distilled', 'DeiT-Ti distilled', 5910800, 1.261003776),
  _kvt('small_distilled', 'DeiT-S distilled', 22436432, 4.624140288),
  _kvt('base_distilled', 'DeiT-B distilled', 87338192, 17.65681152),
)
