"""Networks without their dead channels: made of a run, stored, and timed."""

import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from jaxzoo import catalog
from jaxzoo.compress import channels, export
from jaxzoo.compress.masks import apply_masks
from jaxzoo.compress.transform import find_state
from jaxzoo.errors import UserError
from jaxzoo.system import State, averaged


class Compact(NamedTuple):
  """Two networks of the same outputs.

  Attributes:
    masked: module and variables of the whole network, with zeros.
    compact: module and variables of the small one.
    widths: channels left, by group.
    macs: multiply-adds of an example: (whole, small).
  """

  masked: tuple
  compact: tuple
  widths: dict[str, int]
  macs: tuple[int, int]


def compact_state(config, state: State, multiple_of: int = 1) -> Compact:
  """The network of a state whose channels were pruned, whole and compact.

  Of averaged parameters where the run has them.

  Args:
    config: of the run, whose system has `structure` and `compacted`.
    state: with the masks in its optimizer.
    multiple_of: see `channels.compact`.
  """
  module = catalog.load(config.system)
  groups, positions = module.structure(config)
  masks = jax.device_get(find_state(state.opt).masks)
  chosen = [group for group in groups if group.name in masks]
  params, stats = jax.device_get(averaged(state))
  by_leaf = channels.expand_masks(params, chosen, masks)
  params = jax.device_get(apply_masks(params, by_leaf))
  *smaller, widths = channels.compact(
    params, stats, chosen, masks, multiple_of=multiple_of
  )
  table = channels.cost_table(params, positions, chosen)
  variables = lambda params, stats: {
    'params': params,
    **({'batch_stats': stats} if stats else {}),
  }
  return Compact(
    (module.compacted(config, {}), variables(params, stats)),
    (module.compacted(config, widths), variables(*smaller)),
    widths,
    (channels.macs(table), channels.macs(table, widths)),
  )


def save(path, config, state: State, multiple_of: int = 1) -> int:
  """Writes the compact network as safetensors; returns the bytes.

  Args:
    path: of a .safetensors file.
    config: of the run; goes into the file, so that `load` knows the network.
    state: see `compact_state`.
    multiple_of: likewise.
  """
  pair = compact_state(config, state, multiple_of)
  variables = dict(pair.compact[1])
  params = variables.pop('params')
  return export.save(
    path,
    params,
    jax.tree.map(lambda _: None, params),
    extra=variables,
    form='dense',
    info={
      'system': config.system,
      'form': 'compact',
      'step': int(state.step),
      'widths': pair.widths,
      'config': json.loads(config.to_json_best_effort()),
    },
  )


def load(path) -> tuple:
  """(module, variables) of `save`, for `module.apply(variables, image)`.

  Raises:
    UserError: no such file, or not of a compact network.
  """
  stored = export.load(path)
  if stored.info.get('form') != 'compact':
    raise UserError(
      f'{path} has no compact network: write one with '
      'python -m jaxzoo.compress export RUN FILE --form=compact'
    )
  config = ml_collections.ConfigDict(stored.info['config'])
  module = catalog.load(config.system).compacted(config, stored.info['widths'])
  return module, {'params': stored.params, **stored.extra}


def measure(
  config,
  state: State,
  *,
  batch_size: int = 64,
  repeats: int = 20,
  multiple_of: int = 1,
) -> dict[str, float]:
  """How much smaller and faster the compact network is, and how equal.

  Both forward passes are compiled, and run in turns on the same random images;
  times are medians.

  Args:
    config: of the run.
    state: of it.
    batch_size: images at a time.
    repeats: runs of each.
    multiple_of: see `channels.compact`.

  Returns:
    masked_ms, compact_ms and speedup; error, see `channels.verify_compact`;
    macs and parameters of the whole and of the compact network.

  Raises:
    UserError: the outputs differ.
  """
  pair = compact_state(config, state, multiple_of)
  image = np.random.default_rng(0).normal(
    size=(batch_size, *config.image_size, config.in_chans)
  )
  image = jax.numpy.asarray(image, config.dtype)
  runs = [_compiled(*pair.masked, image), _compiled(*pair.compact, image)]
  error = channels.verify_compact(
    *(jax.device_get(run()) for run in runs),
    tolerance=1e-4 if config.dtype == 'float32' else 5e-2,
  )
  masked, small = _medians(runs, repeats)
  size = lambda variables: sum(
    x.size for x in jax.tree.leaves(variables['params'])
  )
  return {
    'masked_ms': masked,
    'compact_ms': small,
    'speedup': masked / small,
    'error': error,
    'macs': pair.macs[0],
    'macs_compact': pair.macs[1],
    'parameters': size(pair.masked[1]),
    'parameters_compact': size(pair.compact[1]),
  }


def _compiled(module, variables, image) -> Callable:
  variables = jax.device_put(variables)
  forward = jax.jit(lambda variables, image: module.apply(variables, image))
  compiled = forward.lower(variables, image).compile()
  return lambda: jax.block_until_ready(compiled(variables, image))


def _medians(runs, repeats: int) -> list[float]:
  """Milliseconds of each; in turns, so that what else goes on hits all."""
  times = [[] for _ in runs]
  for _ in range(repeats + 1):
    for own, run in zip(times, runs, strict=True):
      started = time.perf_counter()
      run()
      own.append(1e3 * (time.perf_counter() - started))
  return [statistics.median(own[1:]) for own in times]
