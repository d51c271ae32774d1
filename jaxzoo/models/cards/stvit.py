"""STViT-R on Swin with the weights of its authors, and STViT on DeiT."""

from jaxzoo.models.cards.card import ModelCard

_FILES = 'https://huggingface.co/csncsn/STViT-R/resolve/main'


def _on_swin(name, letter, parameters, gmacs, top1):
  # The smallest was not released.
  return ModelCard(
    name=f'stvit_r_swin_{name}',
    family='stvit',
    builder='jaxzoo.models.backbones.stvit:build',
    variant=f'STViT-R-Swin-{letter}',
    paper='arXiv 2303.08685',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
    license='MIT' if top1 else '',
    weights=f'{_FILES}/STViT-R-Swin-{letter}.pth' if top1 else '',
    results={'ImageNet top-1': top1} if top1 else {},
  )


def _on_deit(name, letter, parameters, gmacs):
  # The paper says that they are as accurate as DeiT, and gives no weights.
  return ModelCard(
    name=f'stvit_deit_{name}',
    family='stvit_deit',
    builder='jaxzoo.models.backbones.stvit_deit:build',
    variant=f'STViT-DeiT-{letter}',
    paper='arXiv 2303.08685',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
  )


CARDS = (
  _on_swin('tiny', 'T', 28320214, 3.598, None),
  _on_swin('small', 'S', 49625518, 5.799, 82.7),
  _on_swin('base', 'B', 87812336, 10.227, 83.2),
  _on_deit('tiny', 'T', 5720104, 0.524),
  _on_deit('small', 'S', 22056040, 1.912),
  _on_deit('base', 'B', 86578408, 7.283),
)
