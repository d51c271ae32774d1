"""The texts that a run of DFKD-T3 has its student learn from, as a file.

    python -m jaxzoo.rewrite --workdir=runs/dfkd_t3 --out=generated.jsonl

writes JSON lines {"source", "generated", "teacher_output"}. Other models learn
from them with --config=configs/dfkd_t3.py:baseline
--config.data.general=generated.jsonl.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging
from etils import epath

from jaxzoo import runs
from jaxzoo.data import text as data
from jaxzoo.data.pipeline import eval_batches
from jaxzoo.data.sources.text import Texts
from jaxzoo.errors import UserError
from jaxzoo.models.distillation import dfkd_t3, rewriting
from jaxzoo.models.supervised import text_to_text
from jaxzoo.train import mesh as meshes


def rewrites(
  workdir, count: int, *, step: int | str = 'newest', seed: int = 0, path=''
) -> Iterator[dict[str, str]]:
  """The first sentences of a general text, rewritten and answered.

  Args:
    workdir: of a finished or running `python -m jaxzoo.main`.
    count: how many; fewer where the text is shorter.
    step: of a checkpoint, 'newest' or 'best'.
    seed: of the samples.
    path: a file of sentences other than the run's.

  Yields:
    `source`, `generated` and `teacher_output` of each.

  Raises:
    UserError: there is no such run or step, or it has no generator.
  """
  config = runs.read_config(epath.Path(workdir).expanduser())
  if config.system != 'dfkd_t3' or config.generator.kind == 'none':
    raise UserError(
      f'{workdir} holds a run of {config.system} without a generator: nothing '
      'is rewritten'
    )
  mesh = meshes.make_mesh({'data': 1}, jax.local_devices()[:1])
  config, state = runs.read_run(workdir, step, mesh, config)
  config.data.general = path or config.data.general
  whole = data.open_texts(config, 'general', 'train')
  source = Texts(repr(whole), whole.texts[:count])
  tokenizer, write = data.make_tokenizer(config), make_write(config, state)
  batches = eval_batches(
    source,
    (data.make_encode(config, 'rewrite'),),
    batch_size=config.eval_batch_size,
  )
  for i, batch in enumerate(batches):
    index, mask = batch.pop('index'), batch.pop('mask')
    key = jax.random.fold_in(jax.random.key(seed), i)
    generated, answers = jax.device_get(write(batch, key))
    for row in np.flatnonzero(mask):
      yield {
        'source': source.texts[index[row]].sentence,
        'generated': tokenizer.decode(generated[row]),
        'teacher_output': (
          config.labels[answers[row].argmax()]
          if config.labels
          else tokenizer.decode(answers[row])
        ),
      }


def make_write(config, state) -> Callable:
  """(batch, key) -> (ids of texts, the teacher's `answer` to them), compiled."""
  networks = dfkd_t3.make_networks(config)
  variables = state.extra['language']
  if config.generator.kind == 'trained':
    params = state.extra.get('ema', state.params)  # as `predict` has it
    variables = {'params': params['generator']}

  @jax.jit
  def write(variables, teacher, batch, key):
    noise = rewriting.Noise(key, batch['sentence'].shape[0], config.vocab_size)
    texts = rewriting.sample(
      networks.generator, variables, batch, noise, config.generator.length
    )
    asked = dict(batch, sentence=texts)
    answers = text_to_text.answer(networks.teacher, teacher, asked, config)
    return texts, answers['logits' if config.label_tokens else 'answer']

  return lambda batch, key: write(variables, state.extra['teacher'], batch, key)


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.rewrite', allow_abbrev=False
  )
  add = parser.add_argument
  add('--workdir', required=True, help='of a run of dfkd_t3')
  add('--out', required=True, help='the new file, *.jsonl')
  add('--count', type=int, default=10_000, help='texts (%(default)s)')
  add('--step', default='newest', help="a number, 'newest' or 'best'")
  add('--seed', type=int, default=0, help='of the samples')
  add('--path', default='', help="a file of sentences other than the run's")
  return parser


def main(argv=None) -> int:
  """Runs the command line; 2 for a mistake that the message explains."""
  logging.set_verbosity(logging.WARNING)
  arguments = make_parser().parse_args(argv)
  step = int(arguments.step) if arguments.step.isdigit() else arguments.step
  out = epath.Path(arguments.out).expanduser()
  try:
    rows = rewrites(
      arguments.workdir,
      arguments.count,
      step=step,
      seed=arguments.seed,
      path=arguments.path,
    )
    lines = [json.dumps(row, ensure_ascii=False) + '\n' for row in rows]
    try:
      out.write_text(''.join(lines))
    except OSError as error:
      raise UserError(f'--out={out} cannot be written: {error}') from error
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{len(lines)} texts in {out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
