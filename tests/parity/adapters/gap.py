"""GaP's parity cases: pruning by percentiles, allocation, the cycle."""

import numpy as np

from jaxzoo.compress.methods.gap import (
  global_ratios,
  is_dense,
  is_pruned_at,
  percentile,
  prune_by_percentile,
  transformer_partition,
)


def run(case):
  if 'layers' in case.config:
    return cycle(case)
  if 'scales' in case.config:
    return allocation(case)
  return local(case)


def local(case):
  outputs = {}
  for i, sparsity in enumerate(case.config['sparsity']):
    weight = case.inputs[f'w{i}']
    mask = prune_by_percentile(weight, sparsity)
    outputs |= {
      f'mask{i}': np.packbits(mask.ravel()),
      f'nnz{i}': mask.sum(),
      f'threshold{i}': percentile([weight], sparsity).value,
    }
  return outputs


def allocation(case):
  # Names that sort like the layers are numbered.
  params = {
    f'{i:03}': {'kernel': np.float32(scale) * case.inputs[f'w{i}']}
    for i, scale in enumerate(case.config['scales'])
  }
  ratios = global_ratios(
    params, case.config['sparsity'], lambda name, leaf: True
  )
  masks = [
    prune_by_percentile(layer['kernel'], ratio)
    for layer, ratio in zip(params.values(), ratios.values(), strict=True)
  ]
  return {
    'ratios': np.asarray(list(ratios.values())),
    'nnz': np.asarray([mask.sum() for mask in masks]),
  }


def cycle(case):
  parts = case.config['partitions']
  of = transformer_partition(parts)
  numbers = [of(name) for name in case.config['layers']]
  outputs = {}
  for phase in range(parts):
    outputs |= {
      f'masked_in_step{phase}': np.asarray(
        [not is_dense(part, phase, parts) for part in numbers]
      ),
      f'pruned_at_step{phase}': np.asarray(
        [is_pruned_at(part, phase, parts) for part in numbers]
      ),
    }
  return outputs
