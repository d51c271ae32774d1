"""OneNet's online step in PyTorch, to compare ours with on one CPU.

Written from the papers (arXiv 2309.12659, 2202.11672) and the names and sizes
of the released checkpoints, the way a PyTorch user would write it: eager, one
window at a time, `torch.optim.AdamW` and `Adam`. The same computation as the
published procedure and as `models/forecasting/onenet.py`, with every position
of every convolution computed, as the published code does.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

SLOW, FAST, TURN = 0.9, 0.3, 0.75


class AdaptiveConv(nn.Module):
  """FSNet's convolution, with its averages and memory."""

  def __init__(self, i, o, dilation):
    super().__init__()
    self.i, self.o, self.dilation = i, o, dilation
    self.conv = nn.Conv1d(i, o, 3, bias=False)
    self.bias = nn.Parameter(torch.zeros(o))
    self.controller = nn.Sequential(nn.Linear(3 * o, 64), nn.SiLU())
    self.calib_w = nn.Linear(64, 3)
    self.calib_b = nn.Linear(64, o // i)
    self.calib_f = nn.Linear(64, o // i)
    size = i * (3 + 2 * (o // i))
    memory = nn.init.xavier_uniform_(torch.empty(size, 32))
    self.register_buffer('W', memory / memory.norm().clamp(min=1))
    self.register_buffer('grads', torch.zeros(o * i * 3))
    self.register_buffer('f_grads', torch.zeros(o * i * 3))
    self.query, self.triggered = None, False

  def forward(self, x):
    rep = self.controller(self.grads.view(self.i, -1))
    w, b, f = self.calib_w(rep), self.calib_b(rep), self.calib_f(rep)
    own = torch.cat([w.flatten(), b.flatten(), f.flatten()])
    if self.query is None:
      self.query = torch.zeros_like(own)
    else:
      self.query = FAST * self.query + (1 - FAST) * own.detach()
    if self.triggered:
      self.triggered = False
      own = TURN * own + (1 - TURN) * self._recall()
    w, b, f = own.split([3 * self.i, self.o, self.o])
    kernel = self.conv.weight * w.view(1, self.i, 3)
    y = F.conv1d(
      x, kernel, self.bias * b, padding=self.dilation, dilation=self.dilation
    )
    return f[:, None] * y

  @torch.no_grad()
  def _recall(self):
    attention = torch.softmax(self.query @ self.W / 0.5, 0)
    values, slots = attention.topk(2)
    old = self.W[:, slots] @ values
    strength = torch.zeros_like(attention)
    strength[slots] = values
    keep = torch.ones_like(attention)
    keep[slots] = TURN
    self.W.copy_(keep * self.W + (1 - keep) * torch.outer(old, strength))
    self.W.div_(self.W.norm().clamp(min=1))
    return old

  @torch.no_grad()
  def remember(self):
    """After each backward pass."""
    unit = F.normalize(self.conv.weight.grad).flatten()
    self.f_grads.mul_(FAST).add_((1 - FAST) * unit)
    self.grads.mul_(SLOW).add_((1 - SLOW) * unit)
    if not self.training:
      cosine = F.cosine_similarity(self.f_grads, self.grads, dim=0, eps=1e-6)
      self.triggered = self.triggered or bool(cosine < -TURN)


class ScaledConv(nn.Module):
  """The plain convolution with learned scales."""

  def __init__(self, i, o, dilation):
    super().__init__()
    self.dilation = dilation
    self.conv = nn.Conv1d(i, o, 3, bias=False)
    self.bias = nn.Parameter(torch.zeros(o))
    self.calib_w = nn.Parameter(torch.ones(o, i, 1))
    self.calib_b = nn.Parameter(torch.zeros(o))
    self.calib_f = nn.Parameter(torch.ones(1, o, 1))

  def forward(self, x):
    y = F.conv1d(
      x,
      self.conv.weight * self.calib_w,
      self.bias * self.calib_b,
      padding=self.dilation,
      dilation=self.dilation,
    )
    return y + self.calib_f * y


class Block(nn.Module):
  def __init__(self, kind, i, o, dilation, last):
    super().__init__()
    self.conv1 = kind(i, o, dilation)
    self.conv2 = kind(o, o, dilation)
    self.projector = nn.Conv1d(i, o, 1) if last or i != o else nn.Identity()

  def forward(self, x):
    y = self.conv2(F.gelu(self.conv1(F.gelu(x))))
    return y + self.projector(x)


class Encoder(nn.Module):
  """[b, t, c] -> [b, t, features]."""

  def __init__(self, kind, channels, width, features, depth):
    super().__init__()
    self.input_fc = nn.Linear(channels, width)
    sizes = [width] * (depth + 1) + [features]
    blocks = [
      Block(kind, sizes[n], sizes[n + 1], 2**n, n == depth)
      for n in range(depth + 1)
    ]
    self.feature_extractor = nn.ModuleDict({'net': nn.Sequential(*blocks)})

  def forward(self, x):
    x = self.input_fc(x).transpose(1, 2)
    return self.feature_extractor['net'](x).transpose(1, 2)


class Decision(nn.Module):
  def __init__(self, horizon, width):
    super().__init__()
    self.input = nn.Linear(3 * horizon, width)
    self.hiddens = nn.ModuleList([nn.Linear(width, width)])
    self.output = nn.Linear(width, 1)

  def forward(self, x):
    x = torch.tanh(self.input(x))
    return self.output(torch.tanh(self.hiddens[0](x)))[..., 0]


class OneNet(nn.Module):
  """Both forecasters and the ensemble, with one step online.

  Args:
    convs: 'fsnet' or 'tcn'.
    history: rows that a window shows.
    horizon: rows that are forecast.
    variables: d.
    marks: features of the calendar.
    width: channels inside.
    features: of the encoders.
    depth: blocks before the last.
    lr: of AdamW.
  """

  def __init__(
    self, convs, history, horizon, variables, marks=7, width=64, features=320,
    depth=10, lr=1e-3,
  ):  # fmt: skip
    super().__init__()
    kind = {'fsnet': AdaptiveConv, 'tcn': ScaledConv}[convs]
    wrapped = lambda channels: nn.ModuleDict(
      {'encoder': Encoder(kind, channels, width, features, depth)}
    )
    self.horizon, self.variables = horizon, variables
    self.model = nn.ModuleDict(
      {
        'encoder_time': wrapped(history),
        'regressor_time': nn.Linear(features, horizon),
        'encoder': wrapped(variables + marks),
        'regressor': nn.Linear(features, horizon * variables),
      }
    )
    self.decision = Decision(horizon, 32)
    self.weight = nn.Parameter(torch.zeros(variables))
    self.register_buffer('beta', torch.zeros(1, variables))
    self.adaptive = [m for m in self.modules() if isinstance(m, AdaptiveConv)]
    self.optimizer = torch.optim.AdamW(self.model.parameters(), lr)
    self.optimizer_weight = torch.optim.Adam([self.weight], 1e-3)
    self.optimizer_bias = torch.optim.Adam(self.decision.parameters(), 1e-3)
    self.eval()

  def forward(self, history, marks):
    """y1 and y2, [b, h, d]."""
    net = self.model
    x = net['encoder_time']['encoder'](history.transpose(1, 2))
    time = net['regressor_time'](x).transpose(1, 2)
    x = torch.cat([history, marks], -1)
    x = net['encoder']['encoder'](x)[:, -1]
    shape = -1, self.horizon, self.variables
    return time, net['regressor'](x).view(shape)

  def online_step(self, history, marks, target):
    """The forecast, made before anything is learned of `target`."""
    time, variable = self(history, marks)
    with torch.no_grad():
      share = torch.sigmoid(self.weight + self.beta)[:, None]
      forecast = share * time + (1 - share) * variable
    self.optimizer.zero_grad()
    loss = F.mse_loss(time, target) + F.mse_loss(variable, target)
    loss.backward()
    for conv in self.adaptive:
      conv.remember()
    self.optimizer.step()
    time, variable = time.detach(), variable.detach()
    self.optimizer_bias.zero_grad()
    self.optimizer_weight.zero_grad()
    share = torch.sigmoid(self.weight)
    offered = [share * time, (1 - share) * variable, target]
    beta = self.decision(torch.cat(offered, 1).transpose(1, 2))
    mixed = torch.sigmoid(self.weight + beta)[:, None]
    F.mse_loss(mixed * time + (1 - mixed) * variable, target).backward()
    self.optimizer_bias.step()
    self.beta = beta.detach()
    share = torch.sigmoid(self.weight)
    F.mse_loss(share * time + (1 - share) * variable, target).backward()
    self.optimizer_weight.step()
    return forecast


def tensors(module: nn.Module) -> dict[str, np.ndarray]:
  """Its state, under the released names."""
  return {k: v.detach().numpy().copy() for k, v in module.state_dict().items()}
