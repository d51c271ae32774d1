"""Images a second of backbones, inference and training, beside PyTorch.

    python -m jaxzoo.bench.backbones                       every model
    python -m jaxzoo.bench.backbones resnet50 'swin_*' --train --batch_size=8
    python -m jaxzoo.bench.backbones --batch_size=256 --dtype=bfloat16 --train

prints a Markdown row for each model as soon as it is measured. Where
torchvision or timm have the model (`references.py`; `pip install
"jaxzoo[reference]"`), theirs runs on the same device in a process of its own,
in alternating rounds, so that a machine that becomes slower or faster does so
for both; a ratio is the median over the rounds of how many times as fast ours
is.

Programs are compiled with the options that training has for the family
(`train/compiler.py`). A training step is forward, backward and SGD with
momentum on cross entropy (of CLIP: its contrastive loss). FLOPs are those of
matrix products and convolutions of one image, two a multiply-add; MFU is what
part of the device's bfloat16 peak they reach, in training if that is measured.
"""

import contextlib
import fnmatch
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxzoo.bench import command, torch_process
from jaxzoo.bench.references import REFERENCES, Plan
from jaxzoo.bench.train_step import (
  Run,
  alternate,
  make_run,
  peak_tflops,
  speedup,
  summarize,
)
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.cards import MODELS, list_models
from jaxzoo.models.cards.card import Built, ModelCard
from jaxzoo.models.create import build_model
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce
from jaxzoo.once import call_once
from jaxzoo.train import compiler
from jaxzoo.train.flops import TRAINING_FACTOR, count_flops

MODES = ('inference', 'training')
CLIP_SCALE = 100.0  # of the cosines, as published


class Settings(NamedTuple):
  """How everything is measured.

  Attributes:
    batch_size: images a step.
    dtype: of the computation.
    steps: timed in every round.
    rounds: of all that is measured.
    warmup: steps before those of a turn.
    torch: whether to measure the reference.
    image_size: side of the images; 0: as published.
  """

  batch_size: int = 8
  dtype: str = 'float32'
  steps: int = 3
  rounds: int = 3
  warmup: int = 1
  torch: bool = True
  image_size: int = 0


class Compiled(NamedTuple):
  """A program of ours, ready to be timed, and the seconds to compile it."""

  run: Run
  seconds: float


def select(patterns: Sequence[str]) -> list[str]:
  """The models that any of the shell patterns matches; all for none.

  Raises:
    UserError: a pattern that matches nothing.
  """
  for pattern in patterns:
    if not fnmatch.filter(MODELS, pattern):
      raise UserError(f'no model {pattern!r}; ' + nearest(pattern, MODELS))
  return [
    name
    for name in list_models()
    if not patterns or any(fnmatch.fnmatch(name, p) for p in patterns)
  ]


def make_inputs(built: Built, batch_size: int) -> list[np.ndarray]:
  """Noise for images, ones for texts."""
  rng = np.random.default_rng(0)
  return [
    rng.standard_normal((batch_size, *x.shape[1:]), np.float32)
    if np.issubdtype(x.dtype, np.floating)
    else np.ones((batch_size, *x.shape[1:]), np.int32)
    for x in built.inputs
  ]


def make_loss(module, card: ModelCard):
  """(params, statistics, inputs, rng) -> (loss, new statistics)."""

  def loss(params, statistics, inputs, rng):
    rngs = {'dropout': rng}
    variables = {'params': params, **statistics}
    if card.text_length:
      image, text = module.apply(variables, *inputs, rngs=rngs)
      similarity = cosine_similarity(image, text)
      return info_nce(similarity, CLIP_SCALE), statistics
    logits, updated = module.apply(
      variables, *inputs, True, rngs=rngs, mutable=list(statistics)
    )
    heads = jax.tree.leaves(logits)
    labels = jnp.arange(len(heads[0])) % card.num_classes
    losses = [
      optax.softmax_cross_entropy_with_integer_labels(
        head.astype(jnp.float32), labels
      ).mean()
      for head in heads
    ]
    return sum(losses) / len(losses), updated

  return loss


def make_step(loss):
  """(state, inputs) -> (state, loss): SGD with momentum; donates the state."""
  tx = optax.sgd(1e-3, momentum=0.9)

  def step(state, inputs):
    params, statistics, opt, rng = state
    rng, own = jax.random.split(rng)
    (value, statistics), grads = jax.value_and_grad(loss, has_aux=True)(
      params, statistics, inputs, own
    )
    updates, opt = tx.update(grads, opt, params)
    params = optax.apply_updates(params, updates)
    return (params, statistics, opt, rng), value

  return step, tx


def compile_inference(module, variables, inputs, options) -> Compiled:
  started = time.perf_counter()
  inference = jax.jit(module.apply, compiler_options=options)
  program = inference.lower(variables, *inputs).compile()
  seconds = time.perf_counter() - started
  return Compiled(
    make_run(lambda state, batch: (state, program(state, *batch)),
             variables, inputs),
    seconds,
  )  # fmt: skip


def compile_training(module, card, variables, inputs, options) -> Compiled:
  """A copy of the variables is trained: the state is donated."""
  statistics = dict(jax.tree.map(jnp.copy, variables))
  params = statistics.pop('params')
  step, tx = make_step(make_loss(module, card))
  state = (params, statistics, tx.init(params), jax.random.key(0))
  started = time.perf_counter()
  training = jax.jit(step, donate_argnums=0, compiler_options=options)
  program = training.lower(state, inputs).compile()
  seconds = time.perf_counter() - started
  return Compiled(make_run(program, state, inputs), seconds)


def measure(name: str, mode: str, settings: Settings) -> dict[str, Any]:
  """Measures one model in one of `MODES`.

  Returns:
    `parameters`, `gflops` of one image's forward pass, `compile_seconds`,
    `images_per_second` and, where there is a reference that is installed,
    `reference`, `reference_images_per_second`, `ratio` with its `ratio_min` and
    `ratio_max`; `mfu` in 0..1 where the device's peak is known.
  """
  card = MODELS[name]
  size = (settings.image_size,) * 2 if settings.image_size else card.image_size
  built = build_model(name, dtype=settings.dtype, image_size=size)
  inputs = jax.device_put(make_inputs(built, settings.batch_size))
  blank = [jnp.zeros(x.shape, x.dtype) for x in built.inputs]
  variables = call_once(lambda: built.module.init(jax.random.key(0), *blank))
  flops = count_flops(built.module.apply, variables, *blank)
  options = compiler.options(compiler.set_for(card.family), jax.devices())
  if mode == 'training':
    ours = compile_training(built.module, card, variables, inputs, options)
    flops *= TRAINING_FACTOR
  else:
    ours = compile_inference(built.module, variables, inputs, options)
  parameters = sum(x.size for x in jax.tree.leaves(variables['params']))
  del variables
  reference = REFERENCES.get(name, '') if settings.torch else ''
  if reference and not _installed(reference):
    reference = ''
  timings = time_beside(ours.run, reference, size, mode, settings)
  rates = summarize(timings['jaxzoo'], settings.batch_size)
  speed = rates['images_per_second']
  peak = peak_tflops(jax.devices()[0].device_kind)
  result = {
    'model': name,
    'mode': mode,
    'parameters': parameters,
    'gflops': flops / 1e9,
    'compile_seconds': ours.seconds,
    'images_per_second': speed,
    'mfu': flops * speed / (1e12 * peak) if peak else None,
    'reference': reference,
  }
  if reference:
    theirs = summarize(timings['torch'], settings.batch_size)
    ratio = speedup(timings['jaxzoo'], timings['torch'])
    result['reference_images_per_second'] = theirs['images_per_second']
    result['ratio'] = ratio['median']
    result['ratio_min'], result['ratio_max'] = ratio['min'], ratio['max']
  return result


def time_beside(run, reference, size, mode, settings) -> dict:
  """Rounds of ours and, where `reference` is not '', of theirs in turns."""
  runs = {'jaxzoo': run}
  with contextlib.ExitStack() as stack:
    if reference:
      plan = Plan(
        reference,
        settings.batch_size,
        size,
        settings.dtype,
        mode == 'training',
      )
      theirs = torch_process.TorchProcess(
        'jaxzoo.bench.backbones_torch:make', plan
      )
      stack.enter_context(contextlib.closing(theirs))
      runs['torch'] = theirs.run
    return alternate(
      runs,
      rounds=settings.rounds,
      steps=settings.steps,
      warmup=settings.warmup,
    )


def _installed(reference: str) -> bool:
  return torch_process.is_installed('torch', reference.partition(':')[0])


COLUMNS = {
  'model': lambda x: f'`{x}`',
  'mode': str,
  'parameters': '{:,}'.format,
  'gflops': '{:.2f}'.format,
  'compile_seconds': '{:.1f}'.format,
  'images_per_second': '{:.1f}'.format,
  'reference_images_per_second': '{:.1f}'.format,
  'ratio': '{:.2f}'.format,
  'mfu': '{:.1%}'.format,
}
TITLES = (
  'model', 'mode', 'parameters', 'GFLOP', 'compile, s', 'images/s', 'PyTorch',
  'ratio', 'MFU',
)  # fmt: skip
HEADER = (
  '| ' + ' | '.join(TITLES) + ' |\n|' + '---|' * len(TITLES)
)  # fmt: skip


def row(result: dict) -> str:
  """A line of the table; '-' for what there is not."""
  cells = (
    '-' if result.get(key) is None else form(result[key])
    for key, form in COLUMNS.items()
  )
  return '| ' + ' | '.join(cells) + ' |'


def backbones(argv) -> None:
  """The command."""
  parser = command.bare_parser(
    'backbones', 'Images a second of backbones, beside PyTorch.'
  )
  add, default = parser.add_argument, Settings()
  add('models', nargs='*', metavar='NAME', help='or pattern; default: all')
  add('--train', action='store_true', help='training as well as inference')
  add('--batch_size', '--batch-size', type=int, default=default.batch_size)
  add('--dtype', default=default.dtype, help='(%(default)s)')
  add('--steps', type=int, default=default.steps, help='in a round')
  add('--rounds', type=int, default=default.rounds)
  add('--warmup', type=int, default=default.warmup, help='steps before a turn')
  add('--image_size', type=int, default=0, help='default: as published')
  add('--no_torch', action='store_true', help='ours alone')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  command.require_positive(arguments, 'batch_size', 'steps', 'rounds', 'warmup')
  settings = Settings(
    arguments.batch_size,
    arguments.dtype,
    arguments.steps,
    arguments.rounds,
    arguments.warmup,
    not arguments.no_torch,
    arguments.image_size,
  )
  names, results = select(arguments.models), []
  print(HEADER, flush=True)
  for name in names:
    for mode in MODES if arguments.train else MODES[:1]:
      results.append(measure(name, mode, settings))
      print(row(results[-1]), flush=True)
  if arguments.json:
    device = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    command.write_json(
      arguments.json,
      {**settings._asdict(), 'devices': device, 'models': results},
    )


if __name__ == '__main__':
  sys.exit(command.run(backbones))
