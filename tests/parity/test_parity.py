"""Every stored case of every system, by the comparison that check.py makes."""

import pathlib
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent
# As check.py does: cases are read and adapters loaded by path.
sys.path[:0] = [str(HERE), str(HERE / 'adapters')]
import check  # noqa: E402
import parity  # noqa: E402

# Networks at full size that take ten seconds and more.
SLOW = (
  'automix/train_step_cifar',
  'baguan/deg5625',
  'baguan/padded',
  'baguan/siamese_masked',
  'cfam/full_vit_b16_t168',
  'clip/hf_vit_b32',
  'clip/rn50',
  'clip/vit_b16',
  'dcd/mobilenetv2_dcd',
  'dcd/resnet50_dcd',
  'diffkd/feature_ae',
  'elsa/elsa_swin_base_224',
  'fusionsf/train_step',
  'greenmim/swin_base_win7',
  'irra/full_vit_b16',
  'lightvit/base_224',
  'lightvit/tiny_224',
  'lightvit/tiny_dense_200x264',
  'onenet/online_fsnet',
  'onenet/online_tcn',
  'pbe/preact_resnet18_pgd',
  'resnet/resnet18_train',
  'stvit/stvit_r_swin_small',
  'stvit/stvit_r_swin_small_dense',
  'swin/swin_base_patch4_window7_224',
  'zennet/flops400M_SE_res224',
)
CASES = [
  pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
  for name in parity.names(HERE / 'cases')
]


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
