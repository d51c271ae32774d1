"""The step in PyTorch is the step that ours is compared with.

Needs PyTorch (`pip install -e '.[torch]'`); skipped where it is missing.
"""

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from torch_steps import (  # noqa: E402
  assert_same_updates,
  jax_steps,
  small,
  torch_steps,
)

from jaxzoo.bench import clip_torch, torch_process  # noqa: E402
from jaxzoo.bench.synthetic import synthetic_batch  # noqa: E402
from jaxzoo.models.retrieval import clip  # noqa: E402


def tiny():
  config = small('clip:paper')
  config.image_size = (32, 32)  # the converter takes positions for a square
  # Adam divides: where gradients are near 0, eps keeps their rounding small.
  config.optim.eps = 1e-3
  return config


# At first, and where the bound of the scale holds.
@pytest.mark.slow
@pytest.mark.parametrize('log_scale', [math.log(1 / 0.07), 4.7])
def test_losses_and_updates_are_those_of_our_system(log_scale):
  config = tiny()
  batch = synthetic_batch(config)
  torch.manual_seed(0)
  model = clip_torch.Clip(torch_process.clip_sizes(config))
  with torch.no_grad():
    model.logit_scale.fill_(log_scale)
  want, before, after = torch_steps(
    model,
    clip_torch.make_optimizer(model),
    clip.convert,
    config,
    batch,
    steps=3,
    train_step=clip_torch.train_step,
  )
  got, params = jax_steps(config, batch, before, steps=3)
  for ours, theirs in zip(got, want, strict=True):
    for name in ('loss', 'scale', 'accuracy'):
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-4, err_msg=name
      )
  assert_same_updates(params, after, before)
  if log_scale > math.log(100):
    assert want[1]['scale'] == pytest.approx(100)


@pytest.mark.slow
def test_process_runs_the_step_of_a_config():
  config = tiny()
  process = torch_process.start(config, 'published', synthetic_batch(config))
  try:
    assert process.told['parameters'] > 0
    assert len(process.run(2)) == 2 and process.told['loss'] > 0
  finally:
    process.close()
