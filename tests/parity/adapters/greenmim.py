"""GreenMIM's parity cases on this project's packing, network and name map."""

import re

import jax
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.models.self_supervised import greenmim, window_groups


def run(case):
  outputs = _network(case) if case.params else _grouping(case)
  return named(outputs, case.outputs)


def _grouping(case):
  counts, capacity = case.inputs['counts'], case.config['group_size']
  total, items = window_groups.knapsack([int(n) for n in counts], capacity)
  groups = window_groups.pack_windows(counts, capacity)
  group_of_window = np.zeros(len(counts), np.int32)
  for i, members in enumerate(groups):
    group_of_window[members] = i
  return {
    'elements_per_group': np.array(
      [counts[members].sum() for members in groups]
    ),
    'group_of_window': group_of_window,
    'knapsack_value': np.array(total),
    'knapsack_items': np.array(items),
  }


def _network(case):
  config = _config(case.config)
  encoder, decoder = greenmim.make_modules(config)
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  keep = np.flatnonzero(case.inputs['mask'] == 0).astype(np.int32)
  plans = [
    plan._replace(groups=None) if plan.groups > 1 else plan
    for plan in encoder.plans(decoder.grid, len(keep))
  ]
  groups = window_groups.group_stages(keep, decoder.grid, plans)

  @jax.jit
  def forward(params):
    latent, inner = encoder.apply(
      {'params': params['encoder']},
      image,
      keep,
      groups,
      mutable=['intermediates'],
    )
    pred = decoder.apply({'params': params['decoder']}, latent, keep)
    loss = greenmim.reconstruction_errors(
      pred,
      image,
      keep,
      side=case.config['patch_size_loss'],
      normalize_patches=case.config['norm_pix_loss'],
    ).mean()
    return inner['intermediates'], latent, pred, loss

  inner, latent, pred, loss = forward(greenmim.convert(case.params, config))
  outputs = {'latent': latent, 'pred': pred, 'loss': loss}
  sides = [plan.side for plan in plans]
  by_row = lambda x, side: x[:, _row_major(keep, decoder.grid[1], side)]
  outputs['visible_tokens'] = by_row(inner['visible'][0], sides[0])
  for i, side in enumerate([*sides[1:], sides[-1]]):
    outputs[f'stage{i}_out'] = by_row(inner[f'stage{i + 1}_out'][0], side)
  return outputs


def _config(config):
  """What `build` reads, from the name of the reference's model."""
  size = re.search(r'swin_(base|large)', config['arch'])[1]
  window = re.search(r'win(\d+)', config['arch'])
  published = f'swin_{size}_w{window[1] if window else 7}'
  return ml_collections.ConfigDict(
    dict(
      image_size=2 * (config['image_size'],),
      encoder=dict(
        greenmim.PUBLISHED[published], epsilon=config['layer_norm_eps']
      ),
      decoder=dict(
        width=config['decoder_embed_dim'],
        depth=config['decoder_depth'],
        num_heads=config['decoder_num_heads'],
      ),
      mask_ratio=config['mask_ratio'],
      visible_only=True,
      dtype='float32',
      scan=False,
      remat='none',
    )
  )


def _row_major(keep, columns, side):
  """The order of tokens over the whole map."""
  y, x = window_groups.coordinates(keep, columns, side)
  return np.lexsort((x, y))
