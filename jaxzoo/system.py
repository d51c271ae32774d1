"""What a system is: three pure functions over one state, and how to make one.

The training loop knows `init`, `step` and `predict` and nothing else. A
`System` is to the loop what `optax.GradientTransformation` is to an optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxzoo.platform import one_device

PyTree = Any
Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class State(NamedTuple):
  """Everything that lives from one step to the next.

  Attributes:
    step: int32 [], updates done so far.
    rng: key of the run; step t uses fold_in(rng, t), so that a resumed run
      draws what an uninterrupted one would.
    params: what the optimizer trains.
    opt: optimizer state: moments, masks, schedules' counters.
    extra: everything else, by name: batch_stats, ema, teacher, queue, ...
  """

  step: jax.Array
  rng: jax.Array
  params: PyTree
  opt: PyTree
  extra: dict[str, PyTree]


class System(NamedTuple):
  """A published system, ready to run.

  Attributes:
    init: (rng, batch) -> State. Reads only shapes and dtypes of the batch, so
      it works under `jax.eval_shape`.
    step: (state, batch) -> (state, metrics); metrics is a flat dict of scalars.
    predict: (state, batch) -> outputs, deterministic: embeddings, logits,
      boxes, forecasts.
  """

  init: Callable[[jax.Array, Batch], State]
  step: Callable[[State, Batch], tuple[State, Metrics]]
  predict: Callable[[State, Batch], PyTree]


def from_loss(
  init: Callable,
  loss: Callable,
  predict: Callable,
  tx: optax.GradientTransformation,
  *,
  advance: Callable | None = None,
  microbatches: int = 1,
) -> System:
  """A system that lowers one loss with one optimizer.

  >>> import jax, jax.numpy as jnp, optax
  >>> system = from_loss(
  ...   init=lambda rng, batch: ({'w': jnp.zeros(batch['x'].shape[-1])}, {}),
  ...   loss=lambda params, extra, batch, rng: (
  ...     jnp.mean((batch['x'] @ params['w'] - batch['y']) ** 2), (extra, {})
  ...   ),
  ...   predict=lambda params, extra, batch: batch['x'] @ params['w'],
  ...   tx=optax.sgd(0.1),
  ... )
  >>> batch = {'x': jnp.eye(2), 'y': jnp.array([1.0, 2.0])}
  >>> state = system.init(jax.random.key(0), batch)
  >>> state, metrics = jax.jit(system.step)(state, batch)
  >>> float(metrics['loss'])
  2.5

  Args:
    init: (rng, batch) -> (params, extra).
    loss: (params, extra, batch, rng) -> (scalar, (extra, metrics)). Means over
      the global batch; only `params` is differentiated.
    predict: (params, extra, batch) -> outputs.
    tx: the optimizer. Called with the parameters and with `value`, so that
      transforms with extra arguments work too.
    advance: (params, extra) -> (params, extra), after the update: moving
      averages, normalised prototypes, queues.
    microbatches: the batch is cut into this many equal parts along the leading
      axis, whose gradients are averaged one after the other: less memory, and
      the same gradient wherever the loss is a mean over examples. (A loss that
      compares the examples of a batch sees only its own part.)

  Returns:
    The system. Its metrics are the loss's own plus `loss` and `grad_norm`.
  """
  tx = optax.with_extra_args_support(tx)

  def system_init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    params, extra = init(init_rng, batch)
    return State(jnp.int32(0), run_rng, params, tx.init(params), extra)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    value, grads, extra, metrics = accumulated_grad(
      loss, state.params, state.extra, batch, rng, microbatches
    )
    updates, opt = tx.update(grads, state.opt, state.params, value=value)
    params = optax.apply_updates(state.params, updates)
    if advance is not None:
      params, extra = advance(params, extra)
    metrics = dict(metrics, loss=value, grad_norm=optax.global_norm(grads))
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  def system_predict(state, batch):
    return predict(state.params, state.extra, batch)

  return System(system_init, step, system_predict)


def accumulated_grad(loss, params, extra, batch, rng, microbatches):
  """Value, gradient, extra and metrics of `loss`, over equal microbatches.

  `extra` passes from one microbatch to the next; value, gradient and metrics
  are means. Raises ValueError where the batch does not divide.
  """
  grad_fn = jax.value_and_grad(loss, has_aux=True)
  if microbatches == 1:
    (value, (extra, metrics)), grads = grad_fn(params, extra, batch, rng)
    return value, grads, extra, metrics

  def one(carry, inputs):
    extra, totals = carry
    part, index = inputs
    (value, (extra, metrics)), grads = grad_fn(
      params, extra, part, jax.random.fold_in(rng, index)
    )
    totals = jax.tree.map(jnp.add, totals, (value, grads, metrics))
    return (extra, totals), None

  parts = cut(batch, microbatches)
  first = jax.tree.map(lambda x: x[0], parts)
  (value, (_, metrics)), grads = jax.eval_shape(
    grad_fn, params, extra, first, rng
  )
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), (value, grads, metrics)
  )
  (extra, totals), _ = jax.lax.scan(
    one, (extra, zeros), (parts, jnp.arange(microbatches))
  )
  value, grads, metrics = jax.tree.map(lambda x: x / microbatches, totals)
  return value, grads, extra, metrics


def cut(batch: PyTree, microbatches: int) -> PyTree:
  """Every leaf [b, ...] as [microbatches, b / microbatches, ...].

  Raises:
    ValueError: the batch does not divide.
  """

  def cut_leaf(x):
    if x.shape[0] % microbatches:
      raise ValueError(
        f'a batch of {x.shape[0]} does not divide into {microbatches} '
        'microbatches'
      )
    # Strided parts: each keeps an equal share of every device's examples, so
    # that cutting a sharded batch moves nothing between devices.
    parts = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
    return parts.swapaxes(0, 1)

  return jax.tree.map(cut_leaf, batch)


def in_microbatches(
  function: Callable, carry: PyTree, batch: Batch, microbatches: int
) -> tuple[PyTree, PyTree]:
  """`function` over microbatches, of which only the results are kept.

  For losses that compare every example with all others: their vectors are
  computed part by part, the loss on all of them at once, and the backward pass
  computes each part again (GradCache, arXiv 2101.06983). Value and gradient are
  those of `function(carry, batch)`, as long as examples do not depend on each
  other in it; the activations in memory are those of one microbatch.

  Args:
    function: (carry, part of the batch) -> (carry, rows [b / microbatches, ...]).
    carry: passes from one microbatch to the next: statistics.
    batch: leaves [b, ...].
    microbatches: how many.

  Returns:
    The last carry, and the rows of the whole batch in its order.

  Raises:
    ValueError: the batch does not divide.
  """
  if microbatches == 1:
    return function(carry, batch)
  carry, rows = jax.lax.scan(
    jax.checkpoint(function, prevent_cse=False),
    carry,
    cut(batch, microbatches),
  )
  whole = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
  return carry, jax.tree.map(whole, rows)


def with_ema(system: System, decay: float) -> System:
  """Keeps a moving average of the parameters; `predict` uses it.

  ema <- d ema + (1 - d) params after every step, with
  d = min(decay, (1 + t) / (10 + t)) so that the first steps do not remember
  the initialisation. The average lives in `extra['ema']`; statistics of batch
  norms, `extra['batch_stats']`, belong to the parameters that they were
  measured with, and are averaged likewise, in `extra['ema_stats']`.

  Args:
    system: any system whose parameters are trained by gradient steps.
    decay: in [0, 1).
  """

  def current(state):
    """name of the average -> what it is of."""
    trees = {'ema': state.params}
    if 'batch_stats' in state.extra:
      trees['ema_stats'] = state.extra['batch_stats']
    return trees

  def init(rng, batch):
    state = system.init(rng, batch)
    # A copy: the state is donated, and no buffer may be donated twice.
    averages = jax.tree.map(jnp.copy, current(state))
    return state._replace(extra={**state.extra, **averages})

  def step(state, batch):
    before = state.extra
    state, metrics = system.step(state, batch)
    t = state.step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    averages = {
      name: jax.tree.map(lambda e, p: e + (1 - d) * (p - e), before[name], tree)
      for name, tree in current(state).items()
    }
    return state._replace(extra={**state.extra, **averages}), metrics

  def predict(state, batch):
    extra = state.extra
    if 'ema_stats' in extra:
      extra = dict(extra, batch_stats=extra['ema_stats'])
    return system.predict(
      state._replace(params=extra['ema'], extra=extra), batch
    )

  return System(init, step, predict)


def averaged(state: State) -> tuple[dict, dict]:
  """(params, batch_stats) of a state as `predict` would use them.

  Copies: what they are put into is donated.
  """
  extra = state.extra
  params = extra.get('ema', state.params)
  stats = extra.get('ema_stats', extra.get('batch_stats', {}))
  return jax.tree.map(lambda x: x.copy(), (params, stats))


def alternate(
  init: Callable,
  losses: dict[str, Callable],
  predict: Callable,
  txs: dict[str, optax.GradientTransformation],
  *,
  advance: Callable | None = None,
) -> System:
  """Players that move in turn, each with its own loss and optimizer.

  Generator and discriminator, student and generator, weights and architecture:
  in one step every player, in the order of `losses`, takes one update on the
  same batch, seeing what the players before it have just done.

  Args:
    init: (rng, batch) -> ({player: params}, extra).
    losses: player -> loss(own params, all params, extra, batch, rng) ->
      (scalar, (extra, metrics)). Differentiated in the first argument only.
    predict: ({player: params}, extra, batch) -> outputs.
    txs: player -> optimizer; the same keys as `losses`.
    advance: ({player: params}, extra) -> the same, after all moves.

  Returns:
    The system; its metrics are prefixed with `PLAYER/`.
  """
  if set(losses) != set(txs):
    raise ValueError(
      f'losses are for {sorted(losses)}, optimizers for {sorted(txs)}'
    )
  txs = {name: optax.with_extra_args_support(tx) for name, tx in txs.items()}

  def system_init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    params, extra = init(init_rng, batch)
    opt = {name: tx.init(params[name]) for name, tx in txs.items()}
    return State(jnp.int32(0), run_rng, params, opt, extra)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    params, opt, extra = dict(state.params), dict(state.opt), state.extra
    metrics = {}
    for turn, (name, loss) in enumerate(losses.items()):
      (value, (extra, own)), grads = jax.value_and_grad(loss, has_aux=True)(
        params[name], params, extra, batch, jax.random.fold_in(rng, turn)
      )
      updates, opt[name] = txs[name].update(
        grads, opt[name], params[name], value=value
      )
      params[name] = optax.apply_updates(params[name], updates)
      metrics[f'{name}/loss'] = value
      metrics |= {f'{name}/{key}': x for key, x in own.items()}
    if advance is not None:
      params, extra = advance(params, extra)
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  def system_predict(state, batch):
    return predict(state.params, state.extra, batch)

  return System(system_init, step, system_predict)


def federate(
  system: System, clients: int, *, every: int, average: Callable | None = None
) -> System:
  """Clients that train apart and are averaged every few steps (FedAvg).

  The parameters, the optimizer state and the extras get a leading client axis;
  a batch carries it too ([clients, b, ...] in every leaf). Sharding that axis
  over `data` puts clients on different devices.

  Args:
    system: what one client runs.
    clients: how many, at least 1.
    every: local steps between two averages.
    average: (params with a client axis, extra with a client axis) -> the same
      trees after the exchange; default: the mean of params over all clients,
      given to each, and extras left alone.

  Returns:
    The system; metrics are means over clients, `predict` uses the mean of the
    clients' parameters and the first client's extras.
  """
  if average is None:

    def average(params, extra):
      mean = lambda x: jnp.broadcast_to(x.mean(0), x.shape)
      return jax.tree.map(mean, params), extra

  # One step counter for all clients; each has a key of its own.
  axes = State(step=None, rng=0, params=0, opt=0, extra=0)

  def local_steps(state, batch):
    if not one_device():
      return jax.vmap(system.step, in_axes=(axes, 0), out_axes=(axes, 0))(
        state, batch
      )
    # A device that has all clients takes them one after the other: together,
    # their convolutions would be one in groups, which few devices do well.
    one = lambda client: system.step(
      State(state.step, *client[:-1]), client[-1]
    )
    state, metrics = jax.lax.map(one, (*state[1:], batch))
    return state._replace(step=state.step[0]), metrics

  def init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    first = system.init(init_rng, jax.tree.map(lambda x: x[0], batch))
    spread = lambda x: jnp.broadcast_to(x, (clients, *x.shape))
    params, opt, extra = jax.tree.map(
      spread, (first.params, first.opt, first.extra)
    )
    return State(
      first.step, jax.random.split(run_rng, clients), params, opt, extra
    )

  def step(state, batch):
    state, metrics = local_steps(state, batch)
    params, extra = jax.lax.cond(
      state.step % every == 0,
      average,
      lambda params, extra: (params, extra),
      state.params,
      state.extra,
    )
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return state._replace(params=params, extra=extra), metrics

  def predict(state, batch):
    mean = jax.tree.map(lambda x: x.mean(0), state.params)
    first = jax.tree.map(lambda x: x[0], state.extra)
    return system.predict(state._replace(params=mean, extra=first), batch)

  return System(init, step, predict)
