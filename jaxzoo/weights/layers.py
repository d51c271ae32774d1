"""PyTorch's tensors of one layer -> the parameters of ours.

Every function takes a state dict and the name of a module in it, and returns a
nested dict of float32 arrays. Modules are those of CLIP and its descendants.
"""

from collections.abc import Callable, Mapping

import numpy as np

from jaxzoo.errors import UserError

Tensors = Mapping[str, np.ndarray]


def tensor(tensors: Tensors, name: str) -> np.ndarray:
  """One array, float32. Raises a UserError where the checkpoint lacks it."""
  if name not in tensors:
    raise UserError(
      f'the checkpoint lacks {name}: it is of another model, or incomplete'
    )
  return np.asarray(tensors[name], np.float32)


def linear(tensors: Tensors, name: str) -> dict:
  """nn.Linear, [out, in]."""
  return {
    'kernel': tensor(tensors, f'{name}.weight').T,
    'bias': tensor(tensors, f'{name}.bias'),
  }


def layer_norm(tensors: Tensors, name: str) -> dict:
  """nn.LayerNorm."""
  return {
    'scale': tensor(tensors, f'{name}.weight'),
    'bias': tensor(tensors, f'{name}.bias'),
  }


def attention(
  tensors: Tensors, name: str, num_heads: Callable[[int], int]
) -> dict:
  """nn.MultiheadAttention: one matrix for q, k and v, in that order.

  `num_heads` gives the number of heads of a width, which no tensor tells.
  """
  kernels = np.split(tensor(tensors, f'{name}.in_proj_weight'), 3)
  biases = np.split(tensor(tensors, f'{name}.in_proj_bias'), 3)
  width = kernels[0].shape[1]
  heads = num_heads(width)
  layers = {
    part: {
      'kernel': kernel.T.reshape(width, heads, -1),
      'bias': bias.reshape(heads, -1),
    }
    for part, kernel, bias in zip(
      ('query', 'key', 'value'), kernels, biases, strict=True
    )
  }
  out = linear(tensors, f'{name}.out_proj')
  out['kernel'] = out['kernel'].reshape(heads, -1, width)
  return layers | {'out': out}


def mlp(tensors: Tensors, name: str) -> dict:
  """The MLP of CLIP's blocks: c_fc, activation, c_proj."""
  return {
    'fc1': linear(tensors, f'{name}.c_fc'),
    'fc2': linear(tensors, f'{name}.c_proj'),
  }


def block(tensors: Tensors, name: str, num_heads: Callable[[int], int]) -> dict:
  """CLIP's ResidualAttentionBlock."""
  return {
    'ln_1': layer_norm(tensors, f'{name}.ln_1'),
    'attn': attention(tensors, f'{name}.attn', num_heads),
    'ln_2': layer_norm(tensors, f'{name}.ln_2'),
    'mlp': mlp(tensors, f'{name}.mlp'),
  }


def depth(tensors: Tensors, name: str) -> int:
  """How many modules `name`.0, `name`.1, ... there are."""
  numbers = {
    int(key.removeprefix(f'{name}.').split('.')[0])
    for key in tensors
    if key.startswith(f'{name}.')
  }
  return 1 + max(numbers, default=-1)


def blocks(
  tensors: Tensors, name: str, num_heads: Callable[[int], int]
) -> dict:
  """nn.Sequential of blocks -> block_0, block_1, ..., as many as there are."""
  return {
    f'block_{i}': block(tensors, f'{name}.{i}', num_heads)
    for i in range(depth(tensors, name))
  }
