"""Rewrites published checkpoints as safetensors, and says what is in them.

    python -m jaxzoo.weights convert pytorch_model.bin model.safetensors
    python -m jaxzoo.weights convert ViT-B-16.pt clip.safetensors --names=openai

The new file has the arrays of the old one, or CLIP's in OpenAI's names.
"""

import argparse
import os
import sys
from collections.abc import Mapping

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights.clip import (
  convert_batch_stats,
  convert_clip,
  export_clip,
  input_sizes_of,
)
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


def convert(source: str, target: str, names: str, force: bool) -> None:
  """Reads `source`, writes `target`, and prints a line for each array."""
  if not target.endswith('.safetensors'):
    raise UserError(f'{target}: the new file must end in .safetensors')
  if os.path.exists(target) and not force:
    raise UserError(f'{target} exists: give another name, or --force')
  if not os.path.isdir(os.path.dirname(target) or '.'):
    raise UserError(f'there is no folder {os.path.dirname(target)}')
  tensors = read_state_dict(source)
  if names == 'openai':
    tensors = to_openai(tensors)
  write_safetensors(target, tensors)
  for name, array in sorted(tensors.items()):
    print(f'{array.dtype.name:9} {"x".join(map(str, array.shape)):18} {name}')
  size = sum(array.nbytes for array in tensors.values())
  print(f'{len(tensors)} arrays, {size / 1e6:.1f} MB, in {target}')


def main(argv=None) -> int:
  """Runs the command line; 2 for a mistake that the message explains."""
  parser = argparse.ArgumentParser(prog='python -m jaxzoo.weights')
  commands = parser.add_subparsers(required=True)
  command = commands.add_parser(
    'convert', help='a published checkpoint to safetensors'
  )
  command.add_argument(
    'source', help='.pt, .bin or .safetensors; or a name on the hub'
  )
  command.add_argument('target', help='the new .safetensors')
  command.add_argument(
    '--names',
    choices=['same', 'openai'],
    default='same',
    help="'openai': CLIP from Hugging Face's names to OpenAI's, in float32",
  )
  command.add_argument('--force', action='store_true', help='overwrite')
  try:
    convert(**vars(parser.parse_args(argv)))
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
