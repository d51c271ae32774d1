"""Baguan: a weather forecast, pre-trained by a Siamese masked autoencoder.

arXiv 2505.13873 (KDD 2025). Pre-training rebuilds a field from a quarter of it
and from the whole field some hours earlier, which teaches how patches move;
fine-tuning drops the decoder and forecasts a later field from the earlier one
alone. A forecast further ahead is fed back as input. Where paper and released
code differ, see `Decoder.kind` and spec baguan.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.forecasting.baguan_codes import internal_order
from jaxzoo.models.forecasting.baguan_network import Decoder, Encoder
from jaxzoo.models.losses import weather
from jaxzoo.system import System, from_loss
from jaxzoo.weights import baguan as names
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

SHARDING = (
  (r'(cross_)?attn/(query|key|value)/kernel$', (None, 'tensor', None)),
  (r'(cross_)?attn/(query|key|value)/bias$', ('tensor', None)),
  (r'(cross_)?attn/out/kernel$', ('tensor', None, None)),
  (r'block\w*/fc1/kernel$', (None, 'tensor')),
  (r'block\w*/fc1/bias$', ('tensor',)),
  (r'block\w*/fc2/kernel$', ('tensor', None)),
  (r'modulation/kernel$', (None, 'tensor')),
  (r'head/kernel$', (None, 'tensor')),
)
DECODERS = ('paper', 'identity')
TASKS = ('pretrain', 'forecast')


class Networks(NamedTuple):
  """What is trained.

  Attributes:
    encoder: always.
    decoder: of the forecast.
    reconstruction: in its place in pre-training, thrown away after it.
  """

  encoder: Encoder
  decoder: Decoder
  reconstruction: Decoder


def make_networks(config) -> Networks:
  """The networks of a config, see `build`.

  Raises:
    UserError: a grid that patches do not fill, an unknown decoder, variables
      that appear twice.
  """
  height, width = config.grid
  patch, pad = config.patch, config.pad
  if (height + pad) % patch or width % patch:
    raise UserError(
      f'grid={tuple(config.grid)} with pad={pad} is not made of patches of '
      f'{patch}x{patch}: set pad={-height % patch}, or another patch'
    )
  if config.decoder.kind not in DECODERS:
    raise UserError(
      f'decoder.kind: no {config.decoder.kind!r}; '
      + nearest(config.decoder.kind, DECODERS)
    )
  dynamic, inputs = tuple(config.variables), input_names(config)
  if len(set(inputs)) < len(inputs):
    raise UserError(f'variables: {", ".join(inputs)}: some are there twice')
  common = dict(
    names=internal_order(inputs),
    grid=((height + pad) // patch, width // patch),
    patch=patch,
    pad=pad,
    scan=config.scan,
    remat=config.remat,
    dtype=jnp.dtype(config.dtype),
  )
  decoder = functools.partial(Decoder, outputs=dynamic, **common)
  return Networks(
    Encoder(inputs=inputs, **common, **config.encoder),
    decoder(**config.decoder),
    decoder(**{**config.decoder, 'kind': 'paper'}),
  )


def input_names(config) -> tuple[str, ...]:
  """The channels of a field: the variables, then the constants."""
  return (*config.variables, *config.constants)


def masked_places(
  noise: Float[Array, 'b n'], ratio: float
) -> tuple[Int[Array, 'b m'], Int[Array, 'b k']]:
  """(hidden patches, visible ones): the first int(ratio n) by noise, the rest.

  Both in ascending order of the noise.
  """
  order = jnp.argsort(noise, -1)
  hidden = int(ratio * noise.shape[-1])
  return order[:, :hidden], order[:, hidden:]


def forecast(
  networks: Networks,
  params: Mapping,
  field: Float[Array, 'b h w i'],
  lead: Float[Array, ' b'],
  *,
  rng: jax.Array | None = None,
) -> Float[Array, 'b h w v']:
  """The field `lead` hours later, standardised. `rng` is given in training."""
  keys = (None, None) if rng is None else jax.random.split(rng)
  drops = lambda key: {} if key is None else {'dropout': key}
  train = rng is not None
  tokens = networks.encoder.apply(
    {'params': params['encoder']}, field, lead, None, train, rngs=drops(keys[0])
  )
  return networks.decoder.apply(
    {'params': params['decoder']},
    tokens,
    lead,
    train=train,
    rngs=drops(keys[1]),
  )


def reconstruct(
  networks: Networks,
  params: Mapping,
  before: Float[Array, 'b h w i'],
  after: Float[Array, 'b h w i'],
  lead: Float[Array, ' b'],
  places: Int[Array, 'b k'],
  *,
  siamese: bool = True,
  rng: jax.Array | None = None,
) -> Float[Array, 'b h w v']:
  """The field `after`, from its patches at `places` and the field `before`.

  The lead time that the encoder is told is that to the target: `lead` before,
  0 after. Without `siamese` the earlier field is not given.
  """
  train = rng is not None
  keys = (None,) * 3 if rng is None else jax.random.split(rng, 3)
  drops = lambda key: {} if key is None else {'dropout': key}
  encode = lambda key, *inputs: networks.encoder.apply(
    {'params': params['encoder']}, *inputs, train, rngs=drops(key)
  )
  source = encode(keys[0], before, lead, None) if siamese else None
  visible = encode(keys[1], after, jnp.zeros_like(lead), places)
  return networks.reconstruction.apply(
    {'params': params['reconstruction']},
    source,
    lead,
    visible,
    places,
    train,
    rngs=drops(keys[2]),
  )


def with_constants(
  field: Float[Array, 'b h w v'], like: Float[Array, 'b h w i']
) -> Float[Array, 'b h w i']:
  """A forecast as an input: the constants of `like` behind it."""
  return jnp.concatenate([field, like[..., field.shape[-1] :]], -1)


def rollout(step, field, count: int) -> Float[Array, 'k b h w v']:
  """`count` forecasts, each from the one before; step: field -> forecast."""

  def body(field, _):
    after = step(field)
    return with_constants(after, field), after

  return jax.lax.scan(body, field, None, length=count)[1]


def compositions(
  lead: int, steps: tuple[int, ...], *, most: int = 8
) -> list[tuple[int, ...]]:
  """The ways to reach a lead time with models of fixed steps, shortest first.

  [chosen] All orders of at most ceil(lead / largest step) + 3 steps; then the
  first `most`.

  >>> compositions(24, (1, 6, 24))
  [(24,), (6, 6, 6, 6)]

  Raises:
    UserError: no composition is that short.
  """
  longest = math.ceil(lead / max(steps)) + 3

  def ways(left, room):
    if left == 0:
      yield ()
    elif room:
      for step in sorted(steps, reverse=True):
        if step <= left:
          for rest in ways(left - step, room - 1):
            yield (step, *rest)

  found = sorted(ways(lead, longest), key=len)
  if not found:
    raise UserError(
      f'{lead} h are not made of {longest} steps of '
      + ' or '.join(f'{step} h' for step in steps)
    )
  return found[:most]


def ensemble(
  steps: Mapping[int, Callable],
  field: Float[Array, 'b h w i'],
  lead: int,
  *,
  most: int = 8,
) -> Float[Array, 'b h w v']:
  """The mean forecast over the ways to reach a lead time.

  Args:
    steps: hours -> (field -> forecast), one model each.
    field: to start from.
    lead: hours, to be composed of the models' steps.
    most: ways, see `compositions`.
  """
  members = []
  for plan in compositions(lead, tuple(steps), most=most):
    current = field
    for hours in plan:
      after = steps[hours](current)
      current = with_constants(after, current)
    members.append(after)
  return sum(members) / len(members)


def weighted_loss(
  prediction: Float[Array, '*b h w v'],
  target: Float[Array, '*b h w v'],
  rows: Float[Array, ' h'],
  variables: Float[Array, ' v'],
  *,
  power: float = 0.5,
  squared: bool = False,
) -> Float[Array, '']:
  """sum_v w_v mean L^power |error|; squared in pre-training."""
  errors = weather.field_errors(
    prediction, target, rows, power=power, squared=squared
  )
  return jnp.sum(jnp.asarray(variables) * errors)


def pretraining_loss(
  networks: Networks, config, params, batch, rng
) -> Float[Array, '']:
  """Of the target rebuilt from its visible patches and the earlier field.

  Over the whole field, or with `masked_only` over the hidden patches.
  """
  options, draw = config.pretrain, jax.random.fold_in(rng, 0)
  field, target = batch['field'], batch['target'][:, 0]
  grid = networks.encoder.grid
  noise = jax.random.uniform(draw, (len(field), grid[0] * grid[1]))
  hidden, places = masked_places(noise, options.mask_ratio)
  prediction = reconstruct(
    networks,
    params,
    field,
    with_constants(target, field),
    batch['lead'],
    places,
    siamese=options.siamese,
    rng=jax.random.fold_in(rng, 1),
  )
  share = 1.0
  if options.masked_only:
    share = hidden.shape[1] / noise.shape[1]
    seen = jax.vmap(lambda at: jnp.ones(noise.shape[1]).at[at].set(0))(places)
    where = jnp.repeat(seen.reshape(-1, *grid), config.patch, 1)
    where = jnp.repeat(where, config.patch, 2)[:, config.pad :, :, None]
    prediction, target = prediction * where, target * where
  value = weighted_loss(prediction, target, *weights_of(config), squared=True)
  return value / share


def rollout_loss(
  networks: Networks, config, params, batch, count, rng
) -> Float[Array, '']:
  """The mean over the first `count` steps of a forecast that is fed back.

  No gradient goes from one step to the one before, and the memory is that of a
  single step.
  """
  field, targets = batch['field'], batch['target']

  def one(params, field, target, key):
    prediction = forecast(networks, params, field, batch['lead'], rng=key)
    value = weighted_loss(prediction, target, *weights_of(config))
    after = with_constants(jax.lax.stop_gradient(prediction), field)
    return value, after.astype(field.dtype)

  if targets.shape[1] == 1:
    return one(params, field, targets[:, 0], rng)[0]

  def step(carry, inputs):
    total, field = carry
    i, target = inputs
    key = None if rng is None else jax.random.fold_in(rng, i)
    value, field = jax.lax.cond(
      i < count,
      lambda: jax.checkpoint(one)(params, field, target, key),
      lambda: (jnp.float32(0), field),
    )
    return (total + value, field), None

  (total, _), _ = jax.lax.scan(
    step,
    (jnp.float32(0), field),
    (jnp.arange(targets.shape[1]), jnp.moveaxis(targets, 1, 0)),
  )
  return total / count


def weights_of(config) -> tuple[np.ndarray, np.ndarray]:
  """(of the rows of the grid, of the variables)."""
  degrees = weather.latitudes(config.grid[0])
  return (
    weather.latitude_weights(degrees),
    weather.variable_weights(tuple(config.variables)),
  )


def build(config, tx: optax.GradientTransformation) -> System:
  """Baguan as a system.

  A batch has `field` float32 [b, h, w, i], standardised, its channels the
  config's `variables` and `constants`; `lead` float32 [b], hours; `target`
  [b, k, h, w, v], the variables after one to k times the lead.

  Args:
    config: `task`, 'pretrain' or 'forecast'; `variables`, `constants`; `grid`
      (h, w), `patch`, `pad`; `encoder`: further fields of `Encoder`; `decoder`:
      of `Decoder`; `dtype`, `scan`, `remat`, `microbatches`. pretrain:
      `mask_ratio` (0.75), `siamese` (True), `masked_only` (False). rollout:
      `first`, how often a forecast is fed back to begin with; once more every
      `every` updates (0: never), up to the k of the batch. `forecast_steps` of
      `predict`.
    tx: the optimizer.

  Returns:
    The system. `predict` gives `forecast` [b, k, h, w, v], each made of the one
    before; or, of a batch with `target` and `climatology` [b, h, w, v], nothing
    but its `Scores`, so that no field leaves the devices. In pre-training it
    takes `target` too, and gives that field, k = 1, from a quarter of it.

  Raises:
    UserError: see `make_networks`; an unknown task; a mask of nothing or all.
  """
  networks, options = make_networks(config), config.rollout
  if config.task not in TASKS:
    raise UserError(f'task: no {config.task!r}; ' + nearest(config.task, TASKS))
  if not 0 < config.pretrain.mask_ratio < 1:
    raise UserError(
      f'pretrain.mask_ratio={config.pretrain.mask_ratio}: it must be above 0 '
      'and below 1'
    )

  def loss(params, extra, batch, rng):
    if config.task == 'pretrain':
      return pretraining_loss(networks, config, params, batch, rng), (extra, {})
    grown = extra['updates'] // options.every if options.every else 0
    count = jnp.clip(options.first + grown, 1, batch['target'].shape[1])
    value = rollout_loss(networks, config, params, batch, count, rng)
    return value, (extra, {'rollout_steps': jnp.float32(count)})

  def advance(params, extra):
    return params, {**extra, 'updates': extra['updates'] + 1}

  return from_loss(
    functools.partial(init_params, networks, config.task),
    loss,
    functools.partial(predict, networks, config),
    tx,
    advance=advance,
    microbatches=config.microbatches,
  )


def init_params(networks, task, rng, batch) -> tuple[dict, dict]:
  """(parameters of the encoder and of the task's decoder, counters)."""
  keys = jax.random.split(rng)
  field = jnp.zeros((1, *batch['field'].shape[1:]))
  lead, encoder = jnp.zeros(1), networks.encoder
  name, decoder = 'decoder', networks.decoder
  if task == 'pretrain':
    name, decoder = 'reconstruction', networks.reconstruction
  count = encoder.grid[0] * encoder.grid[1]
  tokens = jnp.zeros((1, count, encoder.width))
  params = {
    'encoder': encoder.init(keys[0], field, lead)['params'],
    name: decoder.init(keys[1], tokens, lead)['params'],
  }
  return params, {'updates': jnp.int32(0)}


def predict(networks, config, params, extra, batch) -> dict:
  """See `build`."""
  del extra
  field, lead = batch['field'], batch['lead']
  if config.task == 'pretrain':
    noise = jax.random.uniform(
      jax.random.key(0), (math.prod(networks.encoder.grid),)
    )
    noise = jnp.broadcast_to(noise, (len(field), *noise.shape))
    _, places = masked_places(noise, config.pretrain.mask_ratio)
    after = with_constants(batch['target'][:, 0], field)
    rebuilt = reconstruct(
      networks, params, field, after, lead, places,
      siamese=config.pretrain.siamese,
    )  # fmt: skip
    fields = rebuilt[:, None]
  else:
    step = lambda field: forecast(networks, params, field, lead)
    fields = jnp.moveaxis(rollout(step, field, config.forecast_steps), 0, 1)
  if not {'target', 'climatology'} <= set(batch):
    return {'forecast': fields}
  found = weather.scores(
    fields,
    batch['target'][:, : fields.shape[1]],
    batch['climatology'][:, None],
    weights_of(config)[0],
  )
  return found._asdict()


def rows(networks: Networks) -> list[to.Row]:
  """The names of the released code, `weights.baguan.stacked`."""
  encoder, decoder = networks.encoder, networks.decoder
  return names.encoder_rows(encoder.depth, encoder.num_heads) + (
    names.decoder_rows(decoder.depth, decoder.num_heads)
  )


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The parameters of a released checkpoint, as far as the config has them.

  Fixed tables that it lacks keep their initial values, see `fresh`.
  """
  loaded = to.load(names.stacked(state_dict), rows(make_networks(config)))
  params = {**loaded.pop('params', {}), **loaded}
  if config.task == 'pretrain':
    params.pop('decoder', None)
  elif config.decoder.kind == 'identity' and 'decoder' in params:
    # The released decoder has no effect: only its ends do.
    used = ('project', 'lead_embed', 'norm', 'modulation', 'head')
    params['decoder'] = {name: params['decoder'][name] for name in used}
  return layout.stack_deep(params) if config.scan else params


def fresh(config) -> tuple[str, ...]:
  """What no released checkpoint has; after a stage, the new decoder too."""
  tables = (r'/position$', r'/variable_embed$')
  if config.task == 'pretrain':
    return ('^reconstruction/', *tables)
  return ('^decoder/', *tables) if config.stages else tables


def from_stages(states: Mapping, config) -> tuple[dict, dict]:
  """The encoder of pre-training; encoder and decoder of another forecast."""
  params = {}
  for _, state in states.values():
    trained = state.extra.get('ema', state.params)
    params |= {
      name: trained[name] for name in ('encoder', 'decoder') if name in trained
    }
  params = layout.unstack_blocks(params)
  return (layout.stack_deep(params) if config.scan else params), {}


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """A forecast's parameters as a released checkpoint: `convert` undone."""
  del extra  # empty
  kept = {name: params[name] for name in ('encoder', 'decoder')}
  unrolled = layout.unstack_blocks({'params': kept})
  return names.unstacked(to.save(unrolled, rows(make_networks(config))))
