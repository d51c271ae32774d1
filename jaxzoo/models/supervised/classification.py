"""Image classification: any backbone of `list_models()`, trained on labels.

The one system behind every paper whose contribution is a network. The recipe
is in the config: label smoothing, mixup and CutMix (models/losses/
classification.py), stochastic depth (a field of the network), averaged
parameters, decay of the learning rate by layer.
"""

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxzoo.compress.channels import kernel_positions
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards import Built, model_card
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.losses.classification import (
  binary_cross_entropy,
  cross_entropy,
  mix,
  mixing_weights,
  mixup_share,
  ramped_alpha,
  soft_targets,
  spread_targets,
)
from jaxzoo.system import System, from_loss
from jaxzoo.weights import layout

SHARDING = ()  # the network's own, see `sharding`
LOSSES = {'softmax': cross_entropy, 'binary': binary_cross_entropy}
TARGETS = {'all': soft_targets, 'others': spread_targets}
# Fields of the config that networks have where they are stacks of blocks.
STACKED = ('scan', 'remat')


def make_backbone(
  config, *, num_classes: int | None = None, fields: Mapping = {}
) -> Built:
  """The network of a config, with its name maps and without variables.

  Reads `model` (a name of `list_models()`), `model_options` (fields of its
  module: `drop_path`, `small_stem`, ...), `num_classes`, `image_size`,
  `in_chans`, `dtype`, and `scan` and `remat` where the module has them.

  Args:
    config: of a system around a classifier.
    num_classes: instead of the config's; 0: no classifier.
    fields: of the module, beside `model_options`.

  Raises:
    UserError: an unknown model or field, or a model that is no classifier.
  """
  if model_card(config.model).text_length:
    raise UserError(f'model={config.model}: it takes texts and has no classes')
  if num_classes is None and config.num_classes < 1:
    raise UserError(f'num_classes={config.num_classes}: it must be at least 1')

  def make(**options):
    return build_model(
      config.model,
      num_classes=config.num_classes if num_classes is None else num_classes,
      in_chans=config.in_chans,
      image_size=tuple(config.image_size),
      dtype=config.dtype,
      **options,
    )

  options = {name: _tuples(x) for name, x in config.model_options.items()}
  options |= fields
  bare = make(**options)
  stacked = {
    name: config[name]
    for name in STACKED
    if hasattr(bare.module, name) and name not in options
  }
  return make(**options, **stacked) if stacked else bare


def build(config, tx: optax.GradientTransformation) -> System:
  """Classification, with `extra['batch_stats']` if the network has any.

  A training batch has `image` uint8 [b,h,w,c] and `label` int32 [b]; its
  metric `accuracy` is on the label with the larger share where images are
  mixed. A network with several heads (a distilled one without its teacher)
  learns the mean of their losses. `predict` takes `image` and gives `logits`
  [b,num_classes] and `vector` [b,d], what the classifier takes, float32.

  Args:
    config: as for `make_backbone`, with `mean` and `std` of the channels,
      `microbatches`, and loss: `kind`, 'softmax' or 'binary' (each class for
      itself); `label_smoothing`, over `smoothed`, 'all' classes or the
      'others'; `mixup` and `cutmix`, the parameters of their Beta
      distributions, 0 for off; `mixup_switch`, the probability of CutMix where
      both are on; `mixup_prob`, of mixing a batch at all; `mixup_ramp`, epochs
      over which the parameter of mixup alone grows from 0 (`epochs` and
      `total_steps` say which one it is; `extra['steps']` counts). With
      microbatches, the images of a part are mixed with each other.
    tx: the optimizer.

  Raises:
    UserError: an unknown model, field or loss.
  """
  check_loss(config.loss)
  _check_ramp(config.loss)
  module = make_backbone(config).module
  compare = LOSSES[config.loss.kind]
  prepare = lambda image: normalize(
    image, config.mean, config.std, jnp.dtype(config.dtype)
  )

  def init(rng, batch):
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    variables = module.init(rng, blank)
    counted = {'steps': jnp.int32(0)} if config.loss.mixup_ramp else {}
    return variables['params'], {**statistics(variables), **counted}

  def count(params, extra):
    return params, {**extra, 'steps': extra['steps'] + 1}

  def loss(params, extra, batch, rng):
    mix_rng, dropout_rng = jax.random.split(rng)
    image, targets, labels = mixed(batch, mix_rng, config, extra.get('steps'))
    logits, updated = module.apply(
      {'params': params, **statistics(extra)},
      prepare(image),
      True,
      rngs={'dropout': dropout_rng},
      mutable=['batch_stats'],
    )
    heads = jax.tree.leaves(logits)
    value = sum(compare(head, targets) for head in heads) / len(heads)
    right = sum(heads).argmax(-1) == labels
    metrics = {'accuracy': right.mean(dtype=jnp.float32)}
    return value, ({**extra, **updated}, metrics)

  def predict(params, extra, batch):
    vector, logits = module.apply(
      {'params': params, **statistics(extra)},
      prepare(batch['image']),
      method=_vector_and_logits,
    )
    heads = jax.tree.leaves(logits)
    return {
      'logits': sum(heads).astype(jnp.float32) / len(heads),
      'vector': jnp.concatenate(
        [
          x.astype(jnp.float32).reshape(x.shape[0], -1)
          for x in jax.tree.leaves(vector)
        ],
        axis=-1,
      ),
    }

  return from_loss(
    init,
    loss,
    predict,
    tx,
    advance=count if config.loss.mixup_ramp else None,
    microbatches=config.microbatches,
  )


def check_loss(fields) -> None:
  """Raises UserError for fields of `config.loss` that no loss can have."""
  for name, known in (('kind', LOSSES), ('smoothed', TARGETS)):
    if fields[name] not in known:
      raise UserError(
        f'loss.{name}: no {fields[name]!r}; ' + nearest(fields[name], known)
      )
  for name in ('label_smoothing', 'mixup_switch', 'mixup_prob'):
    if not 0 <= fields[name] <= 1:
      raise UserError(f'loss.{name}={fields[name]}: it must be in [0, 1]')
  for name in ('mixup', 'cutmix'):
    if not fields[name] >= 0:
      raise UserError(f'loss.{name}={fields[name]}: it must not be negative')


def _check_ramp(fields) -> None:
  ramp = fields.mixup_ramp
  if ramp < 0:
    raise UserError(f'loss.mixup_ramp={ramp}: it must not be negative')
  if ramp and (fields.cutmix or fields.mixup_prob < 1):
    raise UserError(
      f'loss.mixup_ramp={ramp} is of mixup alone: set loss.cutmix=0 and '
      'loss.mixup_prob=1'
    )


def mixed(batch, rng, config, steps=None):
  """(images, targets [b,k], labels with the larger share) of a batch.

  `steps` done so far are given where mixup comes in slowly.
  """
  image, labels, fields = batch['image'], batch['label'], config.loss
  targets = TARGETS[fields.smoothed](
    labels, config.num_classes, fields.label_smoothing
  )
  if fields.mixup or fields.cutmix:
    if steps is not None:
      epoch = jnp.floor(steps * (config.epochs / max(config.total_steps, 1)))
      share = mixup_share(
        rng, ramped_alpha(epoch, fields.mixup, fields.mixup_ramp)
      )
      weights = jnp.full(image.shape[1:3], share)
    else:
      weights = mixing_weights(
        rng,
        *image.shape[1:3],
        mixup=fields.mixup,
        cutmix=fields.cutmix,
        switch=fields.mixup_switch,
        prob=fields.mixup_prob,
      )
      share = weights.mean()
    image = mix(image.astype(jnp.float32) / 255, weights[..., None])
    targets = mix(targets, share)
    labels = jnp.where(share >= 0.5, labels, labels[::-1])
  return image, targets, labels


def _vector_and_logits(module, image):
  vector = module.features(image).vector
  return vector, module.classify(vector)


def statistics(variables) -> dict:
  """{'batch_stats': ...} of variables or extras, {} where there are none.

  Other extras, averages among them, are no variables of the network.
  """
  return {
    name: variables[name] for name in ('batch_stats',) if name in variables
  }


def _tuples(value: Any) -> Any:
  """Lists as tuples, which modules compare: configs read back have lists."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_tuples, value))
  return value


def sharding(config) -> tuple:
  """The rules of the config's network."""
  place = model_card(config.model).builder.partition(':')[0]
  return importlib.import_module(place).SHARDING


def channel_groups(config) -> tuple:
  """The channels of the config's network that structured pruning may remove.

  Raises:
    UserError: its family exports none.
  """
  place = model_card(config.model).builder.partition(':')[0]
  export = getattr(importlib.import_module(place), 'channel_groups', None)
  if export is None:
    raise UserError(
      f'model={config.model}: its channels cannot be pruned, for it exports '
      'no channel groups; residual and mobile networks and ViT do'
    )
  return export(make_backbone(config).module)


def structure(config) -> tuple[tuple, dict[str, int]]:
  """(channel groups, positions of the kernels) for structured pruning.

  See `compress.channels.kernel_positions`. Raises UserError as
  `channel_groups` does.
  """
  built = make_backbone(config)
  return channel_groups(config), kernel_positions(built.module, *built.inputs)


def compacted(config, widths: Mapping[str, int]):
  """The module of the config's network with so many channels by group."""
  return make_backbone(config, fields={'widths': tuple(widths.items())}).module


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Published weights of the config's network as parameters.

  Any spelling that `create_model(weights=...)` takes; positions are resized to
  `config.image_size`, the stem is folded to `config.in_chans`.
  """
  return _converted(state_dict, config)['params']


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """What `extra` takes from published weights: statistics of batch norms."""
  return statistics(_converted(state_dict, config))


def export(params: Mapping, extra: Mapping, config) -> dict[str, np.ndarray]:
  """`convert` and `convert_extra` undone: the published names."""
  return make_backbone(config).export({'params': params, **statistics(extra)})


def _converted(state_dict, config) -> dict:
  return converter(make_backbone(config))(state_dict)


def converter(built: Built) -> Callable[[Mapping], dict]:
  """Published state dict -> variables in the layout of the module."""
  like = _shapes(built)
  return lambda tensors: layout.to_layout(built.convert(tensors), like)


def _shapes(built: Built) -> dict:
  blank = [jnp.zeros(x.shape, x.dtype) for x in built.inputs]
  return jax.eval_shape(lambda: built.module.init(jax.random.key(0), *blank))


def fresh(config) -> tuple[str, ...]:
  """Paths that published weights may lack or have in another shape.

  Those of the classifier, where the classes are not the published ones. One
  of the right shape, of a network that was fine-tuned, is taken all the same.
  """
  built = make_backbone(config)
  if config.num_classes == model_card(config.model).num_classes:
    return ()
  is_head = re.compile(built.head or '$^').search
  return tuple(
    f'^{re.escape(path.partition("/")[2])}$'
    for path in layout.flatten(_shapes(built))
    if is_head(path)
  )
