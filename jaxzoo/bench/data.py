"""Throughput of the input alone, beside that of the training step.

    python -m jaxzoo.bench.data --config=configs/cfam.py

reads, decodes, augments and batches as training does, without training, for
several numbers of threads and of worker processes; then measures the step on a
batch that is already on the device. The slower of the two is what a run waits
for. `--no_step` leaves the step out.
"""

import contextlib
import math
import multiprocessing
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from jaxzoo import catalog, main
from jaxzoo.bench import command, train_step
from jaxzoo.data import pipeline
from jaxzoo.errors import CorruptRecord, UserError


class Variant(NamedTuple):
  """How the input is read.

  Attributes:
    threads: that read ahead, `data.threads`.
    workers: processes in their place, `data.workers`.
    cached: whether all pictures are in memory, as they are after the first
      epoch where `data.cache_images` is set.
  """

  threads: int
  workers: int
  cached: bool = False


def variants(config, threads: list[int], workers: list[int]) -> list[Variant]:
  """What is to be measured; the config's own comes first."""
  own = (config.data.threads, config.data.workers)
  pairs = [own, *((n, 0) for n in threads), *((own[0], n) for n in workers)]
  kinds = [Variant(*pair) for pair in dict.fromkeys(pairs)]
  if config.data.get('cache_images', False):
    # A worker process has a cache of its own, which cannot be filled here.
    kinds.insert(1, Variant(config.data.threads, 0, cached=True))
  return kinds


def read_rate(config, variant: Variant, seconds: float) -> float:
  """Images a second that the input gives where nothing else is done.

  Measured for `seconds`, but not beyond the first epoch.
  """
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind').train_data(
    config
  )
  if variant.cached:
    fill_cache(data.source)
  epoch = len(data.source) // config.batch_size
  # What every worker has read ahead would count as fast.
  ahead = (1 + variant.threads) * max(1, variant.workers)
  warmup = min(ahead, max(1, epoch // 2))
  reading = read(
    config,
    data,
    variant,
    warmup=warmup,
    seconds=seconds,
    most=max(1, epoch - warmup),
  )
  return reading.batches * config.batch_size / reading.seconds


class Reading(NamedTuple):
  """What was read, and what it took.

  Attributes:
    batches: how many.
    seconds: of the clock.
    cpu_seconds: of all cores together, see there.
  """

  batches: int
  seconds: float
  cpu_seconds: float | None


def read(
  config,
  data: pipeline.Data | pipeline.BatchedData,
  variant: Variant,
  *,
  warmup: int,
  seconds: float,
  most: float = math.inf,
) -> Reading:
  """Takes batches of training data as fast as they come, and drops them.

  Args:
    config: of the batches.
    data: what they are made of.
    variant: how it is read.
    warmup: batches before the clock starts.
    seconds: to read on from there, at least one batch.
    most: batches in that time.

  Raises:
    UserError: fewer records than a batch has.
  """
  iterator = pipeline.train_iterator(
    main.make_dataset(config, data),
    workers=variant.workers,
    threads=variant.threads,
  )
  with contextlib.closing(iterator):
    for _ in range(warmup):
      next(iterator)
    started, cpu_started = time.perf_counter(), cpu_seconds()
    batches, passed = 0, 0.0
    while not batches or (passed < seconds and batches < most):
      next(iterator)
      batches += 1
      passed = time.perf_counter() - started
    cpu_ended = cpu_seconds()
  if cpu_started is None or cpu_ended is None:
    return Reading(batches, passed, None)
  return Reading(batches, passed, cpu_ended - cpu_started)


def cpu_seconds() -> float | None:
  """Of all cores, by this process and the worker processes that it has now.

  None where there are workers and no /proc that knows them.
  """
  total = time.process_time()
  for child in multiprocessing.active_children():
    try:
      stat = pathlib.Path(f'/proc/{child.pid}/stat').read_text()
    except OSError:
      return None
    user, system = stat.rpartition(')')[2].split()[11:13]
    total += (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')
  return total


def fill_cache(source) -> None:
  """Reads every record once."""
  for i in range(len(source)):
    try:
      source[i]
    except CorruptRecord:
      continue


def measure(
  config,
  *,
  threads: list[int],
  workers: list[int],
  seconds: float = 5.0,
  step: bool = True,
) -> dict:
  """Measures the input of a config, and its training step.

  Args:
    config: of any system with training data.
    threads: numbers of threads to try, beside the config's own.
    workers: numbers of processes to try, likewise.
    seconds: to measure each.
    step: whether to measure the step, too.

  Returns:
    `input`, a dict of `threads`, `workers`, `cached` and `images_per_second`
    for each variant, the config's own first; with `step` that of
    `train_step.measure` under `step`, and `input_by_step`, how many times the
    images that the step takes the config's own input gives.
  """
  result = {
    'system': config.system,
    'batch_size': config.batch_size,
    'input': [
      {
        **variant._asdict(),
        'images_per_second': read_rate(config, variant, seconds),
      }
      for variant in variants(config, threads, workers)
    ],
  }
  if step:
    result['step'] = train_step.measure(config)
    rate = result['step']['jaxzoo']['images_per_second']
    result['input_by_step'] = result['input'][0]['images_per_second'] / rate
  return result


def make_table(result: dict) -> Table:
  """A row for each way to read, and one for the step."""
  table = Table('{system}, batch {batch_size}'.format(**result), 'images/s')
  for row in result['input']:
    name = 'input, {threads} threads'
    name += ', {workers} processes' if row['workers'] else ''
    name += ', pictures in memory' if row['cached'] else ''
    table.add_row(name.format(**row), f'{row["images_per_second"]:,.1f}')
  if 'step' in result:
    step = result['step']
    rate = step['jaxzoo']['images_per_second']
    table.add_row(f'step, {step["devices"]}', f'{rate:,.1f}')
  return table


def verdict(result: dict) -> str:
  """Which of the two a run waits for."""
  ratio = result['input_by_step']
  if jax.default_backend() == 'cpu':
    return (
      f'Reading takes {1 / (1 + ratio):.0%} of the time: input and step share '
      'the cores of the host.'
    )
  if ratio < 1:
    return (
      f'The input binds: it gives {ratio:.0%} of the images that the step '
      'takes. Raise data.threads or data.workers.'
    )
  return f'The step binds: the input gives {ratio:.1f} times what it takes.'


def numbers(option: str, text: str) -> list[int]:
  """'0,2,4' as numbers."""
  try:
    values = [int(x) for x in text.split(',') if x]
  except ValueError:
    values = [-1]
  if any(value < 0 for value in values):
    raise UserError(f'{option}={text}: write numbers like 0,2,4')
  return values


def data(argv) -> None:
  """The command."""
  parser = command.make_parser(
    'data', 'Throughput of the input alone, beside that of the training step.'
  )
  add = parser.add_argument
  add('--threads', default='0,1,4,16', help='to try (%(default)s)')
  add('--workers', default='2', help='to try (%(default)s)')
  add('--seconds', type=float, default=5.0, help='for each (%(default)s)')
  add('--no_step', action='store_true', help='the input alone')
  arguments, config = command.parse(parser, argv)
  result = measure(
    config,
    threads=numbers('--threads', arguments.threads),
    workers=numbers('--workers', arguments.workers),
    seconds=arguments.seconds,
    step=not arguments.no_step,
  )
  console = Console()
  console.print(make_table(result))
  if 'step' in result:
    console.print(verdict(result))
  if arguments.json:
    command.write_json(arguments.json, result)


if __name__ == '__main__':
  sys.exit(command.run(data))
