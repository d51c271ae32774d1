"""CLIP's training step in PyTorch, to compare ours with on one device.

Written from the paper (arXiv 2103.00020) and from the names and sizes of the
released checkpoints, the way a PyTorch user would write it; the towers are
those of `towers_torch.py`.

Equal to `models/retrieval/clip.py` with a vit and `loss.kind='softmax'`: all
layers and their sizes, the loss with its learned scale and the bound of it, the
accuracy, AdamW without decay of gains and biases, the batch (uint8 pictures,
normalised inside the step). From the same parameters both give the same losses
and the same update; a test holds them to that where PyTorch is installed.

Different: the last norm and the projection see the class token and the end
token alone, as in the released code, where ours projects all tokens, less than
1 % of a tower's work. What computes again to save memory is ours alone
(`remat`, `loss.chunk`, `loss.tower_microbatches`), and so is what it costs:
`:paper` has `remat='attention'`; set `--config.remat=none` where memory
suffices. The learning rate stays, the norm of the gradient is not computed
(ours reports it), and the initialisation changes no time.
"""

import math

import numpy as np
import torch
from torch import nn

from jaxzoo.bench import towers_torch
from jaxzoo.bench.torch_process import ClipSizes

MAX_SCALE = 100.0


class Clip(towers_torch.Clip):
  """A batch -> its `loss`, the `scale` of the cosines and the `accuracy`."""

  def __init__(self, sizes: ClipSizes):
    super().__init__(sizes.towers, sizes.image_size, sizes.text_length)
    self.recipe = sizes.recipe
    self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

  def forward(self, batch):
    vectors = self.encode_pairs(batch['image'], batch['text'])
    similarity, scale = towers_torch.cosines(*vectors), self.logit_scale.exp()
    pairs = torch.arange(len(similarity), device=similarity.device)
    hits = [similarity.argmax(axis) == pairs for axis in (0, 1)]
    return {
      'loss': towers_torch.info_nce(similarity, scale),
      'scale': scale,
      'accuracy': torch.stack(hits).float().mean(),
    }


def make_optimizer(model: Clip) -> torch.optim.AdamW:
  """AdamW; gains, biases and the scale do not decay."""

  def factors(name):
    kept = name.endswith('bias') or 'ln_' in name or name == 'logit_scale'
    return 1.0, 0.0 if kept else 1.0

  return towers_torch.make_optimizer(
    torch.optim.AdamW, model, factors, model.recipe
  )


def train_step(model, optimizer, batch) -> dict[str, torch.Tensor]:
  """One update, after which the scale is at most 100; the metrics."""
  metrics = towers_torch.train_step(model, optimizer, batch)
  with torch.no_grad():
    model.logit_scale.clamp_(max=math.log(MAX_SCALE))
  return metrics


def make(device: str, sizes: ClipSizes, batch: dict[str, np.ndarray]):
  """The step of `torch_process.TorchProcess`."""
  return towers_torch.start(
    Clip(sizes), make_optimizer, batch, device, train_step
  )
