"""The step in PyTorch is the step that ours is compared with.

Needs PyTorch (`pip install -e '.[torch]'`); skipped where it is missing.
"""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

import torch_steps  # noqa: E402

from jaxzoo.bench import irra_torch, torch_process  # noqa: E402
from jaxzoo.bench.synthetic import synthetic_batch  # noqa: E402
from jaxzoo.models.retrieval import irra  # noqa: E402


def small(**loss):
  config = torch_steps.small(
    'irra:cuhk_pedes', num_classes=7, cross_modal_depth=2
  )
  config.loss.update(mlm_budget=16, **loss)
  return config


def their_steps(config, batch, lean, steps):
  """Metrics of each step, and the parameters before and after, as ours."""
  torch.manual_seed(0)
  model = irra_torch.Irra(torch_process.irra_sizes(config), lean)
  optimizer = irra_torch.make_optimizer(model)
  return torch_steps.torch_steps(
    model, optimizer, irra.convert, config, batch, steps
  )


@pytest.mark.slow
@pytest.mark.parametrize('lean', [False, True])
@pytest.mark.parametrize('mask_retrieval_text', [False, True])
def test_losses_and_updates_are_those_of_our_system(lean, mask_retrieval_text):
  config = small(mask_retrieval_text=mask_retrieval_text)
  batch = synthetic_batch(config)
  want, before, after = their_steps(config, batch, lean, steps=3)
  got, params = torch_steps.jax_steps(config, batch, before, steps=3)
  for ours, theirs in zip(got, want, strict=True):
    for name in ('sdm', 'id', 'mlm'):
      np.testing.assert_allclose(
        ours[f'loss_{name}'], theirs[name], rtol=1e-4, err_msg=name
      )
    assert ours['mlm_accuracy'] == pytest.approx(theirs['mlm_accuracy'])
  torch_steps.assert_same_updates(params, after, before)


@pytest.mark.slow
def test_lean_step_drops_masks_beyond_the_budget_as_ours_does():
  config = small()
  batch = synthetic_batch(config)
  batch['mlm_labels'][:] = np.where(batch['text'] > 0, batch['text'], 0)
  config.loss.mlm_budget = 3
  want, before, _ = their_steps(config, batch, lean=True, steps=1)
  got, _ = torch_steps.jax_steps(config, batch, before, steps=1)
  np.testing.assert_allclose(got[0]['loss_mlm'], want[0]['mlm'], rtol=1e-4)
  whole, _, _ = their_steps(config, batch, lean=False, steps=1)
  assert abs(whole[0]['mlm'] - want[0]['mlm']) > 1e-3


def test_process_runs_the_steps_that_it_is_asked_for():
  config = small()
  process = torch_process.start(config, 'lean', synthetic_batch(config))
  try:
    assert process.told['parameters'] > 0
    assert len(process.run(2)) == 2 and len(process.run(1)) == 1
    assert process.told['memory_gib'] > 0
  finally:
    process.close()
