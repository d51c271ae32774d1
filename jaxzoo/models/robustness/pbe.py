"""PBE: progressive backdoor erasing (arXiv 2202.06312, CVPR 2023).

A network is trained on pictures of which some carry a trigger and the label of
the attacker's choice; then the backdoor is erased, in one run of two stages.
Untargeted adversarial examples of an infected network look to it like pictures
with the trigger: trained on with their true labels, they break the link
between trigger and label.

With a small clean set (AFT) there is one round on it. Without (PBE) rounds
follow each other: clean pictures are those whose logits the last round has
changed least, more of them in every round.

The set that the network was infected with is gathered in `extra['bank']` while
it trains, so that both stages are one System: the second draws its batches from
there, and what the pipeline gives is not looked at any more.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.losses.classification import cross_entropy, soft_targets
from jaxzoo.models.supervised import classification
from jaxzoo.system import State, System, from_loss

SHARDING = ()  # the network's own, see `sharding`
sharding = classification.sharding
convert = classification.convert
convert_extra = classification.convert_extra
fresh = classification.fresh


class Round(NamedTuple):
  """A round of erasing.

  Attributes:
    share: of the pictures that are trained on.
    epochs: over them.
    adversarial_epochs: the first of them train on adversarial examples alone.
    adversarial_batches: so do the first batches of the first epoch.
  """

  share: float
  epochs: int
  adversarial_epochs: int = 0
  adversarial_batches: int = 0


# The published rounds (released code; the paper's clean set is 5 %).
AFT = (Round(0.05, 20, adversarial_epochs=3),)
PROGRESSIVE = (
  Round(0.05, 10, adversarial_epochs=10),
  Round(0.2, 10, adversarial_batches=31),
  Round(0.5, 10, adversarial_batches=31),
  Round(0.7, 10, adversarial_batches=31),
)


class Plan(NamedTuple):
  """Rounds as steps; arrays have an entry a round.

  Attributes:
    begin: first step of the first round.
    starts: first step of each round.
    sizes: pictures that it trains on.
    batches: in an epoch of it.
    adversarial: how many of its first batches are adversarial.
    end: the step after the last.
  """

  begin: int
  starts: np.ndarray
  sizes: np.ndarray
  batches: np.ndarray
  adversarial: np.ndarray
  end: int


def make_plan(
  rounds: Sequence[Round], examples: int, batch_size: int, begin: int
) -> Plan:
  """The steps of rounds over a set of `examples`, the first at `begin`.

  An epoch is as many batches as hold the pictures; the last is filled up with
  those of its beginning.
  """
  sizes = [max(1, share_of(examples, each.share)) for each in rounds]
  batches = [-(-size // batch_size) for size in sizes]
  lengths = [n * each.epochs for n, each in zip(batches, rounds, strict=True)]
  adversarial = [
    max(n * each.adversarial_epochs, min(n, each.adversarial_batches))
    for n, each in zip(batches, rounds, strict=True)
  ]
  starts = begin + np.cumsum([0, *lengths])
  ints = lambda values: np.asarray(values, np.int32)
  return Plan(
    begin,
    ints(starts[:-1]),
    ints(sizes),
    ints(batches),
    ints(adversarial),
    int(starts[-1]),
  )


def share_of(examples: int, share: float) -> int:
  """int(examples share), without binary fractions in between."""
  return int(examples * Fraction(str(share)))


def epochs_of(
  rounds: Sequence[Round], examples: int, batch_size: int, epochs: float
) -> float:
  """Epochs over the whole set that infecting for `epochs` and erasing take."""
  steps = examples // batch_size
  begin = round(epochs * steps)
  return make_plan(rounds, examples, batch_size, begin).end / steps


# The attack that erases, and the choice of clean pictures.


def pgd(
  loss: Callable[[Float[Array, 'b ...']], Float[Array, '']],
  x: Float[Array, 'b ...'],
  *,
  radius: float,
  step: float,
  iterations: int,
) -> tuple[Float[Array, 'b ...'], Float[Array, ' i']]:
  """Untargeted projected gradient ascent (Madry et al., arXiv 1706.06083).

  x <- clip(x + step sign(d loss / d x), x_0 - radius, x_0 + radius), from x_0
  itself; not clipped to [0, 1], as in the released code. sign(0) = 0.

  Args:
    loss: of the batch, a mean or a sum: the sign alone is used.
    x: the pictures x_0.
    radius: in the maximum norm.
    step: of an iteration.
    iterations: how many.

  Returns:
    The adversarial examples, and the loss before each iteration.
  """

  def climb(current, _):
    value, grad = jax.value_and_grad(loss)(current)
    moved = current + step * jnp.sign(grad)
    return jnp.clip(moved, x - radius, x + radius), value

  return jax.lax.scan(climb, x, None, length=iterations)


def similarity(
  infected: Float[Array, 'n k'], current: Float[Array, 'n k']
) -> Float[Array, ' n']:
  """0.5 + 0.5 cos of the logits of the infected and the current network."""
  norm = lambda x: jnp.maximum(jnp.linalg.norm(x, axis=-1), 1e-8)
  dot = jnp.sum(infected * current, axis=-1)
  return 0.5 + 0.5 * dot / (norm(infected) * norm(current))


def ranks(scores: Float[Array, ' n']) -> Int[Array, ' n']:
  """Place of each in descending order; of equal ones the earlier first."""
  order = jnp.argsort(-scores, stable=True)
  places = jnp.arange(scores.size, dtype=jnp.int32)
  return jnp.zeros_like(places).at[order].set(places)


# Augmentation, on the device: batches of the second stage never see the host.


def augment(
  rng: jax.Array,
  image: Float[Array, 'b h w c'],
  *,
  pad: int,
  degrees: float,
  flip: float,
) -> Float[Array, 'b h w c']:
  """Shifts, turns and mirrors pictures.

  Shifted by up to `pad` pixels over a black margin in 80 % of the batches,
  turned by up to `degrees` in half of them, each picture by its own draw;
  mirrored with probability `flip` each.
  """
  keys = jax.random.split(rng, 5)
  size = image.shape[0]
  if pad:
    shifts = jax.random.randint(keys[0], (size, 2), -pad, pad + 1)
    shifts = shifts * jax.random.bernoulli(keys[1], 0.8)
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    image = jax.vmap(
      lambda x, s: jax.lax.dynamic_slice(x, (*(pad + s), 0), image.shape[1:])
    )(padded, shifts)
  if degrees:
    bound = math.radians(degrees)
    angles = jax.random.uniform(keys[2], (size,), minval=-bound, maxval=bound)
    angles = angles * jax.random.bernoulli(keys[3], 0.5)
    image = jax.vmap(rotate)(image, angles)
  if flip:
    mirrored = jax.random.bernoulli(keys[4], flip, (size, 1, 1, 1))
    image = jnp.where(mirrored, image[:, :, ::-1], image)
  return image


def rotate(
  image: Float[Array, 'h w c'], angle: Float[Array, '']
) -> Float[Array, 'h w c']:
  """Turned around its middle, in radians; bilinear, black outside."""
  height, width = image.shape[:2]
  y, x = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2,
    jnp.arange(width) - (width - 1) / 2,
    indexing='ij',
  )
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  places = (
    cos * y - sin * x + (height - 1) / 2,
    sin * y + cos * x + (width - 1) / 2,
  )
  channel = lambda plane: jax.scipy.ndimage.map_coordinates(
    plane, places, order=1, mode='constant'
  )
  return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


# The system.


def build(config, tx: optax.GradientTransformation) -> System:
  """Infecting and erasing as one System.

  A batch has `image` uint8 [b,h,w,c], `label` int32 [b] as the attacker gives
  them, `index` int32 [b] of the picture in its set, and `poisoned` bool [b],
  which metrics (and the choice of the small clean set) alone look at. Metrics:
  `loss`, `accuracy`, `grad_norm`, `round` (0 while infecting), `adversarial`,
  and `selected_poison`, the share of poisoned pictures among those that the
  round trains on. `predict` gives `logits` [b,num_classes].

  Args:
    config: fields of `classification.make_backbone`; `mean`, `std`,
      `batch_size`, `microbatches`; `erase`: `examples` of the set; `epochs`
      that infect; `clean`, whether the first round's pictures are known to be
      clean (AFT) or drawn from all (PBE); `rounds`, see `Round`; `radius`,
      `step` and `iterations` of `pgd`; `pad`, `degrees`, `flip` of `augment`.
    tx: the optimizer, of both stages.

  Raises:
    UserError: rounds or settings that cannot be.
  """
  check(config.erase)
  fields, module = config.erase, classification.make_backbone(config).module
  epoch = fields.examples // config.batch_size
  plan = make_plan(
    [Round(*each) for each in fields.rounds],
    fields.examples,
    config.batch_size,
    round(fields.epochs * epoch),
  )
  forward = make_forward(module, config)
  base = from_loss(
    lambda rng, batch: init_network(rng, batch, module, config),
    make_loss(forward, config),
    lambda params, extra, batch: {
      'logits': forward(params, extra, unit(batch['image']))[0]
    },
    tx,
    microbatches=config.microbatches,
  )

  def step(state, batch):
    first = state.step
    infecting = first < plan.begin
    state = state._replace(
      extra={
        **state.extra,
        'bank': remember(state.extra['bank'], batch, infecting),
      }
    )
    state = jax.lax.cond(
      jnp.any(first == plan.starts),
      lambda state: rank(state, plan, forward, fields.clean, config.batch_size),
      lambda state: state,
      state,
    )
    chosen, metrics = choose(state, batch, plan, infecting)
    state, own = base.step(state, chosen)
    return state, {**own, **metrics}

  return System(base.init, step, base.predict)


def check(fields) -> None:
  """Raises UserError for settings of `config.erase` that cannot be."""
  if not fields.rounds:
    raise UserError('erase.rounds is empty: see models/robustness/pbe.py')
  for each in fields.rounds:
    if len(each) != len(Round._fields):
      raise UserError(f'erase.rounds: {each} is not {Round._fields}')
    if not 0 < each[0] <= 1 or each[1] < 1:
      raise UserError(
        f'erase.rounds: {each} has no pictures or no epochs: '
        + ', '.join(Round._fields)
      )
  if fields.iterations < 1 or fields.radius < 0:
    raise UserError('erase.iterations must be 1 or more, erase.radius positive')


def unit(image) -> Float[Array, 'b h w c']:
  """uint8 as [0, 1]; floating point as it is."""
  return image / 255.0 if image.dtype == jnp.uint8 else image


def init_network(rng, batch, module, config):
  """(params, extra) with an empty bank."""
  shape = batch['image'].shape[1:]
  variables = module.init(rng, jnp.zeros((1, *shape)))
  n, classes = config.erase.examples, config.num_classes
  extra = {
    'batch_stats': variables.get('batch_stats', {}),
    'bank': {
      'image': jnp.zeros((n, *shape), jnp.uint8),
      'label': jnp.zeros(n, jnp.int32),
      'poisoned': jnp.zeros(n, bool),
      'seen': jnp.zeros(n, bool),
    },
    'infected': jnp.zeros((n, classes), jnp.float32),
    'rank': jnp.arange(n, dtype=jnp.int32),
  }
  return variables['params'], extra


def make_forward(module, config) -> Callable:
  """(params, extra, image in [0, 1], train) -> (logits, new statistics)."""

  def forward(params, extra, image, train=False, rng=None):
    variables = {'params': params, 'batch_stats': extra['batch_stats']}
    image = normalize(image, config.mean, config.std, jnp.dtype(config.dtype))
    if not train:
      return module.apply(variables, image).astype(jnp.float32), {}
    return module.apply(
      variables, image, True, rngs={'dropout': rng}, mutable=['batch_stats']
    )

  return forward


def make_loss(forward: Callable, config) -> Callable:
  """Cross-entropy, of adversarial examples where `adversarial` says so.

  They are made with running statistics; the update takes those of the batch.
  """
  fields = config.erase

  def loss(params, extra, batch, rng):
    augment_rng, dropout_rng = jax.random.split(rng)
    targets = soft_targets(batch['label'], config.num_classes)
    image = augment(
      augment_rng,
      unit(batch['image']),
      pad=fields.pad,
      degrees=fields.degrees,
      flip=fields.flip,
    )
    fixed = jax.lax.stop_gradient(params)

    def attack(image):
      return pgd(
        lambda x: cross_entropy(forward(fixed, extra, x)[0], targets),
        image,
        radius=fields.radius,
        step=fields.step,
        iterations=fields.iterations,
      )[0]

    image = jax.lax.cond(batch['adversarial'].any(), attack, lambda x: x, image)
    logits, updated = forward(params, extra, image, True, dropout_rng)
    right = jnp.mean(logits.argmax(-1) == batch['label'], dtype=jnp.float32)
    return cross_entropy(logits, targets), (
      {**extra, **updated},
      {'accuracy': right},
    )

  return loss


def remember(bank: Mapping, batch: Mapping, wanted: Bool[Array, '']) -> dict:
  """The bank with the pictures of a batch in their places, if wanted."""
  # Out of range, what is not wanted is dropped.
  places = jnp.where(wanted, batch['index'], bank['seen'].size)
  put = lambda old, new: old.at[places].set(new, mode='drop')
  new = {name: batch[name] for name in ('image', 'label', 'poisoned')}
  return {name: put(bank[name], x) for name, x in new.items()} | {
    'seen': put(bank['seen'], True)
  }


def rank(
  state: State, plan: Plan, forward: Callable, clean: bool, batch_size: int
) -> State:
  """The order in which a round takes pictures from the bank.

  The first: at random, those known to be clean before all others if `clean`.
  The others: by `similarity`. Pictures that were never seen come last.
  """
  extra, bank = state.extra, state.extra['bank']
  logits = logits_of(state, forward, bank['image'], batch_size)
  first = state.step == plan.starts[0]
  infected = jnp.where(first, logits, extra['infected'])
  key = jax.random.fold_in(state.rng, state.step)
  drawn = jax.random.uniform(key, bank['seen'].shape)
  if clean:
    drawn = drawn + ~bank['poisoned']
  scores = jnp.where(first, drawn, similarity(infected, logits))
  scores = jnp.where(bank['seen'], scores, -1)
  return state._replace(
    extra={**extra, 'infected': infected, 'rank': ranks(scores)}
  )


def logits_of(state, forward, images, batch_size: int) -> Float[Array, 'n k']:
  """Logits of every picture of the bank, a batch at a time."""
  count = len(images)
  parts = -(-count // batch_size)
  padded = jnp.pad(images, ((0, parts * batch_size - count), *3 * [(0, 0)]))
  logits = jax.lax.map(
    lambda part: forward(state.params, state.extra, unit(part))[0],
    padded.reshape(parts, batch_size, *images.shape[1:]),
  )
  return logits.reshape(parts * batch_size, -1)[:count]


def choose(state: State, batch, plan: Plan, infecting) -> tuple[dict, dict]:
  """(batch of the step with `adversarial`, metrics of the choice).

  While infecting the pipeline's; then one of the round's, in an order that is
  drawn anew for every epoch over them.
  """
  bank, size = state.extra['bank'], len(batch['label'])
  number = jnp.searchsorted(plan.starts, state.step, side='right') - 1
  number = jnp.maximum(number, 0)
  of = lambda values: jnp.asarray(values)[number]
  local = jnp.maximum(state.step - of(plan.starts), 0)
  epoch, i = local // of(plan.batches), local % of(plan.batches)
  selected = state.extra['rank'] < of(plan.sizes)
  # The key of the epoch: its first step's, apart from those of the step.
  key = jax.random.fold_in(state.rng, of(plan.starts) + epoch)
  key = jax.random.fold_in(key, 1)
  order = jnp.argsort(
    jnp.where(selected, jax.random.uniform(key, selected.shape), 2)
  )
  places = order[(i * size + jnp.arange(size)) % of(plan.sizes)]
  chosen = {
    name: jnp.where(
      infecting,
      batch[name],
      bank[name][places],
    )
    for name in ('image', 'label')
  }
  adversarial = ~infecting & (local < of(plan.adversarial))
  chosen['adversarial'] = jnp.broadcast_to(adversarial, size)
  poisoned = jnp.sum(selected & bank['poisoned']) / of(plan.sizes)
  as_float = lambda x: jnp.asarray(x, jnp.float32)
  return chosen, {
    'round': as_float(jnp.where(infecting, 0, number + 1)),
    'adversarial': as_float(adversarial),
    'selected_poison': as_float(jnp.where(infecting, 0, poisoned)),
  }
