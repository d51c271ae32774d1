"""Where a run's numbers and pictures go: files, TensorBoard, the console.

Everything is written by process 0 alone. A writer that fails (a full disk, a
read-only folder) is reported once and switched off: it never ends a run.
"""

import csv
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath
from PIL import Image
from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeElapsedColumn,
)
from rich.table import Table

Scalars = Mapping[str, float]


class Writer:
  """metrics.jsonl, TensorBoard events and pictures of one run.

  Args:
    workdir: of the run; `metrics.jsonl` and `events/` are made in it.
    step: where the run starts. Lines of a former attempt beyond it are
      dropped, since their steps are done again.
  """

  def __init__(self, workdir, step: int = 0):
    self._workdir = epath.Path(workdir)
    self._failed = set()
    self._active = jax.process_index() == 0
    self._lines = []
    self._events = None
    if self._active:
      self._try('metrics.jsonl', self._read_lines, step)
      self._try('TensorBoard', self._open_events, step)

  def scalars(self, step: int, values: Scalars) -> None:
    """Adds one line, and one point to each curve."""
    if not self._active:
      return
    line = {'step': step, 'time': round(time.time(), 3), **values}
    self._lines.append(line)
    self._try('metrics.jsonl', self._append, line)
    self._try('TensorBoard', self._add_events, step, values)

  def picture(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes `pictures/NAME.png`; image is uint8 [h, w, 3]."""
    if self._active:
      self._try('pictures', self._save_picture, name, image, step)

  def json(self, name: str, values: Mapping) -> None:
    """Writes the file `name` at once, whole or not at all."""
    if self._active:
      self._replace(self._workdir / name, json.dumps(values, indent=2) + '\n')

  def table(self, name: str, rows: Iterable[Sequence]) -> None:
    """Writes `tables/NAME.csv`; the first row has the names of the columns."""
    if self._active:
      self._try('tables', self._save_table, name, rows)

  def history(self) -> list[dict]:
    """All lines of the run so far, those of former attempts included."""
    return list(self._lines)

  def close(self) -> None:
    if self._events is not None:
      self._try('TensorBoard', self._events.close)

  def _try(self, what, function, *args):
    if what in self._failed:
      return
    try:
      function(*args)
    except Exception as error:
      self._failed.add(what)
      logging.warning(
        '%s of %s cannot be written and is switched off: %s',
        what,
        self._workdir,
        error,
      )

  def _replace(self, path, text):
    """Never leaves half a file, whenever the process is killed."""
    partial = path.with_name(path.name + '.tmp')
    partial.write_text(text)
    partial.replace(path)

  def _read_lines(self, step):
    path = self._workdir / 'metrics.jsonl'
    if not path.exists():
      return
    for text in path.read_text().splitlines():
      try:
        line = json.loads(text)
        if line['step'] <= step:
          self._lines.append(line)
      except (ValueError, TypeError, KeyError):
        continue  # cut off when the process was killed, or none of ours
    self._replace(path, ''.join(json.dumps(x) + '\n' for x in self._lines))

  def _append(self, line):
    with (self._workdir / 'metrics.jsonl').open('a') as file:
      file.write(json.dumps(line) + '\n')

  def _open_events(self, step):
    import tensorboardX  # takes half a second: only where it is used

    self._events = tensorboardX.SummaryWriter(
      str(self._workdir / 'events'), purge_step=step + 1, flush_secs=10
    )

  def _add_events(self, step, values):
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def _save_picture(self, name, image, step):
    folder = self._workdir / 'pictures'
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f'{name}.png').open('wb') as file:
      Image.fromarray(image).save(file, 'PNG')
    if self._events is not None:
      self._events.add_image(name, image, step, dataformats='HWC')

  def _save_table(self, name, rows):
    (self._workdir / 'tables').mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    self._replace(self._workdir / 'tables' / f'{name}.csv', text.getvalue())


def format_scalars(values: Scalars) -> str:
  """'loss 1.234  lr 1.0e-04', numbers short enough to read.

  >>> format_scalars({'loss': 1.23456, 'lr': 0.0001})
  'loss 1.235  lr 1.0e-04'
  """
  return '  '.join(f'{k} {format_number(v)}' for k, v in values.items())


def format_number(value: float) -> str:
  """Four significant digits; scientific where plain ones would not do."""
  if value == 0 or 1e-3 <= abs(value) < 1e5:
    return f'{value:.4g}'
  return f'{value:.1e}'


class Display:
  """The console: a progress bar on a terminal, plain lines elsewhere.

  Use as a context manager around the loop.
  """

  def __init__(
    self,
    total: int,
    start: int = 0,
    console: Console | None = None,
    unit: str = 'examples',
  ):
    quiet = jax.process_index() != 0
    self.console = console or Console(quiet=quiet)
    self._total = total
    self._unit = unit
    self._progress = Progress(
      TextColumn('[bold]step'),
      MofNCompleteColumn(),
      BarColumn(),
      TextColumn('{task.fields[rate]}'),
      TimeElapsedColumn(),
      TextColumn('left {task.fields[left]}'),
      console=self.console,
      disable=quiet or not self.console.is_terminal,
      transient=True,
    )
    self._task = self._progress.add_task(
      'train', total=total, completed=start, rate='', left='?'
    )

  def __enter__(self):
    self._progress.start()
    return self

  def __exit__(self, *_):
    self._progress.stop()

  def advance(self, step: int) -> None:
    """Moves the bar; costs nothing where there is none."""
    if not self._progress.disable:
      self._progress.update(self._task, completed=step)

  def report(self, step: int, values: Scalars, rate: float, examples: float):
    """A line with the numbers, and the rates on the bar.

    Args:
      step: updates done.
      values: what to print.
      rate: steps per second.
      examples: examples per second.
    """
    left = (self._total - step) / rate if rate else 0.0
    text = f'{rate:.3g} steps/s  {examples:.4g} {self._unit}/s'
    self._progress.update(
      self._task, completed=step, rate=text, left=format_time(left)
    )
    self.line(
      f'step {step}/{self._total}  {format_scalars(values)}  '
      f'[{text}, {format_time(left)} left]'
    )

  def line(self, text: str) -> None:
    """One line above the bar."""
    self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def format_time(seconds: float) -> str:
  """'1:02:03' or '2:03'.

  >>> format_time(3723), format_time(123)
  ('1:02:03', '2:03')
  """
  minutes, seconds = divmod(int(round(seconds)), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'


def _cell(value: float) -> str:
  """Two decimals of percent and the like, four digits of small numbers."""
  return f'{value:.2f}' if value == 0 or abs(value) >= 1 else f'{value:.4g}'


def result_table(
  metrics: Mapping[str, float], others: Mapping[str, Mapping] | None = None
) -> Table:
  """Metrics named EVALUATION/NAME as a table, a row for each evaluation.

  Args:
    metrics: of this run.
    others: label -> metrics of the same names to compare with.
  """
  runs = {'': metrics, **(others or {})}
  evaluations, names = [], []
  for key in metrics:
    evaluation, _, name = key.partition('/')
    if name and evaluation not in evaluations:
      evaluations.append(evaluation)
    if name and name not in names:
      names.append(name)
  table = Table()
  table.add_column('evaluation')
  for name in names:
    table.add_column(name, justify='right')
  for evaluation in evaluations:
    for label, values in runs.items():
      cells = [values.get(f'{evaluation}/{name}') for name in names]
      if any(cell is not None for cell in cells):
        table.add_row(
          f'{evaluation} {label}'.strip(),
          *('' if c is None else _cell(c) for c in cells),
        )
  return table
