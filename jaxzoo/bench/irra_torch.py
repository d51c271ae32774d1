"""IRRA's training step in PyTorch, to compare ours with on one device.

Written from the paper (arXiv 2303.12501) and from the names and sizes of the
released checkpoints, the way a PyTorch user would write it: eager,
`nn.MultiheadAttention`, float32, `torch.optim.Adam` with parameter groups. The
towers are those of `towers_torch.py`.

Equal to `models/retrieval/irra.py`: all layers and their sizes, the three
losses and the accuracy of the masked words, the optimizer with its groups, the
batch (uint8 pictures, normalised inside the step). From the same parameters
both give the same losses and the same update; a test holds them to that where
PyTorch is installed.

Different, `lean=False`: as the released code runs, the text tower reads the
captions for retrieval and the masked ones one after the other, although they
are the same where `mask_retrieval_text` is set, and the vocabulary's logits are
made for all positions, [b, 77, 49408]. `lean=True` does the work that ours
does: one pass over the text where one is enough, and logits at the first
`mlm_budget` masked positions of a caption. Either way: the learning rate stays,
the norm of the gradient is not computed (ours reports it), and the
initialisation is PyTorch's, which changes no time.
"""

import functools

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxzoo.bench import towers_torch
from jaxzoo.bench.torch_process import IrraSizes
from jaxzoo.bench.towers_torch import (
  Clip,
  Transformer,
  at_end,
  num_heads,
  quick_gelu,
)


class Irra(nn.Module):
  """A batch -> the losses by name, their sum `loss`, and `mlm_accuracy`."""

  def __init__(self, sizes: IrraSizes, lean: bool):
    super().__init__()
    self.sizes, self.lean = sizes, lean
    width, depth = sizes.towers['output_dim'], sizes.cross_modal_depth
    heads = num_heads(width)
    self.base_model = Clip(sizes.towers, sizes.image_size, sizes.text_length)
    self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.cross_modal_transformer = Transformer(width, depth, heads)
    for name in ('ln_pre_t', 'ln_pre_i', 'ln_post'):
      self.add_module(name, nn.LayerNorm(width))
    self.mlm_head = nn.ModuleDict(
      {
        'dense': nn.Linear(width, width),
        'ln': nn.LayerNorm(width),
        'fc': nn.Linear(width, sizes.towers['vocab_size']),
      }
    )
    self.classifier = nn.Linear(width, sizes.num_classes)
    nn.init.normal_(self.classifier.weight, std=0.001)

  def forward(self, batch):
    image_tokens = self.base_model.encode_image(batch['image'])
    # The released loader masks the captions in place: retrieval, too, sees the
    # masked ones.
    masked_retrieval = self.sizes.mask_retrieval_text
    retrieved = batch['mlm_text' if masked_retrieval else 'text']
    text_tokens = self.base_model.encode_text(retrieved)
    masked = text_tokens
    if not (self.lean and masked_retrieval):
      masked = self.base_model.encode_text(batch['mlm_text'])
    image = image_tokens[:, 0]
    text = at_end(text_tokens, retrieved)
    pid = batch['pid']
    mlm, accuracy = self.fill(masked, image_tokens, batch['mlm_labels'])
    losses = {
      'sdm': sdm(image, text, pid, self.sizes.scale),
      'id': (
        F.cross_entropy(self.classifier(image), pid)
        + F.cross_entropy(self.classifier(text), pid)
      )
      / 2,
      'mlm': mlm,
    }
    loss = sum(losses.values())
    return {**losses, 'loss': loss, 'mlm_accuracy': accuracy}

  def fill(self, text_tokens, image_tokens, labels):
    """Loss and accuracy of the masked words, read off the picture."""
    answers = self.ln_pre_i(image_tokens)
    x = self.cross_attn(
      self.ln_pre_t(text_tokens), answers, answers, need_weights=False
    )[0]
    x = self.ln_post(self.cross_modal_transformer(x))
    if self.lean:
      # Masked positions come first, from left to right.
      order = (labels == 0).int().argsort(dim=1, stable=True)
      order = order[:, : self.sizes.mlm_budget]
      labels = labels.gather(1, order)
      x = x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))
    x = self.mlm_head['ln'](quick_gelu(self.mlm_head['dense'](x)))
    logits = self.mlm_head['fc'](x).flatten(0, 1)
    labels = labels.flatten()
    loss = F.cross_entropy(logits, labels, ignore_index=0)
    right = logits.argmax(1) == labels
    return loss, right[labels != 0].float().mean()


def sdm(image, text, pid, scale):
  """Similarity distribution matching, both directions."""
  similarity = scale * F.normalize(image) @ F.normalize(text).T
  same = (pid[:, None] == pid).float()
  target = torch.log(same / same.sum(1, keepdim=True) + 1e-8)

  def divergence(logits):
    log_p = F.log_softmax(logits, dim=1)
    return (log_p.exp() * (log_p - target)).sum(1).mean()

  return divergence(similarity) + divergence(similarity.T)


def make_optimizer(model: Irra) -> torch.optim.Adam:
  """Adam with the rates and decays that the recipe gives by name."""

  def factors(name):
    rate, decay = 1.0, 1.0
    if 'cross' in name:
      rate = 5.0
    if 'bias' in name:
      rate, decay = 2.0, 0.0
    if 'classifier' in name or 'mlm_head' in name:
      rate = 5.0
    return rate, decay

  return towers_torch.make_optimizer(
    torch.optim.Adam, model, factors, model.sizes.recipe
  )


def make(
  device: str,
  sizes: IrraSizes,
  batch: dict[str, np.ndarray],
  lean: bool = False,
):
  """The step of `torch_process.TorchProcess`."""
  return towers_torch.start(Irra(sizes, lean), make_optimizer, batch, device)


make_lean = functools.partial(make, lean=True)
