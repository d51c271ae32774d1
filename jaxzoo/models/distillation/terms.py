"""What a student takes from its teacher: losses with what they need.

A term may have parameters of its own, which the student's optimizer trains and
nobody needs afterwards.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.distillation.diffkd import DiffKD
from jaxzoo.models.distillation.dist import dist_loss
from jaxzoo.models.distillation.maskd import (
  MaskModule,
  detection_loss,
  segmentation_loss,
)
from jaxzoo.models.layers.convolution import conv
from jaxzoo.models.layers.image import resized
from jaxzoo.models.layers.norm import BatchNorm
from jaxzoo.models.losses.distillation import (
  feature_matching,
  knowledge_distillation,
)


class Outputs(NamedTuple):
  """What a network makes of a batch.

  Attributes:
    maps: by stage, see `backbones.backbone.Features`.
    vector: what the classifier takes.
    logits: float32.
  """

  maps: dict[str, Float[Array, 'b h w c']]
  vector: Any
  logits: Float[Array, 'b k']


class Term(NamedTuple):
  """One loss between student and teacher.

  Attributes:
    init: (rng, student, teacher) -> its variables by collection: `params`,
      `batch_stats`, and `frozen`, which nothing here trains; reads only the
      shapes of both outputs.
    loss: (variables, student, teacher, rng, calls) -> (scalar, metrics, new
      batch statistics); `calls` counts the updates so far.
  """

  init: Callable
  loss: Callable


def make_terms(fields: Mapping) -> dict[str, Term]:
  """The terms of `config.distill`: name -> its options, `weight` among them.

  Raises:
    UserError: an unknown term or option.
  """
  terms = {}
  for name, options in fields.items():
    if name not in TERMS:
      raise UserError(f'distill: no {name!r}; ' + nearest(name, TERMS))
    options = {k: v for k, v in options.items() if k != 'weight'}
    known = inspect.signature(TERMS[name]).parameters
    for option in options.keys() - set(known):
      raise UserError(
        f'distill.{name} has no {option!r}; ' + nearest(option, known)
      )
    terms[name] = TERMS[name](**options)
  return terms


def _plain_term(loss: Callable) -> Term:
  """A loss on both outputs alone: (student, teacher) -> (scalar, metrics)."""
  return Term(
    lambda rng, student, teacher: {},
    lambda variables, student, teacher, rng, calls: (
      *loss(student, teacher),
      {},
    ),
  )


def kd(temperature: float = 4.0) -> Term:
  """Hinton's divergence of the softened probabilities."""
  return _plain_term(
    lambda student, teacher: (
      knowledge_distillation(student.logits, teacher.logits, temperature),
      {},
    )
  )


def dist(
  beta: float = 1.0,
  gamma: float = 1.0,
  temperature: float = 1.0,
  group_size: int = 0,
) -> Term:
  """DIST's relations of the logits; `group_size` 0: over the whole batch."""

  def loss(student, teacher):
    value, found = dist_loss(
      student.logits,
      teacher.logits,
      beta=beta,
      gamma=gamma,
      temperature=temperature,
      group_size=group_size or None,
    )
    return value, found._asdict()

  return _plain_term(loss)


class Align(nn.Module):
  """1x1 convolution and norm to the teacher's channels and map."""

  channels: int

  @nn.compact
  def __call__(
    self, x: Float[Array, 'b h w c'], size: tuple[int, int]
  ) -> Float[Array, 'b h2 w2 o']:
    x = conv(self.channels, 1, name='conv')(x.astype(jnp.float32))
    x = BatchNorm(name='bn')(x, True)
    return resized(x, size)


def features(stage: str = 'last', teacher_stage: str = '') -> Term:
  """FitNets: maps, aligned by a convolution and a norm; 'all': of each stage."""

  def pairs(student, teacher):
    """name -> (student's, teacher's)."""
    if stage == 'all':
      names = {name: name for name in teacher.maps}
    else:
      names = {stage: teacher_stage or stage}
    return {
      own: (
        pick(student.maps, own, 'student'),
        pick(teacher.maps, taught, 'teacher'),
      )
      for own, taught in names.items()
    }

  def init(rng, student, teacher):
    found = {'params': {}, 'batch_stats': {}}
    for i, (name, (own, taught)) in enumerate(pairs(student, teacher).items()):
      made = Align(taught.shape[-1]).init(
        jax.random.fold_in(rng, i), own, taught.shape[1:3]
      )
      for collection in found:
        found[collection][name] = made[collection]
    return found

  def loss(variables, student, teacher, rng, calls):
    value, stats = 0.0, {}
    for name, (own, taught) in pairs(student, teacher).items():
      aligned, updated = Align(taught.shape[-1]).apply(
        {key: variables[key][name] for key in ('params', 'batch_stats')},
        own,
        taught.shape[1:3],
        mutable=['batch_stats'],
      )
      value += feature_matching(aligned, taught)
      stats[name] = updated['batch_stats']
    return value, {}, stats

  return Term(init, loss)


def diffkd(
  stage: str = 'last',
  teacher_stage: str = '',
  code_channels: int = 0,
  steps: int = 5,
  logits: bool = True,
  temperature: float = 1.0,
) -> Term:
  """DiffKD of a stage's map, '' for none, and of the logits."""

  def inputs(student, teacher):
    """name -> (student's, teacher's, fields of the module)."""
    found = {}
    if stage:
      own = pick(student.maps, stage, 'student')
      taught = pick(teacher.maps, teacher_stage or stage, 'teacher')
      found['feature'] = (
        resized(own.astype(jnp.float32), taught.shape[1:3]),
        taught,
        dict(kernel_size=3, code_channels=code_channels),
      )
    if logits:
      as_map = lambda x: x if x.ndim == 4 else x[:, None, None]
      found['logits'] = (
        as_map(student.logits),
        as_map(teacher.logits),
        dict(kernel_size=1, temperature=temperature),
      )
    return found

  def module(own, taught, fields):
    return DiffKD(own.shape[-1], taught.shape[-1], steps=steps, **fields)

  def init(rng, student, teacher):
    variables = {'params': {}, 'batch_stats': {}}
    for i, (name, given) in enumerate(inputs(student, teacher).items()):
      key, own_key = jax.random.split(jax.random.fold_in(rng, i))
      draws = module(*given).draws(own_key, given[1].shape)
      made = module(*given).init(key, *given[:2], draws)
      for collection in variables:
        variables[collection][name] = made[collection]
    return variables

  def loss(variables, student, teacher, rng, calls):
    value, metrics, stats = 0.0, {}, {}
    for i, (name, given) in enumerate(inputs(student, teacher).items()):
      net = module(*given)
      draws = net.draws(jax.random.fold_in(rng, i), given[1].shape)
      own = {key: variables[key][name] for key in ('params', 'batch_stats')}
      refined, updated = net.apply(
        own, *given[:2], draws, mutable=['batch_stats']
      )
      stats[name] = updated['batch_stats']
      value += sum(refined.terms.values())
      metrics |= {f'{name}_{key}': x for key, x in refined.terms.items()}
      metrics[f'{name}_gamma'] = refined.gamma.mean()
    return value, metrics, stats

  return Term(init, loss)


def maskd(
  num_tokens: int = 6,
  weighted: bool = True,
  custom: bool = True,
  warmup: int = 5000,
  on: str = 'levels',
) -> Term:
  """MasKD inside the masks of tokens that a run of `maskd_tokens` has learned.

  Args:
    num_tokens: of a level.
    weighted: whether levels have heads for the importance of tokens.
    custom: whether the student's own masks narrow the teacher's.
    warmup: updates before they do.
    on: 'levels', all maps; 'last', the coarsest, as for classifiers; or
      'logits' of dense outputs.
  """

  def init(rng, student, teacher):
    found = {'params': {}, 'frozen': {}}
    for i, (name, own, taught) in enumerate(_levels(student, teacher, on)):
      keys = jax.random.split(jax.random.fold_in(rng, i))
      module = MaskModule(taught.shape[-1], num_tokens, weighted)
      found['frozen'][name] = module.init(keys[0], taught)['params']
      if on != 'logits':
        found['params'][name] = aligner(taught).init(keys[1], own)['params']
    return found

  def aligner(taught):
    return nn.Dense(taught.shape[-1])

  def loss(variables, student, teacher, rng, calls):
    value = 0.0
    for name, own, taught in _levels(student, teacher, on):
      module = MaskModule(taught.shape[-1], num_tokens, weighted)
      tokens = {'params': variables['frozen'][name]}
      masks = module.apply(tokens, taught)
      if on == 'logits':
        value += segmentation_loss(own, taught, masks.masks)
        continue
      aligned = aligner(taught).apply(
        {'params': variables['params'][name]}, own.astype(jnp.float32)
      )
      aligned = resized(aligned, taught.shape[1:3])
      narrowed = None
      if custom:
        narrowed = module.apply(tokens, aligned, method='masks')
      value += detection_loss(
        aligned, taught, masks, narrowed, custom=calls >= warmup
      )
    return value, {}, {}

  return Term(init, loss)


def _levels(student, teacher, on):
  """(name, student's, teacher's) of every tensor that has masks."""
  if on == 'logits':
    return [('logits', student.logits, teacher.logits)]
  if on == 'last':
    name = [*teacher.maps][-1]
    return [(name, pick(student.maps, 'last', 'student'), teacher.maps[name])]
  return [
    (name, pick(student.maps, name, 'student'), taught)
    for name, taught in teacher.maps.items()
  ]


def pick(maps: Mapping, stage: str, whose: str) -> Float[Array, 'b h w c']:
  """The map of a stage by its name; 'last' is the coarsest.

  Raises:
    UserError: the network has no such stage.
  """
  if stage == 'last':
    return maps[[*maps][-1]]
  if stage not in maps:
    raise UserError(
      f'distill: the {whose} has no stage {stage!r}; ' + nearest(stage, maps)
    )
  return maps[stage]


TERMS = {make.__name__: make for make in (kd, dist, features, diffkd, maskd)}
