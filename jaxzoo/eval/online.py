"""The evaluator of online learning: one pass over a split as a stream."""

import numpy as np

from jaxzoo.data import forecasting as data
from jaxzoo.eval import online_pictures, stream_state
from jaxzoo.eval.evaluator import Evaluation
from jaxzoo.eval.stream import Progress, make_stream, metrics, run
from jaxzoo.train import compiler


def make_evaluator(
  config,
  *,
  split: str = 'test',
  protocol: str = 'published',
  chunk: int = 600,
  window: int = 200,
):
  """An evaluator by one pass over a split as a stream.

  Where the run has a folder, the stream's state is saved there between two
  scans, and a run that was stopped goes on from it.

  Args:
    config: of the run.
    split: 'val' or 'test'.
    protocol: see `stream.py`.
    chunk: see `stream.run`.
    window: of the rolling error, in windows of the stream.

  Returns:
    predict -> Evaluation, with `stream.metrics` and `windows_per_second`; the picture
    `rolling`, the error and the outputs that are no forecasts over time, and
    `stream`, the forecasts at the end of the stream; the tables `rolling`,
    `errors_by_step` and `errors_by_channel`.
  """
  source = data.read_split(config, split)
  stream = make_stream(source, protocol)
  scale, columns = data.read_scale(config), data.read_series(config).columns

  def evaluate(predict) -> Evaluation:
    key = stream_state.identity(
      predict.state,
      config,
      split=split,
      protocol=protocol,
    )
    folder = predict.folder
    devices = list(predict.state.step.sharding.device_set)
    progress = stream_state.load(folder, key, predict.state)
    progress, rate = run(
      predict.system,
      stream,
      predict.state,
      chunk=chunk,
      progress=progress and Progress(*progress),
      save=lambda progress: stream_state.save(folder, key, progress),
      options=compiler.options(config.compiler, devices),
    )
    stream_state.save(folder, key, progress)
    record = progress.record
    values = metrics(record, scale.std)
    if rate:
      values['windows_per_second'] = rate
    rows = source.history + source.horizon - 1
    times = source.times[rows :: stream.stride][: stream.windows]
    curves = online_pictures.rolling(record, times, window)
    return Evaluation(
      values,
      lambda: {
        'rolling': online_pictures.rolling_picture(curves),
        'stream': online_pictures.stream_picture(
          times,
          scale.undo(source.values[rows :: stream.stride][: stream.windows]),
          scale.undo(record.last),
          columns,
        ),
      },
      lambda: {
        'rolling': online_pictures.rolling_table(curves),
        'errors_by_step': step_table(record),
        'errors_by_channel': channel_table(record, scale.std, columns),
      },
    )

  return evaluate


def step_table(record) -> list[list]:
  """Rows of a CSV file: the mean square error of each step ahead."""
  means = record.steps.mean(0, dtype=np.float64)
  return [['step', 'mse'], *([i, x] for i, x in enumerate(means, 1))]


def channel_table(record, std, columns) -> list[list]:
  """Rows of a CSV file: the errors of each channel in both units."""
  mse = record.mse['forecast'].mean(0, dtype=np.float64)
  mae = record.mae['forecast'].mean(0, dtype=np.float64)
  rows = zip(columns, mse, mae, mse * std**2, mae * std, strict=True)
  head = ['channel', 'mse', 'mae', 'original_mse', 'original_mae']
  return [head, *map(list, rows)]
