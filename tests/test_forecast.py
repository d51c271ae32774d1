"""A user's CSV with gaps: trained, evaluated, forecast beyond its end."""

import csv
import datetime
import json

import numpy as np
import pytest

from jaxzoo import forecast, main
from jaxzoo.data.sources import series as files
from jaxzoo.errors import UserError

ROWS, HORIZON = 160, 6
START = datetime.datetime(2021, 3, 1)


def write(path, rows, names=('heat', 'load', 'wind'), start=0, leave_out=()):
  hour = np.arange(start, start + rows)
  columns = {
    'heat': 50 + 10 * np.sin(hour / 4),
    'load': 1000 + 300 * np.cos(hour / 4),
    'wind': np.sin(hour / 9),
  }
  lines = [['date', *names]]
  for i in range(rows):
    if i not in leave_out:
      date = START + datetime.timedelta(hours=int(hour[i]))
      lines.append([date, *(f'{columns[name][i]:.6g}' for name in names)])
  with open(path, 'w', newline='') as file:
    csv.writer(file).writerows(lines)
  return path


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(folder, workdir, path): a run by the command line, on a file with gaps."""
  folder = tmp_path_factory.mktemp('custom')
  path = write(folder / 'my.csv', ROWS, leave_out=(20, 21, 70))
  arguments = [
    '--config=configs/card.py:custom,history=16,horizon=6',
    f'--workdir={folder / "run"}',
    f'--config.data.path={path}',
    '--config.network.width=8',
    '--config.network.depth=1',
    '--config.network.d_ff=8',
    '--config.network.patch=8',
    '--config.network.stride=4',
    '--config.network.hidden=false',  # faster to compile
    '--config.network.channel_attention=false',
    '--config.data.split=0.6,0.2,0.2',
    '--config.epochs=1',
  ]
  assert main.main(arguments) == 2, 'gaps are refused until they may be filled'
  assert main.main([*arguments, '--config.data.missing=interpolate']) == 0
  return folder, folder / 'run', path


@pytest.fixture(scope='module')
def forecaster(run):
  return forecast.Forecaster.from_run(run[1])


def test_run_leaves_numbers_in_both_units_and_tables(run):
  result = json.loads((run[1] / 'result.json').read_text())
  for name in ('mse', 'mae', 'original_mse', 'original_mae'):
    assert np.isfinite(result['metrics'][f'test/{name}'])
  assert 'val/decayed_mae' in result['best']['metrics']
  tables = {path.name for path in (run[1] / 'tables').iterdir()}
  assert {'test_forecasts.csv', 'test_errors_by_channel.csv'} <= tables
  rows = list(csv.reader(open(run[1] / 'tables/test_errors_by_channel.csv')))
  assert [row[0] for row in rows] == ['channel', 'heat', 'load', 'wind']
  facts = json.loads((run[1] / 'data.json').read_text())
  train = files.read_csv(run[2], missing='interpolate').values[
    : int(ROWS * 0.6)
  ]
  np.testing.assert_allclose(facts['mean'], train.mean(0))
  np.testing.assert_allclose(facts['std'], train.std(0))


def test_command_writes_what_follows_the_file(run, capsys):
  folder, workdir, _ = run
  out, plot = folder / 'next.csv', folder / 'next.png'
  assert not forecast.main(
    [f'--workdir={workdir}', f'--out={out}', f'--plot={plot}']
  )
  rows = list(csv.reader(out.open()))
  assert rows[0] == ['date', 'heat', 'load', 'wind']
  assert len(rows) == 1 + HORIZON
  assert rows[1][0] == str(START + datetime.timedelta(hours=ROWS))
  values = np.asarray([row[1:] for row in rows[1:]], float)
  assert (abs(values[:, 1] - 1000) < 1000).all(), 'in the units of the file'
  assert plot.stat().st_size > 5000
  assert 'next.csv' in capsys.readouterr().out


def test_longer_file_is_forecast_with_the_scale_of_the_training(
  run, forecaster
):
  folder, workdir, _ = run
  # Other columns' order, and rows that training has not seen.
  path = write(folder / 'longer.csv', ROWS + 24, ('wind', 'heat', 'load'))
  again = forecast.Forecaster.from_run(workdir, fields={'path': str(path)})
  longer = again.series()
  assert longer.columns == ('heat', 'load', 'wind')
  found = again.forecast(longer)
  assert found.times[-1] == longer.times[-1] + np.timedelta64(HORIZON, 'h')
  # The same rows at the end are the same forecast, whatever is before them.
  short = longer._replace(times=longer.times[-16:], values=longer.values[-16:])
  np.testing.assert_allclose(
    forecaster.forecast(short).forecast, found.forecast, rtol=1e-5
  )


def test_short_or_foreign_series_are_refused(forecaster):
  whole = forecaster.series()
  with pytest.raises(UserError, match='15 rows.*last 16'):
    forecaster.forecast(
      whole._replace(times=whole.times[-15:], values=whole.values[-15:])
    )
  with pytest.raises(UserError, match='channels'):
    forecaster.forecast(whole._replace(columns=('a', 'b', 'c')))


@pytest.mark.parametrize(
  'arguments, words',
  [
    (['--workdir={run}', '--out=/nowhere/x.csv'], 'no folder /nowhere'),
    (['--workdir={run}', '--plot=x.doc'], '.png'),
    (['--workdir={folder}'], 'no run in'),
    (['--workdir={run}', '--path={folder}/absent.csv'], 'cannot read'),
    (['--workdir={run}', '--step=9999'], '9999'),
  ],
)
def test_mistakes_are_one_message(run, capsys, arguments, words):
  places = dict(folder=run[0], run=run[1])
  assert forecast.main([text.format(**places) for text in arguments]) == 2
  assert words in capsys.readouterr().err
