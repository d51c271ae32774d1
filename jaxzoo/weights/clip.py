"""CLIP checkpoints: OpenAI's and Hugging Face's names and layouts, and ours.

Both naming schemes are first brought to one: OpenAI's, with every q, k, v
matrix on its own. `_rows` then pairs each of these names with a path of ours.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights import layout

# Scalars and integer buffers that no parameter corresponds to.
_SKIPPED = re.compile(
  r'(.*\.)?(position_ids|num_batches_tracked|input_resolution|context_length'
  r'|vocab_size|attn_mask)'
)

_HUGGING_FACE = (
  (r'vision_model\.embeddings\.patch_embedding\.', 'visual.conv1.'),
  (r'vision_model\.embeddings\.class_embedding', 'visual.class_embedding'),
  (
    r'vision_model\.embeddings\.position_embedding\.weight',
    'visual.positional_embedding',
  ),
  (r'vision_model\.pre_layrnorm\.', 'visual.ln_pre.'),  # their spelling
  (r'vision_model\.post_layernorm\.', 'visual.ln_post.'),
  (r'visual_projection\.weight', 'visual.proj'),
  (r'text_model\.embeddings\.token_embedding\.', 'token_embedding.'),
  (
    r'text_model\.embeddings\.position_embedding\.weight',
    'positional_embedding',
  ),
  (r'text_model\.final_layer_norm\.', 'ln_final.'),
  (r'text_projection\.weight', 'text_projection'),
  (r'vision_model\.encoder\.layers\.', 'visual.transformer.resblocks.'),
  (r'text_model\.encoder\.layers\.', 'transformer.resblocks.'),
  (r'\.self_attn\.', '.attn.'),
  (r'\.layer_norm([12])\.', r'.ln_\1.'),
  (r'\.mlp\.fc1\.', '.mlp.c_fc.'),
  (r'\.mlp\.fc2\.', '.mlp.c_proj.'),
)


def convert_clip(
  state_dict: Mapping[str, np.ndarray],
  *,
  image_size: tuple[int, int],
  text_length: int,
  scan: bool,
  prefix: str = '',
  stride: int | None = None,
  grid: tuple[int, int] | None = None,
  head_width: int = 64,
  method: str = 'bilinear',
) -> dict:
  """A CLIP state dict -> the parameters of `models.backbones.clip.Clip`.

  Positions of the image tower are resized when the grid differs. Those of the
  text tower are interpolated to a longer text; for a shorter one the first are
  kept, which changes no embedding.

  Args:
    state_dict: OpenAI's or Hugging Face's names; half precision is cast.
    image_size: (height, width) in pixels of the images to come, or one side.
    text_length: ids in the texts to come.
    scan: stack the transformers' blocks.
    prefix: what the names start with; names without it are left alone.
    stride: pixels between patches; default: the patch size.
    grid: (rows, columns) of the checkpoint's positions; default: a square, or,
      where their number is no square, the grid of `image_size`.
    head_width: channels of an attention head; 64 in every published size.
    method: 'bilinear' or 'bicubic', of the resizing.

  Returns:
    Nested dict of float32 arrays. Batch statistics of a residual network are
    `convert_batch_stats`'s.

  Raises:
    UserError: no CLIP under `prefix`, or names that are not CLIP's.
  """
  tensors = _canonical(state_dict, prefix)
  towers = _towers(tensors, head_width)
  flat = _to_paths(tensors, _rows(towers['image']), head_width)
  table = (
    'image/position_embedding'
    if towers['image'] == 'vit'
    else 'image/attention_pool/position_embedding'
  )
  if table not in flat:
    raise UserError('a CLIP checkpoint without positions of the image tower')
  new = token_grid(image_size, towers['image'], towers['patch_size'], stride)
  old = grid or _square(flat[table].shape[0] - 1) or new
  if flat[table].shape[0] != 1 + math.prod(old):
    raise UserError(
      f'the checkpoint has positions for {flat[table].shape[0] - 1} patches, '
      f'which is no square and not the {old[0]}x{old[1]} of image_size='
      f'{image_size}; set image_size to what it was trained with'
    )
  flat[table] = layout.resize_positions(flat[table], old, new, method)
  text = flat['text/position_embedding']
  flat['text/position_embedding'] = (
    text[:text_length]
    if text_length <= text.shape[0]
    else layout.resize_text_positions(text, text_length)
  )
  tree = layout.unflatten(flat)
  try:
    return layout.stack_blocks(tree) if scan else tree
  except ValueError as error:
    raise UserError(f'an incomplete CLIP checkpoint: {error}') from error


def convert_batch_stats(
  state_dict: Mapping[str, np.ndarray], *, prefix: str = ''
) -> dict:
  """The running means and variances of a CLIP residual network.

  Returns:
    The collection `batch_stats`; {} where the image tower is a transformer.
  """
  tensors = _canonical(state_dict, prefix)
  rows = _rows(_image_tower(tensors), stats=True)
  return layout.unflatten(_to_paths(tensors, rows, None, partial=True))


def towers_of(
  state_dict: Mapping[str, np.ndarray],
  *,
  prefix: str = '',
  head_width: int = 64,
) -> dict:
  """Which towers a checkpoint holds, told by its shapes.

  Args:
    state_dict: OpenAI's or Hugging Face's names.
    prefix: what the names start with.
    head_width: channels of an attention head, which no tensor tells.

  Returns:
    The fields of `models.backbones.clip.Towers`, as in `config.towers`.

  Raises:
    UserError: no CLIP under `prefix`.
  """
  return _towers(_canonical(state_dict, prefix), head_width)


def input_sizes_of(
  state_dict: Mapping[str, np.ndarray], *, prefix: str = ''
) -> tuple[int, int]:
  """What a checkpoint was trained with, told by its tables of positions.

  Returns:
    The side of its square images in pixels, and the ids of its texts.

  Raises:
    UserError: no CLIP under `prefix`, or its images were not square.
  """
  tensors = _canonical(state_dict, prefix)
  vit = _image_tower(tensors) == 'vit'
  pool = '' if vit else 'attnpool.'
  try:
    patches = len(tensors[f'visual.{pool}positional_embedding']) - 1
    text_length = len(tensors['positional_embedding'])
  except KeyError as error:
    raise UserError(f'a CLIP checkpoint without {error}') from error
  grid = _square(patches)
  if not grid:
    raise UserError(
      f'the checkpoint has positions for {patches} patches, which is no '
      'square: its config must say the size of its images'
    )
  patch_size = tensors['visual.conv1.weight'].shape[-1] if vit else 32
  return grid[0] * patch_size, text_length


def export_clip(params: Mapping, batch_stats: Mapping | None = None) -> dict:
  """Our parameters -> an OpenAI-named state dict: `convert_clip` undone.

  Args:
    params: of `Clip`, scanned or not; with or without `logit_scale`.
    batch_stats: of a residual network.

  Returns:
    float32 arrays in torch's layout, all contiguous.
  """
  flat = layout.flatten(layout.unstack_blocks(params))
  image = 'vit' if 'image/class_embedding' in flat else 'resnet'
  tensors = _to_names(flat, _rows(image))
  if batch_stats:
    tensors |= _to_names(layout.flatten(batch_stats), _rows(image, stats=True))
  return _join_qkv(tensors)


def token_grid(
  image_size: tuple[int, int] | int,
  image: str,
  patch_size: int,
  stride: int | None = None,
) -> tuple[int, int]:
  """(rows, columns) of the tokens of an image.

  >>> token_grid((384, 128), 'vit', 14)
  (27, 9)
  """
  if isinstance(image_size, int):
    image_size = (image_size, image_size)
  if image == 'resnet':
    # The first convolution rounds up, the pools round down.
    return tuple((side + 1) // 32 for side in image_size)
  stride = stride or patch_size
  return tuple((side - patch_size) // stride + 1 for side in image_size)


def _square(number: int) -> tuple[int, int] | None:
  side = math.isqrt(number)
  return (side, side) if side * side == number else None


def _canonical(state_dict, prefix: str) -> dict[str, np.ndarray]:
  """The tensors under `prefix` in OpenAI's names, with q, k, v apart."""
  tensors = {
    name.removeprefix(prefix): np.asarray(value)
    for name, value in state_dict.items()
    if name.startswith(prefix) and not _SKIPPED.fullmatch(name)
  }
  if 'vision_model.embeddings.patch_embedding.weight' in tensors:
    return {
      _openai_name(name): value.T if name.endswith('_projection.weight')
      else value
      for name, value in tensors.items()
    }  # fmt: skip
  if 'visual.conv1.weight' not in tensors:
    known = ', '.join(sorted(tensors)[:4]) or 'no names'
    raise UserError(
      f'not a CLIP checkpoint under the prefix {prefix!r}: neither '
      'visual.conv1.weight (OpenAI) nor vision_model.embeddings.patch_embedding'
      f'.weight (Hugging Face) is there, but {known}, ...'
    )
  split = {}
  for name, value in tensors.items():
    match = re.fullmatch(r'(.*)\.in_proj_(weight|bias)', name)
    if not match:
      split[name] = value
      continue
    for part, third in zip('qkv', np.split(value, 3), strict=True):
      split[f'{match[1]}.{part}_proj.{match[2]}'] = third
  return split


def _openai_name(name: str) -> str:
  for pattern, replacement in _HUGGING_FACE:
    name = re.sub(pattern, replacement, name)
  return name


def _join_qkv(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The blocks' q, k, v as one matrix again; the pool keeps them apart."""
  joined = {}
  for name, value in tensors.items():
    match = re.fullmatch(r'(.*resblocks\.\d+\.attn)\.([qkv])_proj\.(.*)', name)
    if not match:
      joined[name] = value
    elif match[2] == 'q':
      joined[f'{match[1]}.in_proj_{match[3]}'] = np.concatenate(
        [tensors[f'{match[1]}.{part}_proj.{match[3]}'] for part in 'qkv']
      )
  return joined


def _image_tower(tensors: Mapping[str, np.ndarray]) -> str:
  return 'vit' if 'visual.proj' in tensors else 'resnet'


def _towers(tensors: Mapping[str, np.ndarray], head_width: int) -> dict:
  """`towers_of` canonical tensors."""
  missing = [
    name
    for name in (
      'token_embedding.weight',
      'positional_embedding',
      'text_projection',
    )
    if name not in tensors
  ]
  if missing:
    raise UserError(f'a CLIP checkpoint without {", ".join(missing)}')
  count = lambda pattern: len(
    {match[1] for match in map(re.compile(pattern).match, tensors) if match}
  )
  if _image_tower(tensors) == 'vit':
    width, _, _, patch_size = tensors['visual.conv1.weight'].shape
    depth = count(r'visual\.transformer\.resblocks\.(\d+)\.')
    image = dict(
      image='vit',
      image_width=width,
      image_depth=depth,
      image_heads=width // head_width,
      patch_size=patch_size,
    )
  else:
    width = tensors['visual.conv1.weight'].shape[0] * 2
    depth = tuple(
      count(rf'visual\.layer{stage}\.(\d+)\.') for stage in range(1, 5)
    )
    image = dict(
      image='resnet',
      image_width=width,
      image_depth=depth,
      image_heads=32 * width // head_width,
      patch_size=32,
    )
  vocab_size, text_width = tensors['token_embedding.weight'].shape
  return dict(
    image,
    text_width=text_width,
    text_depth=count(r'transformer\.resblocks\.(\d+)\.'),
    text_heads=text_width // head_width,
    vocab_size=vocab_size,
    output_dim=tensors['text_projection'].shape[1],
  )


def _affine(name: str, path: str, kind: str = 'same'):
  """Weight and bias of a linear map or, as it is, of a norm."""
  leaf = 'scale' if kind == 'same' else 'kernel'
  bias = 'head_bias' if kind == 'heads_in' else 'same'
  return [
    (f'{name}.weight', f'{path}/{leaf}', kind),
    (f'{name}.bias', f'{path}/bias', bias),
  ]


def _attention(name: str, path: str, out: str):
  parts = (('q', 'query'), ('k', 'key'), ('v', 'value'))
  rows = []
  for letter, part in parts:
    rows += _affine(f'{name}.{letter}_proj', f'{path}/{part}', 'heads_in')
  return rows + _affine(f'{name}.{out}', f'{path}/out', 'heads_out')


def _block_rows(name: str, path: str):
  name, path = f'{name}.resblocks.{{i}}', f'{path}/transformer/block_{{i}}'
  return [
    *_affine(f'{name}.ln_1', f'{path}/ln_1'),
    *_attention(f'{name}.attn', f'{path}/attn', 'out_proj'),
    *_affine(f'{name}.ln_2', f'{path}/ln_2'),
    *_affine(f'{name}.mlp.c_fc', f'{path}/mlp/fc1', 'dense'),
    *_affine(f'{name}.mlp.c_proj', f'{path}/mlp/fc2', 'dense'),
  ]


def _rows(image: str, stats: bool = False) -> list[tuple[str, str, str]]:
  """(canonical name, our path, kind of layout); {i} stands for a number."""
  if image == 'vit':
    if stats:
      return []
    rows = [
      ('visual.class_embedding', 'image/class_embedding', 'same'),
      ('visual.positional_embedding', 'image/position_embedding', 'same'),
      ('visual.conv1.weight', 'image/patch_embedding/kernel', 'conv'),
      ('visual.proj', 'image/projection/kernel', 'same'),
      *_affine('visual.ln_pre', 'image/ln_pre'),
      *_affine('visual.ln_post', 'image/ln_post'),
      *_block_rows('visual.transformer', 'image'),
    ]
  else:
    block, here = 'visual.layer{s}.{i}', 'image/stage{s}_block{i}'
    convs = [
      ('visual.conv{i}', 'image/stem/conv{i}'),
      (f'{block}.conv{{n}}', f'{here}/conv{{n}}'),
      (f'{block}.downsample.0', f'{here}/shortcut_conv'),
    ]
    norms = [
      ('visual.bn{i}', 'image/stem/bn{i}'),
      (f'{block}.bn{{n}}', f'{here}/bn{{n}}'),
      (f'{block}.downsample.1', f'{here}/shortcut_bn'),
    ]
    if stats:
      return [
        (f'{name}.running_{leaf}', f'{path}/{leaf}', 'same')
        for name, path in norms
        for leaf in ('mean', 'var')
      ]
    pool = 'image/attention_pool'
    rows = [
      *((f'{name}.weight', f'{path}/kernel', 'conv') for name, path in convs),
      *(row for name, path in norms for row in _affine(name, path)),
      (
        'visual.attnpool.positional_embedding',
        f'{pool}/position_embedding',
        'same',
      ),
      *_attention('visual.attnpool', f'{pool}/attn', 'c_proj'),
    ]
  return [
    *rows,
    ('logit_scale', 'logit_scale', 'same'),
    ('token_embedding.weight', 'text/token_embedding/embedding', 'same'),
    ('positional_embedding', 'text/position_embedding', 'same'),
    ('text_projection', 'text/projection/kernel', 'same'),
    *_affine('ln_final', 'text/ln_final'),
    *_block_rows('transformer', 'text'),
  ]


def _matcher(rows, source: int):
  """name -> (the other side's name, kind), or None; column `source` is ours."""
  compiled = []
  for row in rows:
    pattern = re.sub(r'\\{(\w)\\}', r'(?P<\1>\\d+)', re.escape(row[source]))
    compiled.append((re.compile(pattern), row[1 - source], row[2]))

  def match(name):
    for pattern, other, kind in compiled:
      found = pattern.fullmatch(name)
      if found:
        return other.format(**found.groupdict()), kind
    return None

  return match


def _to_paths(tensors, rows, head_width, partial=False) -> dict:
  """Canonical tensors -> our flat tree, float32."""
  match = _matcher(rows, 0)
  flat, unknown = {}, []
  for name, value in tensors.items():
    found = match(name)
    if found:
      path, kind = found
      flat[path] = np.asarray(
        _to_ours(name, value, kind, head_width), order='C'
      )
    elif not partial and not name.endswith(('.running_mean', '.running_var')):
      unknown.append(name)
  if unknown:
    raise UserError(
      'names in the checkpoint that are not CLIP\'s: '
      f'{", ".join(sorted(unknown)[:8])}'
      f'{", ..." if len(unknown) > 8 else ""} ({len(unknown)} in all)'
    )  # fmt: skip
  return flat


def _to_names(flat, rows) -> dict:
  """Our flat tree -> canonical tensors, float32."""
  match = _matcher(rows, 1)
  tensors = {}
  for path, value in flat.items():
    found = match(path)
    if not found:
      raise ValueError(f'{path} is no parameter of CLIP')
    name, kind = found
    value = _to_theirs(np.asarray(value, np.float32), kind)
    tensors[name] = np.asarray(value, order='C')
  return tensors


def _to_ours(name: str, x, kind: str, head_width: int | None) -> np.ndarray:
  x = np.asarray(x, np.float32)
  try:
    match kind:
      case 'conv':  # OIHW -> HWIO
        return x.transpose(2, 3, 1, 0)
      case 'dense':
        return x.T
      case 'heads_in':  # [out, in] -> [in, heads, head width]
        return x.T.reshape(x.shape[1], -1, head_width)
      case 'heads_out':  # [out, in] -> [heads, head width, out]
        return x.T.reshape(-1, head_width, x.shape[0])
      case 'head_bias':
        return x.reshape(-1, head_width)
  except (ValueError, IndexError) as error:
    raise UserError(
      f'{name} {x.shape} in the checkpoint is no {kind} of CLIP with heads of '
      f'{head_width} channels'
    ) from error
  return x


def _to_theirs(x: np.ndarray, kind: str) -> np.ndarray:
  match kind:
    case 'conv':
      return x.transpose(3, 2, 0, 1)
    case 'dense':
      return x.T
    case 'heads_in':
      return x.reshape(x.shape[0], -1).T
    case 'heads_out':
      return x.reshape(-1, x.shape[-1]).T
    case 'head_bias':
      return x.reshape(-1)
  return x
