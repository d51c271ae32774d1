"""OneNet: online forecasting by an ensemble (arXiv 2309.12659, NeurIPS 2023).

Two forecasters, one across time (every variable by its own past) and one across
variables, are trained side by side and go on learning online, with a mixture
whose weights are learned (`ensemble.py`). Both are encoders of `tcn.py`, with
FSNet's adaptive convolutions (`fsnet.py`) or, in OneNet-TCN, with plain ones.

As in the reference, the forecaster across time takes the variables for the
positions of its convolutions: neighbouring variables see each other.

A batch of a stream has the key `first` beside those of training: `step` is then
the online update, and `predict` the ensemble's forecast. See `build`.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.forecasting import ensemble, fsnet, replay
from jaxzoo.models.forecasting.convert import convert, convert_extra
from jaxzoo.models.forecasting.fsnet import COLLECTION
from jaxzoo.models.forecasting.tcn import (
  KERNEL,
  Convs,
  Encoder,
  ScaledConvs,
  Stacks,
  dense,
  seeing_blocks,
  split,
  taps_of,
)
from jaxzoo.system import State, System, accumulated_grad

__all__ = ['SHARDING', 'build', 'convert', 'convert_extra']

SHARDING = ()  # small: replicated, or a seed on each device
CONVS = ('fsnet', 'fsnet_nomem', 'tcn')
BRANCHES = ('both', 'time', 'variable')
FIRST = 'first'  # of a stream's batches: nothing has been learned of it yet


class Forecasters(nn.Module):
  """Both forecasters, or one of them.

  Attributes:
    horizon: steps ahead.
    convs: one of `CONVS`.
    branches: one of `BRANCHES`.
    width: channels inside.
    features: of the encoders' results.
    depth: blocks before the last.
    dropout: of the encoders' results.
    dtype: of the computation; forecasts are float32.
  """

  horizon: int
  convs: str = 'fsnet'
  branches: str = 'both'
  width: int = 64
  features: int = 320
  depth: int = 10
  dropout: float = 0.1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    history: Float[Array, 'b t d'],
    marks: Float[Array, 'b t k'],
    train: bool = False,
    online: bool = False,
  ) -> dict[str, Float[Array, 'b h d']]:
    """Forecasts by the names of the branches."""
    variables, horizon = history.shape[-1], self.horizon
    names = (
      ('time', 'variable') if self.branches == 'both' else (self.branches,)
    )
    positions = {'time': variables, 'variable': history.shape[1]}
    stacks = self._stacks([positions[name] for name in names], online)
    encoder = lambda name: Encoder(
      name == 'variable', self.dropout, self.dtype, name=name
    )
    head = lambda size, name: dense(size, self.features, name, self.dtype)
    outputs = {}
    for name, own in zip(names, stacks, strict=True):
      if name == 'time':
        x = encoder(name)(history.swapaxes(1, 2), own, train)
        y = head(horizon, 'time_head')(x).swapaxes(1, 2)
      else:
        x = jnp.concatenate([history, marks], -1)
        x = encoder(name)(x, own, train)[:, 0]
        y = head(horizon * variables, 'variable_head')(x)
        y = y.reshape(-1, horizon, variables)
      outputs[name] = y.astype(jnp.float32)
    return outputs

  def _stacks(self, lengths, online) -> list[Stacks]:
    """The convolutions of each branch: those of all lie in the same stacks.

    Args:
      lengths: positions that each branch convolves over.
    """
    width, features, depth = self.width, self.features, self.depth
    seeing = [seeing_blocks(depth, length) for length in lengths]
    wide = [taps_of(depth, length) for length in lengths]

    def convs(name, i, o, taps, counts):
      whole = self._convs(name, sum(counts), i, o, taps, online)
      return split(whole, counts) if whole else len(counts) * [None]

    def one(name, i, o):
      found = [
        convs(name, i, o, taps, [int(own == taps) for own in wide])
        for taps in (KERNEL, 1)
      ]
      return [a or b for a, b in zip(*found, strict=True)]

    parts = (
      convs('inner', width, width, KERNEL, [2 * s for s in seeing]),
      convs('inner', width, width, 1, [2 * (depth - s) for s in seeing]),
      one('widen', width, features),
      one('final', features, features),
    )
    return [Stacks(*own) for own in zip(*parts, strict=True)]

  def _convs(self, name, layers, i, o, taps, online) -> Convs | None:
    """A stack with parameters of its own, `name` and the number of taps."""
    if not layers:
      return None
    name = f'{name}_{taps}'
    if self.convs == 'tcn':
      return ScaledConvs(layers, i, o, taps, name=name)(online)
    memory = self.convs == 'fsnet'
    module = fsnet.AdaptiveConvs(
      layers, i, o, memory=memory, taps=taps, name=name
    )
    return module(online)


class Learner(NamedTuple):
  """How a method learns.

  Attributes:
    forecasters: the network.
    decision: the network of beta, or None.
    weight: how w is learned, one of `ensemble.WEIGHTS`.
    replay: see `replay.Replay`; None: nothing is replayed.
    dropout_online: whether the decision keeps its dropout online.
  """

  forecasters: Forecasters
  decision: ensemble.Decision | None
  weight: str
  replay: replay.Replay | None
  dropout_online: bool = False

  @property
  def mixes(self) -> bool:
    return self.forecasters.branches == 'both'

  def init(self, rng, batch) -> tuple[dict, dict]:
    """(params, extra)."""
    keys = jax.random.split(rng)
    history, marks = batch['history'], batch['history_marks']
    blank = lambda x: jnp.zeros((1, *x.shape[1:]))
    variables = self.forecasters.init(keys[0], blank(history), blank(marks))
    params = {'network': variables['params']}
    extra = {}
    if COLLECTION in variables:
      extra[COLLECTION] = variables[COLLECTION]
    width = history.shape[-1]
    if self.mixes:
      params['weight'] = jnp.zeros(width)
      extra['bias'] = jnp.zeros(width)
    if self.decision is not None:
      offered = jnp.zeros((1, width, 3 * self.forecasters.horizon))
      params['decision'] = self.decision.init(keys[1], offered)['params']
    if self.replay is not None:
      extra['replay'] = self.replay.init(batch)
    return params, extra

  def forward(self, network, extra, history, marks, rng=None, online=False):
    """(forecasts of the branches, the collection `fsnet` after them)."""
    variables = {'params': network}
    if COLLECTION in extra:
      variables[COLLECTION] = extra[COLLECTION]
    outputs, updated = self.forecasters.apply(
      variables,
      history,
      marks,
      train=rng is not None,
      online=online,
      mutable=[COLLECTION],
      rngs={} if rng is None else {'dropout': rng},
    )
    return outputs, dict(updated)

  def loss(self, params, extra, batch, rng):
    """The sum of all losses: their gradients do not meet.

    mse(y1, y) + mse(y2, y) for the network, and those of `ensemble.losses`.
    """
    online, target = FIRST in batch, batch['target']
    keys = jax.random.split(rng, 3)
    history, marks = batch['history'], batch['history_marks']
    replayed = None
    if online and self.replay is not None:
      replayed = self.replay.draw(extra['replay'], keys[2])
      join = lambda a, b: jnp.concatenate([a, b])
      history = join(history, replayed.history)
      marks = join(marks, replayed.marks)
    outputs, updated = self.forward(
      params['network'],
      extra,
      history,
      marks,
      None if online else keys[0],
      online,
    )
    b = len(target)
    rest = {name: y[b:] for name, y in outputs.items()}
    outputs = {name: y[:b] for name, y in outputs.items()}
    values = {name: mse(y, target) for name, y in outputs.items()}
    value = sum(values.values())
    extra = {**extra, **updated}
    if replayed is not None:
      value += self.replay.loss(replayed, rest)
      extra['replay'] = self.replay.add(extra['replay'], batch, outputs)
    metrics = {f'loss_{name}': x for name, x in values.items()}
    metrics['loss'] = value
    if online:
      metrics['outputs'] = outputs
    if self.mixes:
      found = ensemble.losses(
        params['weight'],
        self._decide(params, keys[1], online),
        **outputs,
        target=target,
        kind=self.weight,
      )
      value += found.weight + found.bias
      metrics['loss_ensemble'] = found.bias if self.decision else found.weight
      if online:
        extra['bias'] = jax.lax.stop_gradient(found.beta.mean(0))
    return value, (extra, metrics)

  def _decide(self, params, rng, online):
    if self.decision is None:
      return None
    return functools.partial(
      self.decision.apply,
      {'params': params['decision']},
      train=self.dropout_online or not online,
      rngs={'dropout': rng},
    )


def mse(forecast, target) -> Float[Array, '']:
  """Mean squared error."""
  return jnp.square(forecast - target).mean()


def make_system(
  learner: Learner,
  tx: optax.GradientTransformation,
  *,
  lr_weight: float = 1e-3,
  lr_bias: float = 1e-3,
  microbatches: int = 1,
) -> System:
  """A learner as a system; see `build`.

  Args:
    learner: what learns.
    tx: the optimizer of the forecasters.
    lr_weight: rate of Adam for w, or eta of 'exponentiated'.
    lr_bias: rate of Adam for the network of beta.
    microbatches: of a training batch; those of a stream are not cut.
  """
  optimizers = {'network': tx}
  if learner.mixes:
    exponentiated = learner.weight == 'exponentiated'
    rule = optax.sgd if exponentiated else optax.adam
    optimizers['weight'] = rule(lr_weight)
  if learner.decision is not None:
    optimizers['decision'] = optax.adam(lr_bias)

  def init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    params, extra = learner.init(init_rng, batch)
    opt = {name: each.init(params[name]) for name, each in optimizers.items()}
    return State(jnp.int32(0), run_rng, params, opt, extra)

  def step(state, batch):
    online = FIRST in batch
    if online:
      state = begin(state, batch[FIRST], optimizers)
      state = state._replace(opt=at_last_rate(state.opt))
    loss, grads, extra, metrics = accumulated_grad(
      learner.loss,
      state.params,
      state.extra,
      batch,
      jax.random.fold_in(state.rng, state.step),
      1 if online else microbatches,
    )
    del loss  # with the ensemble's, whose gradients are its own
    if COLLECTION in extra:
      extra[COLLECTION] = fsnet.remember_gradients(
        extra[COLLECTION], grads['network'], online
      )
    params, opt = dict(state.params), dict(state.opt)
    for name, each in optimizers.items():
      updates, opt[name] = each.update(grads[name], opt[name], params[name])
      params[name] = optax.apply_updates(params[name], updates)
    metrics['grad_norm'] = optax.global_norm(grads['network'])
    if online:
      metrics['forecasts'] = combine(state, metrics.pop('outputs'), online)
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  def combine(state, outputs, online):
    """The branches' forecasts with what the ensemble makes of them."""
    if not learner.mixes:
      return dict(outputs, forecast=sum(outputs.values()))
    share = jnp.full_like(state.params['weight'], 0.5)
    if online:
      share = jax.nn.sigmoid(state.params['weight'] + state.extra['bias'])
    forecast = ensemble.mix(share[None], **outputs)
    share = jnp.broadcast_to(share, (len(forecast), *share.shape))
    average = (outputs['time'] + outputs['variable']) / 2
    return dict(outputs, average=average, forecast=forecast, share=share)

  def predict(state, batch):
    online = FIRST in batch
    if online:
      state = begin(state, batch[FIRST], optimizers)
    outputs, _ = learner.forward(
      state.params['network'],
      state.extra,
      batch['history'],
      batch['history_marks'],
      online=online,
    )
    return combine(state, outputs, online)

  return System(init, step, predict)


def begin(state: State, first, optimizers) -> State:
  """The state at the beginning of a stream, where `first` says so.

  w, beta, w's optimizer and the count of the replay's buffer are as new.
  """
  reset = lambda tree, to: jax.tree.map(
    lambda x, y: jnp.where(first[0], y, x), tree, to
  )
  params, opt, extra = dict(state.params), dict(state.opt), dict(state.extra)
  if 'weight' in params:
    blank = jnp.zeros_like(params['weight'])
    fresh = optimizers['weight'].init(blank)
    params['weight'] = reset(params['weight'], blank)
    opt['weight'] = reset(opt['weight'], fresh)
    extra['bias'] = reset(extra['bias'], blank)
  if 'replay' in extra:
    count = reset(extra['replay']['count'], jnp.int32(0))
    extra['replay'] = {**extra['replay'], 'count': count}
  return state._replace(params=params, opt=opt, extra=extra)


def at_last_rate(opt):
  """An optimizer's state whose next update has the rate of its last one.

  Online, the schedule of the training stands still.
  """
  held = optax.ScaleByScheduleState
  return jax.tree.map(
    lambda x: held(jnp.maximum(x.count - 1, 0)) if isinstance(x, held) else x,
    opt,
    is_leaf=lambda x: isinstance(x, held),
  )


def build(config, tx: optax.GradientTransformation) -> System:
  """OneNet, or one of its baselines, as a system.

  Batches have `history` [b, t, d], `history_marks` [b, t, k] and `target`
  [b, h, d], standardised. Without `first`, `step` is the training before the
  stream (all dropout on; w and the network of beta learn along, but nothing
  else depends on them), and `predict` gives the plain mean of both forecasts.

  With `first` bool [b] they are the online protocol, with nothing dropped and
  FSNet's memory in use. `predict` mixes by sigma(w + beta) of the step before.
  `step` updates the forecasters at the rate that the training ended with, then
  beta, the network of beta, and w. `first` says that no step of this stream has
  been taken: w, beta, w's optimizer and the buffer of replay begin anew.

  Online, the metric `forecasts` of `step` is what `predict` gives of its batch:
  a stream that learns at once computes it once.

  `predict` gives `forecast` [b, h, d], the forecasts `time` and `variable` of
  which it is made, their `average`, and `share` [b, d], the weight of `time`.

  Args:
    config: `horizon`, `dtype`, `microbatches`;
      model: `convs`, 'fsnet', 'fsnet_nomem' or 'tcn'; `branches`, 'both',
      'time' or 'variable'; `width`, `features`, `depth`, `dropout`;
      ensemble: `weight`, 'gradient', 'exponentiated' or 'fixed' (the plain
      mean, where `bias` is off), `bias`, whether there is beta; `lr_weight`,
      `lr_bias`, `width`, `dropout`, and `dropout_online` (True in the released
      code, see spec onenet);
      replay: `kind`, 'none', 'er' or 'derpp'; `size`, `draws`, `strength`.
    tx: the optimizer of the forecasters.

  Raises:
    UserError: an option that does not exist.
  """
  if not config.data.marks:
    raise UserError(
      "data.marks='': the forecaster across variables reads the calendar: set "
      "data.marks to 'standardised' (as published for ETT) or 'raw'"
    )
  model, options = config.model, config.ensemble
  for field, value, known in (
    ('model.convs', model.convs, CONVS),
    ('model.branches', model.branches, BRANCHES),
    ('ensemble.weight', options.weight, ensemble.WEIGHTS),
    ('replay.kind', config.replay.kind, REPLAYS),
  ):
    if value not in known:
      raise UserError(f'{field}: no {value!r}; ' + nearest(value, known))
  if model.features % model.width:
    raise UserError(
      f'model.features={model.features}: it must be a multiple of '
      f'model.width={model.width}'
    )
  both = model.branches == 'both'
  forecasters = Forecasters(
    config.horizon,
    model.convs,
    model.branches,
    model.width,
    model.features,
    model.depth,
    model.dropout,
    jnp.dtype(config.dtype),
  )
  decision = ensemble.Decision(options.width, options.dropout)
  learner = Learner(
    forecasters,
    decision if both and options.bias else None,
    options.weight,
    make_replay(config.replay, model.branches),
    options.dropout_online,
  )
  return make_system(
    learner,
    tx,
    lr_weight=options.lr_weight,
    lr_bias=options.lr_bias,
    microbatches=config.microbatches,
  )


REPLAYS = ('none', 'er', 'derpp')


def make_replay(options, branches: str) -> replay.Replay | None:
  """The buffer of a config.

  Raises:
    UserError: more draws than the buffer holds.
  """
  if options.kind == 'none':
    return None
  if not 1 <= options.draws <= options.size:
    raise UserError(
      f'replay.draws={options.draws}: it must be from 1 to '
      f'replay.size={options.size}'
    )
  stored = ('time', 'variable') if branches == 'both' else (branches,)
  dark = options.strength if options.kind == 'derpp' else 0.0
  return replay.Replay(
    stored, options.size, options.draws, options.strength, dark
  )
