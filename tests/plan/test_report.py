"""What a plan says and writes."""

import io
import json
import types

import pytest
from rich.console import Console

from jaxzoo.plan import report as reports
from jaxzoo.plan.estimate import Times
from jaxzoo.plan.report import GIB, Memory, Report

SETTINGS = {
  'system': 'clip',
  'topology': 'v5e:4x4',
  'chip': 'TPU v5 lite',
  'chips': 16,
  'mesh': {'data': 4, 'fsdp': 4, 'tensor': 1},
  'batch_size': 64,
  'dtype': 'bfloat16',
  'remat': 'full',
  'microbatches': 2,
  'unit': 'images',
}


def fitting():
  return Report(
    SETTINGS,
    True,
    Memory(
      15.75 * GIB, 4 * GIB, GIB, 2.5 * GIB, GIB + 1024, GIB, 0.5 * GIB - 1024
    ),
    {'trace': 2.0, 'compile': 90.0},
    1000,
    int(16e9),
    {
      'flops': 1.5e9,
      'bytes': 2.0**30,
      'cycles': 3e6,
      'kernels': {'fmha': 12},
      'kernel_seconds': 5e-4,
    },
    [{'kind': 'all-reduce', 'axes': ['data'], 'count': 3, 'bytes': 2.0**20}],
    Times(4e-3, 2e-3, 1e-3, 2.5e-3, 2e-3, 1e-3),
  )


def refused():
  memory = reports.memory_of_refusal('Used 29.75G of 15.75G hbm.')
  return fitting()._replace(
    fits=False, memory=memory, compiled={}, collectives=[], times=None
  )


def printed(report):
  console = Console(width=100, record=True, file=io.StringIO())
  console.print(reports.table(report))
  return console.export_text()


def test_memory_is_the_sum_without_what_is_in_place():
  stats = types.SimpleNamespace(
    argument_size_in_bytes=100,
    output_size_in_bytes=110,
    alias_size_in_bytes=90,
    temp_size_in_bytes=50,
    generated_code_size_in_bytes=5,
  )
  memory = reports.memory_of(stats, 1000)
  assert memory.needed == 100 + 110 - 90 + 50 + 5
  assert memory.limit == 1000 and memory.temporaries == 50


@pytest.mark.parametrize(
  'message, need, limit',
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.66G '
      'of 15.75G hbm. Exceeded hbm capacity by 13.91G.',
      29.66,
      15.75,
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (128.00G) exceeds available HBM (31.25G).',
      128,
      31.25,
    ),
  ],
)
def test_refusal_for_memory_is_understood(message, need, limit):
  memory = reports.memory_of_refusal(message)
  assert memory.needed == pytest.approx(need * GIB)
  assert memory.limit == pytest.approx(limit * GIB)
  assert memory.arguments is None


def test_other_refusals_are_not_about_memory():
  assert reports.memory_of_refusal('INTERNAL: Mosaic failed') is None
  assert reports.memory_of_refusal('Used 1M of 16M vmem') is None


def test_json_has_every_figure_and_reads_back():
  plan = json.loads(json.dumps(reports.as_json(fitting())))
  assert plan['fits'] and plan['memory']['free'] == 11.75 * GIB
  assert plan['mfu'] == pytest.approx(0.25)
  assert plan['examples_per_second'] == pytest.approx(64 / 4e-3)
  assert plan['seconds']['exposed'] == 2e-3
  assert plan['collectives'][0]['axes'] == ['data']
  assert plan['compile_seconds'] == 90 and plan['trace_seconds'] == 2
  assert {'topology', 'mesh', 'remat', 'model_flops', 'compiled'} <= set(plan)


def test_json_of_what_does_not_fit_says_by_how_much():
  plan = json.loads(json.dumps(reports.as_json(refused())))
  assert not plan['fits']
  assert plan['memory']['free'] == pytest.approx(-14 * GIB)
  assert plan['seconds'] is None and plan['mfu'] is None


def test_table_says_what_fits_and_how_fast():
  text = printed(fitting())
  for part in (
    '16 chips, data 4, fsdp 4',
    '2 microbatches',
    'yes, 11.75 of 15.75 GiB free',
    '1.0 MiB over data, 3 a step',
    '4.00 ms a step: 16,000 images/s, MFU 25.0 %',
    '12 x fmha',
  ):
    assert part in text, part


def test_table_of_what_does_not_fit_predicts_nothing():
  text = printed(refused())
  assert 'no, 14.00 GiB more than the 15.75' in text
  assert 'a step: ' not in text
