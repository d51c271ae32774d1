"""Numbers survive interruptions, and no failing file ends a run."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from jaxzoo.train.writers import (
  Display,
  Writer,
  format_number,
  result_table,
)


def lines_of(folder):
  return [json.loads(x) for x in (folder / 'metrics.jsonl').open()]


def write(folder, steps, start=0):
  writer = Writer(folder, start)
  for step in steps:
    writer.scalars(step, {'loss': step / 10})
  writer.close()
  return writer


def test_one_json_object_a_line(tmp_path):
  write(tmp_path, [1, 2])
  first, second = lines_of(tmp_path)
  assert (first['step'], first['loss'], second['loss']) == (1, 0.1, 0.2)
  assert first['time'] > 1e9


def test_resume_drops_the_lines_of_steps_that_come_again(tmp_path):
  write(tmp_path, [1, 2, 3, 4])
  writer = write(tmp_path, [3, 4, 5], start=2)
  steps = [line['step'] for line in lines_of(tmp_path)]
  assert steps == [1, 2, 3, 4, 5]
  assert [line['step'] for line in writer.history()] == steps


def test_start_from_nothing_drops_all_former_lines(tmp_path):
  write(tmp_path, [1, 2, 3])
  write(tmp_path, [1])
  assert [line['step'] for line in lines_of(tmp_path)] == [1]


@pytest.mark.parametrize('rest', ['{"step": 3, "lo', '{', '{"step"', '\n'])
def test_line_that_was_cut_off_is_dropped(tmp_path, rest):
  write(tmp_path, [1, 2])
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write(rest)
  write(tmp_path, [3], start=2)
  assert [line['step'] for line in lines_of(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize('text', ['[]\n', '3\n', '{"loss": 1}\n', '\0\0\n'])
def test_foreign_line_is_dropped_and_the_rest_goes_on(tmp_path, text):
  write(tmp_path, [1])
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write(text)
  write(tmp_path, [2], start=1)
  assert [line['step'] for line in lines_of(tmp_path)] == [1, 2]


def test_events_of_steps_that_come_again_are_purged(tmp_path):
  write(tmp_path, [1, 2, 3])
  write(tmp_path, [3, 4], start=2)
  starts = [
    event.step
    for path in (tmp_path / 'events').iterdir()
    for event in events_of(path)
    if event.HasField('session_log')
  ]
  assert 3 in starts and 2 not in starts, 'step 2 is not done again'


def events_of(path):
  """The events of a TensorBoard file: records of length, crc, data, crc."""
  from tensorboardX.proto.event_pb2 import Event

  data = path.read_bytes()
  while data:
    size = int.from_bytes(data[:8], 'little')
    yield Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


def test_pictures_are_files_and_events(tmp_path):
  writer = Writer(tmp_path)
  image = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
  writer.picture('sheet', image, 1)
  writer.close()
  with Image.open(tmp_path / 'pictures/sheet.png') as found:
    np.testing.assert_array_equal(np.asarray(found), image)
  (path,) = (tmp_path / 'events').iterdir()
  tags = [v.tag for event in events_of(path) for v in event.summary.value]
  assert 'sheet' in tags


def test_json_is_written_whole_or_not_at_all(tmp_path):
  writer = Writer(tmp_path)
  for value in (0, 1):  # a resumed run writes its files again
    writer.json('result.json', {'a': value})
  with pytest.raises(TypeError):
    writer.json('result.json', {'a': object()})
  assert json.loads((tmp_path / 'result.json').read_text()) == {'a': 1}
  assert not list(tmp_path.glob('*.tmp'))


def test_folder_that_cannot_be_written_is_reported_once(tmp_path, caplog):
  place = tmp_path / 'file'
  place.write_text('')
  writer = Writer(place / 'run')  # below a file: for root too
  for step in range(3):
    writer.scalars(step, {'loss': 1.0})
    writer.picture('a', np.zeros((2, 2, 3), np.uint8), step)
  writer.close()
  warnings = [record.getMessage() for record in caplog.records]
  assert len(warnings) == len(set(warnings)) <= 3
  assert any(
    'metrics.jsonl' in text and str(place) in text for text in warnings
  )
  assert [line['step'] for line in writer.history()] == [0, 1, 2]


def test_one_failing_output_leaves_the_others_alone(tmp_path):
  (tmp_path / 'metrics.jsonl').mkdir()
  writer = write(tmp_path, [1])
  writer.picture('a', np.zeros((2, 2, 3), np.uint8), 1)
  assert list((tmp_path / 'events').iterdir())
  assert (tmp_path / 'pictures/a.png').exists()


# The console.


def shown(use, **options):
  console = Console(file=io.StringIO(), width=60, **options)
  use(console)
  return console.file.getvalue()


def training(console):
  with Display(20, 4, console) as display:
    display.advance(5)
    display.report(5, {'loss': 1.5, 'a[b]': 2.0}, rate=2.0, examples=16.0)
    display.line('  test: [bold]R@1[/bold] 12.5  ' + 'x' * 80)
    display.report(6, {'loss': 1.5}, rate=0.0, examples=0.0)


def test_without_a_terminal_there_are_plain_lines_only():
  text = shown(training)
  assert text.splitlines() == [
    'step 5/20  loss 1.5  a[b] 2  [2 steps/s  16 examples/s, 0:08 left]',
    '  test: [bold]R@1[/bold] 12.5  ' + 'x' * 80,
    'step 6/20  loss 1.5  [0 steps/s  0 examples/s, 0:00 left]',
  ]


def test_on_a_terminal_there_is_a_bar_that_goes_away():
  text = shown(training, force_terminal=True)
  assert '━' in text and '\x1b[' in text and 'loss 1.5' in text


@pytest.mark.parametrize(
  'value, text',
  [
    (0, '0'),
    (12.3456, '12.35'),
    (0.001, '0.001'),
    (0.00012, '1.2e-04'),
    (-2e6, '-2.0e+06'),
    (math.nan, 'nan'),
  ],
)
def test_numbers_are_short(value, text):
  assert format_number(value) == text


def test_result_table_has_a_row_for_each_evaluation_and_run():
  metrics = {'test/R@1': 12.345, 'test/mAP': 50.0, 'cross/R@1': 3.0, 'x': 1.0}
  table = result_table(metrics, {'published': {'test/R@1': 99.0}})
  rows = [list(column.cells) for column in table.columns]
  assert [column.header for column in table.columns] == [
    'evaluation',
    'R@1',
    'mAP',
  ]
  assert rows == [
    ['test', 'test published', 'cross'],
    ['12.35', '99.00', '3.00'],
    ['50.00', '', ''],
  ]
