"""AutoMix: a learned mixup, trained together with the classifier.

arXiv 2103.13027 (ECCV 2022). A mix block predicts from features of a momentum
copy of the network which pixels of two images go into their mixture. It is
trained so that the momentum copy (k) recognises both images in the right
shares; the network (q) is trained on what it mixes, without a gradient to it.
Only the networks are used afterwards.

Where the first version of the paper and the released code differ, this is the
code (spec automix).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones.backbone import Features
from jaxzoo.models.cards import Built
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.mix_block import UPSAMPLINGS, MixBlock, mask_loss
from jaxzoo.models.losses.classification import cross_entropy, soft_targets
from jaxzoo.models.supervised import classification
from jaxzoo.system import State, System, accumulated_grad
from jaxzoo.weights import automix as names
from jaxzoo.weights.automix import HEADS

SHARDING = ()  # the network's own, see `sharding`
# What there is twice. Of q they are parameters; of k they lie in `extra`, with
# `_k` behind the name.
TWICE = ('backbone', *HEADS)


class Mixing(NamedTuple):
  """What is drawn for one of a step's two mixtures."""

  lam: Float[Array, '']  # share of the image itself
  index: Int[Array, 'g n']  # partners, each within its group of the batch


def draw(rng: jax.Array, batch_size: int, alpha: float, groups: int) -> Mixing:
  """lam ~ Beta(alpha, alpha) and a permutation of each group of the batch."""
  if batch_size % groups:
    raise UserError(
      f'a batch of {batch_size} does not divide into loss.groups={groups}'
    )
  share, order = jax.random.split(rng)
  permute = lambda key: jax.random.permutation(key, batch_size // groups)
  return Mixing(
    jax.random.beta(share, alpha, alpha),
    jax.vmap(permute)(jax.random.split(order, groups)),
  )


def partners(
  x: Float[Array, 'b ...'], index: Int[Array, 'g n']
) -> Float[Array, 'b ...']:
  """The partner of every example, from its own group."""
  parts = x.reshape(*index.shape, *x.shape[1:])
  return jax.vmap(lambda part, i: part[i])(parts, index).reshape(x.shape)


def mix_images(
  image: Float[Array, 'b h w c'],
  mask: Float[Array, 'b h w'],
  index: Int[Array, 'g n'],
) -> Float[Array, 'b h w c']:
  """image (1 - M') + partner M'."""
  mask = mask[..., None]
  return image * (1 - mask) + partners(image, index) * mask


class Networks(NamedTuple):
  """The modules of a system.

  Attributes:
    backbone: one without classes.
    head: the classifier, of which there are two for each of q and k.
    mix_block: the learned mixup.
    layer: the backbone's map that the mix block sees.
  """

  backbone: Any
  head: nn.Module
  mix_block: MixBlock
  layer: str


class Margins(NamedTuple):
  """What is let through."""

  mask: float = 0.1  # by which the mean of a mask may be off for nothing
  lam: float = 0.08  # of bb's share from 0 and 1 within which it is plain mixup


class Mixtures(NamedTuple):
  """The two mixtures of a step."""

  mb: Float[Array, 'b h w c']  # for the mix block, with gradient to it
  bb: Float[Array, 'b h w c']  # for the network, without
  off: Float[Array, '']  # `mask_loss` of the first


def make_mixtures(
  networks: Networks,
  params: Mapping,
  features: Float[Array, 'b h w c'],
  image: Float[Array, 'b h w c'],
  mb: Mixing,
  bb: Mixing,
  margins: Margins,
) -> Mixtures:
  """What the mix block, of `params`, makes of images and their features."""
  scale = side_ratio(image, features)
  mask_mb, mask_bb = (
    networks.mix_block.apply(
      {'params': params},
      features,
      partners(features, index),
      lam,
      scale,
    )
    for lam, index in (mb, bb)
  )
  plain = jnp.minimum(bb.lam, 1 - bb.lam) <= margins.lam
  mask_bb = jnp.where(plain, 1 - bb.lam, jax.lax.stop_gradient(mask_bb))
  return Mixtures(
    mix_images(image, mask_mb, mb.index),
    mix_images(image, mask_bb, bb.index),
    mask_loss(mask_mb, mb.lam, margins.mask),
  )


def map_of(features: Features, layer: str) -> Float[Array, 'b h w c']:
  """The backbone's map that the mix block sees; UserError where none is."""
  maps = features.maps
  if layer not in maps:
    raise UserError(f'mix_block.layer: no {layer!r}; ' + nearest(layer, maps))
  return maps[layer]


def side_ratio(image, features) -> int:
  """How many times larger the images are than their features.

  (4 times for CIFAR's networks and 16 for ImageNet's, which the released code
  tells from the size of the image.)
  """
  (h, w), (rows, columns) = image.shape[1:3], features.shape[1:3]
  if h % rows or w % columns or h // rows != w // columns:
    raise UserError(
      f'images of {h}x{w} are no multiple of their {rows}x{columns} features: '
      'choose another image_size or mix_block.layer'
    )
  return h // rows


class Weights(NamedTuple):
  """L = mix_q L_mix_q + one_q L_one_q + mix_k L_mix_k + mask L_mask."""

  mix_q: float = 1.0  # the network on mixtures
  one_q: float = 1.0  # the network on images
  mix_k: float = 1.0  # the momentum network on mixtures, for the mix block
  mask: float = 0.1  # mean of the mask


def automix_losses(
  networks: Networks,
  params: Mapping,
  extra: Mapping,
  image: Float[Array, 'b h w c'],
  targets: Float[Array, 'b k'],
  mb: Mixing,
  bb: Mixing,
  rng: jax.Array,
  margins: Margins = Margins(),
) -> tuple[dict, dict, tuple]:
  """The four losses of a batch.

  k takes no gradient: it makes the features that both masks are of, and judges
  the mixture that the mix block learns from, in training mode and through the
  image. Each of the four passes has batch statistics of its own.

  Args:
    networks: modules.
    params: `backbone`, `head_one`, `head_mix` of q, and `mix_block`.
    extra: the same of k, with `_k` behind the names, and batch statistics.
    image: normalised, with `targets`, distributions over classes.
    mb: of the mixture that trains the mix block.
    bb: of the mixture that trains the network.
    rng: of dropout and drop path.
    margins: see there.

  Returns:
    The losses by the names of `Weights`; `extra` with the new statistics;
    (`Mixtures`, logits of q on the images).
  """
  own, stats = pairs(params, jax.lax.stop_gradient(extra))
  keys = iter(jax.random.split(rng, 4))

  def look(which, image):
    params = own[f'backbone_{which}']
    features, stats[which] = train_pass(
      networks.backbone, params, stats[which], image, next(keys)
    )
    return features

  head = networks.head
  classify = lambda name, y: head.apply({'params': own[name]}, y.vector)
  seen = map_of(look('k', image), networks.layer)
  mixtures = make_mixtures(
    networks, params['mix_block'], seen, image, mb, bb, margins
  )
  judged = classify('head_mix_k', look('k', mixtures.mb))
  logits = classify('head_one_q', look('q', image))
  mixed = classify('head_mix_q', look('q', mixtures.bb))
  losses = dict(
    mix_q=cross_entropy(mixed, mix_targets(targets, bb)),
    one_q=cross_entropy(logits, targets),
    mix_k=cross_entropy(judged, mix_targets(targets, mb)),
    mask=mixtures.off,
  )
  new = {stats_name(which): x for which, x in stats.items() if x}
  return losses, extra | new, (mixtures, logits)


def pairs(params: Mapping, extra: Mapping) -> tuple[dict, dict]:
  """(parameters, `NAME_q` and `NAME_k`; batch statistics of 'q' and 'k')."""
  own = {f'{name}_q': params[name] for name in TWICE}
  own |= {f'{name}_k': extra[f'{name}_k'] for name in TWICE}
  return own, {which: extra.get(stats_name(which), {}) for which in 'qk'}


def train_pass(backbone, params, stats, image, rng) -> tuple[Features, Mapping]:
  """Features of images in training mode, and the new batch statistics."""
  features, updated = backbone.apply(
    {'params': params, 'batch_stats': stats},
    image,
    True,
    method='features',
    mutable=['batch_stats'],
    rngs={'dropout': rng},
  )
  return features, updated.get('batch_stats', {})


def mix_targets(
  targets: Float[Array, 'b k'], mixing: Mixing
) -> Float[Array, 'b k']:
  """lam t + (1 - lam) t of the partners."""
  lam, index = mixing
  return lam * targets + (1 - lam) * partners(targets, index)


def stats_name(which: str) -> str:
  """Where in `extra` the batch statistics of 'q' or 'k' are."""
  return 'batch_stats' if which == 'q' else 'batch_stats_k'


def cosine(progress: Float[Array, '']) -> Float[Array, '']:
  """(cos(pi t/T) + 1) / 2: from 1 to 0."""
  return (jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)) + 1) / 2


def momentum_at(
  step: Int[Array, ''],
  total_steps: int,
  base: float = 0.999,
  end: float = 0.999999,
  start: float = 0.1,
) -> Float[Array, '']:
  """`base`, from `start` T on end - (end - base) (cos(pi t/T) + 1) / 2.

  t counts from the first step of the run, so that m jumps at `start` T. A
  schedule that starts with the run copies the network at its first step.
  Without T (`total_steps` = 0), m stays at `base`.
  """
  if not total_steps:
    return jnp.float32(base)
  t = step / total_steps
  risen = end - (end - base) * cosine(t)
  if not start:
    return jnp.where(step == 0, 0, risen)
  return jnp.where(t < start, base, risen)


def follow(extra: Mapping, params: Mapping, momentum: Float[Array, '']) -> dict:
  """k <- m k + (1 - m) q, for parameters; batch statistics k makes its own."""
  average = lambda k, q: momentum * k + (1 - momentum) * q
  new = {
    f'{x}_k': jax.tree.map(average, extra[f'{x}_k'], params[x]) for x in TWICE
  }
  return {**extra, **new}


def make_networks(config) -> tuple[Networks, Built]:
  """The modules of `config`, and the backbone's name maps.

  Raises:
    UserError: an option that does not exist.
  """
  options = config.mix_block
  if options.upsampling not in UPSAMPLINGS:
    raise UserError(
      f'mix_block.upsampling: no {options.upsampling!r}; '
      + nearest(options.upsampling, UPSAMPLINGS)
    )
  built = classification.make_backbone(config, num_classes=0)
  # The initialisation of the heads is chosen here.
  head = nn.Dense(config.num_classes, kernel_init=nn.initializers.normal(0.01))
  block = MixBlock(options.reduction, options.lam_concat, options.upsampling)
  return Networks(built.module, head, block, options.layer), built


def init_networks(networks: Networks, rng: jax.Array, image) -> tuple:
  """(params, extra) for images of this shape; k starts as a copy of q."""
  keys = jax.random.split(rng, 4)
  variables = networks.backbone.init(keys[0], image)
  features = networks.backbone.apply(variables, image, method='features')
  if features.vector.ndim != 2:
    raise UserError(
      'model: it is distilled, with two classifiers; take another'
    )
  seen = map_of(features, networks.layer)
  params = {'backbone': variables['params']}
  for name, key in zip(HEADS, keys[1:], strict=False):
    params[name] = networks.head.init(key, features.vector)['params']
  params['mix_block'] = networks.mix_block.init(
    keys[3], seen, seen, 0.5, side_ratio(image, seen)
  )['params']
  # Copies: the state is donated, and no buffer may be donated twice.
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  extra = {f'{name}_k': copy(params[name]) for name in TWICE}
  if 'batch_stats' in variables:
    extra[stats_name('q')] = variables['batch_stats']
    extra[stats_name('k')] = copy(variables['batch_stats'])
  return params, extra


def make_loss(config, networks: Networks, step: Int[Array, '']) -> Callable:
  """(params, extra, batch, rng) -> (loss, (extra, metrics)) of step t."""
  options, total = config.loss, config.total_steps
  falling = cosine(step / total) if total else jnp.float32(1)
  weights = Weights(*(options[name] for name in Weights._fields))
  if options.mask_decay:
    weights = weights._replace(mask=weights.mask * falling)

  def loss(params, extra, batch, rng):
    keys, labels = jax.random.split(rng, 4), batch['label']
    losses, extra, (_, logits) = automix_losses(
      networks,
      params,
      extra,
      normalize(batch['image'], config.mean, config.std),
      soft_targets(labels, config.num_classes, options.label_smoothing),
      draw(keys[0], len(labels), options.alpha, options.groups),
      draw(keys[1], len(labels), options.alpha, options.groups),
      keys[2],
      Margins(options.mask_margin, options.lam_margin),
    )
    now = weights
    if options.switch_off:
      kept = jax.random.bernoulli(keys[3], options.switch_off * falling)
      now = now._replace(mix_k=weights.mix_k * kept)
    value = sum(getattr(now, name) * x for name, x in losses.items())
    metrics = {f'loss_{name}': x for name, x in losses.items()}
    right = logits.argmax(-1) == labels
    metrics['accuracy'] = right.mean(dtype=jnp.float32)
    return value, (extra, metrics)

  return loss


def build(config, tx: optax.GradientTransformation) -> System:
  """AutoMix as a system.

  Args:
    config: fields of `classification.make_backbone`: 'resnet18' with options
      dict(small_stem=True) for CIFAR; `mean` and `std` of the images;
      `microbatches`, each mixed within itself; `total_steps`, updates of the
      run that the schedules are over, or 0: none of them moves;
      mix_block: `layer`, the map that it sees (residual networks 'stage3',
      DeiT 'stage2'), `reduction` (2), `lam_concat` (ImageNet: True),
      `upsampling`, 'nearest' or 'bilinear';
      loss: the weights `mix_q`, `one_q`, `mix_k` (1) and `mask` (0.1);
      `mask_decay`: the last falls to 0 by a cosine (ImageNet); `mask_margin`
      (0.1), `lam_margin` (0.08), `alpha` (2), `label_smoothing`; `switch_off`:
      0, or s: `mix_k` counts with a probability of s times the cosine
      (transformers: 0.8); `groups`: partners are within so many equal parts of
      the batch, where 1 lets images travel between devices;
      momentum: `base` (0.999), `end` (CIFAR 0.999999, ImageNet 0.99999),
      `start`, the share of the run before it rises (0.1, DeiT 0.25).
    tx: the optimizer, of the network, its heads and the mix block.

  Returns:
    The system. Batches have `image` and `label`; see `make_predict`.

  Raises:
    UserError: an option that does not exist.
  """
  tx = optax.with_extra_args_support(tx)
  networks, _ = make_networks(config)

  def init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    params, extra = init_networks(networks, init_rng, blank)
    return State(jnp.int32(0), run_rng, params, tx.init(params), extra)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    loss = make_loss(config, networks, state.step)
    value, grads, extra, metrics = accumulated_grad(
      loss, state.params, state.extra, batch, rng, config.microbatches
    )
    updates, opt = tx.update(grads, state.opt, state.params, value=value)
    params = optax.apply_updates(state.params, updates)
    momentum = momentum_at(
      state.step, config.total_steps, **dict(config.momentum)
    )
    extra = follow(extra, params, momentum)
    metrics |= dict(loss=value, grad_norm=optax.global_norm(grads))
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  return System(init, step, make_predict(networks, config.mean, config.std))


def make_predict(networks: Networks, mean, std) -> Callable:
  """(state, batch) -> logits [b,k] of all four heads, and a vector [b,d].

  `logits_one_k`, `logits_mix_k`, `logits_one_q`, `logits_mix_q`; `logits` are
  the first of them. The paper reports the best of the four. `vector` is what
  the heads of k take, float32.
  """

  def predict(state, batch):
    image, outputs = normalize(batch['image'], mean, std), {}
    own, stats = pairs(state.params, state.extra)
    for which in 'kq':
      vector = networks.backbone.apply(
        {'params': own[f'backbone_{which}'], 'batch_stats': stats[which]},
        image,
        method='features',
      ).vector
      for head in HEADS:
        name = f'{head}_{which}'
        outputs[name.replace('head', 'logits')] = networks.head.apply(
          {'params': own[name]}, vector
        )
      outputs.setdefault('vector', vector.astype(jnp.float32))  # k comes first
    return {'logits': outputs['logits_one_k'], **outputs}

  return predict


def sharding(config) -> tuple:
  """The rules of the backbone, and the heads over their classes."""
  heads = ((r'(^|/)head_(one|mix)(_k)?/kernel$', (None, 'tensor')),)
  return (*heads, *classification.sharding(config))


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The parameters of a checkpoint: of AutoMix, or of the bare backbone.

  A network that the checkpoint has once is both q and k.
  """
  convert = classification.converter(make_networks(config)[1])
  return names.load(names.canonical(state_dict), convert, 'q')[0]


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """What `extra` holds of it: the networks k, and batch statistics."""
  convert = classification.converter(make_networks(config)[1])
  state_dict = names.canonical(state_dict)
  params_k, stats_k = names.load(state_dict, convert, 'k')
  _, stats_q = names.load(state_dict, convert, 'q')
  extra = {f'{name}_k': x for name, x in params_k.items()}
  stats = {stats_name('q'): stats_q, stats_name('k'): stats_k}
  return extra | {name: x for name, x in stats.items() if x}


def fresh(config) -> tuple[str, ...]:
  """Parameters that a checkpoint of the bare backbone does not have."""
  del config
  return (r'^(head_one|head_mix|mix_block)/',)
