"""Pruning: gradient transforms around an optimizer, masks in its state.

    tx = sparsify(optax.adamw(1e-3), rigl(0.9), schedule=constant(every=100,
                                                                   last=7500))

A method is a `Method`, a NamedTuple of pure functions; `sparsify` puts one
around any optax optimizer, and `optax.apply_updates` then leaves exact zeros.
Nothing here knows a model by name.
"""

from jaxzoo.compress import options, schedules
from jaxzoo.compress.allocation import erk, uniform
from jaxzoo.compress.channels import (
  ChannelGroup,
  compact,
  cost_table,
  expand_masks,
  kernel_positions,
  macs,
  verify_compact,
)
from jaxzoo.compress.export import load, save, to_sparse
from jaxzoo.compress.masks import (
  apply_masks,
  assert_sparsity,
  full_masks,
  mask_summary,
  pack_masks,
  sparsity_of,
  unpack_masks,
)
from jaxzoo.compress.methods.chex import chex
from jaxzoo.compress.methods.gap import gap, global_ratios
from jaxzoo.compress.methods.magnitude import magnitude
from jaxzoo.compress.methods.n_m import n_m
from jaxzoo.compress.methods.random import random
from jaxzoo.compress.methods.regrow import rigl, sparse_evolution
from jaxzoo.compress.methods.regrow import sparse_evolution as set
from jaxzoo.compress.methods.rpg import rpg, rpg_schedule
from jaxzoo.compress.methods.saliency import saliency
from jaxzoo.compress.schedules import (
  Schedule,
  constant,
  cosine,
  cubic,
  exponential,
)
from jaxzoo.compress.selection import (
  select_blocks,
  select_n_m,
  select_top,
  select_top_per_leaf,
)
from jaxzoo.compress.transform import (
  Method,
  SparseState,
  Write,
  find_state,
  make_refresh,
  one_shot,
  sparsify,
)

__all__ = [
  'ChannelGroup',
  'Method',
  'Schedule',
  'SparseState',
  'Write',
  'apply_masks',
  'assert_sparsity',
  'chex',
  'compact',
  'constant',
  'cosine',
  'cost_table',
  'cubic',
  'erk',
  'expand_masks',
  'exponential',
  'find_state',
  'full_masks',
  'gap',
  'global_ratios',
  'kernel_positions',
  'load',
  'macs',
  'magnitude',
  'make_refresh',
  'mask_summary',
  'n_m',
  'one_shot',
  'options',
  'pack_masks',
  'random',
  'rigl',
  'rpg',
  'rpg_schedule',
  'saliency',
  'save',
  'schedules',
  'select_blocks',
  'select_n_m',
  'select_top',
  'select_top_per_leaf',
  'set',
  'sparse_evolution',
  'sparsify',
  'sparsity_of',
  'to_sparse',
  'uniform',
  'unpack_masks',
  'verify_compact',
]
