"""MBN: classification with memorized batch normalisation, in two passes.

arXiv 2010.04947 (AAAI 2018). The norm remembers the statistics of recent
batches (`layers/memorized_norm.py`), in training as in inference. A step is a
forward and backward pass, the update, and a second forward pass of the same
batch with the updated parameters, whose statistics take the place of the first
pass's: what the memory holds belongs to the parameters that it is used with.

No code has been published. What the paper leaves open is chosen, see spec mbn.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards import Built
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.memorized_norm import MemorizedNorm, mixture_moments
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.losses.classification import cross_entropy, soft_targets
from jaxzoo.models.supervised import classification
from jaxzoo.system import State, System, accumulated_grad
from jaxzoo.weights import layout

NORMS = ('memorized', 'batch')
SHARDING = ()  # the network's own, see `sharding`
sharding = classification.sharding


def make_norm(config) -> Any:
  """The norm of `config.norm`, as networks take one: a module of theirs to be.

  Raises:
    UserError: no such norm, or an empty memory.
  """
  options = config.norm
  if options.kind not in NORMS:
    raise UserError(
      f'norm.kind: no {options.kind!r}; ' + nearest(options.kind, NORMS)
    )
  if options.kind == 'batch':
    return BatchNorm
  if options.memory_size < 1:
    raise UserError(
      f'norm.memory_size={options.memory_size}: it must be at least 1, which '
      'is the current batch alone'
    )
  return functools.partial(
    MemorizedNorm, memory_size=options.memory_size, decay=options.decay
  )


def make_network(config) -> Built:
  """The network of `config` with its norm.

  Raises:
    UserError: an unknown model, an option that it does not have, or a network
      whose norm cannot be chosen.
  """
  return classification.make_backbone(
    config, fields={'norm': make_norm(config)}
  )


def build(config, tx: optax.GradientTransformation) -> System:
  """MBN as a system.

  Args:
    config: fields of `classification.make_backbone`, with a model whose norm is
      a field (residual networks): CIFAR's ResNet-20 is 'resnet18' with
      model_options dict(depths=(3, 3, 3), width=16, small_stem=True), ResNet-56
      has depths (9, 9, 9); `mean` and `std` of the images; `microbatches`;
      norm: `kind`, 'memorized' or 'batch', `memory_size` (8), `decay` (0.9);
      loss: `double_forward`; `label_smoothing`; `log_layers`, see
      `make_system`, as `batch_logits`.
    tx: the optimizer.

  Returns:
    The system, see `make_system`.

  Raises:
    UserError: an option that does not exist, or two passes with batch norm.
  """
  options = config.loss
  if options.double_forward and config.norm.kind == 'batch':
    raise UserError(
      "loss.double_forward needs norm.kind='memorized': a running average "
      'cannot replace its last batch; set it to False'
    )
  return make_system(
    make_network(config).module,
    tx,
    mean=config.mean,
    std=config.std,
    double_forward=options.double_forward,
    decay=config.norm.decay,
    label_smoothing=options.label_smoothing,
    log_layers=options.log_layers,
    batch_logits=options.batch_logits,
    microbatches=config.microbatches,
  )


def make_system(
  module,
  tx: optax.GradientTransformation,
  *,
  mean=(0.0, 0.0, 0.0),
  std=(1.0, 1.0, 1.0),
  double_forward: bool = True,
  decay: float = 0.9,
  label_smoothing: float = 0.0,
  log_layers: bool = False,
  batch_logits: bool = False,
  microbatches: int = 1,
) -> System:
  """A classifier whose norms may be looked at twice.

  Args:
    module: (images [b,h,w,c], train) -> logits [b,k].
    tx: the optimizer.
    mean: of the images, see `layers/image.py`.
    std: likewise.
    double_forward: whether there is a second pass.
    decay: of the norms, for the metrics.
    label_smoothing: of the targets.
    log_layers: the shift is a metric of each layer, not only their mean.
    batch_logits: `predict` gives `batch_logits` too: normalised as in training,
      the batch counted in, with nothing stored after.
    microbatches: see `jaxzoo.system.from_loss`; each is a batch of its own for
      the memory.

  Returns:
    The system. Batches have `image` and `label`. Metrics: `loss`, `accuracy`
    (of the first pass), `grad_norm`, with two passes `log_shift`, see
    `memory_shift`. `predict` gives `logits`, normalised by what is stored.
  """
  forward = make_forward(module, mean, std)

  def init(rng, batch):
    init_rng, run_rng = jax.random.split(rng)
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    extra = dict(module.init(init_rng, blank))
    params = extra.pop('params')
    return State(jnp.int32(0), run_rng, params, tx.init(params), extra)

  def predict(state, batch):
    variables = {
      'params': state.params,
      **classification.statistics(state.extra),
    }
    image = normalize(batch['image'], mean, std)
    outputs = {'logits': module.apply(variables, image)}
    if batch_logits:
      outputs['batch_logits'], _ = forward(
        state.params, state.extra, batch, state.rng
      )
    return outputs

  one = make_step(forward, tx, label_smoothing, microbatches)
  if not double_forward:
    return System(init, one, predict)
  two = twice(one, forward, decay, log_layers, microbatches)
  return System(init, two, predict)


def make_forward(module, mean, std) -> Callable:
  """(params, extra, batch, rng) -> (logits, extra with new statistics)."""

  def forward(params, extra, batch, rng):
    logits, updated = module.apply(
      {'params': params, **classification.statistics(extra)},
      normalize(batch['image'], mean, std),
      True,
      mutable=['batch_stats'],
      rngs={'dropout': rng},
    )
    return logits, {**extra, **updated}

  return forward


def make_step(
  forward: Callable,
  tx: optax.GradientTransformation,
  label_smoothing: float,
  microbatches: int,
) -> Callable:
  """(state, batch) -> (state, metrics): one pass, and the update."""
  tx = optax.with_extra_args_support(tx)

  def loss(params, extra, batch, rng):
    logits, extra = forward(params, extra, batch, rng)
    targets = soft_targets(batch['label'], logits.shape[-1], label_smoothing)
    metrics = {'accuracy': accuracy(logits, batch['label'])}
    return cross_entropy(logits, targets), (extra, metrics)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    value, grads, extra, metrics = accumulated_grad(
      loss, state.params, state.extra, batch, rng, microbatches
    )
    updates, opt = tx.update(grads, state.opt, state.params, value=value)
    params = optax.apply_updates(state.params, updates)
    metrics |= dict(loss=value, grad_norm=optax.global_norm(grads))
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  return step


def twice(
  step: Callable,
  forward: Callable,
  decay: float,
  log_layers: bool,
  microbatches: int,
) -> Callable:
  """A step with a second pass of its batch, under the updated parameters.

  The pass starts from the statistics before the step: pushed onto them, those
  of the updated parameters stand where the first pass's stood, and deeper
  layers see what is normalised by them already.
  """

  def remember(params, extra, batch, rng):
    # A loss that is always 0: what matters are the statistics in `extra`.
    _, extra = forward(jax.lax.stop_gradient(params), extra, batch, rng)
    return jnp.float32(0), (extra, {})

  def both(state, batch):
    after, metrics = step(state, batch)
    _, _, extra, _ = accumulated_grad(
      remember,
      after.params,
      state.extra,
      batch,
      jax.random.fold_in(state.rng, state.step),  # as the first pass
      microbatches,
    )
    shifts = memory_shift(
      after.extra['batch_stats'], extra['batch_stats'], decay
    )
    metrics['log_shift'] = sum(shifts.values()) / len(shifts)
    if log_layers:
      metrics |= {f'log_shift/{name}': x for name, x in shifts.items()}
    return after._replace(extra=extra), metrics

  return both


def accuracy(
  logits: Float[Array, 'b k'], labels: Int[Array, ' b']
) -> Float[Array, '']:
  """Share of examples whose largest logit is the right one's."""
  return jnp.mean(logits.argmax(-1) == labels, dtype=jnp.float32)


def train_test_gap(
  logits: Float[Array, 'b k'],
  batch_logits: Float[Array, 'b k'],
  labels: Int[Array, ' b'],
) -> Float[Array, '']:
  """|accuracy with the batch's statistics - accuracy with stored ones|.

  Of what `predict` gives with `batch_logits`; 0 is the aim of the method.
  """
  return jnp.abs(accuracy(logits, labels) - accuracy(batch_logits, labels))


def memory_shift(
  old: Mapping, new: Mapping, decay: float
) -> dict[str, Float[Array, '']]:
  """log |mu_new - mu_old| of every layer: what the second pass takes away.

  Args:
    old: `batch_stats` after the first pass.
    new: `batch_stats` after the second.
    decay: of the norms.
  """

  def means(stats):
    flat = layout.flatten(stats)
    layers = [
      path.removesuffix('/memory_mean')
      for path in flat
      if path.endswith('/memory_mean')
    ]
    memory = lambda layer: [
      flat[f'{layer}/{leaf}'] for leaf in ('memory_mean', 'memory_var', 'count')
    ]
    return {x: mixture_moments(*memory(x), decay)[0] for x in layers}

  old, new = means(old), means(new)
  return {
    # Finite where nothing moves: at a learning rate of 0.
    layer: jnp.log(jnp.maximum(jnp.linalg.norm(new[layer] - old[layer]), 1e-12))
    for layer in old
  }


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The parameters of a checkpoint of `config.model`, in its own names.

  A memorized norm has the scale and bias of a batch norm.
  """
  converted = make_network(config).convert(state_dict)
  converted.pop('batch_stats', None)
  # What no row names stays, to be reported.
  return {**converted.pop('params', {}), **converted}


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Its statistics: a running average is the one entry of the memory."""
  stats = make_network(config).convert(state_dict).get('batch_stats', {})
  if config.norm.kind == 'memorized':
    stats = remembered(stats, config.norm.memory_size)
  return {'batch_stats': stats} if stats else {}


def remembered(stats: Mapping, memory_size: int) -> dict:
  """Batch norms' running statistics as memories with one entry."""
  flat = {}
  for path, value in layout.flatten(stats).items():
    layer, _, leaf = path.rpartition('/')
    memory = np.full((memory_size, *value.shape), float(leaf == 'var'))
    memory[0] = value
    flat[f'{layer}/memory_{leaf}'] = memory.astype(np.float32)
    flat[f'{layer}/count'] = np.float32(1)
  return layout.unflatten(flat)


sharding = classification.sharding
fresh = classification.fresh
