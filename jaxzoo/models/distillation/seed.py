"""SEED: distillation of similarities, without labels (ICLR 2021).

Fang et al., arXiv 2101.04731. A small encoder reproduces how similar a frozen
self-supervised teacher finds an image to a long queue of earlier ones. Where
the teacher is the student's own moving average, this is MoCo v2 (arXiv
2003.04297), the baseline, and how a teacher is trained here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from jaxzoo.errors import UserError, nearest
from jaxzoo.models.distillation.distillation import teacher_config
from jaxzoo.models.layers.convolution import TORCH_DEFAULT, uniform_bias
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.norm import BatchNorm, at_least_float32
from jaxzoo.models.losses.contrastive import l2_normalize
from jaxzoo.models.losses.queue import enqueue, random_queue
from jaxzoo.models.supervised import classification
from jaxzoo.system import System, from_loss
from jaxzoo.weights import rows as to

SHARDING = ()  # the networks' own, see `sharding`
TEACHERS = ('frozen', 'momentum')


class Similarities(NamedTuple):
  """Of every image to itself, position 0, and to the queue.

  Attributes:
    logits: of the student, over its temperature.
    targets: the teacher's distribution, without a gradient.
  """

  logits: Float[Array, 'b n']
  targets: Float[Array, 'b n']


def similarities(
  student: Float[Array, 'b d'],
  teacher: Float[Array, 'b d'],
  queue: Float[Array, 'k d'],
  *,
  student_temperature: float = 0.2,
  teacher_temperature: float = 0.01,
) -> Similarities:
  """Both distributions over the image's own teacher vector and the queue.

  Position 0 is z_s . z_t for the student and z_t . z_t for the teacher.

  Args:
    student: unit vectors.
    teacher: unit vectors of the same views.
    queue: unit vectors of earlier batches, the teacher's.
    student_temperature: 0.2.
    teacher_temperature: 0.01 in the paper; the released code's default, 1e-4,
      makes the target the image itself.
  """
  wide = lambda x: x.astype(at_least_float32(x))
  student, queue = wide(student), wide(queue)
  teacher = jax.lax.stop_gradient(wide(teacher))

  def against(vectors):
    own = jnp.sum(vectors * teacher, axis=1, keepdims=True)
    others = jnp.matmul(vectors, queue.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([own, others], axis=1)

  return Similarities(
    against(student) / student_temperature,
    jax.nn.softmax(against(teacher) / teacher_temperature, axis=1),
  )


def similarity_loss(found: Similarities) -> Float[Array, '']:
  """- sum_k p_k log softmax(l)_k, the mean over the batch."""
  log_p = jax.nn.log_softmax(found.logits, axis=1)
  return -jnp.mean(jnp.sum(found.targets * log_p, axis=1))


def contrastive_loss(found: Similarities) -> Float[Array, '']:
  """-log softmax(l)_0: the image itself is right and the queue is wrong."""
  return -jnp.mean(jax.nn.log_softmax(found.logits, axis=1)[:, 0])


class Encoder(nn.Module):
  """Images to unit vectors: a backbone and a head.

  Attributes:
    backbone: without classes.
    hidden: units of the head's hidden layer; 0: none of its own, as many as
      the backbone has.
    dim: of the vectors; 0: no head, the backbone's vector.
    head_norm: batch norm after the hidden layer (SimCLR's and SwAV's heads).
  """

  backbone: Any
  hidden: int = 0
  dim: int = 128
  head_norm: bool = False

  @nn.compact
  def __call__(
    self, image: Float[Array, 'b h w c'], train: bool = False
  ) -> tuple[Float[Array, 'b d'], Float[Array, 'b e']]:
    """(unit vectors for the loss, the backbone's vectors)."""
    vector = self.backbone.features(image, train).vector.astype(jnp.float32)
    x = vector
    if self.dim:
      for i, width in enumerate((self.hidden or x.shape[-1], self.dim), 1):
        x = nn.Dense(
          width,
          kernel_init=TORCH_DEFAULT,
          bias_init=uniform_bias(x.shape[-1]),
          name=f'head_fc{i}',
        )(x)
        if i == 1:
          x = BatchNorm(name='head_bn')(x, train) if self.head_norm else x
          x = nn.relu(x)
    return l2_normalize(x), vector


def make_encoder(config, head) -> Encoder:
  """The encoder of a config with a head of these fields."""
  built = classification.make_backbone(config, num_classes=0)
  return Encoder(built.module, head.hidden, head.dim, head.head_norm)


def build(config, tx: optax.GradientTransformation) -> System:
  """SEED, or MoCo where `teacher.kind` is 'momentum'.

  A batch has `image` uint8 [b,h,w,c], which teacher and student both see; for
  MoCo `view2` too, which the teacher sees; and with small crops `small`
  [b,p,h,w,c], all of which both see, with a queue of its own. `predict` gives
  the backbone's `vector`.

  Args:
    config: of the student's network, see `classification.make_backbone`; `head`
      and `teacher.head`: `hidden`, `dim`, `head_norm`; `teacher`: `kind`, of a
      frozen one `model`, `model_options`, `mean`, `std`, `dtype`; `momentum`;
      `queue_size`; `loss`: `student_temperature`, `teacher_temperature`.
    tx: the optimizer of the student.

  Raises:
    UserError: an unknown model or teacher, vectors of two sizes, or a queue
      that batches do not fill evenly.
  """
  _check(config)
  student = make_encoder(config, config.head)
  frozen = config.teacher.kind == 'frozen'
  teacher = (
    make_encoder(teacher_config(config), config.teacher.head)
    if frozen
    else student
  )

  def loss(params, extra, batch, rng):
    views = {'queue': (batch['image'], batch.get('view2', batch['image']))}
    if 'small' in batch:
      views['small_queue'] = 2 * (batch['small'],)
    extra, value, metrics = dict(extra), 0.0, {}
    for i, (queue, (own, others)) in enumerate(views.items()):
      key = jax.random.fold_in(rng, i)
      z, extra = encode_student(params, extra, own, key)
      taught = encode_teacher(extra, others)
      found = similarities(
        z,
        taught,
        extra[queue].vectors,
        student_temperature=config.loss.student_temperature,
        teacher_temperature=config.loss.teacher_temperature,
      )
      part = similarity_loss(found) if frozen else contrastive_loss(found)
      # Of several crops of an image the first is remembered.
      first = taught.reshape(own.shape[0], -1, taught.shape[-1])[:, 0]
      extra[queue] = enqueue(extra[queue], first)
      own_wins = found.logits.argmax(1) == found.targets.argmax(1)
      prefix = queue.removesuffix('queue')
      metrics[f'{prefix}similarity_loss'] = part
      metrics[f'{prefix}nearest'] = own_wins.mean(dtype=jnp.float32)
      value += part
    return value, (extra, metrics)

  def encode_student(params, extra, image, rng):
    (z, _), updated = student.apply(
      {'params': params, **classification.statistics(extra)},
      _prepared(image.reshape(-1, *image.shape[-3:]), config),
      True,
      rngs={'dropout': rng},
      mutable=['batch_stats'],
    )
    return z, {**extra, **updated}

  def encode_teacher(extra, image):
    z, _ = teacher.apply(
      jax.lax.stop_gradient(extra['teacher']),
      _prepared(
        image.reshape(-1, *image.shape[-3:]),
        config.teacher if frozen else config,
      ),
    )
    return jax.lax.stop_gradient(z)

  def predict(params, extra, batch):
    variables = {'params': params, **classification.statistics(extra)}
    z, vector = student.apply(variables, _prepared(batch['image'], config))
    return {'vector': vector, 'embedding': z}

  return from_loss(
    make_init(config, student, teacher),
    loss,
    predict,
    tx,
    advance=None if frozen else make_follow(config.teacher.momentum),
    microbatches=config.microbatches,
  )


def make_init(config, student: Encoder, teacher: Encoder):
  """(rng, batch) -> (params, extra), with a queue for each size of crops."""

  def init(rng, batch):
    keys = jax.random.split(rng, 4)
    blank = jnp.zeros((1, *batch['image'].shape[1:]))
    variables = dict(student.init(keys[0], blank))
    taught = variables
    if config.teacher.kind == 'frozen':
      taught = dict(teacher.init(keys[1], blank))
    dim = jax.eval_shape(teacher.apply, taught, blank)[0].shape[-1]
    extra = {
      **classification.statistics(variables),
      # A copy: the state is donated, and no buffer may be donated twice.
      'teacher': jax.tree.map(jnp.copy, taught),
      'queue': random_queue(keys[2], config.queue_size, dim),
    }
    if 'small' in batch:
      extra['small_queue'] = random_queue(keys[3], config.queue_size, dim)
    return variables['params'], extra

  return init


def make_follow(momentum: float):
  """(params, extra) -> the same, the teacher moved towards the student."""

  def follow(params, extra):
    own = {'params': params, **classification.statistics(extra)}
    moved = jax.tree.map(
      lambda t, s: momentum * t + (1 - momentum) * s, extra['teacher'], own
    )
    return params, {**extra, 'teacher': moved}

  return follow


def _check(config) -> None:
  kind = config.teacher.kind
  if kind not in TEACHERS:
    raise UserError(f'teacher.kind: no {kind!r}; ' + nearest(kind, TEACHERS))
  part = config.batch_size // config.microbatches
  if config.queue_size % part:
    raise UserError(
      f'queue_size={config.queue_size} is no multiple of the {part} images '
      'that enter it at a time (batch_size over microbatches)'
    )


def _prepared(image, fields):
  return normalize(image, fields.mean, fields.std, jnp.dtype(fields.dtype))


def sharding(config) -> tuple:
  """The rules of both networks."""
  own = classification.sharding(config)
  if config.teacher.kind != 'frozen':
    return own
  taught = classification.sharding(teacher_config(config))
  return (*own, *(rule for rule in taught if rule not in own))


# Weights.

# How published checkpoints of whole training states call the encoder.
PREFIXES = re.compile(
  r'^(module\.)?(encoder_q|encoder|base_encoder|backbone)\.'
)
# And the layers of heads: MoCo v2, SwAV and SimCLR.
HEADS = {
  'fc.0': 'head_fc1',
  'fc.2': 'head_fc2',
  'projection_head.0': 'head_fc1',
  'projection_head.1': 'head_bn',
  'projection_head.3': 'head_fc2',
}


def convert_encoder(state_dict: Mapping[str, np.ndarray], config, head) -> dict:
  """Variables of `make_encoder` from a published self-supervised checkpoint.

  Names of the backbone are those that `create_model(weights=...)` takes, with
  or without the prefix of the training code (`module.encoder_q.`); heads are
  MoCo v2's `fc.{0,2}` and SwAV's `projection_head.{0,1,3}`.
  """
  short = {PREFIXES.sub('', name): x for name, x in state_dict.items()}
  rows = []
  for theirs, ours in HEADS.items():
    make = to.batch_norm if ours == 'head_bn' else to.linear
    if head.dim and f'{theirs}.weight' in short:
      rows += make(theirs, ours)
  names = {row.theirs for row in rows}
  top = to.load({k: v for k, v in short.items() if k in names}, rows)
  built = classification.make_backbone(config, num_classes=0)
  rest = {
    name: x
    for name, x in short.items()
    if name not in names and not re.match(r'(fc|head|prototypes)\.', name)
  }
  below = classification.converter(built)(rest)
  return {
    collection: {
      'backbone': below.get(collection, {}),
      **top.get(collection, {}),
    }
    for collection in ('params', 'batch_stats')
    if collection in below or collection in top
  }


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint of the student's network as its parameters."""
  return convert_encoder(state_dict, config, config.head)['params']


def convert_extra(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """Statistics of its batch norms."""
  found = convert_encoder(state_dict, config, config.head)
  return {k: v for k, v in found.items() if k == 'batch_stats'}


def convert_teacher(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """`extra['teacher']` of a published self-supervised teacher."""
  own = teacher_config(config)
  return convert_encoder(state_dict, own, config.teacher.head)


def from_stages(states: Mapping[str, tuple[Any, Any]], config):
  """({}, {'teacher': variables}): the moving average of a MoCo run."""
  if 'teacher' not in states or config.teacher.kind != 'frozen':
    return {}, {}
  _, state = states['teacher']
  copied = jax.tree.map(lambda x: x.copy(), dict(state.extra['teacher']))
  return {}, {'teacher': copied}


def fresh(config) -> tuple[str, ...]:
  """Published weights of the student's backbone have no head of ours."""
  return ('^head_',)
