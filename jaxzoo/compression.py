"""`config.compress` in a run: the optimizer, the system, what is reported."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxzoo import catalog, compaction
from jaxzoo.compress import masks as masks_lib
from jaxzoo.compress import options
from jaxzoo.compress.channels import freeze_dead_statistics
from jaxzoo.compress.methods import gap_parallel
from jaxzoo.compress.transform import find_state, masks_by_leaf, sparsify
from jaxzoo.errors import UserError
from jaxzoo.runs import build_system
from jaxzoo.system import State, System
from jaxzoo.train.layer_flops import flops_by_parameter


def method_of(config, total_steps: int = 1):
  """The method of `config.compress`; of channels, with the network's groups.

  Raises:
    UserError: fields that no method takes, or a system that does not say what
      its channels are.
  """
  return options.make_method(config.compress, total_steps, structure_of(config))


def structure_of(config):
  """(channel groups, positions of the kernels), or None for other methods."""
  if config.compress.method not in options.STRUCTURED:
    return None
  module = catalog.load(config.system)
  if not hasattr(module, 'structure'):
    raise UserError(
      f'compress.method={config.compress.method}: {config.system} does not say '
      'which channels its network has; classification does'
    )
  return module.structure(config)


def wrap(tx: optax.GradientTransformation, config, total_steps: int):
  """The optimizer with the method of `config.compress` around it, if any.

  Raises:
    UserError: a field that no method takes, or (in init) no parameter that
      may be pruned.
  """
  fields = config.compress
  if not fields.method:
    return tx
  sparse = sparsify(
    tx,
    method_of(config, total_steps),
    eligible=options.eligible(fields),
    seed=fields.seed,
  )

  def init(params):
    try:
      return sparse.init(params)
    except ValueError as error:
      raise UserError(f'compress: {error}') from error

  return optax.GradientTransformationExtraArgs(init, sparse.update)


def check(config, total_steps: int) -> None:
  """Raises UserError where a run is too short to reach its sparsity."""
  if not config.compress.method:
    return
  method_of(config, total_steps)
  if options.in_parallel(config.compress):
    _check_copies(config)
  last = options.last_update(config.compress, total_steps)
  if last > total_steps:
    raise UserError(
      f'compress.method={config.compress.method}: masks change for the last '
      f'time at step {last}, and the run has {total_steps}: lower '
      'compress.end, compress.every or compress.phases, or train longer'
    )


def _check_copies(config) -> None:
  copies = options.copies(config.compress)
  if config.batch_size % copies:
    raise UserError(
      f'compress.parallel: each of {copies} copies learns a part of the batch, '
      f'and {config.batch_size} does not divide: change batch_size or '
      'compress.partitions'
    )
  if config.init.weights or config.mesh.get('tensor', 1) > 1:
    raise UserError(
      'compress.parallel begins with copies of one random network on data and '
      'fsdp: without init.weights and mesh.tensor'
    )


def periods(config, total_steps: int) -> list[int]:
  """Lengths of the parts of the run, each with a schedule of its own."""
  return options.periods(config.compress, total_steps)


def with_masks(system: System, config) -> System:
  """A system whose optimizer is sparsified, sparse from the first step on.

  Parameters and their moving average are zero off the masks after `init` and
  after every step; the metric `sparsity` is added. Without a method in
  `config.compress`, the system itself.

  Raises:
    UserError: in init, where one optimizer does not train all parameters.
  """

  if not config.compress.method:
    return system
  method = method_of(config)

  def masks_of(state):
    try:
      found = find_state(state.opt)
      masks = masks_by_leaf(method, found.masks, state.params)
      masks_lib.map_masks(lambda p, m: None, state.params, masks)
    except (AttributeError, ValueError) as error:
      raise UserError(
        f'compress: {config.system} has several optimizers, or trains without '
        'one: only systems whose one optimizer trains all parameters can be '
        'pruned from the command line'
      ) from error
    return masks

  def init(rng, batch):
    state = system.init(rng, batch)
    return project_state(state, masks_of(state))

  def step(state, batch):
    state, metrics = system.step(state, batch)
    masks = masks_of(state)
    metrics = dict(metrics, sparsity=1 - density(masks))
    return project_average(state, masks), metrics

  pruned = System(init, step, system.predict)
  if config.compress.method not in options.STRUCTURED:
    return options.grow_in_parallel(pruned, config.compress, config.total_steps)
  return freeze_dead_statistics(
    pruned,
    structure_of(config)[0],
    lambda state: find_state(state.opt).masks,
  )


def density(masks) -> jax.Array:
  """float32 []: share of the entries of masks by leaf that are kept."""
  leaves = jax.tree.leaves(masks)
  kept = sum(mask.sum(dtype=jnp.int32).astype(jnp.float32) for mask in leaves)
  return kept / sum(mask.size for mask in leaves)


def project_average(state: State, masks) -> State:
  """The average of the parameters with zeros off the masks."""
  if 'ema' not in state.extra:
    return state
  ema = masks_lib.apply_masks(state.extra['ema'], masks)
  return state._replace(extra={**state.extra, 'ema': ema})


def project_state(state: State, masks) -> State:
  """Parameters and their average, with zeros off the masks."""
  params = masks_lib.apply_masks(state.params, masks)
  return project_average(state._replace(params=params), masks)


def one_network(config, state: State) -> State:
  """The state of a run, of the first copy where a method trains several."""
  if not options.in_parallel(config.compress):
    return state
  return gap_parallel.first_copy(state)


def masks_of_state(config, state: State):
  """Masks by leaf of a state of a run (of `one_network`)."""
  method = method_of(config)
  return masks_by_leaf(method, find_state(state.opt).masks, state.params)


def axes(config, params) -> dict[str, int]:
  """path -> axis of N:M groups, of what `config.compress.axis` matches."""
  found = {}
  for name in masks_lib.names_of(params):
    for pattern, axis in reversed(list(config.compress.axis)):
      if re.search(pattern, name):
        found[name] = axis
  return found


def restart(config, tx, state: State, shardings: State) -> State:
  """A first state whose parameters have been replaced: masks of those."""

  def begin(state):
    state = state._replace(opt=tx.init(state.params))
    return project_state(state, masks_of_state(config, state))

  return jax.jit(begin, out_shardings=shardings)(state)


def make_report(config, total_steps: int) -> Callable[[State], dict]:
  """state -> metrics of an evaluation: density by layer, churn, the method's.

  `mask_churn` is the share of mask entries that have changed since the evaluation
  before. Without a method, no metrics.
  """
  if not config.compress.method:
    return lambda state: {}
  method = method_of(config, total_steps)
  chosen = options.eligible(config.compress)
  before: list = []

  @jax.jit
  def changed(masks, others):
    differ = [
      (a != b).sum(dtype=jnp.int32).astype(jnp.float32)
      for a, b in zip(jax.tree.leaves(masks), others, strict=True)
    ]
    return sum(differ)

  def report(state):
    state = one_network(config, state)
    sparse = find_state(state.opt)
    masks = masks_of_state(config, state)
    rows = masks_lib.mask_summary(state.params, masks)
    size = sum(row.size for row in rows.values())
    metrics = {}
    if before:
      metrics['mask_churn'] = float(changed(masks, before)) / size
    # Copies: the state is donated to the next step.
    before[:] = [jnp.copy(mask) for mask in jax.tree.leaves(masks)]
    for name, row in rows.items():
      metrics[f'density/{name}'] = row.density
    if method.metrics is not None and jax.process_count() == 1:
      flags = masks_lib.eligible_tree(state.params, chosen)
      found = method.metrics(state.params, sparse.masks, sparse.method, flags)
      metrics |= {name: float(value) for name, value in found.items()}
    return metrics

  return report


def example_flops(config, system: System, state: State) -> dict[str, float]:
  """FLOPs of `predict` for one example, by the parameter that they belong to.

  Of the averaged parameters where those predict.
  """
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  batch = jax.eval_shape(lambda: data.example_batch(config))

  def predict(params, state, batch):
    extra = dict(state.extra)
    if 'ema' in extra:
      extra['ema'] = params
    return system.predict(state._replace(params=params, extra=extra), batch)

  flops = flops_by_parameter(predict, state.params, state, batch)
  rows = jax.tree.leaves(batch)[0].shape[0]
  return {name: count / rows for name, count in flops.items()}


def summary(config, system: System, state: State) -> dict:
  """What result.json has under `compress`.

  Returns:
    method, sparsity, parameters and nonzero (of the whole network), bytes
    dense and with packed masks, and FLOPs of an example, dense and what the
    masks leave of them; where channels were pruned, `compact`: see
    `compaction.measure`.
  """
  one = one_network(config, state)
  rows = masks_lib.mask_summary(one.params, masks_of_state(config, one))
  leaves = jax.tree.leaves(one.params)
  total = sum(leaf.size for leaf in leaves)
  size = sum(row.size for row in rows.values())
  kept = sum(row.nnz for row in rows.values())
  nonzero = total - size + kept
  result = {
    'method': config.compress.method,
    'sparsity': 1 - kept / size,
    'parameters': total,
    'nonzero': nonzero,
    'bytes_dense': 4 * total,
    'bytes': 4 * nonzero + sum(-(-row.size // 8) for row in rows.values()),
  }
  if options.in_parallel(config.compress):
    system = build_system(config, optax.identity())  # of one copy
  flops = example_flops(config, system, one)
  left = {
    name: count * (rows[name].density if name in rows else 1)
    for name, count in flops.items()
  }
  result['flops_dense'] = round(sum(flops.values()))
  result['flops'] = round(sum(left.values()))
  if config.compress.method in options.STRUCTURED and jax.process_count() == 1:
    result['compact'] = compaction.measure(config, state)
  return result
