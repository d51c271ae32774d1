"""CLIP's towers in PyTorch, and what the training steps on top of them share.

Written from the papers (arXiv 2103.00020, 2303.12501) and from the names and
sizes of the released checkpoints, the way a PyTorch user would write it: eager,
`nn.MultiheadAttention`, float32. Initialisation is PyTorch's where CLIP's is
not simpler to write, which changes no time.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from jaxzoo.bench.torch_process import Recipe
from jaxzoo.models.layers.image import IMAGE_MEAN, IMAGE_STD


def quick_gelu(x):
  """x sigmoid(1.702 x)."""
  return x * torch.sigmoid(1.702 * x)


def num_heads(width: int) -> int:
  """Of the modules beside the towers: heads of 64 channels, one at least."""
  return max(1, width // 64)


class Mlp(nn.Module):
  """Four times as wide inside."""

  def __init__(self, width):
    super().__init__()
    self.c_fc = nn.Linear(width, 4 * width)
    self.c_proj = nn.Linear(4 * width, width)

  def forward(self, x):
    return self.c_proj(quick_gelu(self.c_fc(x)))


class Block(nn.Module):
  """x += Attention(LN x); x += MLP(LN x)."""

  def __init__(self, width, heads):
    super().__init__()
    self.ln_1 = nn.LayerNorm(width)
    self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
    self.ln_2 = nn.LayerNorm(width)
    self.mlp = Mlp(width)

  def forward(self, x, mask=None):
    y = self.ln_1(x)
    x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
    return x + self.mlp(self.ln_2(x))


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
  """Normalised pictures [b,3,h,w] -> hidden tokens [b,1+n,w], class first."""

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
    return self.transformer(self.ln_pre(x))

  def project(self, x):
    """Hidden tokens, all or some, into the common space."""
    return self.ln_post(x) @ self.proj


class Clip(nn.Module):
  """Both towers; the text tower's parameters lie beside `visual`, as released.

  Args:
    towers: the fields of `backbones.clip.Towers`, image='vit'.
    image_size: (height, width) in pixels.
    text_length: ids.
  """

  def __init__(
    self, towers: dict, image_size: tuple[int, int], text_length: int
  ):
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
    for name, values in (('mean', IMAGE_MEAN), ('std', IMAGE_STD)):
      constant = torch.tensor(values).view(3, 1, 1)
      self.register_buffer(name, constant, persistent=False)

  def encode_image(self, image):
    """Pictures uint8 [b,h,w,3] -> tokens [b,1+n,D], the class token first."""
    return self.visual.project(self._see(image))

  def encode_text(self, text):
    """Token ids [b,t] -> tokens [b,t,D]."""
    return self._project_text(self._read(text))

  def encode_pairs(self, image, text):
    """The vectors of both, [b,D]: as released, nothing else is projected."""
    return (
      self.visual.project(self._see(image)[:, 0]),
      self._project_text(at_end(self._read(text), text)),
    )

  def _see(self, image):
    image = image.permute(0, 3, 1, 2).float() / 255
    return self.visual((image - self.mean) / self.std)

  def _read(self, text):
    x = self.token_embedding(text) + self.positional_embedding
    return self.transformer(x, self.mask)

  def _project_text(self, x):
    return self.ln_final(x) @ self.text_projection


def at_end(tokens, text):
  """Of tokens [b,t,w] those [b,w] at the end of the texts [b,t]."""
  return tokens[torch.arange(len(text)), text.argmax(1)]


def cosines(image, text):
  """Of all images [m,D] with all texts [n,D]: [m,n]."""
  return F.normalize(image) @ F.normalize(text).T


def info_nce(similarity, scale):
  """The matched pair against its row and its column, symmetric."""
  logits = scale * similarity
  pairs = torch.arange(len(logits), device=logits.device)
  return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def make_optimizer(
  kind: type[torch.optim.Optimizer],
  model: nn.Module,
  factors: Callable[[str], tuple[float, float]],
  recipe: Recipe,
) -> torch.optim.Optimizer:
  """Adam or AdamW with a group for each pair of factors.

  Args:
    kind: the class.
    model: what is trained.
    factors: name of a parameter -> factors of the rate and of the decay.
    recipe: the numbers.
  """
  groups = {}
  for name, parameter in model.named_parameters():
    groups.setdefault(factors(name), []).append(parameter)
  return kind(
    [
      {
        'params': parameters,
        'lr': rate * recipe.lr,
        'weight_decay': decay * recipe.weight_decay,
      }
      for (rate, decay), parameters in groups.items()
    ],
    betas=recipe.betas,
    eps=recipe.eps,
  )


def train_step(
  model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict
) -> dict[str, torch.Tensor]:
  """One update; what the model makes of the batch, `loss` among it."""
  metrics = model(batch)
  optimizer.zero_grad()
  metrics['loss'].backward()
  optimizer.step()
  return metrics


def to_device(batch: dict[str, np.ndarray], device: str) -> dict:
  """The batch as tensors: pictures as they are, ids as int64."""
  return {
    name: torch.from_numpy(x if x.dtype == np.uint8 else x.astype(np.int64)).to(
      device
    )
    for name, x in batch.items()
  }


def start(
  model: nn.Module,
  make_optimizer: Callable,
  batch: dict[str, np.ndarray],
  device: str,
  train_step: Callable = train_step,
) -> tuple[Callable, dict]:
  """What `torch_process.TorchProcess` wants of its `make`.

  Args:
    model: batch -> metrics, `loss` among them.
    make_optimizer: model -> its optimizer.
    batch: arrays, the same in every step.
    device: 'cpu' or 'cuda'.
    train_step: (model, optimizer, batch) -> metrics.

  Returns:
    A step, which gives its loss, and the number of `parameters`.
  """
  model.to(device)
  optimizer, tensors = make_optimizer(model), to_device(batch, device)
  step = lambda: train_step(model, optimizer, tensors)['loss']
  return step, {'parameters': sum(p.numel() for p in model.parameters())}
