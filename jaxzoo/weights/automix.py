"""AutoMix's state dicts: every network twice, trained (q) and following (k).

`backbone_{q,k}.*` in the backbone's own names, `head_{one,mix}_{q,k}.fc.*`,
`mix_block.*`. Released checkpoints have `backbone_k` and `head_one_k` under the
names `backbone` and `head` as well, or those alone.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

HEADS = ('head_one', 'head_mix')
ALIASES = {'backbone.': 'backbone_k.', 'head.': 'head_one_k.'}
MIX_BLOCK = (
  *to.pointwise('mix_block.query.conv', 'mix_block/query'),
  *to.pointwise('mix_block.value', 'mix_block/value'),
)

Tensors = Mapping[str, np.ndarray]


def canonical(state_dict: Tensors) -> dict:
  """One spelling, with a q and a k of every network that there is.

  A checkpoint of the bare backbone becomes both of them.
  """
  if not any(name.startswith('backbone') for name in state_dict):
    return {f'backbone_{w}.{n}': x for w in 'qk' for n, x in state_dict.items()}
  named = dict(state_dict)
  for alias, own in ALIASES.items():
    for name in [name for name in named if name.startswith(alias)]:
      # The alias is read last, as by PyTorch, should the two differ.
      named[own + name.removeprefix(alias)] = named.pop(name)
  for name, x in list(named.items()):
    network, _, rest = name.partition('.')
    other = {'_q': '_k', '_k': '_q'}.get(network[-2:])
    if other:
      named.setdefault(f'{network[:-2]}{other}.{rest}', x)
  return named


def load(
  state_dict: Tensors, convert: Callable, which: str
) -> tuple[dict, dict]:
  """The networks 'q' or 'k' of a `canonical` state dict.

  Args:
    state_dict: tensors by name.
    convert: of the backbone without classes: its state dict -> variables.
    which: 'q' or 'k'.

  Returns:
    (parameters, batch statistics): `backbone`, and `head_one`, `head_mix` and
    `mix_block` (of q) as far as they are there.
  """
  inside = lambda prefixes: {
    name: x for name, x in state_dict.items() if name.startswith(prefixes)
  }
  prefix = f'backbone_{which}.'
  backbone = convert(
    {name.removeprefix(prefix): x for name, x in inside(prefix).items()}
  )
  stats = backbone.pop('batch_stats', {})
  # What no row names stays, to be reported.
  params = {'backbone': {**backbone.pop('params', {}), **backbone}}
  heads = inside(tuple(f'{head}_{which}.' for head in HEADS))
  params |= to.load(heads, _head_rows(which)).get('params', {})
  if which == 'q':
    block = inside('mix_block.')
    params |= to.load(block, MIX_BLOCK).get('params', {})
  return params, stats


def save(q: tuple, k: tuple, export: Callable) -> dict[str, np.ndarray]:
  """(parameters, batch statistics) of both -> a state dict, without aliases.

  `export` is of the backbone without classes: variables -> its state dict.
  """
  tensors = to.save({'params': {'mix_block': q[0]['mix_block']}}, MIX_BLOCK)
  for which, (params, stats) in {'q': q, 'k': k}.items():
    backbone = export({'params': params['backbone'], 'batch_stats': stats})
    tensors |= {f'backbone_{which}.{name}': x for name, x in backbone.items()}
    heads = {head: params[head] for head in HEADS}
    tensors |= to.save({'params': heads}, _head_rows(which))
  return tensors


def _head_rows(which: str) -> list[Row]:
  return [
    row for head in HEADS for row in to.linear(f'{head}_{which}.fc', head)
  ]
