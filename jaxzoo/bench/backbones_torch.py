"""Inference and training steps of torchvision's and timm's models.

As their users run them: eager, channels first, batches of noise. Their
attention is PyTorch's fused one.
"""

import importlib

import torch
from torch.nn import functional as F

from jaxzoo.bench.references import Plan


def make_model(reference: str) -> torch.nn.Module:
  """The model, with random weights and the classes that it has by default."""
  package, _, name = reference.partition(':')
  if package == 'torchvision':
    models = importlib.import_module('torchvision.models')
    return models.get_model(name, weights=None)
  return importlib.import_module('timm').create_model(name, pretrained=False)


def make(device: str, plan: Plan):
  """The step of `torch_process.TorchProcess`."""
  model = make_model(plan.reference).to(device).train(plan.train)
  image = torch.randn(plan.batch_size, 3, *plan.image_size, device=device)
  label = torch.randint(1000, (plan.batch_size,), device=device)
  optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
  autocast = torch.autocast(
    device, torch.bfloat16, enabled=plan.dtype == 'bfloat16'
  )

  @torch.inference_mode()
  def infer():
    with autocast:
      model(image)

  def train():
    with autocast:
      logits = model(image)
    heads = logits if isinstance(logits, tuple) else (logits,)
    loss = sum(F.cross_entropy(x.float(), label) for x in heads) / len(heads)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

  parameters = sum(p.numel() for p in model.parameters())
  return train if plan.train else infer, {'parameters': parameters}
