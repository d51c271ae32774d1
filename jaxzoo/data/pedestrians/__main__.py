"""Generates the data set: python -m jaxzoo.data.pedestrians --out DIR."""

import argparse
import json
import pathlib
import sys
import textwrap
import time

import cv2
import numpy as np

from jaxzoo.data.pedestrians.write import Settings, prepare, write
from jaxzoo.errors import UserError


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m jaxzoo.data.pedestrians',
    description='Writes generated pedestrians in the layout of UFine6926 and '
    'UFine3C.',
  )
  parser.add_argument(
    '--out', help='folder; by default a cached one under $JAXZOO_DATA'
  )
  parser.add_argument(
    '--sheet', metavar='FILE.png', help='also draw some people and captions'
  )
  parser.add_argument(
    '--workers', type=int, help='processes; by default one a core'
  )
  for name, value in Settings()._asdict().items():
    parser.add_argument(
      f'--{name}', type=type(value), default=value, help=f'default {value}'
    )
  return parser.parse_args(argv)


def _report(root):
  """Prints what the annotation files hold."""
  for name in ('UFine6926', 'UFine3C'):
    records = json.loads((root / name / f'{name}_Annotations.json').read_text())
    for split in ('train', 'test'):
      part = [record for record in records if record['split'] == split]
      if not part:
        continue
      pids = {record['id'] for record in part}
      captions = [text for record in part for text in record['captions']]
      words = np.mean([len(text.split()) for text in captions])
      print(
        f'{name} {split}: {len(pids)} people, {len(part)} images, '
        f'{len(captions)} captions of {words:.1f} words'
      )


def _row(record_group, folder, text_width=620):
  """The pictures of one person, and the longest caption of the first."""
  images = [
    cv2.imread(str(folder / record['file_path'])) for record in record_group
  ]
  strip = np.concatenate(images, 1)
  panel = np.full((strip.shape[0], text_width, 3), 255, np.uint8)
  first = record_group[0]
  where = first.get('source', first['split'])
  lines = [f'{where} {first["id"]}']
  lines += textwrap.wrap(max(first['captions'], key=len), text_width // 7)
  for i, line in enumerate(lines):
    place = (8, 18 + 17 * i)
    cv2.putText(panel, line, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0))
  return np.concatenate([strip, panel], 1)


def sheet(root: pathlib.Path, path: str, people: int = 4) -> None:
  """Draws the first people of every split with a caption each."""
  rows = []
  for name in ('UFine6926', 'UFine3C'):
    folder = root / name
    records = json.loads((folder / f'{name}_Annotations.json').read_text())
    for split in ('train', 'test'):
      groups = {}
      for record in records:
        if record['split'] == split:
          groups.setdefault(record['id'], []).append(record)
      rows += [_row(group, folder) for group in list(groups.values())[:people]]
  try:
    written = cv2.imwrite(path, np.concatenate(rows))
  except cv2.error:
    written = False
  if not written:
    raise UserError(
      f'pedestrians: cannot write the sheet to {path}; give a .png file in a '
      'folder that exists'
    )


def main(argv=None) -> int:
  arguments = vars(_arguments(argv))
  out, path = arguments.pop('out'), arguments.pop('sheet')
  workers = arguments.pop('workers')
  settings = Settings(**arguments)
  try:
    start = time.perf_counter()
    if out is None:
      root = prepare(settings)
    else:
      root = pathlib.Path(out)
      write(root, settings, workers)
    print(f'{root}: ready in {time.perf_counter() - start:.1f} s')
    _report(root)
    if path:
      sheet(root, path)
      print(f'{path}: contact sheet')
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
