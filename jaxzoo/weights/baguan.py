"""Baguan's state dicts, in the names of its released code."""

import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.weights import rows as to
from jaxzoo.weights.rows import Row

# A table that only gives a shape, and an embedding that nothing calls.
UNUSED = re.compile(r'pos_3d\w*|dec_fcst_t_embedder\..*')
_EMBED = re.compile(r'token_embeds\.(\d+)\.proj\.(weight|bias)')
# A leading 1 that only broadcasting needs.
LEAD = to.Form(lambda x: x.reshape(x.shape[-2:]), lambda x: x[None])
FLAT = to.reshaped((1, 1, -1), (-1,))
QKV = ('query', 'key', 'value')


def stacked(state_dict: Mapping[str, np.ndarray]) -> dict:
  """The embeddings of all variables as one array each, unused names left out.

  `token_embeds.I.proj.weight` [d, 1, p, p] become `token_embeds.weight`
  [v, p p, d], the biases `token_embeds.bias` [v, d].
  """
  tensors, parts = {}, {'weight': {}, 'bias': {}}
  for name, x in state_dict.items():
    match = _EMBED.fullmatch(name)
    if match:
      parts[match[2]][int(match[1])] = np.asarray(x, np.float32)
    elif not UNUSED.fullmatch(name):
      tensors[name] = x
  for leaf, found in parts.items():
    if found and sorted(found) == list(range(len(found))):
      x = np.stack([found[i] for i in range(len(found))])
      if leaf == 'weight':
        x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
      tensors[f'token_embeds.{leaf}'] = x
  return tensors


def unstacked(tensors: Mapping[str, np.ndarray]) -> dict:
  """`stacked` undone; the unused names stay away."""
  tensors = dict(tensors)
  weight = tensors.pop('token_embeds.weight', ())
  bias = tensors.pop('token_embeds.bias', ())
  for i, x in enumerate(weight):
    side = round(x.shape[0] ** 0.5)
    kernel = x.T.reshape(-1, 1, side, side)
    tensors[f'token_embeds.{i}.proj.weight'] = np.ascontiguousarray(kernel)
  for i, x in enumerate(bias):
    tensors[f'token_embeds.{i}.proj.bias'] = x
  return tensors


def block_rows(
  theirs: str, ours: str, num_heads: int, cross: bool = False
) -> list[Row]:
  """One block; with `cross`, one of the decoder."""
  found = [
    *to.norm(f'{theirs}.norm1', f'{ours}/ln_1'),
    *to.projections(f'{theirs}.attn.qkv', f'{ours}/attn', QKV, num_heads),
    *to.from_heads(f'{theirs}.attn.proj', f'{ours}/attn/out', num_heads),
    *to.norm(f'{theirs}.norm2', f'{ours}/ln_2'),
    *to.linear(f'{theirs}.mlp.fc1', f'{ours}/fc1'),
    *to.linear(f'{theirs}.mlp.fc2', f'{ours}/fc2'),
    *to.linear(f'{theirs}.adaLN_modulation.1', f'{ours}/modulation'),
  ]
  if cross:
    there, here = f'{theirs}.cross_attn', f'{ours}/cross_attn'
    found += to.norm(f'{theirs}.norm01', f'{ours}/ln_source')
    found += to.norm(f'{theirs}.norm02', f'{ours}/ln_target')
    for letter, part in zip('qkv', QKV, strict=True):
      found += to.projections(f'{there}.w{letter}', here, (part,), num_heads)
    found += to.from_heads(f'{there}.proj', f'{here}/out', num_heads)
  return found


def lead_rows(theirs: str, ours: str) -> list[Row]:
  """The embedding of the lead time that moves the norms."""
  return [
    *to.linear(f'{theirs}.mlp.0', f'{ours}/fc1'),
    *to.linear(f'{theirs}.mlp.2', f'{ours}/fc2'),
  ]


def encoder_rows(depth: int, num_heads: int) -> list[Row]:
  """Of `Encoder`, for `stacked` names."""
  aggregation = 'encoder/aggregation'
  found = [
    *to.tensor('token_embeds.weight', f'{aggregation}/kernel'),
    *to.tensor('token_embeds.bias', f'{aggregation}/bias'),
    *to.tensor('var_embed', f'{aggregation}/variable_embed', LEAD),
    *to.tensor('var_query', f'{aggregation}/query', FLAT),
    Row(
      'var_agg.in_proj_weight',
      tuple(f'params/{aggregation}/to_{part}/kernel' for part in QKV),
      to.heads_in(num_heads),
    ),
    Row(
      'var_agg.in_proj_bias',
      tuple(f'params/{aggregation}/to_{part}/bias' for part in QKV),
      to.heads_bias(num_heads),
    ),
    *to.from_heads('var_agg.out_proj', f'{aggregation}/out', num_heads),
    *to.tensor('pos_embed', 'encoder/position', LEAD),
    *to.linear('lead_time_embed', 'encoder/lead'),
    *lead_rows('enc_t_embedder', 'encoder/lead_embed'),
    *to.norm('norm', 'encoder/norm'),
  ]
  for i in range(depth):
    found += block_rows(f'encoder_blocks.{i}', f'encoder/block_{i}', num_heads)
  return found


def decoder_rows(depth: int, num_heads: int) -> list[Row]:
  """Of `Decoder`."""
  found = [
    *to.linear('new_enc_to_dec', 'decoder/project'),
    *to.tensor('mask_token', 'decoder/mask_token', to.reshaped((-1,), (-1,))),
    *to.tensor('dec_pos_embed', 'decoder/position', LEAD),
    *to.linear('dec_lead_time_embed', 'decoder/lead'),
    *lead_rows('dec_t_embedder', 'decoder/lead_embed'),
    *to.norm('fcst_to_pixels.norm_final', 'decoder/norm'),
    *to.linear('fcst_to_pixels.linear', 'decoder/head'),
    *to.linear('fcst_to_pixels.adaLN_modulation.1', 'decoder/modulation'),
  ]
  for i in range(depth):
    found += block_rows(
      f'fcst_decoder_blocks.{i}', f'decoder/block_{i}', num_heads, True
    )
  return found
