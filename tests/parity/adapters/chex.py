"""CHEX's parity cases on this project's scores, draws and allocation."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.compress import exploration


def run(case):
  layers = 'shapes' in case.config
  return _layers(case) if layers else _allocation(case)


def _layers(case):
  config, outputs = case.config, {}
  for i, shape in enumerate(config['shapes']):
    ratio, dead = config['prune_ratio'][i], config['dead_below'][i]
    channels, fan_in = shape[0], int(np.prod(shape[1:]))
    scale = (1 + np.arange(channels) / channels) / np.sqrt(fan_in)
    weight = case.inputs[f'w{i}'].reshape(channels, -1) * scale[:, None]
    alive = np.ones(channels, bool)
    if f'u{i}' in case.inputs:
      alive = case.inputs[f'u{i}'] >= dead
    keep = int(channels * (1 - ratio))
    x = np.float32(np.where(alive[:, None], weight, 0).T)

    @jax.jit
    def score(x, alive, keep):
      scores = exploration.filter_scores(x, alive, keep)
      kept = exploration.kept_filters(scores, keep)
      distances = exploration.span_distances(x, kept)
      return (
        scores,
        kept,
        distances,
        exploration.regrow_probabilities(distances, ~kept),
      )

    scores, kept, distances, p = score(x, alive, keep)
    candidates = np.flatnonzero(~kept)
    outputs |= {
      f'score{i}': scores,
      f'keep{i}': np.flatnonzero(kept),
      f'candidates{i}': candidates,
      f'residual_norm{i}': distances[candidates],
      f'regrow_probability{i}': p[candidates],
    }
  return outputs


def _allocation(case):
  config = case.config
  widths, sparsity = config['widths'], config['channel_sparsity']
  epochs, end = config['epochs'], config['T_max']
  # Norms' scales are compared with one threshold: in float64, as stored.
  with jax.enable_x64(True):
    scales = [
      jnp.asarray(case.inputs[f'gamma{i}'], jnp.float64)
      * (0.5 + i / len(widths))
      for i in range(len(widths))
    ]
    shares = [
      exploration.regrow_share(config['init_regrow'], e, end) for e in epochs
    ]
    total = sum(widths)
    indices = exploration.channel_indices(total, sparsity, [0.0, *shares])
    allocate = jax.jit(exploration.allocate)
    found = [allocate(scales, indices[0], index) for index in indices[1:]]
    return {
      'prune_ratio_down': found[0].prune_ratio,
      'keep': found[0].keep,
      'delta': np.array(shares),
      'active_fraction': np.array(
        [int((each.keep + each.regrow).sum()) / total for each in found]
      ),
    } | {
      f'regrow_epoch{epoch}': each.regrow
      for epoch, each in zip(epochs, found, strict=True)
    }
