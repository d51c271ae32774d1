"""A pruned run's network without its dead channels."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxzoo import catalog, compaction, compression, main
from jaxzoo.compress.transform import find_state
from jaxzoo.errors import UserError


@functools.cache
def trained():
  """(config, state) after three steps of the smallest network."""
  config = catalog.get_config('chex:tiny').unlock()
  config.model_options.update(depths=(1,), width=8)
  config.image_size = (8, 8)
  config.batch_size = 8
  config.compress.every, config.compress.end = 1, 0.5
  system = main.create_system(config, total_steps=4)
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
    'label': rng.integers(0, 10, 8).astype(np.int32),
  }
  state = jax.jit(system.init)(jax.random.key(0), batch)
  step, states = jax.jit(system.step), [state]
  for _ in range(3):
    state, metrics = step(state, batch)
    states.append(jax.device_get(state))
  return config, states, metrics


def test_compact_network_of_a_run_is_smaller_and_equal():
  config, states, _ = trained()
  found = compaction.measure(config, states[-1], batch_size=2, repeats=1)
  assert found['error'] < 1e-4
  assert found['macs_compact'] < found['macs']
  assert found['parameters_compact'] < found['parameters']
  assert found['speedup'] > 0
  json.dumps(found)  # numbers of Python
  pair = compaction.compact_state(config, states[-1])
  masks = find_state(states[-1].opt).masks
  assert pair.widths == {n: max(1, int(m.sum())) for n, m in masks.items()}


def test_compact_network_comes_back_from_its_file(tmp_path):
  config, states, _ = trained()
  path = tmp_path / 'small.safetensors'
  assert compaction.save(path, config, states[-1]) == path.stat().st_size
  module, variables = compaction.load(path)
  pair = compaction.compact_state(config, states[-1])
  assert module == pair.compact[0]
  jax.tree.map(np.testing.assert_array_equal, variables, pair.compact[1])
  whole = compaction.export.load
  assert whole(path).info['widths'] == pair.widths


def test_half_of_the_channels_is_left_of_whole_streams():
  config, states, metrics = trained()
  masks = find_state(states[-1].opt).masks
  assert set(masks) == {'stage1_block0/conv1'}, 'streams are left whole'
  assert masks['stage1_block0/conv1'].sum() == 4
  assert 0 < metrics['sparsity'] < 1


def test_report_of_a_run_is_a_line_of_metrics():
  config, states, _ = trained()
  line = compression.make_report(config, 4)(states[-1])
  assert 0 < line['macs'] < 1 and 0 < line['channels'] < 1
  json.dumps(line)


def test_averaged_parameters_and_statistics_of_dead_channels():
  _, states, _ = trained()
  mask = np.asarray(find_state(states[-1].opt).masks['stage1_block0/conv1'])
  norm = lambda tree: tree['stage1_block0']['bn1']
  for name in ('scale', 'bias'):
    assert not norm(states[-1].params)[name][~mask].any()
    assert not norm(states[-1].extra['ema'])[name][~mask].any()
  # Those that were dead all along have the statistics that they began with.
  dead = np.ones_like(mask)
  for state in states[:-1]:
    dead &= ~np.asarray(find_state(state.opt).masks['stage1_block0/conv1'])
  stats = norm(states[-1].extra['batch_stats'])
  np.testing.assert_array_equal(stats['mean'][dead], 0)
  np.testing.assert_array_equal(stats['var'][dead], 1)
  assert (stats['mean'][mask] != 0).any()


def test_systems_that_do_not_know_their_channels_say_so():
  config = catalog.get_config('mbn:tiny').unlock()
  config.compress.method = 'chex'
  with pytest.raises(UserError, match='which channels'):
    main.create_system(config)
