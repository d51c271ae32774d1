"""Asks a teacher once about every training picture, for runs without it.

    python -m jaxzoo.teach --config=configs/dist.py --out=logits.npy
    python -m jaxzoo.main --config=configs/dist.py \\
        --config.data.teacher_logits=logits.npy --config.data.crop=none

The teacher is that of the config: a stage, which is trained where it has not
been, or a published checkpoint. It sees whole pictures, as at test time. Runs
that use the file compute nothing of the teacher's, as long as their terms take
logits alone (`kd`, `dist`).
"""

import argparse
import json
import sys

import jax
import numpy as np
import optax
from absl import logging
from etils import epath

from jaxzoo import catalog, configuration, initial, main, stages
from jaxzoo.data import classification as data
from jaxzoo.data.taught import facts_path
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import make_predict
from jaxzoo.models.distillation.distillation import teacher_config
from jaxzoo.models.supervised import classification
from jaxzoo.system import State
from jaxzoo.train import mesh as meshes

PART = 50_000  # pictures whose logits are in memory at once


class Part:
  """Some records of a source, one after the other."""

  def __init__(self, source, start: int, stop: int):
    self._source, self._start = source, start
    self._length = stop - start

  def __len__(self) -> int:
    return self._length

  def __getitem__(self, i) -> dict:
    return self._source[self._start + range(self._length)[i]]


def write_logits(config, out, workdir='') -> tuple[int, int]:
  """Writes the teacher's logits of the training split; their shape [n, k].

  Args:
    config: of distillation of a classifier.
    out: the file, NAME.npy; NAME.json lies beside it.
    workdir: of the run, where stages lie or are trained.

  Raises:
    UserError: a config without a teacher, a picture that cannot be read, or
      anything that the run itself would refuse.
  """
  if config.get('task') != 'classification' or 'teacher' not in config:
    raise UserError(
      f'{config.system} does not distil a classifier: logits are written for '
      'configs like configs/dist.py'
    )
  if not str(out).endswith('.npy'):
    raise UserError(f'--out={out}: the name must end in .npy')
  mesh = meshes.make_mesh(config.mesh)
  source = data.read_source(config, config.data.train_split)
  own = teacher_config(config)
  system = classification.build(own, optax.identity())
  predict = make_predict(system, mesh, config.eval_batch_size)
  seen = predict(_teacher_state(config, workdir, mesh))
  transforms = data.eval_transforms(config)
  shape, writes = (len(source), config.num_classes), jax.process_index() == 0
  if writes:
    logits = np.lib.format.open_memmap(
      out, mode='w+', dtype=np.float16, shape=shape
    )
  for start in range(0, len(source), PART):
    part = Part(source, start, min(start + PART, len(source)))
    found = seen(part, transforms)
    if not found.mask.all():
      raise UserError(
        f'{source!r}: picture {start + int(np.argmin(found.mask))} cannot be '
        'read: take it out of the data set first'
      )
    if writes:
      logits[start : start + len(part)] = found.outputs['logits']
  if writes:
    logits.flush()
    facts = {'source': repr(source), 'teacher': config.teacher.to_dict()}
    facts_path(out).write_text(json.dumps(facts, default=list, indent=2) + '\n')
  return shape


def _teacher_state(config, workdir, mesh) -> State:
  """The teacher as a run of its own would have it."""
  workdir = epath.Path(workdir or f'runs/{config.system}').expanduser()
  folders = stages.run_stages(config, workdir, main.train, print)
  weights = initial.load_weights(
    config, stages.read_states(config, folders, mesh)
  )
  if not weights or 'teacher' not in weights[1]:
    raise UserError(
      'the config has no teacher: set stages.teacher or teacher.weights'
    )
  teacher = dict(weights[1]['teacher'])
  params = teacher.pop('params')
  state = State(
    np.int32(0),
    jax.random.key(0),
    params,
    (),
    {'batch_stats': teacher.get('batch_stats', {})},
  )
  rules = catalog.sharding(teacher_config(config))
  return jax.device_put(state, meshes.infer_shardings(state, mesh, rules))


def command(argv=None) -> int:
  """Runs the command line; 0, or 2 for a mistake of the user."""
  logging.set_verbosity(logging.WARNING)
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.teach',
    description=__doc__.splitlines()[0],
    allow_abbrev=False,
  )
  parser.add_argument('--config', required=True, metavar='FILE[:VARIANT]')
  parser.add_argument('--out', required=True, metavar='FILE.npy')
  parser.add_argument('--workdir', default='', help='of the run, for stages')
  argv = sys.argv[1:] if argv is None else argv
  arguments = parser.parse_args(
    [a for a in argv if not a.startswith('--config.')]
  )
  overrides = [a for a in argv if a.startswith('--config.')]
  try:
    config, source = configuration.parse(
      [f'--config={arguments.config}', *overrides]
    )
    workdir = arguments.workdir or main.default_workdir(source)
    n, k = write_logits(config, arguments.out, workdir)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  print(f'{arguments.out}: {n:,} pictures, {k:,} classes')
  return 0


if __name__ == '__main__':
  sys.exit(command())
