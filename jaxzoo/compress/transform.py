"""Pruning as a gradient transformation around an optimizer.

    tx = sparsify(optax.adamw(1e-3), magnitude(0.9), schedule=cubic(0, 9000, 100))
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)   # exact zeros off the mask

Whatever changes the size of updates (rates, decay, clipping, trust ratios)
belongs inside: the last thing that an update contains is -p for what is masked
out, and it must arrive unscaled. With gradient accumulation,
`optax.MultiSteps(sparsify(...), n)`: the step then counts real updates.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, UInt32

from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress.masks import Eligible, PyTree
from jaxzoo.compress.schedules import Schedule, constant


class Method(NamedTuple):
  """What distinguishes one way to prune from another: pure functions.

  `step` is the number of the optimizer's call, from 1; `eligible` a tree of
  Python bools with the structure of the parameters. Functions that are None
  do nothing and cost nothing.

  Attributes:
    update_masks: (step, grads, params, masks, method_state, key, eligible,
      **extra) -> (masks, override, method_state), called where masks change.
      `grads` are those of the loss, dense. `override` is None, a `Write`, or
      a tree like the parameters with the values that newly grown entries get
      (None where a leaf has none; without override they start from 0).
    is_update: (step) -> bool []; cheap, evaluated at every step.
    initial_masks: (params, eligible, key) -> masks; None: all ones.
    init: (params, eligible, key) -> method_state; None: ().
    grads: (step, grads, params, method_state, eligible, **extra) -> grads,
      terms that are added at every step.
    skip_step: (step) -> bool []: no weights are trained at this step, its
      gradient is for scoring alone. Its masks are those of the update.
    reset_inner: (step) -> bool []: the optimizer starts afresh before it;
      with `keep_counters`, but for the counters of its schedules.
    leaf_masks: (masks, params) -> masks by leaf, for methods that keep others
      (channels); None: they are kept by leaf.
    counts: (params, eligible) -> what is kept in the end: {path: int}, or an
      int for all leaves together; None where it is not known beforehand.
    scheduled: (Schedule) -> the same method with it.
    mask_gradients: whether the optimizer sees gradients only of what is kept.
    mask_moments: 'every_step', or 'on_update' where the masked gradients keep
      them zero in between.
    advance_schedule: whether the counters of the optimizer's schedules go on
      at steps that are skipped.
    metrics: (params, masks, method_state, eligible) -> scalars by name, for
      evaluations.
    finalize: (params, masks, eligible) -> masks, for methods that end with
      more than they promise; None: nothing to do.
  """

  update_masks: Callable
  is_update: Callable
  initial_masks: Callable | None = None
  init: Callable | None = None
  grads: Callable | None = None
  skip_step: Callable | None = None
  reset_inner: Callable | None = None
  keep_counters: bool = False
  leaf_masks: Callable | None = None
  counts: Callable | None = None
  scheduled: Callable | None = None
  mask_gradients: bool = False
  mask_moments: str = 'every_step'
  advance_schedule: bool = False
  metrics: Callable | None = None
  finalize: Callable | None = None


class Write(NamedTuple):
  """Entries that get a value at a change of masks.

  Attributes:
    where: tree like the parameters of bool arrays and None.
    values: likewise, of what they get; broadcast against the leaf.
  """

  where: PyTree
  values: PyTree


class SparseState(NamedTuple):
  """State of `sparsify`: arrays alone.

  Attributes:
    step: int32 [], calls done.
    masks: bool arrays by leaf and None, or what the method keeps instead.
    method: state of the method.
    inner: state of the wrapped optimizer.
    key: uint32 key data; leaf i at step t draws with
      fold_in(fold_in(key, t), i).
  """

  step: Int[Array, '']
  masks: PyTree
  method: PyTree
  inner: PyTree
  key: UInt32[Array, ' 2']


def leaf_keys(key: jax.Array, step, count: int) -> list[jax.Array]:
  """A key for each leaf at a step, the same on every device."""
  base = jax.random.fold_in(key, step)
  return [jax.random.fold_in(base, i) for i in range(count)]


def masks_by_leaf(method: Method, masks: PyTree, params: PyTree) -> PyTree:
  """Masks of the form of `params`, of what the method keeps."""
  return (
    masks if method.leaf_masks is None else method.leaf_masks(masks, params)
  )


def find_state(state: PyTree) -> SparseState | None:
  """The `SparseState` in a (nested) optimizer state, or None.

  Raises:
    ValueError: there are several.
  """
  is_sparse = lambda x: isinstance(x, SparseState)
  found = [x for x in jax.tree.leaves(state, is_leaf=is_sparse) if is_sparse(x)]
  if len(found) > 1:
    raise ValueError(f'{len(found)} sparsified optimizers in one state')
  return found[0] if found else None


def map_moments(inner, moment, other, state: PyTree, like: PyTree) -> PyTree:
  """moment(slot, leaf) where a slot belongs to a leaf of `like`, else other.

  Args:
    inner: any optax optimizer.
    moment: (slot, leaf of `like`) -> new slot.
    other: (array) -> new one, for counters and the like.
    state: of the optimizer.
    like: a tree with the structure of the parameters.
  """
  try:
    return optax.tree_utils.tree_map_params(
      inner,
      moment,
      state,
      like,
      transform_non_params=other,
      is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
  except (AttributeError, IndexError, TypeError, ValueError):
    # Optimizers that look at the parameters in init, or that keep several
    # slots of a parameter in a list, are beyond that function.
    return _map_by_structure(moment, other, state, like)


def _map_by_structure(moment, other, node, like):
  """The same for every subtree that has the structure of `like`."""
  leaves, structure = jax.tree.flatten(like)
  is_slot = lambda x: hasattr(x, 'shape') or isinstance(x, optax.MaskedNode)
  try:
    slots = structure.flatten_up_to(node)
  except ValueError:
    slots = [None]
  if all(is_slot(slot) for slot in slots):
    return structure.unflatten(
      [moment(slot, leaf) for slot, leaf in zip(slots, leaves, strict=True)]
    )
  if jax.tree_util.all_leaves([node]):
    return other(node)
  children, own = jax.tree.flatten(node, is_leaf=lambda x: x is not node)
  return own.unflatten(
    [_map_by_structure(moment, other, child, like) for child in children]
  )


def is_parameter_like(inner, state: PyTree, params: PyTree) -> PyTree:
  """Which leaves of an optimizer's state are copies of a parameter's form."""
  return map_moments(inner, lambda *_: True, lambda _: False, state, params)


def mask_moments(inner, state: PyTree, full_masks: PyTree) -> PyTree:
  """Zeros off the masks in every moment of any optax optimizer.

  Slots of another shape than their parameter (Adafactor's factored ones) are
  left alone.
  """

  def mask(slot, m):
    if getattr(slot, 'shape', None) != m.shape or not m.ndim:
      return slot
    return jnp.where(m, slot, jnp.zeros((), slot.dtype))

  return map_moments(inner, mask, lambda x: x, state, full_masks)


def project(updates: PyTree, params: PyTree, masks: PyTree) -> PyTree:
  """-p off the masks, in the parameters' dtype: p + (-p) is exactly 0."""

  def one(p, mask, u):
    u = u.astype(p.dtype)
    return u if mask is None else jnp.where(mask, u, -p)

  return masks_lib.map_masks(one, params, masks, updates)


def _write(updates, params, masks, before, override):
  """Updates that bring entries to the values of `override`."""
  if isinstance(override, Write):
    where, values = override
  else:
    newly = lambda _, mask, old: None if mask is None else mask & ~old
    where = masks_lib.map_masks(newly, params, masks, before)
    values = override

  def one(p, chosen, value, u):
    if chosen is None or value is None:
      return u
    return jnp.where(chosen, value.astype(p.dtype) - p, u)

  return masks_lib.map_masks(one, params, where, values, updates)


def make_refresh(method: Method, eligible: Eligible = None) -> Callable:
  """(state, params, grads, **extra) -> (state, override): new masks, now.

  What `sparsify(..., inline=False)` leaves out of the step, as a function for
  a second compiled program: it is called before the step whose masks change,
  with the number that step will have.
  """

  def refresh(state: SparseState, params, grads, **extra):
    flags = masks_lib.eligible_tree(params, eligible)
    masks, override, own = method.update_masks(
      state.step + 1,
      grads,
      params,
      state.masks,
      state.method,
      jax.random.wrap_key_data(state.key),
      flags,
      **extra,
    )
    return state._replace(masks=masks, method=own), override

  return refresh


def sparsify(
  inner: optax.GradientTransformation,
  method: Method,
  *,
  eligible: Eligible = None,
  schedule: Schedule | None = None,
  seed: int = 0,
  inline: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Trains with `inner`, pruned by `method`; masks live in its state.

  One call: (1) the method's gradient terms; (2) where masks change, new masks
  from the dense gradient; (3) the optimizer; (4) updates of zero where the
  method skips the step; (5) -p for everything that is masked out, so that
  `optax.apply_updates` alone leaves exact zeros; (6) zeros in the moments.

  Args:
    inner: any optax optimizer, complete with rate, decay and clipping.
    method: from `jaxzoo.compress.methods`.
    eligible: what may be pruned, see `masks.eligible_tree`.
    schedule: instead of the method's own.
    seed: of the method's random choices.
    inline: False leaves the change of masks to `make_refresh`.

  Returns:
    The transformation; `update` needs `params`. Newly grown entries begin with
    moments of zero under an old count: Adam's first step for them is
    (1 - b1) / sqrt(1 - b2) times the rate, 3.2 for (0.9, 0.999).
  """
  if schedule is not None:
    if method.scheduled is None:
      raise ValueError('this method takes no schedule')
    method = method.scheduled(schedule)
  inner = optax.with_extra_args_support(inner)
  refresh = make_refresh(method, eligible)

  def init(params):
    flags = masks_lib.eligible_tree(params, eligible)
    key = jax.random.key(seed)
    start = method.initial_masks or (
      lambda p, e, _: masks_lib.dense_masks(p, e)
    )
    return SparseState(
      jnp.int32(0),
      start(params, flags, key),
      method.init(params, flags, key) if method.init else (),
      inner.init(params),
      jax.random.key_data(key),
    )

  def update(grads, state, params=None, **extra):
    if params is None:
      raise ValueError('sparsify: update needs the parameters')
    flags = masks_lib.eligible_tree(params, eligible)
    step = state.step + 1
    if method.grads is not None:
      grads = method.grads(step, grads, params, state.method, flags, **extra)
    by_leaf = lambda masks: masks_by_leaf(method, masks, params)
    before, override = by_leaf(state.masks), None
    if inline:
      state, override = _changed_when(
        method.is_update(step),
        lambda: refresh(state, params, grads, **extra),
        state,
      )
    masks = by_leaf(state.masks)
    full = masks_lib.full_masks(params, masks)
    updates, inner_state = _train(
      method, inner, step, grads, state.inner, params, masks, full, extra
    )
    updates = project(updates, params, masks)
    if override is not None:
      updates = _write(updates, params, masks, before, override)
    return updates, state._replace(step=step, inner=inner_state)

  return optax.GradientTransformationExtraArgs(init, update)


def _changed_when(due, refresh, state):
  """(state, override) of `refresh` where due; else the state as it is."""
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(refresh)[1]
  )

  def change():
    after, override = refresh()
    return after.masks, after.method, override

  # Only what may change goes through the branches.
  masks, own, override = jax.lax.cond(
    due, change, lambda: (state.masks, state.method, zeros)
  )
  return state._replace(masks=masks, method=own), override


def _afresh(inner, state, params, keep_counters):
  """The first state of the optimizer, perhaps with its schedules' counters."""
  fresh = inner.init(params)
  if not keep_counters:
    return fresh
  counts = lambda x: isinstance(x, optax.ScaleByScheduleState)
  return jax.tree.map(
    lambda new, old: old if counts(new) else new, fresh, state, is_leaf=counts
  )


def _train(method, inner, step, grads, state, params, masks, full, extra):
  """(updates, state) of the optimizer, with moments of zero off the masks."""
  if method.reset_inner is not None:
    state = jax.lax.cond(
      method.reset_inner(step),
      lambda: _afresh(inner, state, params, method.keep_counters),
      lambda: state,
    )

  def train():
    seen = grads
    if method.mask_gradients:
      seen = masks_lib.apply_masks(grads, masks)
    updates, after = inner.update(seen, state, params, **extra)
    return jax.tree.map(lambda u, p: u.astype(p.dtype), updates, params), after

  def clean(after):
    if method.mask_moments == 'every_step':
      return mask_moments(inner, after, full)
    return jax.lax.cond(
      method.is_update(step),
      lambda: mask_moments(inner, after, full),
      lambda: after,
    )

  if method.skip_step is None:
    updates, after = train()
    return updates, clean(after)

  def skip():
    kept = state
    if method.advance_schedule:
      # Counters go on, moments do not; the compiler drops what is not used.
      kept = jax.tree.map(
        lambda own, old, new: old if own else new,
        is_parameter_like(inner, state, params),
        state,
        train()[1],
      )
    return jax.tree.map(jnp.zeros_like, params), kept

  updates, after = jax.lax.cond(method.skip_step(step), skip, train)
  return updates, clean(after)


def one_shot(
  params: PyTree,
  method: Method,
  grads: PyTree | None = None,
  *,
  eligible: Eligible = None,
  seed: int = 0,
) -> tuple[PyTree, PyTree]:
  """Prunes to the final density now, outside of training.

  Args:
    params: of a trained or a fresh network.
    method: its schedule does not matter.
    grads: for methods that look at them (saliency: the sum over batches).
    eligible: what may be pruned, see `masks.eligible_tree`.
    seed: of random choices.

  Returns:
    (params with zeros, masks).
  """
  if method.scheduled is not None:
    method = method.scheduled(constant(begin=1))
  tx = sparsify(optax.identity(), method, eligible=eligible, seed=seed)
  state = tx.init(params)
  if grads is None:
    grads = jax.tree.map(jnp.zeros_like, params)
  refresh = make_refresh(method, eligible)
  while bool(method.is_update(state.step + 1)):
    state, _ = refresh(state, params, grads)
    state = state._replace(step=state.step + 1)
  masks = masks_by_leaf(method, state.masks, params)
  if method.finalize is not None:
    flags = masks_lib.eligible_tree(params, eligible)
    masks = method.finalize(params, masks, flags)
  return masks_lib.apply_masks(params, masks), masks
