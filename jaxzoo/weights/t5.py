"""T5 by the names of Hugging Face's T5ForConditionalGeneration, both ways."""

import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.weights import layout, rows
from jaxzoo.weights.rows import Row

# A table that attention to the memory has in old files and nobody reads.
_UNUSED = re.compile(
  r'decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\..*'
)


def t5_rows(
  depth: int, num_heads: int, *, gated: bool = False, tied: bool = True
) -> list[Row]:
  """One row a tensor, for blocks that are not scanned."""
  found = rows.tensor('shared.weight', 'token_embedding')
  for side in ('encoder', 'decoder'):
    found += rows.tensor(
      f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
      f'{side}/position_bias',
    )
    found += rows.tensor(
      f'{side}.final_layer_norm.weight', f'{side}/norm/scale'
    )
    for i in range(depth):
      found += _block(side, i, num_heads, gated)
  if not tied:
    found += rows.linear('lm_head', 'head', bias=False)
  return found


def _block(side: str, i: int, num_heads: int, gated: bool) -> list[Row]:
  theirs, ours = f'{side}.block.{i}.layer', f'{side}/block_{i}'
  kinds = [('SelfAttention', 'self')]
  if side == 'decoder':
    kinds.append(('EncDecAttention', 'cross'))
  found = []
  for place, (name, kind) in enumerate(kinds):
    for theirs_part, part in zip('qkv', ('query', 'key', 'value'), strict=True):
      found += rows.tensor(
        f'{theirs}.{place}.{name}.{theirs_part}.weight',
        f'{ours}/{kind}_attn/{part}/kernel',
        rows.heads_in(num_heads),
      )
    found += rows.tensor(
      f'{theirs}.{place}.{name}.o.weight',
      f'{ours}/{kind}_attn/out/kernel',
      rows.heads_out(num_heads),
    )
    found += rows.tensor(
      f'{theirs}.{place}.layer_norm.weight', f'{ours}/{kind}_norm/scale'
    )
  last = f'{theirs}.{len(kinds)}'
  layers = {'wi_0': 'gate', 'wi_1': 'fc1'} if gated else {'wi': 'fc1'}
  for name, layer in {**layers, 'wo': 'fc2'}.items():
    found += rows.linear(
      f'{last}.DenseReluDense.{name}', f'{ours}/mlp/{layer}', bias=False
    )
  return found + rows.tensor(
    f'{last}.layer_norm.weight', f'{ours}/mlp_norm/scale'
  )


def _rows_of(module) -> list[Row]:
  return t5_rows(
    module.depth, module.num_heads, gated=module.gated, tied=module.tied
  )


def convert(state_dict: Mapping[str, np.ndarray], module) -> dict:
  """A published state dict -> variables of the `T5`, in its layout.

  The table's copies in encoder and decoder, and in a tied head, are left out.
  """
  copies = {'encoder.embed_tokens.weight', 'decoder.embed_tokens.weight'}
  if module.tied:
    copies.add('lm_head.weight')
  tensors = {
    name: value
    for name, value in state_dict.items()
    if name not in copies and not _UNUSED.fullmatch(name)
  }
  if 'shared.weight' not in tensors and copies & state_dict.keys():
    first = min(copies & state_dict.keys())
    tensors['shared.weight'] = state_dict[first]
  loaded = rows.load(tensors, _rows_of(module))
  return layout.stack_deep(loaded) if module.scan else loaded


def export(variables: Mapping, module) -> dict[str, np.ndarray]:
  """Our variables -> the published state dict: `convert` undone."""
  return rows.save(layout.unstack_blocks(variables), _rows_of(module))
