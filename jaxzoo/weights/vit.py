"""Vision transformers under other names, and their positions.

The canonical names are those of timm and DeiT: `blocks.0.attn.qkv.weight`.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights import layout
from jaxzoo.weights.rows import CONV, DENSE

_PARTS = ('query', 'key', 'value')
# Layers outside and inside of a block by their names in transformers.
_HUGGING_FACE = {
  'embeddings.cls_token': 'cls_token',
  'embeddings.distillation_token': 'dist_token',
  'embeddings.position_embeddings': 'pos_embed',
  'embeddings.patch_embeddings.projection': 'patch_embed.proj',
  'layernorm': 'norm',
  'classifier': 'head',
  'cls_classifier': 'head',
  'distillation_classifier': 'head_dist',
}
_HUGGING_FACE_BLOCK = {
  # As transformers 5 writes them.
  'attention.q_proj': 'attn.query',
  'attention.k_proj': 'attn.key',
  'attention.v_proj': 'attn.value',
  'attention.o_proj': 'attn.proj',
  'mlp.fc1': 'mlp.fc1',
  'mlp.fc2': 'mlp.fc2',
  # As transformers 4 did.
  'layernorm_before': 'norm1',
  'attention.attention.query': 'attn.query',
  'attention.attention.key': 'attn.key',
  'attention.attention.value': 'attn.value',
  'attention.output.dense': 'attn.proj',
  'layernorm_after': 'norm2',
  'intermediate.dense': 'mlp.fc1',
  'output.dense': 'mlp.fc2',
}
# In the .npz files of vision_transformer and big_vision, but for the numbers of
# attention and MLP: 1 and 3 in the one, which numbers all layers of a block
# through, 0 and 0 in the other, where each kind has numbers of its own.
_FLAX = {
  'cls': 'cls_token',
  'Transformer/posembed_input/pos_embedding': 'pos_embed',
  'pos_embedding': 'pos_embed',
  'embedding': 'patch_embed.proj',
  'Transformer/encoder_norm': 'norm',
  'head': 'head',
}
_FLAX_BLOCK = {
  'LayerNorm_0': 'norm1',
  'MultiHeadDotProductAttention/query': 'attn.query',
  'MultiHeadDotProductAttention/key': 'attn.key',
  'MultiHeadDotProductAttention/value': 'attn.value',
  'MultiHeadDotProductAttention/out': 'attn.proj',
  'LayerNorm_1': 'norm2',
  'LayerNorm_2': 'norm2',
  'MlpBlock/Dense_0': 'mlp.fc1',
  'MlpBlock/Dense_1': 'mlp.fc2',
}


def canonical(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A state dict in the names and layouts of timm and DeiT.

  Args:
    state_dict: in those names already; in those of Hugging Face's
      ViTForImageClassification, DeiTForImageClassification and
      DeiTForImageClassificationWithTeacher, or of the models within; or in
      those of the .npz files of google-research/vision_transformer and
      big_vision (class token, blocks not scanned).

  Returns:
    What has no known name keeps its own.
  """
  if any('/encoderblock_' in name for name in state_dict):
    return _fuse(_from_flax(state_dict))
  if any(
    'encoder.layer.' in name or '.attention.q_proj.' in name
    for name in state_dict
  ):
    return _fuse(_from_hugging_face(state_dict))
  return dict(state_dict)


def _from_hugging_face(state_dict):
  block = re.compile(r'(?:encoder\.layer|layers)\.(\d+)\.(.+)')
  tensors = {}
  for name, value in state_dict.items():
    bare = re.sub(r'^(vit|deit)\.', '', name)
    new = _renamed(bare, block, _HUGGING_FACE_BLOCK, _HUGGING_FACE)
    tensors[new or name] = value
  return tensors


def _from_flax(state_dict):
  block = re.compile(r'Transformer/encoderblock_(\d+)/(.+)')
  tensors = {}
  for name, value in state_dict.items():
    bare = re.sub(r'^(opt/target|params)/', '', name)
    bare = re.sub(r'(Attention|MlpBlock)_\d+', r'\1', bare)
    new = _renamed(bare, block, _FLAX_BLOCK, _FLAX)
    tensors[new or name] = _torch_layout(new, np.asarray(value))
  return tensors


def _renamed(name, block, inside, outside):
  """The canonical name of a tensor; None where the tables do not have it.

  Args:
    name: theirs.
    block: matches the names within blocks: number, rest.
    inside: names of their layers within a block to ours.
    outside: likewise, of the others.
  """
  match = block.fullmatch(name)
  table, prefix = (inside, f'blocks.{match[1]}.') if match else (outside, '')
  name = match[2] if match else name
  if name in table:  # a tensor of its own
    return prefix + table[name]
  layer = re.fullmatch(r'(.+)[./](?:(weight|kernel|scale)|bias)', name)
  if not layer or layer[1] not in table:
    return None
  return f'{prefix}{table[layer[1]]}.{"weight" if layer[2] else "bias"}'


def _torch_layout(name, value):
  """A tensor of flax as PyTorch has it, by its canonical name."""
  if name is None:
    return value
  if re.search(r'\.attn\.(query|key|value)\.', name):
    value = value.reshape(*value.shape[:-2], -1)  # heads and their width
  if name.endswith('.attn.proj.weight'):
    value = value.reshape(-1, value.shape[-1])
  if name.endswith('.weight') and value.ndim > 1:
    return (CONV if value.ndim == 4 else DENSE).save(value)
  return value


def _fuse(tensors):
  """q, k and v of each block as the one layer that makes all three."""
  fused = dict(tensors)
  for name in tensors:
    match = re.fullmatch(r'(blocks\.\d+\.attn)\.query\.(\w+)', name)
    if not match:
      continue
    parts = [f'{match[1]}.{part}.{match[2]}' for part in _PARTS]
    if all(part in fused for part in parts):
      joined = np.concatenate([fused.pop(part) for part in parts])
      fused[f'{match[1]}.qkv.{match[2]}'] = joined
  return fused


def fit_positions(
  table: np.ndarray,
  grid: tuple[int, int],
  *,
  prefix: int,
  method: str = 'bicubic',
  antialias: bool = True,
) -> np.ndarray:
  """A table of positions [p + n, c] for a grid of patches.

  A table for as many patches is taken as it is. Otherwise the grid that it was
  made for is a square, or where n is no square the one with twice as many rows
  as columns: pictures of persons (TransReID-SSL).

  Args:
    table: of the checkpoint.
    grid: (rows, columns) of the images to come.
    prefix: rows of tokens that are no patches, p: they come first.
    method: 'bicubic' or 'bilinear', as of `layout.resize_positions`.
    antialias: as timm resizes; DeiT's own code does not.

  Raises:
    UserError: n is neither; or no such method.
  """
  if method not in ('bicubic', 'bilinear'):
    raise UserError(f"positions={method!r}: not 'bicubic' or 'bilinear'")
  count = table.shape[0] - prefix
  if count == math.prod(grid):
    return table
  side, columns = math.isqrt(max(count, 0)), math.isqrt(max(count, 0) // 2)
  if count > 0 and side * side == count:
    old = (side, side)
  elif count > 0 and 2 * columns * columns == count:
    old = (2 * columns, columns)
  else:
    raise UserError(
      f'the checkpoint has {table.shape[0]} positions: without {prefix} of '
      'class tokens they are neither a square of patches nor two squares, one '
      'above the other. Set image_size to what it was trained with'
    )
  return layout.resize_positions(
    table, old, grid, method, antialias, prefix=prefix
  )
