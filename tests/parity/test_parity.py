"""Every stored case of every system, by the comparison that check.py makes."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
# As check.py does: cases are read and adapters loaded by path.
sys.path[:0] = [str(HERE), str(HERE / 'adapters')]
import check  # noqa: E402
import parity  # noqa: E402

CASES = parity.names(HERE / 'cases')


@pytest.mark.parametrize('name', CASES)
def test_case_is_met(name):
  case = parity.load(name, HERE / 'cases')
  run = check.adapter(name.split('/')[0], HERE / 'adapters').run
  met, text = check.compare(case, run(case))
  assert met, text


def test_a_miss_is_noticed():
  case = parity.load('cfam/metrics', HERE / 'cases')
  met, _ = check.compare(case, {k: v + 1 for k, v in case.outputs.items()})
  assert not met


def test_no_error_meets_no_tolerance():
  case = parity.load('irra/mlm_masking', HERE / 'cases')
  assert case.atol == case.rtol == 0
  assert check.compare(case, case.outputs)[0]
