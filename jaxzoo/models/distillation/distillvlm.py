"""DistillVLM: attention and hidden states of a vision-language teacher.

Fang et al., arXiv 2104.02096, ICCV 2021. The teacher is adapted to the regions
that the student's detector proposes, so that the two see the same tokens; then
maps of attention and hidden states can be compared token by token. No code is
public: structure and steps are the paper's, the weights of the losses, the
temperature and the size of the queue this project's.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.distillation import region_transformer
from jaxzoo.models.distillation.region_transformer import (
  SHARDING as SHARDING,
)
from jaxzoo.models.distillation.region_transformer import (
  RegionTransformer,
  write_captions,
)
from jaxzoo.models.distillation.vision_language import (
  HEADS,
  Head,
  look,
  mean_over,
  task_of,
)
from jaxzoo.models.layers.norm import at_least_float32
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.models.losses.queue import random_queue
from jaxzoo.system import System, averaged, from_loss


def attention_loss(
  attention: Float[Array, 'b heads n n'],
  teacher_attention: Float[Array, 'b heads n n'],
  valid: Bool[Array, 'b n'],
) -> Float[Array, '']:
  """Mean squared error of the attention over heads and valid pairs.

  Args:
    attention: probabilities of the student's last layer.
    teacher_attention: of the teacher's; no gradient goes to them.
    valid: tokens that are not padding.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  error = wide(attention) - jax.lax.stop_gradient(wide(teacher_attention))
  pairs = valid[:, None, :, None] & valid[:, None, None, :]
  total = jnp.sum(jnp.where(pairs, error * error, 0))
  return total / jnp.maximum(pairs.sum() * attention.shape[1], 1)


def hidden_loss(
  hidden: Float[Array, 'b n d'],
  teacher_hidden: Float[Array, 'b n d'],
  valid: Bool[Array, 'b n'],
  queue: Float[Array, 'k d'],
  temperature: float = 0.07,
) -> Float[Array, '']:
  """-log exp(z.k / tau) / (exp(z.k / tau) + sum_q exp(z.q / tau)) a token.

  The mean over valid tokens. z is the student's token, k the teacher's at the
  same place, both normalised here, q the queue.

  Args:
    hidden: of the student, projected to the teacher's width.
    teacher_hidden: no gradient goes to it.
    valid: tokens that are not padding.
    queue: the teacher's tokens of earlier batches, unit vectors.
    temperature: tau.
  """
  z = l2_normalize(hidden)
  k = jax.lax.stop_gradient(l2_normalize(teacher_hidden))
  positive = jnp.sum(z * k, axis=-1, keepdims=True)
  negative = jnp.einsum(
    'bnd,kd->bnk',
    z,
    jax.lax.stop_gradient(queue),
    precision=jax.lax.Precision.HIGHEST,
  )
  logits = jnp.concatenate([positive, negative], axis=-1) / temperature
  values = -jax.nn.log_softmax(logits, axis=-1)[..., 0]
  return jnp.sum(jnp.where(valid, values, 0)) / jnp.maximum(valid.sum(), 1)


def enqueue_tokens(
  queue: Float[Array, 'k d'],
  tokens: Float[Array, 'b n d'],
  valid: Bool[Array, 'b n'],
) -> Float[Array, 'k d']:
  """The valid tokens, normalised, before the old queue, cut to its length.

  Shapes are static: a token's place is the number of valid ones before it.
  """
  size, flat = len(queue), valid.reshape(-1)
  count = flat.sum()
  place = jnp.where(flat, jnp.cumsum(flat) - 1, size)  # size: dropped
  moved = jnp.roll(queue, count, axis=0)
  # A roll brings what falls off the end back to the front: where the batch
  # has fewer tokens than the queue, they are overwritten next, and where it
  # has more, all of it is.
  return moved.at[place].set(
    l2_normalize(tokens.reshape(-1, tokens.shape[-1])).astype(queue.dtype),
    mode='drop',
  )


def logit_loss(own: Head, taught: Head) -> Float[Array, '']:
  """-sum_k softmax(t)_k log softmax(z)_k, the mean over rows that count."""
  targets = jax.nn.softmax(jax.lax.stop_gradient(taught.logits))
  values = -jnp.sum(targets * jax.nn.log_softmax(own.logits), axis=-1)
  return mean_over(values, own.weight)


def build(config, tx: optax.GradientTransformation) -> System:
  """DistillVLM; `params` are {'student': ..., 'projection': ...}.

  The projection, from the student's width to the teacher's, is there with the
  hidden-state loss alone. `extra['teacher']` has the teacher's parameters,
  `extra['queue']` its tokens of earlier batches.

  A batch has `words` int32 [b, text and tags], `regions` [b,r,d] and
  `region_count`; with a teacher `teacher_regions` [b,r,e], its own features of
  the same boxes; for 'pretrain' and 'caption' `labels` [b, text and tags], the
  words that were masked and 0 elsewhere; for 'pretrain' `match` [b]; for 'vqa'
  `answers` [b,k], soft targets. `predict` gives rows `answer` and `score` (vqa);
  `caption` and `score`; or, of `pretrain`, `words_right`, `words` (how many)
  and `match_right`.

  Args:
    config: `task`: 'pretrain', 'vqa' or 'caption'; `network` and
      `teacher.network`: `width`, `depth`, `num_heads`, `dropout`, `init_std`;
      `vocab_size`, `special_ids`, `text_length`, `tag_length`, `num_answers`;
      `loss`: the weight of each head, `word_budget`; `distill`: the weights
      `attention`, `hidden`, `logits`, of which one at 0 is not computed,
      `temperature`, `queue_size`; `beam`: `width`, `length_penalty`;
      `teacher`: `dtype` of its computation, `param_dtype` of what is kept.
    tx: the optimizer.

  Raises:
    UserError: no such task, or attention of different numbers of heads.
  """
  task, budget = task_of(config), config.loss.word_budget
  student, teacher = make_network(config, config.network), None
  if taught(config):
    teacher = make_teacher(config)
    _check(config)

  def loss(params, extra, batch, rng):
    encoded, heads = student.apply(
      {'params': params['student']},
      batch['regions'],
      batch,
      budget,
      True,
      method=look,
      rngs={'dropout': rng},
    )
    value, metrics = 0.0, {}
    for name, head in heads.items():
      part, metrics[f'{name}_accuracy'] = task.losses[name](head)
      value += config.loss[name] * part
      metrics[f'{name}_loss'] = part
    if teacher is not None:
      more, extra, parts = teach(params, extra, batch, encoded, heads)
      value, metrics = value + more, {**metrics, **parts}
    return value, (extra, metrics)

  def teach(params, extra, batch, encoded, heads):
    above, taught_heads = jax.lax.stop_gradient(
      teacher.apply(
        {'params': extra['teacher']},
        batch['teacher_regions'],
        batch,
        budget,
        method=look,
      )
    )
    parts, valid, fields = {}, encoded.valid, config.distill
    if fields.attention:
      parts['attention'] = attention_loss(
        encoded.attention, above.attention, valid
      )
    if fields.hidden:
      z = encoded.hidden @ params['projection']['kernel']
      parts['hidden'] = hidden_loss(
        z, above.hidden, valid, extra['queue'], fields.temperature
      )
      # After the loss: else the positive would be among the negatives.
      queue = enqueue_tokens(extra['queue'], above.hidden, valid)
      extra = {**extra, 'queue': queue}
    if fields.logits:
      parts['logits'] = sum(
        config.loss[name] * logit_loss(head, taught_heads[name])
        for name, head in heads.items()
      )
    total = sum(fields[name] * part for name, part in parts.items())
    return total, extra, {f'{k}_distance': x for k, x in parts.items()}

  return from_loss(
    make_init(config, student, teacher),
    loss,
    make_predict(config, student),
    tx,
    microbatches=config.microbatches,
  )


def make_network(config, fields) -> RegionTransformer:
  """The student, of `config.network`, or the teacher."""
  return RegionTransformer(
    config.vocab_size,
    fields.width,
    fields.depth,
    fields.num_heads,
    config.text_length,
    config.tag_length,
    heads=task_of(config).heads,
    num_answers=config.num_answers,
    dropout=fields.dropout,
    init_std=fields.init_std,
    scan=config.scan,
    remat=config.remat,
    dtype=jnp.dtype(config.dtype),
  )


def make_teacher(config) -> RegionTransformer:
  """The teacher's module."""
  return make_network(config, config.teacher.network).clone(
    dtype=jnp.dtype(config.teacher.dtype)
  )


def make_init(config, student, teacher) -> Callable:
  """(rng, batch) -> (params, extra), see `build`."""

  def init(rng, batch):
    keys = jax.random.split(rng, 4)
    one = lambda name: jnp.zeros((1, *batch[name].shape[1:]), batch[name].dtype)
    blank = lambda module, key, regions: module.init(
      key, one('words'), one(regions), one('region_count')
    )['params']
    params, extra = {'student': blank(student, keys[0], 'regions')}, {}
    if teacher is None:
      return params, extra
    extra['teacher'] = jax.tree.map(
      lambda x: x.astype(config.teacher.param_dtype),
      blank(teacher, keys[1], 'teacher_regions'),
    )
    if config.distill.hidden:
      shape = (student.width, teacher.width)
      kernel = nn.initializers.lecun_normal()(keys[2], shape)
      params['projection'] = {'kernel': kernel}
      queue = random_queue(keys[3], config.distill.queue_size, teacher.width)
      extra['queue'] = queue.vectors
    return params, extra

  return init


def make_predict(config, student) -> Callable:
  """(params, extra, batch) -> rows, see `build`."""

  def predict(params, extra, batch):
    del extra
    variables = {'params': params['student']}
    if config.task == 'caption':
      caption, score = write_captions(
        student, variables, batch, config.special_ids, **config.beam
      )
      return {'caption': caption, 'score': score}
    _, heads = student.apply(
      variables,
      batch['regions'],
      batch,
      config.loss.word_budget,
      method=look,
    )
    if config.task == 'vqa':
      logits = heads['answers'].logits
      return {
        'answer': logits.argmax(-1),
        'score': jax.nn.sigmoid(logits.max(-1)),
      }
    words, match = heads['words'], heads['match']
    right = (words.logits.argmax(-1) == words.truth) * words.weight
    return {
      'words_right': right.sum(-1),
      'words': words.weight.sum(-1),
      'match_right': (match.logits.argmax(-1) == match.truth) * 1.0,
    }

  return predict


def taught(config) -> bool:
  """Whether there is anything to take from a teacher."""
  fields = config.distill
  return bool(fields.attention or fields.hidden or fields.logits)


def _check(config) -> None:
  own, above = config.network.num_heads, config.teacher.network.num_heads
  if config.distill.attention and own != above:
    raise UserError(
      f'network.num_heads={own}, teacher.network.num_heads={above}: maps of '
      'attention are compared head by head; make them equal, or set '
      'distill.attention=0'
    )


# Weights: of BERT and Oscar, and of the runs before this one.


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A checkpoint of BERT or Oscar as the student's parameters."""
  module = make_network(config, config.network)
  return {'student': region_transformer.convert(state_dict, module)}


def convert_teacher(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A checkpoint of Oscar, for the task, as the teacher."""
  return region_transformer.convert(state_dict, make_teacher(config))


def from_stages(states: Mapping[str, tuple[Any, Any]], config):
  """What the student starts from, and its teacher.

  `config.start` and `config.teacher.stage` name the stages; '' for none. A
  published teacher, `config.teacher.weights`, stands before that of a stage.

  Raises:
    UserError: no such stage, or its network or its task is another one.
  """
  params, extra, wanted = {}, {}, set(task_of(config).heads)
  if config.start:
    found = _take(states, config, 'start', config.start, config.network)
    params['student'] = {
      name: x for name, x in found.items() if wanted & HEADS.get(name, wanted)
    }
  if config.teacher.stage and not config.teacher.weights and taught(config):
    extra['teacher'] = _take(
      states,
      config,
      'teacher.stage',
      config.teacher.stage,
      config.teacher.network,
      task=config.task,
    )
  return params, extra


def _take(states, config, field: str, stage: str, fields, task='') -> dict:
  """The parameters of the network that the run of a stage trained.

  Raises:
    UserError: see `from_stages`.
  """
  if stage not in states:
    raise UserError(f'{field}: no stage {stage!r}; ' + nearest(stage, states))
  trained, state = states[stage]
  names = ('width', 'depth', 'num_heads')
  there, here = (
    {name: network[name] for name in names}
    for network in (trained.network, fields)
  )
  if there != here:
    raise UserError(
      f'stages.{stage} trained a network {there}, but {field} stands for '
      f'{here}: make them equal'
    )
  if task and trained.task != task:
    raise UserError(
      f'stages.{stage} was trained for {trained.task!r}; a teacher for '
      f'{task!r} must be trained for it'
    )
  return averaged(state)[0]['student']


def fresh(config) -> tuple[str, ...]:
  """What the weights that a student starts from may lack."""
  own = [rf'^student/{name}/' for name in HEADS]
  if config.init.weights:  # a BERT has seen no region
    own += ['^student/region_']
  return ('^projection/', *own)
