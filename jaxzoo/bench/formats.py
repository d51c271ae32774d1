"""Throughput of the input by the format of the files that it reads.

    python -m jaxzoo.bench.formats
    python -m jaxzoo.bench.formats --threads=4 --workers=0,4,16 --rounds=5

writes the same pictures, drawn with the detail of photographs, as a folder of
JPEG files and as a data set of TFDS in ArrayRecord files (extra `tfds`), into a
temporary folder. Both are read as ImageNet is for training (a random part
resized, flipped, batched), for every number of threads with every number of
worker processes; in each round every one has its turn. `per core` are images
for a second of CPU time, of this process and its workers together. The files
have just been written: they come from the system's memory, not from a disk.
"""

import contextlib
import importlib
import io
import itertools
import os
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from rich.console import Console
from rich.table import Table

from jaxzoo import catalog
from jaxzoo.bench import command
from jaxzoo.bench.data import Variant, fill_cache, numbers, read
from jaxzoo.bench.torch_process import is_installed
from jaxzoo.data import classification
from jaxzoo.errors import UserError

HEIGHT, WIDTH = 375, 500  # as ImageNet's usually are, with as many bytes
CLASSES = ('bird', 'boat', 'house', 'tree')  # sorted, as folders are


def draw(rng) -> UInt8[np.ndarray, 'h w 3']:
  """Smooth colours, finer and fainter detail on them, and grain."""
  image = np.zeros((HEIGHT, WIDTH, 3), np.float32)
  for octave in range(1, 9):
    cells = (1 + 3 * 2**octave // 4, 1 + 2**octave, 3)
    noise = rng.standard_normal(cells, np.float32)
    smooth = cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    image += 0.8**octave * smooth
  image *= rng.uniform(30, 50)
  image += 12 * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
  return np.clip(image + rng.uniform(90, 150), 0, 255).astype(np.uint8)


def photographs(count: int, seed: int = 0) -> tuple[list[bytes], list[int]]:
  """JPEG files and the class of each; those of a class follow each other."""
  rng = np.random.default_rng(seed)
  encode = lambda x: simplejpeg.encode_jpeg(
    x, quality=90, colorsubsampling='420'
  )
  files = [encode(draw(rng)) for _ in range(count)]
  return files, [i * len(CLASSES) // count for i in range(count)]


def write_folder(root: str, files: Sequence[bytes], labels: Sequence[int]):
  """ROOT/train/CLASS/*.jpg."""
  for i, (file, label) in enumerate(zip(files, labels, strict=True)):
    path = pathlib.Path(root, 'train', CLASSES[label], f'{i:08}.jpg')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file)


def write_tfds(root: str, files: Sequence[bytes], labels: Sequence[int]):
  """The data set 'photographs', prepared by TFDS in the given order."""
  tfds = importlib.import_module('tensorflow_datasets')

  class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')
    pkg_dir_path = pathlib.Path(root)  # without descriptions of the data

    def _info(self):
      features = {
        'image': tfds.features.Image(encoding_format='jpeg'),
        'label': tfds.features.ClassLabel(names=CLASSES),
      }
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(features),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, (file, label) in enumerate(zip(files, labels, strict=True)):
        yield i, {'image': io.BytesIO(file), 'label': label}

  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    Photographs(
      data_dir=root, file_format='array_record'
    ).download_and_prepare()


FORMATS = {'folder': write_folder, 'tfds': write_tfds}  # of `data.dataset`


def formats_here() -> list[str]:
  """Those of FORMATS whose packages are installed."""
  if is_installed('tensorflow_datasets'):
    return list(FORMATS)
  return ['folder']


def write(name: str, root: str, files, labels, batch_size=64, image_size=224):
  """Writes the pictures below an empty folder; the config that reads them."""
  FORMATS[name](root, files, labels)
  config = catalog.get_config('classification:resnet50')
  config.data.update(dataset=name, root=root, name='photographs')
  config.batch_size, config.num_classes = batch_size, len(CLASSES)
  config.image_size = (image_size, image_size)
  return config


def bytes_per_record(source) -> float | None:
  """What reading a record asks the system for, on average over all of them.

  None where there is no /proc that knows.
  """

  def so_far():
    return int(pathlib.Path('/proc/self/io').read_text().split()[1])

  try:
    before = so_far()
    fill_cache(source)
    return (so_far() - before) / len(source)
  except OSError:
    return None


def measure(
  directory: str,
  *,
  pictures: int,
  batch_size: int,
  image_size: int,
  threads: Sequence[int],
  workers: Sequence[int],
  seconds: float,
  rounds: int,
) -> dict:
  """Rates of the formats that can be read here.

  Args:
    directory: an empty folder, which gets the files.
    pictures: how many.
    batch_size: how many are read at once.
    image_size: side of what is cut out of each and resized, in pixels.
    threads: numbers of threads to read with, in each process.
    workers: numbers of worker processes; 0: this process alone.
    seconds: to measure each in each round, beside what it takes to begin.
    rounds: how many.

  Returns:
    `pictures`, `batch_size`, `image_size`; `bytes`, of a JPEG file on average;
    `input`, a dict for each row: `format`, `threads`, `workers`, and medians
    over rounds, `images_per_second` and `images_per_core_second` (None where
    CPU time is not known); `bytes_read`, for an image (None likewise).

  Raises:
    UserError: fewer pictures than a batch has, or files that cannot be written.
  """
  least = max(batch_size, len(CLASSES))
  if pictures < least:
    raise UserError(
      f'--pictures={pictures}: a batch takes at least {least}; lower '
      '--batch_size, or make more'
    )
  configs = {}
  files, labels = photographs(pictures)
  for name in formats_here():
    root = os.path.join(directory, name)
    try:
      os.mkdir(root)
      configs[name] = write(name, root, files, labels, batch_size, image_size)
    except OSError as error:
      raise UserError(f'cannot write into {root}: {error.strerror}') from error
  sets = {name: classification.train_data(x) for name, x in configs.items()}
  variants = [Variant(*x) for x in itertools.product(threads, workers)]
  readings = {x: [] for x in itertools.product(configs, variants)}
  for _ in range(rounds):
    for variant, name in itertools.product(variants, configs):
      # Until no batch is waiting that was read while processes began.
      warmup = (1 + variant.threads) * max(1, variant.workers)
      readings[name, variant].append(
        read(configs[name], sets[name], variant, warmup=warmup, seconds=seconds)
      )
  amounts = {name: bytes_per_record(x.source) for name, x in sets.items()}
  return {
    'pictures': pictures,
    'batch_size': batch_size,
    'image_size': image_size,
    'bytes': statistics.fmean(map(len, files)),
    'input': [
      {
        'format': name,
        'threads': variant.threads,
        'workers': variant.workers,
        **rates(turns, batch_size),
        'bytes_read': amounts[name],
      }
      for (name, variant), turns in readings.items()
    ],
  }


def rates(readings, batch_size: int) -> dict[str, float | None]:
  """Images a second, and a second of a core: medians."""
  found = {
    'images_per_second': statistics.median(
      x.batches * batch_size / x.seconds for x in readings
    ),
    'images_per_core_second': None,
  }
  if all(x.cpu_seconds for x in readings):
    found['images_per_core_second'] = statistics.median(
      x.batches * batch_size / x.cpu_seconds for x in readings
    )
  return found


def make_table(result: dict) -> Table:
  """A row for each format, number of threads and of processes."""
  table = Table(
    'format',
    'threads',
    'workers',
    'images/s',
    'per core',
    'kB read/image',
    title='{pictures:,} pictures of {width}x{height}, {kb:.0f} kB each; '
    '{image_size}x{image_size} in batches of {batch_size}'.format(
      width=WIDTH, height=HEIGHT, kb=result['bytes'] / 1e3, **result
    ),
  )
  for column in table.columns[1:]:
    column.justify = 'right'
  number = lambda x, form: '-' if x is None else format(x, form)
  for row in result['input']:
    kilobytes = row['bytes_read'] and row['bytes_read'] / 1e3
    table.add_row(
      row['format'],
      str(row['threads']),
      str(row['workers']),
      f'{row["images_per_second"]:,.1f}',
      number(row['images_per_core_second'], ',.1f'),
      number(kilobytes, ',.1f'),
    )
  return table


def formats(argv) -> None:
  """The command."""
  parser = command.bare_parser('formats', 'Throughput of the input by format.')
  add = parser.add_argument
  add('--pictures', type=int, default=512, help='(%(default)s)')
  add('--batch_size', type=int, default=64, help='(%(default)s)')
  add('--image_size', type=int, default=224, help='its side (%(default)s)')
  add('--threads', default='1,4', help='of each process (%(default)s)')
  add('--workers', default='0,2', help='processes (%(default)s)')
  add('--seconds', type=float, default=3.0, help='of a turn (%(default)s)')
  add('--rounds', type=int, default=3, help='(%(default)s)')
  add('--directory', help='where to write; default: a temporary folder')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  options = vars(arguments).copy()
  path, directory = options.pop('json'), options.pop('directory')
  command.require_positive(
    arguments, *(k for k, x in options.items() if isinstance(x, int))
  )
  for name in ('threads', 'workers'):
    options[name] = numbers(f'--{name}', options[name])
    if not options[name]:
      raise UserError(f'--{name}: write numbers like 0,2,4')
  try:
    folder = tempfile.TemporaryDirectory(dir=directory)
  except OSError as error:
    raise UserError(f'--directory={directory}: {error.strerror}') from error
  console = Console()
  if set(FORMATS) - set(formats_here()):
    console.print(
      'TFDS is left out, it is not installed: pip install "jaxzoo[tfds]"',
      markup=False,
    )
  with folder as place:
    result = measure(place, **options)
  console.print(make_table(result))
  if path:
    command.write_json(path, result)


if __name__ == '__main__':
  sys.exit(command.run(formats))
