"""What a plan says, as JSON and as a table."""

import re
from typing import NamedTuple

from rich.table import Table

from jaxzoo.plan.estimate import Times

GIB = 2**30
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


class Memory(NamedTuple):
  """Bytes of one device.

  Attributes:
    limit: that a program may fill.
    needed: by all of it together; aliased outputs lie in their arguments.
    arguments, temporaries, outputs, aliased, code: its parts; None where the
      compiler gave up before it could tell.
  """

  limit: float
  needed: float
  arguments: float | None = None
  temporaries: float | None = None
  outputs: float | None = None
  aliased: float | None = None
  code: float | None = None


def memory_of(stats, limit: float) -> Memory:
  """Of `compiled.memory_analysis()`."""
  parts = dict(
    arguments=stats.argument_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )
  needed = sum(parts.values()) - 2 * parts['aliased']
  return Memory(limit, needed, **parts)


def memory_of_refusal(message: str) -> Memory | None:
  """What a TPU compiler says that a program lacks; None if it is not that.

  >>> memory_of_refusal('... Used 29.66G of 15.75G hbm. ...').needed / 2**30
  29.66
  """
  patterns = (
    r'Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm',
    r'required[^(]*\(([\d.]+)([KMGT]?)\) exceeds available HBM '
    r'\(([\d.]+)([KMGT]?)\)',
  )
  for pattern in patterns:
    found = re.search(pattern, message)
    if found:
      need, unit, have, have_unit = found.groups()
      return Memory(float(have) * _UNITS[have_unit], float(need) * _UNITS[unit])
  return None


class Report(NamedTuple):
  """One plan.

  Attributes:
    settings: what was compiled: topology, chips, mesh, batch_size, remat, ...
    fits: whether it does.
    memory: of one device.
    seconds: to trace and to compile.
    parameters: that are trained.
    model_flops: of one step, see `flops.training_flops`.
    compiled: flops, bytes, cycles of one device, kernels whose FLOPs and time
      are not among them, seconds of those that the cycles leave out; {} where
      it does not compile.
    collectives: see `collectives.totals`.
    times: None where it does not compile.
  """

  settings: dict
  fits: bool
  memory: Memory
  seconds: dict
  parameters: int
  model_flops: int
  compiled: dict
  collectives: list
  times: Times | None

  @property
  def mfu(self) -> float | None:
    return self.times.model / self.times.step if self.times else None

  @property
  def rate(self) -> float | None:
    """Examples a second."""
    if not self.times:
      return None
    return self.settings['batch_size'] / self.times.step


def as_json(report: Report) -> dict:
  """The report as plain values; bytes, seconds, FLOPs."""
  times = report.times._asdict() if report.times else None
  return {
    **report.settings,
    'fits': report.fits,
    'memory': {
      **report.memory._asdict(),
      'free': report.memory.limit - report.memory.needed,
    },
    'parameters': report.parameters,
    'model_flops': report.model_flops,
    'compiled': report.compiled,
    'collectives': report.collectives,
    'seconds': times,
    'mfu': report.mfu,
    'examples_per_second': report.rate,
    'compile_seconds': report.seconds['compile'],
    'trace_seconds': report.seconds['trace'],
  }


def table(report: Report) -> Table:
  """What is printed of one plan."""
  grid = Table(show_header=False, box=None, pad_edge=False)
  grid.add_column(style='bold', no_wrap=True)
  grid.add_column(overflow='fold')
  for name, text in rows(report):
    grid.add_row(name, text)
  return grid


def rows(report: Report) -> list[tuple[str, str]]:
  """(name, text) of every line of the table."""
  settings, memory = report.settings, report.memory
  lines = [
    ('plan', _machine_text(settings)),
    ('step', _step_text(settings)),
    ('fits', fit_text(report)),
    ('HBM per chip', _memory_text(memory)),
    (
      'model FLOPs',
      f'{_count(report.model_flops)} a step; {report.parameters:,} parameters',
    ),
  ]
  if report.times:
    lines += _program_rows(report)
  seconds = report.seconds
  lines.append(
    (
      'compile time',
      f'{seconds["compile"]:.0f} s, and {seconds["trace"]:.0f} s to trace',
    )
  )
  return lines


def _program_rows(report: Report) -> list[tuple[str, str]]:
  compiled, times = report.compiled, report.times
  ms = lambda seconds: f'{1e3 * seconds:,.2f} ms'
  lines = [
    (
      'compiled',
      f'{_count(compiled["flops"])} FLOPs and '
      f'{_size(compiled["bytes"])} of HBM traffic per chip and step',
    )
  ]
  for row in report.collectives:
    lines.append(
      (
        row['kind'],
        f'{_size(row["bytes"])} over {" and ".join(row["axes"])}, '
        f'{row["count"]} a step',
      )
    )
  source = "the compiler's cycles" if compiled['cycles'] else 'roofline'
  if compiled['cycles'] and compiled['kernel_seconds']:
    source += f', and {ms(compiled["kernel_seconds"])} of kernels: a bound'
  lines += [
    (
      'predicted',
      f'{ms(times.step)} a step: {report.rate:,.0f} '
      f'{report.settings["unit"]}/s, MFU {100 * report.mfu:.1f} %',
    ),
    (
      'floors',
      f'compute {ms(times.compute)} ({source}), HBM {ms(times.hbm)}, '
      f'interconnect {ms(times.interconnect)} '
      f'({ms(times.exposed)} not hidden), model FLOPs at peak '
      f'{ms(times.model)}',
    ),
  ]
  if compiled['kernels']:
    names = ', '.join(f'{n} x {k}' for k, n in compiled['kernels'].items())
    lines.append(('not counted', f'{names}: their FLOPs and time'))
  return lines


def _machine_text(settings: dict) -> str:
  """'cfam on v5e:4x4 (16 chips, data 4, fsdp 4)'."""
  mesh = ', '.join(f'{k} {v}' for k, v in settings['mesh'].items() if v > 1)
  return (
    f'{settings["system"]} on {settings["topology"]} '
    f'({settings["chips"]} chip{"s" * (settings["chips"] > 1)}'
    f'{", " + mesh if mesh else ""})'
  )


def _step_text(settings: dict) -> str:
  """'batch 64, bfloat16, remat full, 2 microbatches'."""
  text = (
    f'batch {settings["batch_size"]:,}, {settings["dtype"]}, '
    f'remat {settings["remat"]}'
  )
  count = settings['microbatches']
  return text + (f', {count} microbatches' if count > 1 else '')


def fit_text(report: Report) -> str:
  """'yes, 11.2 of 15.75 GiB free' or 'no, 13.9 GiB more than 15.75'."""
  limit = report.memory.limit / GIB
  free = (report.memory.limit - report.memory.needed) / GIB
  if report.fits:
    return f'yes, {max(free, 0.0):.2f} of {limit:.2f} GiB free'
  return f'no, {-free:.2f} GiB more than the {limit:.2f} that there are'


def _memory_text(memory: Memory) -> str:
  text = f'{memory.needed / GIB:.2f} GiB'
  if memory.arguments is None:
    return text + ', as the compiler says, which gave up'
  return (
    text + f': arguments {_size(memory.arguments)}, temporaries '
    f'{_size(memory.temporaries)}, outputs '
    f'{_size(memory.outputs - memory.aliased)} (beside {_size(memory.aliased)} '
    f'in place), code {_size(memory.code)}'
  )


def _size(count: float) -> str:
  """Bytes as people read them.

  >>> _size(3 * 2**20)
  '3.0 MiB'
  """
  for unit in ('B', 'KiB', 'MiB'):
    if count < 1024:
      return f'{count:.0f} B' if unit == 'B' else f'{count:.1f} {unit}'
    count /= 1024
  return f'{count:.2f} GiB'


def _count(number: float) -> str:
  """FLOPs as people read them.

  >>> _count(15.7e12)
  '15.70 T'
  """
  for unit, scale in (('P', 1e15), ('T', 1e12), ('G', 1e9)):
    if number >= scale:
      return f'{number / scale:.2f} {unit}'
  return f'{number / 1e6:.2f} M'


def overview(reports: list[Report]) -> Table:
  """A row for each attempt: what was changed, and what came of it."""
  grid = Table('mesh', 'remat', 'microbatches', 'fits', 'GiB', 'step', 'MFU')
  for report in reports:
    settings, times = report.settings, report.times
    mesh = ' '.join(f'{k}={v}' for k, v in settings['mesh'].items() if v > 1)
    grid.add_row(
      mesh or 'data=1',
      settings['remat'],
      str(settings['microbatches']),
      'yes' if report.fits else 'no',
      f'{report.memory.needed / GIB:.2f}',
      f'{1e3 * times.step:,.2f} ms' if times else '',
      f'{100 * report.mfu:.1f} %' if times else '',
    )
  return grid
