"""IRRA's training step in PyTorch, to compare ours with on one device.

Written from the paper (arXiv 2303.12501) and from the names and sizes of the
released checkpoints, the way a PyTorch user would write it: eager,
`nn.MultiheadAttention`, float32, `torch.optim.Adam` with parameter groups.

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

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxzoo.bench.torch_process import Sizes
from jaxzoo.models.layers.image import IMAGE_MEAN, IMAGE_STD


def quick_gelu(x):
  """x sigmoid(1.702 x)."""
  return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
  """x += Attention(LN x); x += MLP(LN x)."""

  def __init__(self, width, heads):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width)
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.ln_2 = nn.LayerNorm(width)
    self.mlp = nn.ModuleDict(
      {
        'c_fc': nn.Linear(width, 4 * width),
        'c_proj': nn.Linear(4 * width, width),
      }
    )

  def forward(self, x, mask=None):
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
    return x + self.mlp['c_proj'](quick_gelu(self.mlp['c_fc'](self.ln_2(x))))


class Transformer(nn.Module):
  """Blocks in a row."""

  def __init__(self, width, depth, heads):
    super().__init__()
    self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(depth))

  def forward(self, x, mask=None):
    for block in self.resblocks:
      x = block(x, mask)
    return x


def normal(*shape, std):
  return nn.Parameter(std * torch.randn(*shape))


class ImageTower(nn.Module):
  """Normalised pictures [b,3,h,w] -> tokens [b,1+n,D], the class token first."""

  def __init__(self, towers, image_size):
    super().__init__()
    width, patch = towers['image_width'], towers['patch_size']
    patches = (image_size[0] // patch) * (image_size[1] // patch)
    std = width**-0.5
    self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
    self.class_embedding = normal(width, std=std)
    self.positional_embedding = normal(1 + patches, width, std=std)
    self.ln_pre = nn.LayerNorm(width)
    self.transformer = Transformer(
      width, towers['image_depth'], towers['image_heads']
    )
    self.ln_post = nn.LayerNorm(width)
    self.proj = normal(width, towers['output_dim'], std=std)

  def forward(self, image):
    x = self.conv1(image).flatten(2).transpose(1, 2)
    first = self.class_embedding.expand(len(x), 1, -1)
    x = torch.cat([first, x], dim=1) + self.positional_embedding
    return self.ln_post(self.transformer(self.ln_pre(x))) @ self.proj


class Clip(nn.Module):
  """Both towers; the text tower's parameters lie beside `visual`, as released."""

  def __init__(self, towers, image_size, text_length):
    super().__init__()
    width = towers['text_width']
    self.visual = ImageTower(towers, image_size)
    self.token_embedding = nn.Embedding(towers['vocab_size'], width)
    nn.init.normal_(self.token_embedding.weight, std=0.02)
    self.positional_embedding = normal(text_length, width, std=0.01)
    self.transformer = Transformer(
      width, towers['text_depth'], towers['text_heads']
    )
    self.ln_final = nn.LayerNorm(width)
    self.text_projection = normal(width, towers['output_dim'], std=width**-0.5)
    hidden = torch.full((text_length, text_length), float('-inf')).triu(1)
    self.register_buffer('mask', hidden, persistent=False)

  def encode_text(self, text):
    """Token ids [b,t] -> tokens [b,t,D]."""
    x = self.token_embedding(text) + self.positional_embedding
    x = self.ln_final(self.transformer(x, self.mask))
    return x @ self.text_projection


class Irra(nn.Module):
  """A batch -> the losses by name, and the accuracy of the masked words."""

  def __init__(self, sizes: Sizes, lean: bool):
    super().__init__()
    self.sizes, self.lean = sizes, lean
    width, depth = sizes.towers['output_dim'], sizes.cross_modal_depth
    heads = max(1, width // 64)
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
    for name, values in (('mean', IMAGE_MEAN), ('std', IMAGE_STD)):
      constant = torch.tensor(values).view(3, 1, 1)
      self.register_buffer(name, constant, persistent=False)

  def forward(self, batch):
    image = batch['image'].permute(0, 3, 1, 2).float() / 255
    image_tokens = self.base_model.visual((image - self.mean) / self.std)
    # The released loader masks the captions in place: retrieval, too, sees the
    # masked ones.
    masked_retrieval = self.sizes.mask_retrieval_text
    retrieved = batch['mlm_text' if masked_retrieval else 'text']
    text_tokens = self.base_model.encode_text(retrieved)
    masked = text_tokens
    if not (self.lean and masked_retrieval):
      masked = self.base_model.encode_text(batch['mlm_text'])
    image = image_tokens[:, 0]
    text = text_tokens[torch.arange(len(retrieved)), retrieved.argmax(1)]
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
    return losses, accuracy

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
  sizes, groups = model.sizes, {}
  for name, parameter in model.named_parameters():
    rate, decay = 1.0, 1.0
    if 'cross' in name:
      rate = 5.0
    if 'bias' in name:
      rate, decay = 2.0, 0.0
    if 'classifier' in name or 'mlm_head' in name:
      rate = 5.0
    groups.setdefault((rate, decay), []).append(parameter)
  return torch.optim.Adam(
    [
      {
        'params': parameters,
        'lr': rate * sizes.lr,
        'weight_decay': decay * sizes.weight_decay,
      }
      for (rate, decay), parameters in groups.items()
    ],
    betas=sizes.betas,
    eps=sizes.eps,
  )


def train_step(model, optimizer, batch) -> dict[str, torch.Tensor]:
  """One update; the losses, their sum as `loss`, and `mlm_accuracy`."""
  losses, accuracy = model(batch)
  loss = sum(losses.values())
  optimizer.zero_grad()
  loss.backward()
  optimizer.step()
  return {**losses, 'loss': loss, 'mlm_accuracy': accuracy}


def to_device(batch: dict[str, np.ndarray], device: str) -> dict:
  """The batch as tensors: pictures as they are, ids as int64."""
  return {
    name: torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.int64)).to(
      device
    )
    for name, x in batch.items()
  }


def make(device: str, sizes: Sizes, lean: bool, batch: dict[str, np.ndarray]):
  """The step of `torch_process.TorchProcess`."""
  model = Irra(sizes, lean).to(device)
  optimizer = make_optimizer(model)
  batch = to_device(batch, device)
  step = lambda: train_step(model, optimizer, batch)['loss']
  return step, {'parameters': sum(p.numel() for p in model.parameters())}
