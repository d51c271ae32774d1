"""Runs that another run stands on: a teacher, a pre-trained encoder.

`config.stages` has a config by name for each: `python -m jaxzoo.main` trains
them first, into folders of its workdir, and the system takes of their states
what it needs (`from_stages` of its module).
"""

import json
import operator
from collections.abc import Callable, Mapping

from etils import epath

from jaxzoo import catalog
from jaxzoo.errors import UserError, nearest
from jaxzoo.runs import read_run
from jaxzoo.system import State


def stage(
  name: str,
  run: str = '',
  step: str = 'newest',
  inherit: tuple[str, ...] = (),
  **fields,
) -> dict:
  """An entry of `config.stages`.

  Args:
    name: of its config, 'classification:resnet50'.
    run: folder of a finished run of such a config, which is taken as it is.
    step: of its checkpoints: 'newest', or 'best'.
    inherit: fields that it has from the run that stands on it: 'data.root'.
    **fields: of its config, by dotted names with '.' written as '__'.
  """
  fields = {key.replace('__', '.'): value for key, value in fields.items()}
  return dict(
    config=name,
    run=run,
    step=step,
    inherit=tuple(inherit),
    fields=tuple(fields.items()),
  )


def run_stages(
  config, workdir: epath.Path, train: Callable, say: Callable
) -> dict[str, epath.Path]:
  """Trains what `config.stages` has and `workdir` has not; folders by name.

  Args:
    config: of the run that stands on them.
    workdir: of that run; stage NAME goes into the folder NAME.
    train: (config, workdir) -> anything: the training of main.
    say: prints a line.

  Raises:
    UserError: no such config or field, or `run` is no finished run.
  """
  folders = {}
  for name, fields in config.stages.items():
    if fields.run:
      folders[name] = _given(name, epath.Path(fields.run).expanduser())
      continue
    folders[name] = workdir / name
    if not (folders[name] / 'result.json').exists():
      say(f'first {name}: {fields.config}')
      train(_config(name, fields, folders, config), folders[name])
  return folders


def _given(name: str, folder: epath.Path) -> epath.Path:
  if not (folder / 'result.json').exists():
    raise UserError(
      f'stages.{name}.run: {folder} is no finished run, it has no '
      'result.json; leave it empty to train one'
    )
  return folder


def _config(name: str, fields, folders, above):
  """The config of a stage; stages of its own that are done are not repeated."""
  config = catalog.get_config(fields.config).copy_and_resolve_references()
  inherited = [(key, operator.attrgetter(key)(above)) for key in fields.inherit]
  for key, value in (*inherited, *fields.fields):
    if isinstance(value, list):  # of a config that was read back
      value = tuple(value)
    try:
      config.update_from_flattened_dict({key: value})
    except (KeyError, TypeError) as error:
      known = config.to_dict()
      raise UserError(
        f'stages.{name}: {fields.config} has no such field {key}={value!r}; '
        + nearest(key, known)
      ) from error
  for own in config.stages.keys() & folders.keys():
    config.stages[own].run = str(folders[own])
  return config.lock()


def read_states(
  config, folders: Mapping[str, epath.Path], mesh
) -> dict[str, tuple[object, State]]:
  """name -> (config, state without optimizer) of finished stages."""
  return {
    name: read_run(folder, config.stages[name].step, mesh)
    for name, folder in folders.items()
  }


def results(config, workdir: epath.Path) -> dict[str, dict]:
  """name -> the metrics that a stage of the run in `workdir` ended with."""
  found = {}
  for name, fields in config.stages.items():
    folder = (
      epath.Path(fields.run).expanduser() if fields.run else workdir / name
    )
    path = folder / 'result.json'
    if path.exists():
      found[name] = json.loads(path.read_text())['metrics']
  return found
