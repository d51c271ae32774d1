"""Rewrites checkpoints: published ones as ours, and ours as published ones.

    python -m jaxzoo.weights convert --model resnet50 \\
        resnet50.pth ours.safetensors
    python -m jaxzoo.weights export --model resnet50 \\
        ours.safetensors theirs.safetensors
    python -m jaxzoo.weights export runs/classification theirs.safetensors

`convert` reads any published checkpoint of a model of `list_models()`, in any
spelling that `create_model(weights=...)` takes (.pt, .pth, .safetensors, .npz,
Orbax), and writes the variables by our paths: as .safetensors, or as a folder
of Orbax. `export` goes the other way, from such a file or folder or from the
work directory of a run, to a .safetensors with the published names, which
PyTorch's model loads. Both are exact. Whatever is missing, unexpected or
misshapen is listed, and an error unless `--partial` is given.

Without a model `convert` keeps all arrays as they are (`--names=same`), or
brings CLIP to OpenAI's names (`--names=openai`).
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Mapping

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights import layout, orbax
from jaxzoo.weights.clip import (
  convert_batch_stats,
  convert_clip,
  export_clip,
  input_sizes_of,
)
from jaxzoo.weights.merge import Report
from jaxzoo.weights.readers import read_state_dict
from jaxzoo.weights.writers import write_safetensors


def to_openai(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """CLIP of any known spelling, in OpenAI's names, float32.

  Raises:
    UserError: it is no CLIP.
  """
  side, text_length = input_sizes_of(state_dict)
  params = convert_clip(
    state_dict, image_size=(side, side), text_length=text_length, scan=False
  )
  return export_clip(params, convert_batch_stats(state_dict))


def to_ours(
  source: str, model: str, *, partial: bool = False, **options
) -> tuple[dict[str, np.ndarray], Report]:
  """The variables of a model in a checkpoint, by path, and what was found.

  Args:
    source: as of `read_state_dict`.
    model: one of `list_models()`.
    partial: take what fits; otherwise all must.
    **options: of `build_model`.

  Raises:
    UserError: unless `partial`, a checkpoint that does not fit the model.
  """
  from jaxzoo.models.create import build_model, read_weights

  variables, report = read_weights(
    build_model(model, **options), source, strict=not partial
  )
  flat = layout.flatten(variables)
  return {path: np.asarray(flat[path]) for path in report.loaded}, report


def to_theirs(
  source: str, model: str, *, step: str | int = 'newest', **options
) -> dict[str, np.ndarray]:
  """The published state dict of a file, or of a run where `model` is ''.

  Raises:
    UserError: it does not fit the model; a run of a system that has no
      published names.
  """
  if model:
    from jaxzoo.models.create import build_model

    tensors, _ = to_ours(source, model, **options)
    return build_model(model, **options).export(layout.unflatten(tensors))
  return export_run(source, step)


def export_run(workdir: str, step: str | int) -> dict[str, np.ndarray]:
  """The published state dict of what a run has trained."""
  from jaxzoo import catalog, runs
  from jaxzoo.train import mesh as meshes

  config = runs.read_config(pathlib.Path(workdir).expanduser())
  export = getattr(catalog.load(config.system), 'export', None)
  if export is None:
    raise UserError(
      f'{workdir}: {config.system} has no published names to export to; '
      'convert writes its variables by our paths'
    )
  config, state = runs.read_run(workdir, step, meshes.make_mesh(config.mesh))
  # What is evaluated: averaged parameters where there are any.
  extra = {**state.extra}
  params = extra.get('ema') or state.params
  if extra.get('ema_stats'):
    extra['batch_stats'] = extra['ema_stats']
  return export(params, extra, config)


def convert(arguments) -> None:
  """Reads `source`, writes `target`, and says what is in it."""
  check_target(arguments.target, arguments.force, folders=bool(arguments.model))
  if not arguments.model:
    tensors = read_state_dict(arguments.source)
    if arguments.names == 'openai':
      tensors = to_openai(tensors)
  else:
    tensors, report = to_ours(
      arguments.source,
      arguments.model,
      partial=arguments.partial,
      **model_options(arguments),
    )
    print_report(report)
  if arguments.target.endswith('.safetensors'):
    metadata = {'model': arguments.model} if arguments.model else None
    write_safetensors(arguments.target, tensors, metadata)
  else:
    orbax.write(arguments.target, layout.unflatten(tensors))
  print_tensors(tensors, arguments.target)


def export(arguments) -> None:
  """Reads `source`, writes `target` by the published names."""
  check_target(arguments.target, arguments.force)
  step = arguments.step
  tensors = to_theirs(
    arguments.source,
    arguments.model,
    step=int(step) if step.isdigit() else step,
    **model_options(arguments),
  )
  write_safetensors(arguments.target, tensors)
  print_tensors(tensors, arguments.target)


def check_target(target: str, force: bool, folders: bool = False) -> None:
  """Raises a UserError for a place that is not to be written."""
  suffix = os.path.splitext(target)[1]
  if suffix != '.safetensors' and (suffix or not folders):
    raise UserError(
      f'{target}: the new file must end in .safetensors'
      + (', or have no ending: a folder of Orbax' if folders else '')
    )
  if os.path.exists(target) and (not force or os.path.isdir(target)):
    raise UserError(
      f'{target} exists: give another name'
      + ('' if os.path.isdir(target) else ', or --force')
    )
  if not os.path.isdir(os.path.dirname(target) or '.'):
    raise UserError(f'there is no folder {os.path.dirname(target)}')


def model_options(arguments) -> dict:
  """The options of `build_model` that are given."""
  names = ('num_classes', 'in_chans', 'image_size')
  given = {name: getattr(arguments, name) for name in names}
  return {name: x for name, x in given.items() if x is not None}


def print_report(report: Report) -> None:
  """A line for each array that does not fit, and how many do."""
  for kind in ('missing', 'unexpected', 'misshapen'):
    for path in getattr(report, kind):
      print(f'{kind:10} {path}')
  print(
    f'{len(report.loaded)} loaded, {len(report.missing)} missing, '
    f'{len(report.unexpected)} unexpected, {len(report.misshapen)} misshapen'
  )


def print_tensors(tensors: Mapping[str, np.ndarray], target: str) -> None:
  """A line for each array."""
  for name, array in sorted(tensors.items()):
    print(f'{array.dtype.name:9} {"x".join(map(str, array.shape)):18} {name}')
  size = sum(array.nbytes for array in tensors.values())
  print(f'{len(tensors)} arrays, {size / 1e6:.1f} MB, in {target}')


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.weights', allow_abbrev=False
  )
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser(
    'convert', help='a published checkpoint to ours', allow_abbrev=False
  )
  command.set_defaults(run=convert)
  add = command.add_argument
  add(
    'source',
    help='.pt, .pth, .bin, .npz, .safetensors, a folder of Orbax, a run; or a '
    'name on the hub',
  )
  add('target', help='the new .safetensors, or folder of Orbax')
  add(
    '--names',
    choices=['same', 'openai'],
    default='same',
    help="without a model; 'openai': CLIP from Hugging Face's names to "
    "OpenAI's, in float32",
  )
  add('--partial', action='store_true', help='write what fits')
  add_common(command)
  command = commands.add_parser(
    'export', help='ours to a file that PyTorch loads', allow_abbrev=False
  )
  command.set_defaults(run=export)
  add = command.add_argument
  add('source', help='what convert has written; or the folder of a run')
  add('target', help='the new .safetensors')
  add(
    '--step',
    default='newest',
    help="of a run: its number, 'newest' or 'best' (%(default)s)",
  )
  add_common(command)
  return parser


def add_common(command: argparse.ArgumentParser) -> None:
  add = command.add_argument
  add('--model', default='', help='one of jaxzoo.list_models()')
  add('--num_classes', type=int, help='where they are not the published ones')
  add('--in_chans', type=int, help='likewise')
  add('--image_size', type=int, help='likewise')
  add('--force', action='store_true', help='overwrite')


def main(argv=None) -> int:
  """Runs the command line; 2 for a mistake that the message explains."""
  arguments = make_parser().parse_args(argv)
  try:
    arguments.run(arguments)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
