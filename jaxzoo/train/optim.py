"""Optimizers and schedules from explicit arguments; parameters by path.

Groups are ordered (regex, settings) pairs on the 'a/b/c' path of a parameter.
Every group that matches applies, later ones override the fields they name:

    groups = (
      ('cross', {'lr': 5.0}),
      ('bias$', {'lr': 2.0, 'decay': 0.0}),
      ('^image/', {'frozen': True}),
    )
"""

import bisect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from jaxzoo.errors import UserError, nearest

Groups = Sequence[tuple[str, Mapping[str, Any]]]


class Group(NamedTuple):
  """What holds for one parameter: multipliers of rate and decay, frozen."""

  lr: float = 1.0
  decay: float = 1.0
  frozen: bool = False


def path_name(path) -> str:
  """'a/b/c' of a key path of `jax.tree_util`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def group_of(name: str, groups: Groups) -> Group:
  """The settings of the parameter called `name`.

  >>> group_of('cross_attn/query/bias', [('cross', {'lr': 5.0}),
  ...                                    ('bias$', {'decay': 0.0})])
  Group(lr=5.0, decay=0.0, frozen=False)
  """
  settings = Group()
  for pattern, fields in groups:
    if re.search(pattern, name):
      settings = settings._replace(**fields)
  return settings


def check_groups(groups: Groups) -> None:
  """Raises UserError for a broken pattern or a field that no group has."""
  for pattern, fields in groups:
    try:
      re.compile(pattern)
    except re.error as error:
      raise UserError(
        f'optim.groups: {pattern!r} is no regular expression: {error}'
      ) from error
    for name in fields:
      if name not in Group._fields:
        raise UserError(
          f'optim.groups: {pattern!r} sets {name!r}; '
          + nearest(name, Group._fields)
        )


def group_tree(params, groups: Groups):
  """`Group` for every leaf of `params`, as a tree of the same form."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: group_of(path_name(path), groups), params
  )


def unmatched(params, groups: Groups) -> list[str]:
  """The patterns that match no parameter: most likely misspelled."""
  paths = jax.tree_util.tree_flatten_with_path(params)[0]
  names = [path_name(path) for path, _ in paths]
  return [
    pattern
    for pattern, _ in groups
    if not any(re.search(pattern, name) for name in names)
  ]


def _per_parameter(function: Callable) -> optax.GradientTransformation:
  """A stateless transform: (update, parameter, path) -> update, leaf by leaf."""

  def update(updates, state, params=None):
    updates = jax.tree_util.tree_map_with_path(
      lambda path, u, p: function(u, p, path_name(path)), updates, params
    )
    return updates, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def add_decay(weight_decay: float, groups: Groups):
  """u + weight_decay * (the group's multiplier) * p."""

  def decay(update, param, name):
    factor = weight_decay * group_of(name, groups).decay
    return update + factor * param if factor else update

  return _per_parameter(decay)


def scale_by_group(groups: Groups):
  """u * (the group's learning-rate multiplier)."""

  def scale(update, _, name):
    factor = group_of(name, groups).lr
    return update if factor == 1 else update * factor

  return _per_parameter(scale)


# A path's stage and block: stage2_block0/.., stage2/block_0/.., block_3/..; or
# `blocks`, all of a stack on the leading axis; merge1 leads to stage 2.
_STAGE = re.compile(r'(?:^|/)(?:stage|super)_?(\d+)(?:[/_]|$)')
_MERGE = re.compile(r'(?:^|/)merge_?(\d+)(?:/|$)')
_BLOCK = re.compile(r'(?:^|[/_])block_?(\d+)(?:/|$)')
_STACK = re.compile(r'(?:^|[/_])blocks(?:/|$)')
# What comes after the blocks; all else outside of them comes before.
_LAST = re.compile(
  r'^(bn[1-9]|classifier|conv[1-9]|fc|final|head|hidden|last|ln_post|neck|norm/'
  r'|pre_logits)'
)


def layer_decay_tree(params, decay: float):
  """decay^(distance from the end) for every leaf, by the order of the blocks.

  The classifier and the norm before it get 1, the last block decay, the one
  before it decay^2, and what comes before the first block decay^(n + 1) of n
  blocks (Clark et al., arXiv 2003.10555; Bao et al., arXiv 2106.08254). Blocks
  are told by the path: `block_3/..`, `stage2_block0/..`, or `blocks/..` for a
  scanned stack, whose leaf gets an array over its leading axis. What belongs
  to a stage, but to none of its blocks, counts as its first block; blocks of
  one number in several stacks count as one.

  Args:
    params: of one network.
    decay: in (0, 1].

  Returns:
    A tree like `params` of numbers, and of arrays [n, 1, ...] for stacks.
  """
  flat, structure = jax.tree_util.tree_flatten_with_path(params)
  leaves = [(path_name(path), leaf) for path, leaf in flat]
  keys = [_blocks_of(name, leaf) for name, leaf in leaves]
  order = sorted({key for each in keys for key in each})
  count = len(order)
  place = {key: 1 + i for i, key in enumerate(order)}

  def scale(name, leaf, own):
    if not own:
      return 1.0 if _LAST.search(name) else decay ** (count + 1)
    powers = [decay ** (count + 1 - place[key]) for key in own]
    if not _STACK.search(name):
      return powers[0]
    return np.reshape(powers, (-1,) + (1,) * (leaf.ndim - 1))

  return jax.tree.unflatten(
    structure,
    [
      scale(name, leaf, own)
      for (name, leaf), own in zip(leaves, keys, strict=True)
    ],
  )


def _blocks_of(name: str, leaf) -> list[tuple[int, int]]:
  """(stage, block) of a leaf, of each layer of a stack; [] outside blocks."""
  stage, block = _STAGE.search(name), _BLOCK.search(name)
  merge = _MERGE.search(name)
  if merge:
    return [(int(merge[1]) + 1, 0)]
  number = int(stage[1]) if stage else 0
  if _STACK.search(name):
    return [(number, i) for i in range(leaf.shape[0])]
  if stage or block:
    return [(number, int(block[1]) if block else 0)]
  return []


def scale_by_layer(decay: float) -> optax.GradientTransformation:
  """u * `layer_decay_tree`."""

  def update(updates, state, params=None):
    del params
    scales = layer_decay_tree(updates, decay)
    # In the update's dtype, whatever that of the scales.
    updates = jax.tree.map(
      lambda u, s: u * jnp.asarray(s, u.dtype), updates, scales
    )
    return updates, state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


OPTIMIZERS = ('adam', 'adamw', 'muon', 'rmsprop', 'sgd')

# What of an array is the matrix that Muon orthogonalises: its input axes and
# its output axes, counted from the end so that a stack of layers is a stack of
# matrices. The first rule found in the path holds; None, and what no rule
# names, is left to Adam: embeddings, convolutions, classifiers, vectors.
MATRICES = (
  (r'(^|/)(conv|classifier|mlm_head/fc)/', None),
  (r'(query|key|value)/kernel$', ((-3,), (-2, -1))),
  (r'attn/out/kernel$', ((-3, -2), (-1,))),
  (r'kernel$', ((-2,), (-1,))),
)


def _matrices(params):
  """`MATRICES` as optax's muon wants them: a tree of dimension numbers."""

  def of(path, leaf):
    name = path_name(path)
    axes = next((a for rule, a in MATRICES if re.search(rule, name)), None)
    if axes is None or leaf.ndim < len(axes[0]) + len(axes[1]):
      return None
    return optax.contrib.MuonDimensionNumbers(*axes)

  return jax.tree_util.tree_map_with_path(of, params)


def make_optimizer(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 0.0,
  clip_norm: float = 0.0,
  groups: Groups = (),
  mu_dtype: str | None = None,
  layer_decay: float = 1.0,
) -> optax.GradientTransformation:
  """The optimizers of the recipes, with groups by parameter path.

  Args:
    name: 'adam' (weight decay is added to the gradient, before the moments:
      L2 regularisation), 'adamw' (decoupled: added to the update, scaled by
      the learning rate alone), 'muon' (decoupled; orthogonalised momentum for
      the matrices, scaled to the size of Adam's updates so that one rate
      serves both, arXiv 2502.16982, and Adam for the rest), 'rmsprop' (L2;
      TensorFlow's, of mobile networks: squares start at 1, `eps` is inside
      the root, momentum adds up steps that the learning rate has scaled) or
      'sgd' (L2, with momentum).
    learning_rate: a number or a schedule step -> rate.
    b1: decay of Adam's first moment.
    b2: decay of Adam's second moment, and of RMSprop's squares.
    eps: added to the square root of Adam's second moment.
    momentum: of SGD and RMSprop; 0 switches it off.
    nesterov: of SGD.
    weight_decay: times the group's `decay`.
    clip_norm: largest global norm of the gradient; 0 switches clipping off.
    groups: see the module; frozen parameters get no update and no moments.
    mu_dtype: of the first moment, e.g. 'bfloat16' to save memory.
    layer_decay: of the learning rate from block to block towards the input,
      see `layer_decay_tree`; 1 switches it off.

  Raises:
    UserError: unknown optimizer, a group with an unknown field or a broken
      pattern, or a layer_decay outside (0, 1].
  """
  if name not in OPTIMIZERS:
    raise UserError(
      f'optim.name: no optimizer {name!r}; ' + nearest(name, OPTIMIZERS)
    )
  if not 0 < layer_decay <= 1:
    raise UserError(
      f'optim.layer_decay={layer_decay}: it must be above 0 and at most 1'
    )
  check_groups(groups)
  decay = add_decay(weight_decay, groups)
  if name == 'sgd':
    moments = optax.trace(momentum, nesterov) if momentum else optax.identity()
  elif name == 'rmsprop':
    moments = optax.scale_by_rms(b2, eps, initial_scale=1.0, eps_in_sqrt=True)
  elif name == 'muon':
    # A rate of -1 takes back the sign that muon gives to its updates: here the
    # last transform of the chain does that.
    moments = optax.contrib.muon(
      -1.0,
      adam_b1=b1,
      adam_b2=b2,
      eps=eps,
      mu_dtype=mu_dtype,
      consistent_rms=0.2,
      muon_weight_dimension_numbers=_matrices,
    )
  else:
    moments = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)
  # Coupled decay enters the moments like a gradient, decoupled does not.
  core = (moments, decay) if name in ('adamw', 'muon') else (decay, moments)
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  trained = optax.chain(
    clip,
    *core,
    scale_by_group(groups),
    *([scale_by_layer(layer_decay)] if layer_decay < 1 else []),
    optax.scale_by_learning_rate(learning_rate),
    *([optax.trace(momentum)] if name == 'rmsprop' and momentum else []),
  )
  if not any(fields.get('frozen') for _, fields in groups):
    return trained
  labels = lambda params: jax.tree.map(
    lambda group: 'frozen' if group.frozen else 'trained',
    group_tree(params, groups),
    is_leaf=lambda x: isinstance(x, Group),
  )
  return optax.partition(
    {'trained': trained, 'frozen': optax.set_to_zero()}, labels
  )


SCHEDULES = (
  'constant',
  'cosine',
  'cosine_after_first',
  'cosine_whole',
  'linear',
  'step',
  'poly',
  'poly_as_released',
  'exp',
)


def factor(
  name: str,
  progress: float,
  *,
  total: float,
  warmup: float = 0.0,
  warmup_factor: float = 0.0,
  milestones: Sequence[float] = (),
  gamma: float = 0.1,
  power: float = 0.9,
) -> float:
  """Multiplier of the base rate at `progress` of `total` (epochs or steps).

  For progress e < warmup: warmup_factor (1 - e/warmup) + e/warmup. After it,
  with r = (e - warmup) / (total - warmup) in [0, 1]: cosine (1 + cos(pi r))/2,
  linear 1 - r, poly (1 - r)^power, exp power^r, constant 1. cosine_whole:
  (1 + cos(pi e / total))/2, whose beginning the warm-up hides (DeiT).
  cosine_after_first: cosine, but 1 for e < 1, as in loops that set the rate
  after each epoch for the next (CARD). step:
  gamma^(milestones passed), also while warming up. poly_as_released is the
  power^(1 - r) of IRRA's code, which rises from `power` to 1: for comparison
  with runs of that code only. (Schedules of IRRA, arXiv 2303.12501.)
  """
  drop = gamma ** bisect.bisect_right(list(milestones), progress)
  if name == 'cosine_after_first' and progress < 1:
    return 1.0
  if progress < warmup:
    part = progress / warmup
    rise = warmup_factor * (1 - part) + part
    return rise * drop if name == 'step' else rise
  rest = min(1.0, (progress - warmup) / max(total - warmup, 1e-9))
  return {
    'constant': 1.0,
    'cosine': (1 + math.cos(math.pi * rest)) / 2,
    'cosine_after_first': (1 + math.cos(math.pi * rest)) / 2,
    'cosine_whole': (1 + math.cos(math.pi * min(1.0, progress / total))) / 2,
    'linear': 1 - rest,
    'step': drop,
    'poly': (1 - rest) ** power,
    'poly_as_released': power ** (1 - rest),
    'exp': power**rest,
  }[name]


def make_schedule(
  name: str,
  learning_rate: float,
  *,
  total_steps: int,
  warmup_steps: int = 0,
  warmup_factor: float = 0.0,
  steps_per_epoch: int | None = None,
  end: float = 0.0,
  milestones: Sequence[int] = (),
  gamma: float = 0.1,
  power: float = 0.9,
) -> optax.Schedule:
  """step -> learning rate.

  Args:
    name: one of `SCHEDULES`, see `factor`.
    learning_rate: the rate where the factor is 1.
    total_steps: of the run; the factor is at its end there.
    warmup_steps: of linear warm-up.
    warmup_factor: factor at step 0.
    steps_per_epoch: given, the rate is constant within an epoch, as in recipes
      that change it between epochs; otherwise it changes at every step.
    end: the rate where the factor is 0.
    milestones: in steps, for 'step'.
    gamma: for 'step'.
    power: for 'poly' and 'exp'.

  Raises:
    UserError: unknown schedule.
  """
  if name not in SCHEDULES:
    raise UserError(
      f'optim.schedule: no schedule {name!r}; ' + nearest(name, SCHEDULES)
    )
  unit = steps_per_epoch or 1
  count = -(-total_steps // unit)
  # A table, so that one definition serves Python and compiled steps, and an
  # epoch's factor is exactly the reference's float64 one, rounded once.
  table = [
    factor(
      name,
      i,
      total=total_steps / unit,
      warmup=warmup_steps / unit,
      warmup_factor=warmup_factor,
      milestones=[m / unit for m in milestones],
      gamma=gamma,
      power=power,
    )
    for i in range(count + 1)
  ]
  rates = np.asarray(
    [
      f * learning_rate
      if i * unit < warmup_steps
      else end + (learning_rate - end) * f
      for i, f in enumerate(table)
    ],
    np.float32,
  )

  def schedule(step):
    return jnp.asarray(rates)[jnp.minimum(step // unit, count)]

  return schedule
