"""The step in PyTorch is the step that ours is compared with.

Needs PyTorch (`pip install -e '.[torch]'`); skipped where it is missing.
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch_steps import (  # noqa: E402
  assert_same_updates,
  jax_steps,
  small,
  torch_steps,
)

from jaxzoo.bench import cfam_torch, torch_process  # noqa: E402
from jaxzoo.bench.synthetic import synthetic_batch  # noqa: E402
from jaxzoo.models.retrieval import cfam  # noqa: E402

ALL = dict(gs=1.0, ls=0.5, m=2.0, cid=0.7)
GLOBAL = dict(gs=1.0, ls=0.0, m=0.0, cid=0.0)


def tiny(weights):
  config = small('cfam:cuhk_pedes', num_classes=7)
  config.granularity.queries = 3
  config.loss.update(weights)
  return config


def both(config, pid, steps):
  """(ours, theirs) of each step, and a check of what they have moved."""
  batch = synthetic_batch(config)
  batch['pid'] = np.asarray(pid, batch['pid'].dtype)
  torch.manual_seed(0)
  model = cfam_torch.Cfam(torch_process.cfam_sizes(config))
  want, before, after = torch_steps(
    model,
    cfam_torch.make_optimizer(model),
    cfam.convert,
    config,
    batch,
    steps=steps,
  )
  got, params = jax_steps(config, batch, before, steps=steps)
  assert_same_updates(params, after, before)
  return list(zip(got, want, strict=True))


def assert_same_metrics(ours, theirs, weights):
  measures = ['loss', 'top1', *['match_accuracy'] * bool(weights['m'])]
  names = {name: name for name in measures}
  names |= {f'loss_{name}': name for name, x in weights.items() if x}
  assert set(names.values()) == set(theirs)
  for here, there in names.items():
    np.testing.assert_allclose(
      ours[here], theirs[there], rtol=1e-4, err_msg=here
    )


@pytest.mark.slow
@pytest.mark.parametrize(
  'weights, pid',
  [
    (ALL, (0, 0, 1, 2)),
    (GLOBAL, (0, 0, 1, 2)),
    (ALL, (3, 3, 3, 3)),  # no mismatches
  ],
)
def test_losses_and_updates_are_those_of_our_system(weights, pid):
  for ours, theirs in both(tiny(weights), pid, steps=3):
    assert_same_metrics(ours, theirs, weights)


@pytest.mark.slow
def test_process_runs_the_step_of_a_config():
  config = tiny(ALL)
  process = torch_process.start(config, 'published', synthetic_batch(config))
  try:
    assert process.told['parameters'] > 0
    assert len(process.run(2)) == 2 and process.told['loss'] > 0
  finally:
    process.close()
