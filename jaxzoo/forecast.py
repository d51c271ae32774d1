"""Forecasts beyond the end of a series, by a trained run.

    python -m jaxzoo.forecast --workdir=runs/card-custom
    python -m jaxzoo.forecast --workdir=runs/card-custom --path=longer.csv

writes the forecast as CSV and as a picture.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import ml_collections
import numpy as np
import optax
from absl import logging
from etils import epath
from PIL import Image

from jaxzoo import runs
from jaxzoo.data import forecasting
from jaxzoo.data.sources.series import Series, times_after
from jaxzoo.data.windows import Scale
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import make_predict
from jaxzoo.eval.series_pictures import Forecast, channel_sheet
from jaxzoo.runs import build_system
from jaxzoo.train import mesh as meshes


class Forecaster(NamedTuple):
  """A trained forecasting run.

  >>> forecaster = Forecaster.from_run('runs/card')      # doctest: +SKIP
  >>> forecaster.forecast(forecaster.series()).forecast  # doctest: +SKIP

  Attributes:
    config: of the run.
    facts: of its training data: `columns`, `mean`, `std`, see
      `jaxzoo.data.forecasting.facts`.
    predict: records -> outputs, see `jaxzoo.eval.evaluator`.
  """

  config: ml_collections.ConfigDict
  facts: Mapping
  predict: Callable

  @classmethod
  def from_run(
    cls,
    workdir,
    *,
    step: int | str = '',
    fields: Mapping = {},
  ) -> 'Forecaster':
    """The run in `workdir`, made by `python -m jaxzoo.main`.

    Args:
      workdir: nothing in it is changed.
      step: of a checkpoint, 'newest' or 'best'; default the best where the run
        says what that is.
      fields: of `config.data` that are other than in training: `path`, ...

    Raises:
      UserError: there is no such run or step, or it forecasts nothing.
    """
    config = runs.read_config(epath.Path(workdir).expanduser())
    if config.data.kind != 'forecasting':
      raise UserError(f'{workdir} holds a run of {config.system}: no forecasts')
    facts = _read_facts(workdir)
    # By their names, whatever order another file has them in.
    config.data.update(
      {**fields, 'columns': list(facts['columns']), 'target': ''}
    )
    # One window at a time: one device, however many there are.
    mesh = meshes.make_mesh({'data': 1}, jax.local_devices()[:1])
    step = step or ('best' if config.checkpoint.best else 'newest')
    config, state = runs.read_run(workdir, step, mesh, config)
    system = build_system(config, optax.identity())
    return cls(config, facts, make_predict(system, mesh, 1)(state))

  def series(self) -> Series:
    """The series of the config, in its file's units."""
    return forecasting.read_series(self.config)

  def forecast(self, series: Series) -> Forecast:
    """The `horizon` rows that follow the series.

    Raises:
      UserError: other channels than in training, or too few rows.
    """
    config, columns = self.config, tuple(self.facts['columns'])
    if series.columns != columns:
      raise UserError(
        f'{series.name} has the channels {", ".join(series.columns[:8])}, but '
        f'the run was trained with {", ".join(columns[:8])}'
      )
    if len(series.values) < config.history:
      raise UserError(
        f'{series.name} has {len(series.values)} rows; the run looks at the '
        f'last {config.history}'
      )
    scale = Scale(np.asarray(self.facts['mean']), np.asarray(self.facts['std']))
    values = series.values[-config.history :]
    times = np.concatenate(
      [
        series.times[-config.history :],
        times_after(series.times, config.horizon),
      ]
    )
    record = {
      'history': scale.apply(values),
      'target': np.zeros((config.horizon, len(columns)), np.float32),
    }
    if config.data.marks:
      marks = forecasting.marks_of(times, self.facts.get('marks'))
      record['history_marks'] = marks[: config.history]
      record['target_marks'] = marks[config.history :]
    found = self.predict([record], ()).outputs['forecast'][0]
    return Forecast(columns, times, values, scale.undo(found))


def _read_facts(workdir) -> dict:
  path = epath.Path(workdir).expanduser() / 'data.json'
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(
      f'cannot read {path} ({error}): python -m jaxzoo.main writes it when a '
      'run starts'
    ) from error


def as_csv(forecast: Forecast) -> str:
  """A line for each step: its date, and the forecast of every channel."""
  horizon = len(forecast.forecast)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['date', *forecast.columns])
  for time, row in zip(
    forecast.times[-horizon:], forecast.forecast, strict=True
  ):
    date = str(time).replace('T', ' ')
    writer.writerow([date, *(f'{value:.7g}' for value in row)])
  return text.getvalue()


def parse_arguments(argv) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.forecast',
    description='Forecasts what follows the end of a series.',
    allow_abbrev=False,
  )
  parser.add_argument(
    '--workdir', required=True, help='of a run of jaxzoo.main'
  )
  parser.add_argument(
    '--path',
    default='',
    help='CSV file to go on from; default the one of the training',
  )
  for name in ('missing', 'irregular'):
    parser.add_argument(
      f'--{name}', default='', help=f'instead of data.{name} of the run'
    )
  parser.add_argument(
    '--out', default='forecast.csv', help='table (forecast.csv)'
  )
  parser.add_argument(
    '--plot', default='forecast.png', help="picture (forecast.png); '' for none"
  )
  parser.add_argument(
    '--step',
    default='',
    help="checkpoint: a number, 'newest' or 'best' (default, where the run "
    'says what is best)',
  )
  return parser.parse_args(argv)


def check_outputs(arguments) -> None:
  """Finds out before the work whether what comes of it can be written."""
  for name in ('out', 'plot'):
    path = getattr(arguments, name)
    folder = os.path.dirname(path) or '.'
    if path and not os.path.isdir(folder):
      raise UserError(f'--{name}={path}: there is no folder {folder}')
  suffix = os.path.splitext(arguments.plot)[1].lower()
  if arguments.plot and suffix not in Image.registered_extensions():
    raise UserError(
      f'--plot={arguments.plot}: no kind of picture ends in {suffix!r}; take .png'
    )


def run(arguments) -> None:
  """What the command line asks for."""
  check_outputs(arguments)
  fields = {
    name: getattr(arguments, name)
    for name in ('path', 'missing', 'irregular')
    if getattr(arguments, name)
  }
  step = arguments.step
  forecaster = Forecaster.from_run(
    arguments.workdir,
    step=int(step) if step.isdecimal() else step,
    fields=fields,
  )
  found = forecaster.forecast(forecaster.series())
  if arguments.out:
    epath.Path(arguments.out).write_text(as_csv(found))
  first, last = found.times[-len(found.forecast)], found.times[-1]
  print(
    f'{len(found.forecast)} steps of {len(found.columns)} channels, {first} to '
    f'{last}' + (f', in {arguments.out}' if arguments.out else '')
  )
  if arguments.plot:
    Image.fromarray(channel_sheet(found)).save(arguments.plot)
    print(f'drawn in {arguments.plot}')


def main(argv=None) -> int:
  """Runs the command line; 2 for a mistake that the message explains."""
  logging.set_verbosity(logging.WARNING)
  arguments = parse_arguments(sys.argv[1:] if argv is None else argv)
  try:
    run(arguments)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
