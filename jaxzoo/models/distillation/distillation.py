"""Distillation: a frozen teacher, a student, and losses between them.

Teacher and student are any two networks of `list_models()`; what the student
takes from the teacher is a list of terms from the config (`terms.py`), added to
its loss on the labels.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.distillation.terms import Outputs, make_terms
from jaxzoo.models.layers.convolution import global_pool
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.supervised import classification, segmentation
from jaxzoo.system import System, averaged, from_loss

SHARDING = ()  # the networks' own, see `sharding`


def teacher_config(config):
  """`config` with the teacher's network in the place of the student's."""
  own = config.copy_and_resolve_references().unlock()
  for name in ('model', 'model_options', 'mean', 'std', 'dtype'):
    own[name] = config.teacher[name]
  return own


class Task(NamedTuple):
  """What networks of a task are for.

  Attributes:
    make: config -> module.
    look: (module, normalised images, train) -> Outputs.
    check: raises UserError for fields of the config that cannot be.
    targets: (batch, rng, config) -> (images, what `base` takes).
    base: (outputs, targets, config) -> (loss on the labels, metrics).
    answer: (outputs, image) -> what `predict` gives.
    levels: outputs -> the maps that the task can be continued from.
    proceed: (module, variables, outputs, maps) -> the outputs with these maps
      in place of `levels`.
  """

  make: Callable
  look: Callable
  check: Callable
  targets: Callable
  base: Callable
  answer: Callable
  levels: Callable
  proceed: Callable


def _classify(module, image, train: bool = False) -> Outputs:
  features = module.features(image, train)
  logits = module.classify(features.vector, train)
  heads = jax.tree.leaves(logits)
  mean = sum(head.astype(jnp.float32) for head in heads) / len(heads)
  vectors = [
    x.astype(jnp.float32).reshape(x.shape[0], -1)
    for x in jax.tree.leaves(features.vector)
  ]
  return Outputs(features.maps, jnp.concatenate(vectors, axis=-1), mean)


def _pooled(module, variables, outputs, maps) -> Outputs:
  """Classification of the mean of the last map.

  Raises:
    UserError: that is not what the network classifies.
  """
  (last,) = maps.values()
  vector = global_pool(last)
  if vector.shape != outputs.vector.shape:
    raise UserError(
      f'the vector {outputs.vector.shape} of {type(module).__name__} is not '
      f'the mean of its last map {last.shape}; choose another network'
    )
  logits = module.apply(variables, vector, method='classify')
  return outputs._replace(vector=vector, logits=logits.astype(jnp.float32))


def _mixed(batch, rng, config):
  image, targets, labels = classification.mixed(batch, rng, config)
  return image, (targets, labels)


def _label_loss(outputs, targets, config):
  targets, labels = targets
  compare = classification.LOSSES[config.loss.kind]
  right = outputs.logits.argmax(-1) == labels
  return (
    compare(outputs.logits, targets),
    {'accuracy': right.mean(dtype=jnp.float32)},
  )


def _segment(module, image, train: bool = False) -> Outputs:
  levels, logits = module(image, train)
  return Outputs(levels, None, logits.astype(jnp.float32))


def _decoded(module, variables, outputs, maps) -> Outputs:
  logits = module.apply(variables, maps, method='decode')
  return outputs._replace(maps=maps, logits=logits.astype(jnp.float32))


def _pixel_loss(outputs, classes, config):
  del config
  value, right = segmentation.pixel_loss(outputs.logits, classes)
  return value, {'pixel_accuracy': right}


TASKS = {
  'classification': Task(
    make=lambda config: classification.make_backbone(config).module,
    look=_classify,
    check=lambda config: classification.check_loss(config.loss),
    targets=_mixed,
    base=_label_loss,
    answer=lambda outputs, image: {
      'logits': outputs.logits,
      'vector': outputs.vector,
    },
    levels=lambda outputs: dict([[*outputs.maps.items()][-1]]),
    proceed=_pooled,
  ),
  'segmentation': Task(
    make=segmentation.make_segmenter,
    look=_segment,
    check=lambda config: None,
    targets=lambda batch, rng, config: (batch['image'], batch['classes']),
    base=_pixel_loss,
    answer=lambda outputs, image: {
      'classes': segmentation.predicted(outputs.logits, image.shape[1:3])
    },
    levels=lambda outputs: outputs.maps,
    proceed=_decoded,
  ),
}


def make_teacher(config):
  """The teacher's module."""
  return task_of(config).make(teacher_config(config))


def build(config, tx: optax.GradientTransformation) -> System:
  """Distillation; `params` are {'student': ..., 'aux': {term: ...}}.

  `extra['teacher']` holds the teacher's variables, which no gradient reaches,
  `extra['frozen']` what terms have learned before, `extra['batch_stats']` the student's and the terms', `extra['calls']` the
  updates so far. Batches and what `predict` gives are those of the student's
  task; a batch may have `teacher_logits`, which then stand for the teacher's.

  Args:
    config: `task`, 'classification' or 'segmentation'; as for its `build`, of
      the student; `distill`, the terms
      by name, see `terms.make_terms`; `teacher`: `model`, `model_options`,
      `mean`, `std`, `dtype` of its computation, `param_dtype` of what is kept;
      `loss.base_weight`, of the loss on the labels.
    tx: the optimizer of student and terms.

  Raises:
    UserError: an unknown model, field, loss or term.
  """
  task = task_of(config)
  task.check(config)
  student, terms = task.make(config), make_terms(config.distill)
  teacher = make_teacher(config) if terms else None
  prepare = lambda image: normalize(
    image, config.mean, config.std, jnp.dtype(config.dtype)
  )

  def loss(params, extra, batch, rng):
    mix_rng, dropout_rng, terms_rng = jax.random.split(rng, 3)
    image, targets = task.targets(batch, mix_rng, config)
    stats = extra['batch_stats']
    own, updated = student.apply(
      _variables(params['student'], stats['student']),
      prepare(image),
      True,
      method=task.look,
      rngs={'dropout': dropout_rng},
      mutable=['batch_stats'],
    )
    base, metrics = task.base(own, targets, config)
    value, aux = config.loss.base_weight * base, {}
    if terms:
      taught = _teach(teacher, task, extra['teacher'], batch, image, config)
      more, parts, aux = _add_up(
        terms, config.distill, params['aux'], extra, own, taught, terms_rng
      )
      value, metrics = value + more, {**metrics, **parts}
    stats = {'student': _stats(updated), 'aux': aux}
    return value, ({**extra, 'batch_stats': stats}, {'base': base, **metrics})

  def predict(params, extra, batch):
    outputs = student.apply(
      _variables(params['student'], extra['batch_stats']['student']),
      prepare(batch['image']),
      method=task.look,
    )
    return task.answer(outputs, batch['image'])

  def advance(params, extra):
    return params, {**extra, 'calls': extra['calls'] + 1}

  return from_loss(
    make_init(config, task, student, teacher, terms),
    loss,
    predict,
    tx,
    advance=advance,
    microbatches=config.microbatches,
  )


def task_of(config) -> Task:
  """The task of a config.

  Raises:
    UserError: there is no such task.
  """
  if config.task not in TASKS:
    raise UserError(f'task: no {config.task!r}; ' + nearest(config.task, TASKS))
  return TASKS[config.task]


def make_init(config, task: Task, student, teacher, terms) -> Callable:
  """(rng, batch) -> (params, extra), see `build`."""

  def init(rng, batch):
    rng, teacher_rng, *keys = jax.random.split(rng, 2 + len(terms))
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    variables = student.init(rng, blank)
    params = {'student': variables['params'], 'aux': {}}
    stats = {'student': _stats(variables), 'aux': {}}
    extra = {'batch_stats': stats, 'calls': jnp.int32(0)}
    if not terms:
      return params, extra
    extra['teacher'] = jax.tree.map(
      lambda x: x.astype(config.teacher.param_dtype),
      teacher.init(teacher_rng, blank),
    )
    extra['frozen'] = {}
    own = _zeros(student, task.look, variables, blank)
    taught = _zeros(teacher, task.look, extra['teacher'], blank)
    for key, (name, term) in zip(keys, terms.items(), strict=True):
      made = term.init(key, own, taught)
      params['aux'][name] = made.get('params', {})
      stats['aux'][name] = _stats(made)
      extra['frozen'][name] = made.get('frozen', {})
    return params, extra

  return init


def _add_up(terms, fields, params, extra, own, taught, rng):
  """(weighted sum of the terms, metrics, their new statistics)."""
  value, metrics, stats = 0.0, {}, {}
  for i, (name, term) in enumerate(terms.items()):
    variables = {
      **_variables(params[name], extra['batch_stats']['aux'][name]),
      'frozen': extra['frozen'][name],
    }
    key = jax.random.fold_in(rng, i)
    part, more, stats[name] = term.loss(
      variables, own, taught, key, extra['calls']
    )
    value += fields[name].weight * part
    metrics[name] = part
    metrics |= {f'{name}/{label}': x for label, x in more.items()}
  return value, metrics, stats


def _teach(teacher, task, variables, batch, image, config) -> Outputs:
  """The teacher's outputs of the same images; no gradient goes there."""
  fields = config.teacher
  outputs = teacher.apply(
    jax.lax.stop_gradient(variables),
    normalize(image, fields.mean, fields.std, jnp.dtype(fields.dtype)),
    method=task.look,
  )
  if 'teacher_logits' in batch:  # then nothing of the teacher's is computed
    outputs = outputs._replace(logits=batch['teacher_logits'])
  return jax.lax.stop_gradient(outputs)


def _zeros(module, look, variables, image) -> Outputs:
  """Blank outputs of the shapes that a network has for an image."""
  shapes = jax.eval_shape(
    lambda variables: module.apply(variables, image, method=look), variables
  )
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _stats(variables) -> dict:
  return dict(variables.get('batch_stats', {}))


def _variables(params, stats) -> dict:
  return {'params': params, **({'batch_stats': stats} if stats else {})}


def sharding(config) -> tuple:
  """The rules of both networks."""
  own = classification.sharding(config)
  taught = classification.sharding(teacher_config(config))
  return (*own, *(rule for rule in taught if rule not in own))


# Weights: a published student, a published teacher, or a run's.


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint of the student's network as its parameters."""
  return {'student': classification.convert(state_dict, config)}


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Statistics of the student's batch norms from a published checkpoint."""
  stats = classification.convert_extra(state_dict, config)
  if not stats:
    return {}
  return {'batch_stats': {'student': stats['batch_stats']}}


def convert_teacher(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """`extra['teacher']` of a published checkpoint of the teacher's network."""
  own = teacher_config(config)
  built = classification.make_backbone(own)
  return classification.converter(built)(state_dict)


def from_stages(states: Mapping[str, tuple[Any, Any]], config):
  """({}, extra): a teacher that was trained before, and MasKD's tokens.

  Raises:
    UserError: the teacher is another network than `config.teacher` says.
  """
  extra = {}
  if config.distill and 'teacher' in states:
    extra['teacher'] = take_teacher(*states['teacher'], config)
  if 'maskd' in config.distill and 'tokens' in states:
    _, state = states['tokens']
    extra['frozen'] = {'maskd': jax.tree.map(jnp.copy, state.params)}
  return {}, extra


def take_teacher(trained, state, config) -> dict:
  """Variables of a finished run whose network `config.teacher` describes.

  Raises:
    UserError: it does not.
  """
  for name in ('model', 'model_options', 'mean', 'std'):
    there, here = _plain(trained[name]), _plain(config.teacher[name])
    if there != here:
      raise UserError(
        f'stages.teacher was trained with {name}={there}, but '
        f'teacher.{name}={here}: make them equal'
      )
  return _variables(*averaged(state))


def _plain(value):
  if hasattr(value, 'to_dict'):
    value = value.to_dict()
  if isinstance(value, dict):
    return {key: _plain(x) for key, x in value.items()}
  return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


def fresh(config) -> tuple[str, ...]:
  """Paths that published weights of the student may lack."""
  own = [
    pattern.replace('^', '^student/', 1)
    for pattern in classification.fresh(config)
  ]
  return ('^aux/', *own)
