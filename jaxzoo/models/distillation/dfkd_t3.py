"""DFKD-T3: data-free distillation of language models by text-to-text transfer.

arXiv 2311.01689. A generator rewrites sentences of a general corpus into texts
that the teacher is sure of, whose answers are spread over the labels, and on
which student and teacher disagree; the student is distilled on these texts.
Only the abstract of the paper is at hand: the equations are this project's.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.backbones import t5
from jaxzoo.models.backbones.t5 import T5, generate, shift_right
from jaxzoo.models.distillation.rewriting import (
  Noise,
  Replay,
  drift,
  language_loss,
  recall,
  remember,
  rewrite,
  sample,
  say,
)
from jaxzoo.models.losses.data_free import (
  GeneratorTerms,
  generator_loss,
  generator_terms,
  gumbel,
  masked_mean,
  straight_through,
  student_loss,
)
from jaxzoo.models.supervised import text_to_text
from jaxzoo.models.supervised.text_to_text import label_logits, read
from jaxzoo.system import State, System, accumulated_grad, averaged
from jaxzoo.weights import t5 as names

__all__ = [
  'build',
  'generator_loss',
  'generator_terms',
  'gumbel',
  'straight_through',
  'student_loss',
]

SHARDING = t5.SHARDING
KINDS = ('trained', 'frozen', 'none')
LANGUAGE = {'likelihood': language_loss, 'divergence': drift}


# The system.


class Asked(NamedTuple):
  """Answers to texts, teacher's and student's, a row for each token of them.

  Attributes:
    teacher: logits.
    student: likewise.
    mask: rows that are no padding.
  """

  teacher: Float[Array, 'n c']
  student: Float[Array, 'n c']
  mask: Bool[Array, ' n']


class Networks(NamedTuple):
  """Modules: of the generator None where no text is rewritten."""

  student: T5
  teacher: T5
  generator: T5 | None


def make_networks(config) -> Networks:
  """The three networks of a config, of one vocabulary."""
  kind = config.generator.kind
  if kind not in KINDS:
    raise UserError(f'generator.kind: no {kind!r}; ' + nearest(kind, KINDS))
  term = config.generator.language_term
  if term not in LANGUAGE:
    raise UserError(
      f'generator.language_term: no {term!r}; ' + nearest(term, LANGUAGE)
    )
  if kind != 'none' and config.generator.every < 1:
    raise UserError(f'generator.every={config.generator.every}: at least 1')
  return Networks(
    text_to_text.make_network(config),
    text_to_text.make_network(with_network(config, config.teacher)),
    None
    if kind == 'none'
    else text_to_text.make_network(with_network(config, config.generator)),
  )


def with_network(config, fields):
  """`config` with another network in the place of the student's."""
  own = config.copy_and_resolve_references().unlock()
  own.model = fields.model
  own.model_options = fields.model_options.copy_and_resolve_references()
  return own


def make_ask(networks: Networks, config) -> Callable:
  """(teacher's variables, student's, prefix, text, mask, rng) -> Asked.

  Of a task with labels what each decoder would begin with, among the labels;
  otherwise the teacher answers word for word, and both say how likely each word
  of that is. The text is ids or one-hot vectors with a gradient; with `rng`
  the student drops as in training, the teacher never.
  """
  tokens = tuple(config.label_tokens)
  teacher, student = networks.teacher, networks.student

  def ask(taught, own, prefix, text, mask, rng=None) -> Asked:
    train, rngs = rng is not None, (None, None)
    if train:
      rngs = [{'dropout': key} for key in jax.random.split(rng)]
    memory = read(teacher, taught, prefix, text, mask)
    seen = read(student, own, prefix, text, mask, train, rngs[0])
    if tokens:
      return Asked(
        label_logits(teacher, taught, *memory, tokens),
        label_logits(student, own, *seen, tokens, train, rngs[1]),
        jnp.ones(prefix.shape[0], bool),
      )
    fixed = jax.lax.stop_gradient(memory)
    said = generate(teacher, taught, *fixed, config.target_length)
    given = shift_right(said)
    logits = (
      teacher.apply(taught, given, *memory, method='decode'),
      student.apply(own, given, *seen, train, rngs=rngs[1], method='decode'),
    )
    flat = [x.reshape(-1, x.shape[-1]) for x in logits]
    return Asked(*flat, (said != t5.PAD).reshape(-1))

  return ask


def make_generator_loss(networks: Networks, config) -> Callable:
  """(params, student's params, extra, batch, rng, step) -> (value, metrics)."""
  fields, ask = config.generator, make_ask(networks, config)
  first, last = fields.temperature

  def loss(params, student, extra, batch, rng, step):
    noise = Noise(rng, batch['sentence'].shape[0], config.vocab_size)
    part = jnp.clip(step / max(config.total_steps, 1), 0, 1)
    texts = rewrite(
      networks.generator,
      {'params': params},
      batch,
      noise,
      fields.length,
      first + (last - first) * part,
    )
    asked = ask(
      extra['teacher'],
      {'params': student},
      batch['prefix'],
      texts.soft,
      texts.mask,
    )
    terms = generator_terms(*asked)
    if not config.label_tokens:
      # Of words: only the frequent ones, whose ids come first, are spread.
      some = lambda x: x[:, t5.UNKNOWN + 1 :][:, : fields.frequent]
      spread = generator_terms(
        some(asked.teacher), some(asked.student), asked.mask
      )
      terms = terms._replace(diversity=spread.diversity)
    natural = LANGUAGE[fields.language_term](
      say(networks.generator, extra['language'], batch, texts.tokens), texts
    )
    value = generator_loss(
      terms,
      specificity=fields.specificity,
      diversity=fields.diversity,
      adversarial=fields.adversarial,
    )
    value += fields.language * natural
    return value, {**terms._asdict(), 'language': natural, 'loss': value}

  return loss


TOLD = (*GeneratorTerms._fields, 'language', 'loss')


def build(config, tx: optax.GradientTransformation) -> System:
  """DFKD-T3; `params` are {'student': ..., 'generator': ...}.

  In a step the generator rewrites half as many sentences as the batch has; the
  other half of what the student learns from comes from `extra['replay']`. Every
  few steps, before that, the generator itself takes one. `extra['teacher']` is
  frozen, and so is `extra['language']`, what the generator was at first.

  A batch has ids: `prefix` [b, p] of the task, `sentence` [b, n], and `rewrite`
  [b, p], the prefix of the generator. `predict` gives the student's answers, as
  `text_to_text.build` says.

  Args:
    config: of the student as for `text_to_text.build`; `teacher`: `model`,
      `model_options`, `param_dtype`; `generator`: `kind`, 'trained', 'frozen'
      (it stays what it was) or 'none' (sentences are taken as they are);
      `model`, `model_options`; `length` of its texts; `every`, student's steps
      to one of its own; `lr`, its rate over the student's; `temperature`, first
      and last; weights `specificity`, `diversity`, `adversarial`, `language`;
      `language_term`, what the last is of: the 'likelihood' of the texts for
      the generator as it was at first, or the 'divergence' from it;
      `frequent`, words over which answers that are texts are to be spread;
      `replay`, texts that are kept, 0 for none; `loss`: `temperature`, `hard`.
    tx: the optimizer of the student, and with its rate times `lr` of the
      generator; the schedule of both goes by the student's steps.

  Raises:
    UserError: an unknown network, field or kind.
  """
  networks = make_networks(config)
  # AdamW's whole update is in proportion to its rate.
  slower = optax.chain(tx, optax.scale(config.generator.lr))
  tx, slower = map(optax.with_extra_args_support, (tx, slower))
  train_generator = make_generator_step(networks, config, slower)
  write = make_write(networks, config)
  loss = make_student_loss(networks, config)

  def step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    keys = jax.random.split(rng, 3)
    state, told = train_generator(state, batch, keys[0])
    params, opt, extra = dict(state.params), dict(state.opt), dict(state.extra)
    text, extra = write(params, extra, batch, keys[1])
    value, grads, _, metrics = accumulated_grad(
      loss,
      params['student'],
      {'teacher': extra['teacher']},
      {'prefix': batch['prefix'], 'text': text},
      keys[2],
      config.microbatches,
    )
    updates, opt['student'] = tx.update(
      grads, opt['student'], params['student'], value=value
    )
    params['student'] = optax.apply_updates(params['student'], updates)
    metrics |= {
      'loss': value,
      'grad_norm': optax.global_norm(grads),
      'length': jnp.mean(jnp.sum(text != t5.PAD, axis=1), dtype=jnp.float32),
      **told,
    }
    return State(state.step + 1, state.rng, params, opt, extra), metrics

  def init(rng, batch):
    del batch
    init_rng, run_rng = jax.random.split(rng)
    params, extra = init_parts(networks, config, init_rng)
    opt = {'student': tx.init(params['student'])}
    if 'generator' in params:
      opt['generator'] = slower.init(params['generator'])
    return State(jnp.int32(0), run_rng, params, opt, extra)

  def predict(state, batch):
    variables = {'params': state.params['student']}
    return text_to_text.answer(networks.student, variables, batch, config)

  return System(init, step, predict)


def make_student_loss(networks: Networks, config) -> Callable:
  """The student's loss on texts, as `accumulated_grad` takes it."""
  ask = make_ask(networks, config)

  def loss(params, extra, batch, rng):
    text = batch['text']
    asked = ask(
      extra['teacher'],
      {'params': params},
      batch['prefix'],
      text,
      text != t5.PAD,
      rng,
    )
    asked = asked._replace(teacher=jax.lax.stop_gradient(asked.teacher))
    value = student_loss(
      asked.student,
      asked.teacher,
      asked.mask,
      temperature=config.loss.temperature,
      hard=config.loss.hard,
    )
    same = asked.student.argmax(-1) == asked.teacher.argmax(-1)
    agreement = masked_mean(same.astype(jnp.float32), asked.mask)
    return value, (extra, {'agreement': agreement})

  return loss


def init_parts(networks: Networks, config, rng) -> tuple[dict, dict]:
  """(params, extra), see `build`."""
  fields, keys = config.generator, jax.random.split(rng, 3)
  params = {'student': text_to_text.init_params(networks.student, keys[0])}
  taught = text_to_text.init_params(networks.teacher, keys[1])
  kept = lambda x: x.astype(config.teacher.param_dtype)
  extra = {'teacher': {'params': jax.tree.map(kept, taught)}}
  if networks.generator is None:
    return params, extra
  own = text_to_text.init_params(networks.generator, keys[2])
  extra['language'] = {'params': own}
  if fields.kind == 'trained':
    # A copy: the state is donated, and no buffer may be donated twice.
    params['generator'] = jax.tree.map(jnp.copy, own)
    extra['told'] = {name: jnp.float32(0) for name in TOLD}
  if fields.replay:
    texts = jnp.zeros((fields.replay, fields.length), jnp.int32)
    extra['replay'] = Replay(texts, jnp.int32(0), jnp.int32(0))
  return params, extra


def make_generator_step(networks: Networks, config, tx) -> Callable:
  """(state, batch, rng) -> (state, metrics): its turn, or nothing."""
  fields = config.generator
  if fields.kind != 'trained':
    return lambda state, batch, rng: (state, {})
  value_of = make_generator_loss(networks, config)

  def move(params, opt, told, state, batch, rng):
    del told

    def loss(params, extra, batch, rng):
      value, metrics = value_of(
        params, state.params['student'], state.extra, batch, rng, state.step
      )
      return value, (extra, metrics)

    value, grads, _, told = accumulated_grad(
      loss, params, {}, batch, rng, config.microbatches
    )
    updates, opt = tx.update(grads, opt, params, value=value)
    return optax.apply_updates(params, updates), opt, told

  def step(state, batch, rng):
    params, opt, extra = dict(state.params), dict(state.opt), dict(state.extra)
    before = (params['generator'], at(opt['generator'], state.step))
    params['generator'], opt['generator'], extra['told'] = jax.lax.cond(
      state.step % fields.every == 0,
      move,
      lambda params, opt, told, *_: (params, opt, told),
      *before,
      extra['told'],
      state,
      batch,
      rng,
    )
    told = {f'generator/{name}': x for name, x in extra['told'].items()}
    return state._replace(params=params, opt=opt, extra=extra), told

  return step


def at(opt, step: Int[Array, '']):
  """An optimizer's state whose schedules are at this step of the run."""
  schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
  return jax.tree.map(
    lambda x: x._replace(count=step) if schedule(x) else x, opt,
    is_leaf=schedule,
  )  # fmt: skip


def make_write(networks: Networks, config) -> Callable:
  """(params, extra, batch, rng) -> (texts for the student, extra)."""
  fields = config.generator

  def write(params, extra, batch, rng):
    if networks.generator is None:
      return batch['sentence'], extra
    variables = extra['language']
    if fields.kind == 'trained':
      variables = {'params': params['generator']}
    keys, size = jax.random.split(rng), batch['sentence'].shape[0]
    if fields.replay:
      if size % 2:
        raise UserError(
          f'batch_size={size}: half of a batch is replayed, make it even'
        )
      # Every other sentence, so that each device keeps its own.
      batch = {name: x[::2] for name, x in batch.items()}
      size //= 2
    noise = Noise(keys[0], size, config.vocab_size)
    text = sample(networks.generator, variables, batch, noise, fields.length)
    if not fields.replay:
      return text, extra
    replay = remember(extra['replay'], text)
    old = recall(replay, keys[1], size)
    text = jnp.stack([text, old], axis=1).reshape(2 * size, fields.length)
    return text, {**extra, 'replay': replay}

  return write


# Weights: published ones for all networks, or runs.


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published T5 as the student, and as the generator where it is one."""
  networks = make_networks(config)
  params = {'student': names.convert(state_dict, networks.student)['params']}
  if config.generator.kind == 'trained' and _is_alike(networks):
    params['generator'] = jax.tree.map(np.copy, params['student'])
  return params


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """The generator as it was at first."""
  networks = make_networks(config)
  if not _is_alike(networks):
    return {}
  return {'language': names.convert(state_dict, networks.student)}


def _is_alike(networks: Networks) -> bool:
  return networks.generator == networks.student


def convert_teacher(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """`extra['teacher']` of a T5 that was fine-tuned elsewhere."""
  return names.convert(state_dict, make_networks(config).teacher)


def from_stages(states: Mapping[str, tuple[Any, Any]], config):
  """(params, extra): a teacher and a generator that were trained before.

  Raises:
    UserError: they are other networks than the config says.
  """
  params, extra = {}, {}
  if 'teacher' in states:
    extra['teacher'] = take(states, 'teacher', config)
  if 'generator' in states and config.generator.kind != 'none':
    extra['language'] = take(states, 'generator', config)
    if config.generator.kind == 'trained':
      params = {
        'generator': jax.tree.map(jnp.copy, extra['language']['params'])
      }
  return params, extra


def take(states, name: str, config) -> dict:
  """Variables of a finished run, as `config.NAME` describes it.

  Raises:
    UserError: it is another network, of another vocabulary or layout.
  """
  trained, state = states[name]
  here = with_network(config, config[name])
  for field in ('model', 'model_options', 'vocab_size', 'scan'):
    there, own = trained[field], here[field]
    if field == 'model_options':
      there, own = dict(there), dict(own)
    if there != own:
      raise UserError(
        f'stages.{name} was trained with {field}={there}, but {name} here has '
        f'{own}: make them equal'
      )
  return {'params': averaged(state)[0]}


def fresh(config) -> tuple[str, ...]:
  """The student starts anew, unless it has published weights."""
  return () if config.init.weights else ('^student/',)
