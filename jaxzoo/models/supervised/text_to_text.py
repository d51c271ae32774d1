"""Text to text: T5 fine-tuned to answer, any task in one form.

arXiv 1910.10683, section 2.4: a prefix names the task, the answer is a text.
Where answers are labels, a label is what the decoder begins with.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import t5
from jaxzoo.models.backbones.t5 import T5, generate, make_t5, shift_right
from jaxzoo.system import System, from_loss
from jaxzoo.weights import t5 as names

SHARDING = t5.SHARDING


def make_network(config) -> T5:
  """The T5 of a config.

  Raises:
    UserError: no such model or field, or labels without ids.
  """
  if len(config.labels) != len(config.label_tokens):
    raise UserError(
      f'labels={tuple(config.labels)}, but label_tokens='
      f'{tuple(config.label_tokens)}: one id for each'
    )
  return make_t5(
    config.model,
    config.model_options,
    vocab_size=config.vocab_size,
    scan=config.scan,
    remat=config.remat,
    dtype=config.dtype,
  )


def read(
  module: T5,
  variables,
  prefix: Int[Array, 'b p'],
  sentence: Int[Array, 'b n'] | Float[Array, 'b n v'],
  mask: Bool[Array, 'b n'],
  train: bool = False,
  rngs: Mapping | None = None,
) -> tuple[Float[Array, 'b s w'], Bool[Array, 'b s']]:
  """(memory, mask) of a prefix and the sentence behind it.

  Args:
    module: the network.
    variables: its.
    prefix: ids, PAD in front of them.
    sentence: ids, or distributions over them.
    mask: its positions that are no padding.
    train: whether anything is dropped.
    rngs: for that.
  """

  def encode(module):
    embedded = [module.embed(prefix), module.embed(sentence)]
    seen = jnp.concatenate([prefix != t5.PAD, mask], axis=1)
    return module.encode(jnp.concatenate(embedded, axis=1), seen, train), seen

  return module.apply(variables, rngs=rngs, method=encode)


def label_logits(
  module: T5,
  variables,
  memory: Float[Array, 'b s w'],
  mask: Bool[Array, 'b s'],
  tokens: tuple[int, ...],
  train: bool = False,
  rngs: Mapping | None = None,
) -> Float[Array, 'b c']:
  """What the decoder would begin with, among the labels' ids; float32."""
  first = jnp.full((memory.shape[0], 1), t5.PAD, jnp.int32)
  logits = module.apply(
    variables, first, memory, mask, train, rngs=rngs, method='decode'
  )
  return logits[:, 0, jnp.asarray(tokens)]


def token_loss(
  logits: Float[Array, 'b t v'], target: Int[Array, 'b t']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """(cross entropy, share that is right) over all tokens up to END."""
  valid = target != t5.PAD
  count = jnp.maximum(valid.sum(), 1)
  nll = optax.softmax_cross_entropy_with_integer_labels(logits, target)
  right = (logits.argmax(-1) == target) & valid
  return jnp.sum(nll * valid) / count, right.sum() / count


def build(config, tx: optax.GradientTransformation) -> System:
  """Fine-tuning; `params` are the network's.

  A batch has ids: `prefix` [b, p], `sentence` [b, n] and `target` [b, t]. With
  labels `predict` gives their `logits` [b, c]; without, the `answer` [b, t]
  that the decoder makes word for word.

  Args:
    config: `model`, one of `t5.SIZES`, with `model_options`; `vocab_size`;
      `labels` and `label_tokens`, () for answers that are texts;
      `target_length`; `scan`, `remat`, `dtype`, `microbatches`.
    tx: the optimizer.

  Raises:
    UserError: see `make_network`.
  """
  module = make_network(config)

  def init(rng, batch):
    return init_params(module, rng), {}

  def loss(params, extra, batch, rng):
    keys = jax.random.split(rng)
    variables, sentence = {'params': params}, batch['sentence']
    memory, mask = read(
      module,
      variables,
      batch['prefix'],
      sentence,
      sentence != t5.PAD,
      train=True,
      rngs={'dropout': keys[0]},
    )
    logits = module.apply(
      variables,
      shift_right(batch['target']),
      memory,
      mask,
      True,
      rngs={'dropout': keys[1]},
      method='decode',
    )
    value, right = token_loss(logits, batch['target'])
    return value, (extra, {'token_accuracy': right})

  def predict(params, extra, batch):
    return answer(module, {'params': params}, batch, config)

  return from_loss(init, loss, predict, tx, microbatches=config.microbatches)


def init_params(module: T5, rng: jax.Array) -> dict:
  """Random parameters of a network."""
  blank = jnp.zeros((1, 2), jnp.int32)
  return module.init(rng, blank, blank)['params']


def answer(module: T5, variables, batch, config) -> dict[str, Array]:
  """What `predict` gives, see `build`."""
  sentence = batch['sentence']
  memory, mask = read(
    module, variables, batch['prefix'], sentence, sentence != t5.PAD
  )
  if config.label_tokens:
    tokens = tuple(config.label_tokens)
    return {'logits': label_logits(module, variables, memory, mask, tokens)}
  return {
    'answer': generate(module, variables, memory, mask, config.target_length)
  }


def convert(state_dict: Mapping[str, np.ndarray], config) -> dict:
  """A published checkpoint, in the names of transformers, as parameters."""
  return names.convert(state_dict, make_network(config))['params']
