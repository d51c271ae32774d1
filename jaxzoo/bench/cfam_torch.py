"""CFAM's training step in PyTorch, to compare ours with on one device.

Written from the paper (arXiv 2312.03441), with what it leaves open as
`models/retrieval/cfam.py` and `granules.py` have chosen it, the way a PyTorch
user would write it; the towers are those of `towers_torch.py`.

Equal to ours: all layers and their sizes, the losses with their weights (one at
0 is not computed and has no parameters), the hardest mismatches of the batch,
both accuracies, the optimizer with its groups, the batch (uint8 pictures,
normalised inside the step). Granules are made once a sample and gathered, and
the queries are copied for the samples only where the first layer meets their
tokens, as in ours. From the same parameters both give the same losses and the
same update; a test holds them to that where PyTorch is installed.

Nothing is random: there is no dropout, and hard negatives that are drawn
(`loss.hard_negatives='sampled'`) are not compared, as the draws would differ.
The learning rate stays, the norm of the gradient is not computed (ours reports
it), and the initialisation is PyTorch's, which changes no time.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxzoo.bench import towers_torch
from jaxzoo.bench.torch_process import CfamSizes
from jaxzoo.bench.towers_torch import Block, Mlp, at_end, info_nce, num_heads

# Modules beside the towers, whose rates are higher.
HEADS = ('granularity_decoder', 'matcher', 'classifier')


class DecoderLayer(nn.Module):
  """q += SelfAttn(LN1 q); q += CrossAttn(LN2 q, LNkv x); q += MLP(LN3 q)."""

  def __init__(self, width):
    super().__init__()
    for name in ('ln_1', 'ln_2', 'ln_kv', 'ln_3'):
      self.add_module(name, nn.LayerNorm(width))
    for name in ('self_attn', 'cross_attn'):
      attention = nn.MultiheadAttention(
        width, num_heads(width), batch_first=True
      )
      self.add_module(name, attention)
    self.mlp = Mlp(width)

  def forward(self, queries, tokens, padding=None):
    x = self.ln_1(queries)
    queries = queries + self.self_attn(x, x, x, need_weights=False)[0]
    # So far the first layer has seen no sample: its batch is 1.
    queries = queries.expand(len(tokens), -1, -1)
    x = self.ln_kv(tokens)
    queries = (
      queries
      + self.cross_attn(
        self.ln_2(queries), x, x, key_padding_mask=padding, need_weights=False
      )[0]
    )
    return queries + self.mlp(self.ln_3(queries))


class GranularityDecoder(nn.Module):
  """Tokens [b,n,D] of either modality -> granules [b,k,D], one a query."""

  def __init__(self, width, queries, depth):
    super().__init__()
    self.queries = towers_torch.normal(queries, width, std=width**-0.5)
    self.layers = nn.ModuleList(DecoderLayer(width) for _ in range(depth))
    self.ln_post = nn.LayerNorm(width)

  def forward(self, tokens, padding=None):
    """`padding` [b,n] is True where a token is hidden."""
    queries = self.queries[None]
    for layer in self.layers:
      queries = layer(queries, tokens, padding)
    return self.ln_post(queries)


class Matcher(nn.Module):
  """Granules of images and of texts, [b,k,D] each -> logits of a match [b]."""

  def __init__(self, width, depth):
    super().__init__()
    self.blocks = nn.Sequential(
      *(Block(width, num_heads(width)) for _ in range(depth))
    )
    self.ln_post = nn.LayerNorm(width)
    self.fc1 = nn.Linear(width, width)
    self.fc2 = nn.Linear(width, 1)

  def forward(self, image_granules, text_granules):
    x = self.blocks(torch.cat([image_granules, text_granules], dim=1))
    x = self.ln_post(x).mean(1)
    return self.fc2(towers_torch.quick_gelu(self.fc1(x)))[:, 0]


class Cfam(nn.Module):
  """A batch -> the losses by name, their weighted sum `loss`, the accuracies."""

  def __init__(self, sizes: CfamSizes):
    super().__init__()
    self.sizes, weights = sizes, sizes.weights
    width = sizes.towers['output_dim']
    self.base_model = towers_torch.Clip(
      sizes.towers, sizes.image_size, sizes.text_length
    )
    if weights['ls'] or weights['m']:
      self.granularity_decoder = GranularityDecoder(
        width, sizes.queries, sizes.decoder_depth
      )
    if weights['m']:
      self.matcher = Matcher(width, sizes.matcher_depth)
    if weights['cid']:
      self.classifier = nn.Linear(width, sizes.num_classes)
      nn.init.normal_(self.classifier.weight, std=0.001)

  def forward(self, batch):
    weights, scale = self.sizes.weights, self.sizes.scale
    text, pid = batch['text'], batch['pid']
    image_tokens = self.base_model.encode_image(batch['image'])
    text_tokens = self.base_model.encode_text(text)
    vectors = image_tokens[:, 0], at_end(text_tokens, text)
    similarity = towers_torch.cosines(*vectors)
    losses = {}
    metrics = {'top1': (pid[similarity.argmax(1)] == pid).float().mean()}
    if weights['gs']:
      losses['gs'] = info_nce(similarity, scale)
    if weights['ls'] or weights['m']:
      places = torch.arange(text.shape[1], device=text.device)
      granules = (
        self.granularity_decoder(image_tokens),
        self.granularity_decoder(
          text_tokens, padding=places > text.argmax(1, keepdim=True)
        ),
      )
    if weights['ls']:
      losses['ls'] = info_nce(local_similarity(*granules), scale)
    if weights['m']:
      losses['m'], metrics['match_accuracy'] = self.match(
        *granules, similarity.detach(), pid
      )
    if weights['cid']:
      logits = [self.classifier(vector) for vector in vectors]
      losses['cid'] = sum(F.cross_entropy(x, pid) for x in logits) / 2
    loss = sum(weights[name] * x for name, x in losses.items())
    return {**losses, **metrics, 'loss': loss}

  def match(self, image_granules, text_granules, similarity, pid):
    """Loss and accuracy of b matched pairs and the 2 b hardest mismatches."""
    other = pid[:, None] != pid
    scores = similarity.masked_fill(~other, float('-inf'))
    logits = self.matcher(
      torch.cat(
        [image_granules, image_granules, image_granules[scores.argmax(0)]]
      ),
      torch.cat(
        [text_granules, text_granules[scores.argmax(1)], text_granules]
      ),
    )
    labels = torch.zeros_like(logits)
    labels[: len(pid)] = 1
    # A sample without another identity in the batch has no mismatches.
    counts = torch.cat([torch.ones_like(pid), *2 * [other.any(1)]]).float()
    loss = F.binary_cross_entropy_with_logits(
      logits, labels, weight=counts, reduction='sum'
    )
    right = ((logits > 0) == labels.bool()) * counts
    return loss / counts.sum(), right.sum() / counts.sum()


def local_similarity(image_granules, text_granules):
  """The mean cosine [m,n] of granules [m,k,D] and [n,k,D] of one query."""
  return (
    torch.einsum(
      'mkd,nkd->mn',
      F.normalize(image_granules, dim=-1),
      F.normalize(text_granules, dim=-1),
    )
    / image_granules.shape[1]
  )


def make_optimizer(model: Cfam) -> torch.optim.Adam:
  """Adam with the rates and decays that the recipe gives by name."""

  def factors(name):
    bias = name.endswith('bias')
    rate = 5.0 if name.startswith(HEADS) else 2.0 if bias else 1.0
    return rate, 0.0 if bias else 1.0

  return towers_torch.make_optimizer(
    torch.optim.Adam, model, factors, model.sizes.recipe
  )


def make(device: str, sizes: CfamSizes, batch: dict[str, np.ndarray]):
  """The step of `torch_process.TorchProcess`."""
  return towers_torch.start(Cfam(sizes), make_optimizer, batch, device)
