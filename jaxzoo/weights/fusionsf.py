"""FusionSF's state dicts, in the names of its released code.

Codebooks come under `ctx_vq.codebook` and `ts_vq.codebook`, or as the package
vector-quantize-pytorch saves them, once for each of the stages that share one.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# Our modality -> what it is called there.
MODALITIES = {'satellite': 'ctx', 'power': 'ts', 'weather': 'guide'}
# Parameters of the released network that nothing uses, and constants.
UNUSED = re.compile(
  r'quantile_masker.*|ctx_mask_token|ts_mask_token|.*(rotary_emb|pos_emb|pe)'
  r'[\w.]*\.(scales|inv_freq)|.*\.scales'
)
_STORED = re.compile(
  r'(\w+)_vq\.(?:layers\.\d+\.)?_codebook\.(embed|embed_avg|cluster_size'
  r'|initted)'
)


def block_rows(
  theirs: str, ours: str, num_heads: int, qkv: bool, source: bool = False
) -> list[Row]:
  """One block: attention under `.0`, gated MLP under `.1`."""
  attention = f'{theirs}.0.fn'
  project = lambda name, *parts: to.projections(
    f'{attention}.{name}', f'{ours}/attn', parts, num_heads, bias=False
  )
  if source:
    norms = to.norm(f'{theirs}.0.norm_src', f'{ours}/ln_source')
    norms += to.norm(f'{theirs}.0.norm_tgt', f'{ours}/ln_1')
  else:
    norms = to.norm(f'{theirs}.0.norm', f'{ours}/ln_1')
  if qkv:
    projections = project('to_qkv', 'query', 'key', 'value')
  else:
    projections = project('to_q', 'query') + project('to_kv', 'key', 'value')
  return [
    *norms,
    *projections,
    *to.from_heads(f'{attention}.to_out.0', f'{ours}/attn/out', num_heads),
    *to.norm(f'{theirs}.1.norm', f'{ours}/ln_2'),
    *to.linear(f'{theirs}.1.fn.net.0', f'{ours}/mlp/fc1'),
    *to.linear(f'{theirs}.1.fn.net.3', f'{ours}/mlp/fc2'),
  ]


def rows(
  *,
  depth: int,
  decoder_depth: int,
  num_heads: int,
  decoder_heads: int,
  mlp_heads: int,
  weather: bool,
) -> list[Row]:
  """Of the network; its fields are those of `FusionSF`."""
  found = to.linear('to_patch_embedding.1', 'satellite_embed/fc')
  hourly = ('power', 'weather') if weather else ('power',)
  for name in hourly:
    found += to.linear(f'{MODALITIES[name]}_embedding', f'{name}_embed/fc')
  for i in range(depth):
    found += block_rows(
      f'ctx_encoder.blocks.{i}',
      f'satellite_encoder/block_{i}',
      num_heads,
      False,
    )
    found += block_rows(
      f'mixer.cross_layers.{i}', f'mixer/block_{i}', num_heads, False, True
    )
  stacks = [
    (f'{MODALITIES[name]}_encoder', f'{name}_encoder', depth, num_heads)
    for name in hourly
  ]
  stacks.append(
    ('temporal_transformer', 'decoder', decoder_depth, decoder_heads)
  )
  for theirs, ours, count, heads in stacks:
    # A leading 1 that only broadcasting needs.
    lead = to.Form(lambda x: x[0], lambda x: x[None])
    found += to.tensor(f'{theirs}.pos_embedding', f'{ours}/position', lead)
    for i in range(count):
      found += block_rows(
        f'{theirs}.layers.{i}', f'{ours}/block_{i}', heads, True
      )
    found += to.norm(f'{theirs}.norm', f'{ours}/norm')
  found += to.linear('ts_enctodec', 'widen')
  for i in range(mlp_heads):
    found += to.norm(f'mlp_heads.{i}.0', f'head_norms_{i}')
    found += to.linear(f'mlp_heads.{i}.1', f'heads_{i}')
  return found


def network_tensors(state_dict: Mapping[str, np.ndarray]) -> dict:
  """Without codebooks, and without what the released network does not use."""
  return {
    name: x
    for name, x in state_dict.items()
    if not (UNUSED.fullmatch(name) or re.match(r'\w+_vq\.', name))
  }


def codebooks(state_dict: Mapping[str, np.ndarray]) -> dict:
  """modality -> `codes` [k, d], and `sizes` and `sums` where they are stored."""
  ours = {theirs: name for name, theirs in MODALITIES.items()}
  kinds = {'embed': 'codes', 'embed_avg': 'sums', 'cluster_size': 'sizes'}
  found = {}
  for name, x in state_dict.items():
    bare, stored = (
      re.fullmatch(r'(\w+)_vq\.codebook', name),
      _STORED.fullmatch(name),
    )
    if bare and bare[1] in ours:
      found.setdefault(ours[bare[1]], {})['codes'] = np.asarray(x, np.float32)
    elif stored and stored[1] in ours and stored[2] in kinds:
      # [1, k, d]: of one head.
      value = np.asarray(x, np.float32)
      value = value[0] if value.shape[0] == 1 else value
      found.setdefault(ours[stored[1]], {})[kinds[stored[2]]] = value
  return found


def codebook_tensors(codebook: Mapping, modality: str, stages: int) -> dict:
  """A codebook as the package saves it: every stage has a copy."""
  values = {
    'embed': codebook['codes'],
    'embed_avg': codebook['sums'],
    'cluster_size': codebook['sizes'],
    'initted': np.asarray([codebook['ready']], np.float32),
  }
  return {
    f'{MODALITIES[modality]}_vq.layers.{i}._codebook.{name}': (
      np.asarray(x)[None] if name != 'initted' else x
    )
    for i in range(stages)
    for name, x in values.items()
  }
