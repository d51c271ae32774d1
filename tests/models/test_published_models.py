"""Models as torchvision, timm and transformers publish them, at full size:
converted, run and compared; and back into PyTorch, exactly.

Needs those packages, which the project does not depend on: skipped without.
"""

import jax
import numpy as np
import pytest

from jaxzoo.models.cards import MODELS
from jaxzoo.models.create import create_model
from jaxzoo.weights.writers import write_safetensors

pytestmark = pytest.mark.slow

# Ours -> how each library names it.
TORCHVISION = {
  'resnet18': 'resnet18',
  'resnet50': 'resnet50',
  'mobilenet_v2': 'mobilenet_v2',
  'mobilenet_v3_large': 'mobilenet_v3_large',
  'efficientnet_b0': 'efficientnet_b0',
  'shufflenet_v2_x1_0': 'shufflenet_v2_x1_0',
}
TIMM = {
  'deit_small_patch16_224': 'deit_small_patch16_224',
  'deit_tiny_distilled_patch16_224': 'deit_tiny_distilled_patch16_224',
  'vit_base_patch16_224': 'vit_base_patch16_224',
  'swin_tiny': 'swin_tiny_patch4_window7_224',
  'mobilenet_v1': 'mobilenetv1_100',
}


def randomised(torch, model):
  """The model with statistics and scales that are not those of the start."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, x in model.state_dict().items():
      if name.endswith('running_var'):
        x.uniform_(0.5, 1.5, generator=generator)
      elif x.is_floating_point() and x.ndim <= 1:
        x.add_(torch.randn(x.shape, generator=generator), alpha=0.05)
  return model.eval()


def compare(torch, theirs, name, tmp_path, output=lambda y: y):
  """Logits of both on one image, and the state dict that comes back."""
  theirs = randomised(torch, theirs)
  path = tmp_path / 'theirs.safetensors'
  state_dict = {k: v.numpy() for k, v in theirs.state_dict().items()}
  write_safetensors(path, state_dict)
  module, variables = create_model(name, weights=path)
  height, width = MODELS[name].image_size
  image = np.random.default_rng(0).standard_normal((2, height, width, 3))
  image = image.astype(np.float32)
  got = jax.jit(module.apply)(variables, image)
  with torch.no_grad():
    want = output(theirs(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())))
  np.testing.assert_allclose(got, want.numpy(), rtol=1e-3, atol=1e-3)
  return theirs, variables, state_dict


def returned(torch, theirs, name, variables, state_dict):
  """Our export loads into the same model, and every number is the same."""
  from jaxzoo.models.create import build_model

  exported = build_model(name).export(variables)
  found = theirs.load_state_dict(
    {k: torch.from_numpy(v.copy()) for k, v in exported.items()}, strict=False
  )
  assert not found.unexpected_keys
  assert all('num_batches_tracked' in key for key in found.missing_keys)
  for key, value in exported.items():
    np.testing.assert_array_equal(value, state_dict[key], err_msg=key)


@pytest.mark.parametrize('name', TORCHVISION)
def test_torchvision(name, tmp_path):
  torch = pytest.importorskip('torch')
  torchvision = pytest.importorskip('torchvision')
  torch.manual_seed(0)
  theirs = torchvision.models.get_model(TORCHVISION[name])
  parts = compare(torch, theirs, name, tmp_path)
  returned(torch, parts[0], name, *parts[1:])


@pytest.mark.parametrize('name', TIMM)
def test_timm(name, tmp_path):
  torch = pytest.importorskip('torch')
  timm = pytest.importorskip('timm')
  torch.manual_seed(0)
  theirs = timm.create_model(TIMM[name], pretrained=False)
  parts = compare(torch, theirs, name, tmp_path)
  if name != 'swin_tiny':  # whose canonical names are the authors', not timm's
    returned(torch, parts[0], name, *parts[1:])


@pytest.mark.parametrize('name', ['vit_base_patch16_224'])
def test_transformers(name, tmp_path):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  torch.manual_seed(0)
  config = transformers.ViTConfig(num_labels=1000, layer_norm_eps=1e-6)
  theirs = transformers.ViTForImageClassification(config)
  compare(torch, theirs, name, tmp_path, lambda y: y.logits)
