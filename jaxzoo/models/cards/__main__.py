"""Prints the table of all backbones, as docs/backbones.md has it.

python -m jaxzoo.models.cards
"""

from jaxzoo.models.cards import MODELS, ModelCard

HEADER = (
  '| model | paper | image | parameters | GMACs | published top-1 | weights |\n'
  '|---|---|---|---|---|---|---|'
)
TOP1 = ('ImageNet top-1', 'ImageNet zero-shot top-1')


def row(card: ModelCard) -> str:
  """A line of the table; what is not published is left empty."""
  height, width = card.image_size
  top1 = next((card.results[n] for n in TOP1 if n in card.results), None)
  where = f'[{card.license or "link"}]({card.weights})' if card.weights else ''
  cells = (
    f'`{card.name}`',
    card.paper,
    f'{height}' if height == width else f'{height}x{width}',
    f'{card.parameters:,}',
    f'{card.gmacs:.2f}' if card.gmacs else '',
    '' if top1 is None else f'{top1:g}',
    where,
  )
  return '| ' + ' | '.join(cells) + ' |'


def table() -> str:
  """All cards, in Markdown."""
  return '\n'.join([HEADER, *map(row, MODELS.values())])


if __name__ == '__main__':
  print(table())
