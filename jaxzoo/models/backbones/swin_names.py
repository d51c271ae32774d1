"""Swin's state dict: its names, its other spellings, its tables of positions."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxzoo.errors import UserError
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

_TABLE = re.compile(r'(.*/)?stage(\d+)/.*position_bias/table')
# The dense-prediction toolbox's words for ours.
_TOOLBOX = (
  (re.compile(r'^stages\.'), 'layers.'),
  (re.compile(r'^patch_embed\.projection\.'), 'patch_embed.proj.'),
  (re.compile(r'\.attn\.w_msa\.'), '.attn.'),
  (re.compile(r'\.ffn\.layers\.0\.0\.'), '.mlp.fc1.'),
  (re.compile(r'\.ffn\.layers\.1\.'), '.mlp.fc2.'),
)


def rows(module) -> list[Row]:
  """Of a `Swin`; `norm0`, ... are names of detectors."""
  found = encoder_rows(module)
  if module.norm_maps:
    for i in range(1, len(module.depths)):
      found += to.norm(f'norm{i - 1}', f'norm{i}')
  return found + to.linear('head', 'head')


def encoder_rows(module, theirs: str = '', ours: str = '') -> list[Row]:
  """All but the classifier, with prefixes; reads `depths` and `num_heads`."""
  found = [
    *to.conv(f'{theirs}patch_embed.proj', f'{ours}patch_embed/proj', bias=True),
    *to.norm(f'{theirs}patch_embed.norm', f'{ours}patch_embed/norm'),
  ]
  for i, (depth, heads) in enumerate(
    zip(module.depths, module.num_heads, strict=True)
  ):
    for j in range(depth):
      found += block_rows(
        f'{theirs}layers.{i}.blocks.{j}',
        f'{ours}stage{i + 1}/{block_path(j)}',
        heads,
      )
    if i < len(module.depths) - 1:
      found += merging_rows(
        f'{theirs}layers.{i}.downsample', f'{ours}merge{i + 1}'
      )
  return found + to.norm(f'{theirs}norm', f'{ours}norm')


def block_path(number: int) -> str:
  """Where block `number` of a stage lies: in a pair of blocks.

  >>> block_path(3)
  'block_1/shifted'
  """
  return f'block_{number // 2}/{("regular", "shifted")[number % 2]}'


def block_rows(theirs: str, ours: str, num_heads: int) -> list[Row]:
  """Of a `SwinBlock`."""
  table = f'{theirs}.attn.relative_position_bias_table'
  return [
    *to.tensor(table, f'{ours}/position_bias/table'),
    *to.projections(
      f'{theirs}.attn.qkv', f'{ours}/attn', ('query', 'key', 'value'), num_heads
    ),
    *to.from_heads(f'{theirs}.attn.proj', f'{ours}/attn/out', num_heads),
    *shared_rows(theirs, ours),
  ]


def shared_rows(theirs: str, ours: str) -> list[Row]:
  """Of any block with Swin's names: all but the attention."""
  return [
    *to.norm(f'{theirs}.norm1', f'{ours}/norm1'),
    *to.norm(f'{theirs}.norm2', f'{ours}/norm2'),
    *to.linear(f'{theirs}.mlp.fc1', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.mlp.fc2', f'{ours}/mlp/fc2'),
  ]


def merging_rows(theirs: str, ours: str) -> list[Row]:
  """Of a `PatchMerging`."""
  return [
    *to.norm(f'{theirs}.norm', f'{ours}/norm'),
    *to.linear(f'{theirs}.reduction', f'{ours}/reduction', bias=False),
  ]


def canonical(
  state_dict: Mapping[str, np.ndarray],
  *,
  stages: int = 4,
  norm_maps: bool = False,
) -> dict[str, np.ndarray]:
  """Any known spelling of Swin's state dict as microsoft/Swin-Transformer's.

  - As the encoder of a masked-image model (`encoder.`) or the backbone of a
    detector (`backbone.`): the prefix goes, and what else the model has, a
    mask token among it.
  - pytorch-image-models: merging opens a stage instead of closing the one
    before, and the classifier is `head.fc`.
  - The dense-prediction toolbox: other words (`stages`, `w_msa`, `ffn`, ...),
    and 2x2 neighbourhoods with the channel before the place.
  - Networks for dense prediction have a norm for each map, `norm0`, ...; the
    last is `norm`, the others are kept for `norm_maps` only.

  Args:
    state_dict: name -> tensor.
    stages: how many the network has.
    norm_maps: of the network.
  """
  tensors = dict(state_dict)
  for prefix in ('encoder.', 'backbone.'):
    if any(name.startswith(prefix) for name in tensors):
      head = {k: v for k, v in tensors.items() if k.startswith('head.')}
      inner = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
      }
      inner.pop('mask_token', None)
      tensors = {**head, **inner} if prefix == 'backbone.' else inner
  if any(name.startswith('stages.') for name in tensors):
    tensors = _from_toolbox(tensors)
  late = f'layers.{stages - 1}.downsample.'
  renamed = {}
  for name, value in tensors.items():
    match = re.match(r'layers\.(\d+)\.downsample\.', name)
    if match and any(other.startswith(late) for other in tensors):
      name = f'layers.{int(match[1]) - 1}.' + name.split('.', 2)[2]
    name = re.sub(r'^head\.fc\.', 'head.', name)
    match = re.match(r'norm(\d+)\.', name)
    if match and int(match[1]) == stages - 1:
      name = 'norm.' + name.split('.', 1)[1]
    elif match and not norm_maps:
      continue
    renamed[name] = value
  return renamed


def _from_toolbox(tensors):
  renamed = {}
  for name, value in tensors.items():
    for pattern, words in _TOOLBOX:
      name = pattern.sub(words, name)
    if '.downsample.' in name:
      value = _places_first(np.asarray(value))
    renamed[name] = value
  return renamed


def _places_first(value):
  """[..., 4c + 2 row + column] -> [..., place c], places as `PatchMerging`'s."""
  by_channel = value.reshape(*value.shape[:-1], -1, 4)
  by_place = by_channel[..., [0, 2, 1, 3]].swapaxes(-1, -2)
  return np.ascontiguousarray(by_place).reshape(value.shape)


def resize_tables(
  flat: Mapping[str, np.ndarray], windows: Sequence[int]
) -> dict[str, np.ndarray]:
  """The tables of relative positions for windows of other sizes.

  Args:
    flat: path -> array.
    windows: sides of the windows of each stage.

  Raises:
    UserError: a table that is not one of square windows.
  """
  resized = {}
  for path, value in flat.items():
    match = _TABLE.fullmatch(path)
    if match and int(match[2]) <= len(windows):
      value = _resize_table(path, value, windows[int(match[2]) - 1])
    resized[path] = value
  return resized


def _resize_table(
  path, table: Float[np.ndarray, 'r h'], window: int
) -> Float[np.ndarray, 'q h']:
  """Bicubic, each head for itself: [(2v - 1)², h] -> [(2w - 1)², h]."""
  old, new = round(len(table) ** 0.5), 2 * window - 1
  if old * old != len(table):
    raise UserError(
      f'{path} has {len(table)} rows, which is no table of square windows'
    )
  # The row in front is where other tables keep their class token.
  with_token = np.pad(table, ((1, 0), (0, 0)))
  return layout.resize_positions(with_token, (old, old), (new, new), 'bicubic')[
    1:
  ]
