"""RPG's parity cases: the rank loss of kernels, and updates of the masks."""

from fractions import Fraction

import jax
import numpy as np
import optax

from jaxzoo.compress import sparsify
from jaxzoo.compress.methods.rank import kernel_rank_loss
from jaxzoo.compress.methods.rpg import rpg, rpg_schedule
from jaxzoo.compress.schedules import cosine_decay, density_at


def run(case):
  if 'delta' in case.config:
    return rank_losses(case)
  return mask_updates(case)


def ours(weight):
  """OIHW or [out, in] with the outputs last."""
  return np.moveaxis(weight, (0, 1), (-1, -2))


def theirs(kernel):
  return np.moveaxis(np.asarray(kernel), (-1, -2), (0, 1))


def rank_losses(case):
  outputs = {}
  for i, (delta, bound) in enumerate(
    zip(case.config['delta'], case.config['zero_below'], strict=True)
  ):
    weight = case.inputs[f'w{i}'] * (case.inputs[f'u{i}'] >= bound)
    found = jax.jit(kernel_rank_loss, static_argnums=1)(ours(weight), delta)
    outputs |= {
      f'loss{i}': found.loss,
      f'k{i}': found.rank,
      f'grad{i}': theirs(found.grad),
    }
  return outputs


def mask_updates(case):
  config = case.config
  every, stop = config['delta_T'], config['T_end']
  schedule = rpg_schedule(config['iterative_T_end'], stop, every)
  density = Fraction(str(config['final_density']))
  method = rpg(
    1 - density,
    schedule,
    strength=0.0,
    alpha=config['alpha'],
    stop=stop,
    reference_counts=True,
  )
  tx = sparsify(optax.sgd(0.1, 0.9), method)
  tree = lambda arrays: [{'kernel': array} for array in arrays]
  count = len(config['shapes'])
  params = tree(
    ours(w) / np.float32(np.sqrt(np.prod(w.shape[1:])))
    for w in (case.inputs[f'w{i}'] for i in range(count))
  )
  state = tx.init(params)
  update = jax.jit(tx.update)
  outputs, size = {}, sum(np.prod(shape) for shape in config['shapes'])
  for j, r in enumerate(config['update_indices']):
    step = (r + 1) * every
    grads = tree(ours(case.inputs[f'g{j}_{i}']) for i in range(count))
    state = state._replace(step=np.int32(step - 1))
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    masks = [np.asarray(mask['kernel']) for mask in state.masks]
    for i, mask in enumerate(masks):
      outputs[f'mask{j}_{i}'] = theirs(mask)
      outputs[f'nnz{j}_{i}'] = mask.sum()
    outputs |= {
      f'remaining{j}': np.float64(density_at(schedule, density, step)),
      f'drop_fraction{j}': cosine_decay(config['alpha'], step, stop),
      f'global_density{j}': sum(mask.sum() for mask in masks) / size,
    }
  for i, leaf in enumerate(params):
    outputs[f'weight_final{i}'] = theirs(leaf['kernel'])
  return outputs
