"""CSV files of series: what is read, filled, and refused with a message."""

import datetime

import numpy as np
import pytest

from jaxzoo.data.sources import series as files
from jaxzoo.errors import UserError

HOURS = [f'2020-01-01 {h:02}:00:00' for h in range(24)]


def write(tmp_path, rows, header='date,a,b'):
  path = tmp_path / 'x.csv'
  path.write_text('\n'.join([header, *rows]) + '\n')
  return path


def hourly(values):
  return [f'{t},{v}' for t, v in zip(HOURS, values, strict=False)]


def test_values_columns_and_times_are_those_of_the_file(tmp_path):
  path = write(tmp_path, hourly(['1,2', '3.5,-4e1', '5,6']))
  found = files.read_csv(path)
  assert found.columns == ('a', 'b')
  np.testing.assert_array_equal(found.values, [[1, 2], [3.5, -40], [5, 6]])
  assert found.times[1] - found.times[0] == np.timedelta64(1, 'h')
  assert found.times[0] == np.datetime64('2020-01-01')


def test_columns_are_chosen_by_name_and_the_target_goes_last(tmp_path):
  path = write(tmp_path, hourly(['1,2,3', '4,5,6']), header='date,a,b,c')
  assert files.read_csv(path, target='a').columns == ('b', 'c', 'a')
  found = files.read_csv(path, columns=('c', 'a'))
  assert found.columns == ('c', 'a')
  np.testing.assert_array_equal(found.values, [[3, 1], [6, 4]])
  assert files.read_header(path, target='b') == ('a', 'c', 'b')


@pytest.mark.parametrize(
  'cells, date_format',
  [
    (['2020-01-31T23:00:00Z', '2020-02-01T02:00:00+02:00'], ''),
    (['2020/1/31 23:00', '2020/2/1 0:00'], ''),
    (['31.01.2020 23:00', '01.02.2020 00:00'], ''),
    (['1/31/2020 23:00', '2/1/2020 0:00'], '%m/%d/%Y %H:%M'),
  ],
)  # fmt: skip
def test_dates_are_read_in_common_forms(tmp_path, cells, date_format):
  path = write(tmp_path, [f'{cell},1,2' for cell in cells])
  found = files.read_csv(path, date_format=date_format)
  want = np.array(['2020-01-31T23', '2020-02-01T00'], 'datetime64[s]')
  np.testing.assert_array_equal(found.times, want)


@pytest.mark.parametrize(
  'missing, want',
  [('interpolate', [1, 1, 2, 3, 3]), ('previous', [1, 1, 1, 3, 3])],
)
def test_missing_values_are_filled(tmp_path, missing, want):
  # Before the first and after the last value there is only the nearest.
  path = write(tmp_path, hourly([',0', '1,0', 'NaN,0', '3,0', '?,0']))
  found = files.read_csv(path, missing=missing)
  np.testing.assert_array_equal(found.values[:, 0], want)
  np.testing.assert_array_equal(found.values[:, 1], 0)


def test_missing_rows_are_missing_values(tmp_path):
  rows = hourly(['0,0', '1,1', '2,2', '3,3', '4,4', '5,5'])
  del rows[2:4]
  path = write(tmp_path, rows)
  with pytest.raises(UserError, match='2 rows are missing.*01:00.*line 3'):
    files.read_csv(path)
  found = files.read_csv(path, missing='interpolate')
  np.testing.assert_allclose(found.values[:, 0], np.arange(6))
  np.testing.assert_array_equal(np.diff(found.times).astype(int), 3600)
  kept = files.read_csv(path, irregular='keep')
  np.testing.assert_array_equal(kept.values[:, 0], [0, 1, 4, 5])


def test_interpolation_is_linear_in_time(tmp_path):
  # Rows that are kept as they stand: a third of the way in time.
  path = write(
    tmp_path,
    ['2020-01-01,0,0', '2020-01-02,,0', '2020-01-04,3,0'],
  )
  found = files.read_csv(path, irregular='keep', missing='interpolate')
  np.testing.assert_allclose(found.values[1, 0], 1.0)


@pytest.mark.parametrize(
  'days, regular',
  [
    ([(2020, m, 1) for m in range(1, 7)], True),
    ([(2020, m, 15) for m in range(1, 7)], True),
    ([(2020, 1, 31), (2020, 2, 29), (2020, 3, 31)], True),
    ([(2020, 1, 1), (2020, 2, 1), (2020, 3, 2)], False),
  ],
)
def test_whole_months_are_equal_steps(tmp_path, days, regular):
  cells = [datetime.date(*day).isoformat() for day in days]
  path = write(tmp_path, [f'{cell},1,2' for cell in cells])
  if regular:
    assert len(files.read_csv(path).times) == len(days)
    after = files.times_after(files.read_csv(path).times, 12)
    assert len(set(after.astype('datetime64[M]'))) == 12
    # A year later on the same day.
    last = datetime.date(*days[-1])
    assert str(after[-1])[:10] == last.replace(year=2021).isoformat()
  else:
    with pytest.raises(UserError, match='irregular=keep'):
      files.read_csv(path, missing='interpolate')


def test_times_go_on_by_the_step(tmp_path):
  times = np.array(HOURS[:3], 'datetime64[s]')
  after = files.times_after(times, 2)
  np.testing.assert_array_equal(
    after, np.array(['2020-01-01T03', '2020-01-01T04'], 'datetime64[s]')
  )


MISTAKES = {
  'no file': (None, {}, 'cannot read'),
  'no date column': (['1,2'], dict(header='a,b'), "no column 'date'.*data.date"),
  'semicolons': (['x'], dict(header='date;a;b'), 'commas'),
  'repeated column': (hourly(['1,2']), dict(header='date,a,a'), "named 'a'"),
  'wrong column': (hourly(['1,2']), dict(columns=('aa',)), 'did you mean a'),
  'wrong target': (hourly(['1,2']), dict(target='OT'), 'data.target'),
  'no number': (hourly(['1,2', '1,high']), {}, "line 3: 'high'.*'b'"),
  'short line': (hourly(['1,2', '1']), {}, 'line 3: 2 cells'),
  'no date': (['today,1,2', '2020-01-01,1,2'], {}, "line 2: 'today'"),
  'day first': (['13/1/2020,1,2', '14/1/2020,1,2'], {}, 'date_format'),
  'one row': (hourly(['1,2']), {}, '1 rows'),
  'no rows': ([], {}, '0 rows'),
  'missing value': (hourly(['1,2', ',2']), {}, "1 values.*'a'.*missing=interp"),
  'empty column': (
    hourly([',2', ',2']), dict(missing='interpolate'), "'a' has no values"),
  'repeated time': (
    hourly(['1,2', '1,2']) + [f'{HOURS[1]},1,2'], {}, 'line 4.*comes again'),
  'backwards': (
    [f'{HOURS[i]},1,2' for i in (0, 1, 3, 2)], {}, 'comes after.*keep'),
  'off the grid': (
    [*hourly(['1,2'] * 4), '2020-01-01 04:10:00,1,2'], {}, 'line 6.*keep'),
  'unknown fill': (hourly(['1,2']), dict(missing='zero'), "no 'zero'"),
  'unknown choice': (hourly(['1,2']), dict(irregular='sort'), "no 'sort'"),
}  # fmt: skip


@pytest.mark.parametrize('name', MISTAKES)
def test_mistakes_are_told_with_what_to_do(tmp_path, name):
  rows, options, words = MISTAKES[name]
  header = options.get('header', 'date,a,b')
  options = {k: v for k, v in options.items() if k != 'header'}
  path = tmp_path / 'absent.csv'
  if rows is not None:
    path = write(tmp_path, rows, header)
  with pytest.raises(UserError, match=words):
    files.read_csv(path, **options)


def test_byte_order_mark_and_blank_lines_do_no_harm(tmp_path):
  path = tmp_path / 'x.csv'
  text = '\r\n'.join(['date,a', '2020-01-01, 1', '2020-01-02,2', ''])
  path.write_bytes(b'\xef\xbb\xbf' + text.encode())
  np.testing.assert_array_equal(files.read_csv(path).values, [[1], [2]])
