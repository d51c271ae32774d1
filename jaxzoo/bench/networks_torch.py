"""Small networks in PyTorch, to train beside ours from the same weights.

The names of their tensors are the published ones, so that what ours exports
loads. ResNet is put together from torchvision's blocks; LightViT is written
from the paper (arXiv 2207.05557) and from the names and sizes of the released
checkpoints, in one sequence of global tokens and map as it was published, where
ours keeps them apart.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from jaxzoo.errors import UserError
from jaxzoo.models.layers.windows import relative_position_index


def make_network(family: str, module) -> nn.Module:
  """The network of one of ours.

  Args:
    family: of its card.
    module: ours; its fields are the sizes.

  Raises:
    UserError: no such network here.
  """
  if family == 'resnet' and not module.bottleneck and module.small_stem:
    return ResNet(module.depths, module.width, module.num_classes)
  if family == 'lightvit' and not module.dense:
    return LightViT(module)
  raise UserError(
    f'{family}: here are only residual networks of basic blocks with '
    'small_stem=True, and lightvit'
  )


class ResNet(nn.Module):
  """Basic blocks on small pictures: a stem of 3x3 without stride or pool."""

  def __init__(self, depths, width, num_classes):
    super().__init__()
    self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    self.bn1 = nn.BatchNorm2d(width)
    self.stages, inputs = len(depths), width
    for stage, depth in enumerate(depths):
      features, blocks = width * 2**stage, []
      for i in range(depth):
        stride = 2 if stage and not i else 1
        shortcut = None
        if stride > 1:
          shortcut = nn.Sequential(
            nn.Conv2d(inputs, features, 1, stride, bias=False),
            nn.BatchNorm2d(features),
          )
        blocks.append(BasicBlock(inputs, features, stride, shortcut))
        inputs = features
      self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))
    self.fc = nn.Linear(inputs, num_classes)

  def forward(self, image):
    x = F.relu(self.bn1(self.conv1(image)))
    for stage in range(self.stages):
      x = self.get_submodule(f'layer{stage + 1}')(x)
    return self.fc(x.mean((2, 3)))


class LightViT(nn.Module):
  """Takes the sizes of `models.backbones.lightvit.LightViT`."""

  def __init__(self, sizes):
    super().__init__()
    dims, window = sizes.dims, sizes.window
    self.window, self.count = window, sizes.num_tokens
    self.patch_embed = Stem(dims[0])
    self.global_token = nn.Parameter(torch.zeros(1, self.count, dims[0]))
    self.stages = nn.ModuleList()
    for i, depth in enumerate(sizes.depths):
      merging = [Merging(dims[i - 1], dims[i], self.count)] if i else []
      blocks = [
        Block(dims[i], sizes.heads[i], sizes.mlp_ratios[i], window, self.count)
        for _ in range(depth)
      ]
      self.stages.append(nn.ModuleList(merging + blocks))
    self.norm = nn.LayerNorm(dims[-1], 1e-6)
    self.neck = nn.Sequential(
      nn.Linear(dims[-1], sizes.neck_dim),
      nn.LayerNorm(sizes.neck_dim),
      nn.GELU(),
    )
    self.head = nn.Linear(sizes.neck_dim, sizes.num_classes)

  def forward(self, image):
    x = self.patch_embed(image)
    size = x.shape[1:3]
    glob = self.global_token.expand(len(x), -1, -1)
    x = torch.cat([glob, x.flatten(1, 2)], 1)
    for stage in self.stages:
      for layer in stage:
        x, size = layer(x, size)
    return self.head(self.neck(self.norm(x)).mean(1))


class Stem(nn.Module):
  """Image [b, 3, h, w] -> patches [b, h / 8, w / 8, c]."""

  def __init__(self, width):
    super().__init__()
    hidden, layers = width // 2, []
    for inputs, stride in ((3, 2), (hidden, 1), (hidden, 1), (hidden, 2)):
      groups = 1 if inputs == 3 else hidden
      layers += [
        nn.Conv2d(inputs, hidden, 3, stride, 1, groups=groups, bias=False),
        nn.BatchNorm2d(hidden),
        nn.GELU(),
      ]
    self.stem = nn.Sequential(*layers)
    self.proj = nn.Conv2d(hidden, width, 3, 2, 1)
    self.norm = nn.LayerNorm(width)

  def forward(self, image):
    return self.norm(self.proj(self.stem(image)).permute(0, 2, 3, 1))


class Merging(nn.Module):
  """2x2 positions become one."""

  def __init__(self, inputs, features, count):
    super().__init__()
    self.count = count
    self.norm = nn.LayerNorm(4 * inputs)
    self.reduction = nn.Linear(4 * inputs, features, bias=False)
    self.res_proj = nn.Linear(inputs, features, bias=False)
    self.norm2 = nn.LayerNorm(inputs)
    self.proj = nn.Linear(inputs, features, bias=False)

  def forward(self, x, size):
    glob, x = x[:, : self.count], x[:, self.count :]
    x = x.unflatten(1, size)
    parts = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
    most = torch.stack(parts).amax(0)
    x = self.reduction(self.norm(torch.cat(parts, -1))) + self.res_proj(most)
    size = x.shape[1:3]
    return torch.cat([self.proj(self.norm2(glob)), x.flatten(1, 2)], 1), size


class Block(nn.Module):
  """x += Attention(LN x); x += gated MLP(LN x)."""

  def __init__(self, width, heads, ratio, window, count):
    super().__init__()
    self.norm1 = nn.LayerNorm(width, 1e-6)
    self.attn = Attention(width, heads, window, count)
    self.norm2 = nn.LayerNorm(width, 1e-6)
    self.mlp = Mlp(width, int(ratio * width))

  def forward(self, x, size):
    x = x + self.attn(self.norm1(x), size)
    return x + self.mlp(self.norm2(x)), size


class Attention(nn.Module):
  """Within windows; global tokens gather from the map, and it from them."""

  def __init__(self, width, heads, window, count):
    super().__init__()
    self.heads, self.window, self.count = heads, window, count
    self.relative_position_bias_table = nn.Parameter(
      torch.zeros((2 * window - 1) ** 2, heads)
    )
    index = torch.from_numpy(relative_position_index(window)).long()
    self.register_buffer('index', index, persistent=False)
    self.qkv = nn.Linear(width, 3 * width)
    self.kv_global = nn.Linear(width, 2 * width)
    self.proj = nn.Linear(width, width)

  def forward(self, x, size):
    cut = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    q, k, v = (cut(y) for y in self.qkv(x).chunk(3, -1))  # [b, heads, n, d]
    q_glob, q = q[:, :, : self.count], q[:, :, self.count :]
    k, v = k[:, :, self.count :], v[:, :, self.count :]
    gathered = F.scaled_dot_product_attention(q_glob, k, v)
    gathered = gathered.transpose(1, 2).flatten(2)
    k_glob, v_glob = (cut(y) for y in self.kv_global(gathered).chunk(2, -1))
    answer = F.scaled_dot_product_attention(q, k_glob, v_glob)
    local = self.within_windows(q, k, v, size)
    image = (local + answer).transpose(1, 2).flatten(2)
    return self.proj(torch.cat([gathered, image], 1))

  def within_windows(self, q, k, v, size):
    w, (b, heads, _, d) = self.window, q.shape
    rows, columns = size[0] // w, size[1] // w

    def windows(y):  # [b windows, heads, w w, d]
      y = y.reshape(b, heads, rows, w, columns, w, d)
      return y.permute(0, 2, 4, 1, 3, 5, 6).reshape(-1, heads, w * w, d)

    bias = self.relative_position_bias_table[self.index].permute(2, 0, 1)
    y = F.scaled_dot_product_attention(*map(windows, (q, k, v)), bias[None])
    y = y.reshape(b, rows, columns, heads, w, w, d)
    return y.permute(0, 3, 1, 4, 2, 5, 6).reshape(b, heads, -1, d)


class Mlp(nn.Module):
  """fc2(gelu(fc1 x)), gated."""

  def __init__(self, width, hidden):
    super().__init__()
    self.fc1 = nn.Linear(width, hidden)
    self.fc2 = nn.Linear(hidden, width)
    self.attn = Gate(width)

  def forward(self, x):
    return self.attn(self.fc2(F.gelu(self.fc1(x))))


class Gate(nn.Module):
  """Sigmoid gates of each channel, from the mean, and of each token."""

  def __init__(self, width):
    super().__init__()
    self.norm = nn.LayerNorm(width)
    self.global_reduce = nn.Linear(width, width // 4)
    self.local_reduce = nn.Linear(width, width // 4)
    self.channel_select = nn.Linear(width // 4, width)
    self.spatial_select = nn.Linear(2 * (width // 4), 1)

  def forward(self, y):
    normed = self.norm(y)
    of_all = F.gelu(self.global_reduce(normed.mean(1, keepdim=True)))
    of_each = F.gelu(self.local_reduce(normed))
    both = torch.cat([of_each, of_all.expand_as(of_each)], -1)
    by_channel = torch.sigmoid(self.channel_select(of_all))
    return y * by_channel * torch.sigmoid(self.spatial_select(both))
