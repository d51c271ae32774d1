"""Name maps, both ways: one row for each tensor of a published state dict.

A backbone lists its rows once; loading reads them from left to right, exporting
from right to left, so that the two cannot disagree.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.weights import layout

# Buffers that are constants of the architecture, or count what nobody reads.
IGNORED = re.compile(
  r'(.*\.)?(num_batches_tracked|relative_position_index|relative_id|attn_mask'
  r'|relative_coords_table|position_ids|total_(ops|params))'
)


class Form(NamedTuple):
  """How one side lays a tensor out in the terms of the other.

  Attributes:
    load: theirs -> ours.
    save: ours -> theirs.
  """

  load: Callable[[np.ndarray], np.ndarray]
  save: Callable[[np.ndarray], np.ndarray]


class Row(NamedTuple):
  """One tensor.

  Attributes:
    theirs: its name in the published state dict.
    ours: its path, 'params/stage1_block0/conv1/kernel'; several where theirs
      is cut into as many equal parts along its first axis (q, k and v).
    form: of each part.
  """

  theirs: str
  ours: str | tuple[str, ...]
  form: Form


SAME = Form(lambda x: x, lambda x: x)
CONV = Form(  # OIHW <-> HWIO
  lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
)
DENSE = Form(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
# A 1x1 convolution that is a dense layer here: [out, in, 1, 1] <-> [in, out].
POINTWISE = Form(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])


def reshaped(theirs: tuple[int, ...], ours: tuple[int, ...]) -> Form:
  """The same numbers in the same order; one size of each may be -1.

  A leading 1 that only PyTorch's broadcasting needs is the usual reason.
  """
  return Form(lambda x: x.reshape(ours), lambda x: x.reshape(theirs))


def heads_in(num_heads: int) -> Form:
  """[heads d, in] <-> [in, heads, d]."""
  return Form(
    lambda x: x.T.reshape(x.shape[1], num_heads, -1),
    lambda x: x.reshape(x.shape[0], -1).T,
  )


def heads_bias(num_heads: int) -> Form:
  """[heads d] <-> [heads, d]."""
  return Form(lambda x: x.reshape(num_heads, -1), lambda x: x.reshape(-1))


def heads_out(num_heads: int) -> Form:
  """[out, heads d] <-> [heads, d, out]."""
  return Form(
    lambda x: x.T.reshape(num_heads, -1, x.shape[0]),
    lambda x: x.reshape(-1, x.shape[-1]).T,
  )


# Rows of whole layers. Paths are without their collection: 'params' is put in
# front, and 'batch_stats' where it belongs.


def tensor(theirs: str, ours: str, form: Form = SAME) -> list[Row]:
  """A parameter of its own."""
  return [Row(theirs, f'params/{ours}', form)]


def conv(theirs: str, ours: str, *, bias: bool = False) -> list[Row]:
  """nn.Conv2d."""
  rows = tensor(f'{theirs}.weight', f'{ours}/kernel', CONV)
  return rows + (tensor(f'{theirs}.bias', f'{ours}/bias') if bias else [])


def linear(theirs: str, ours: str, *, bias: bool = True) -> list[Row]:
  """nn.Linear."""
  rows = tensor(f'{theirs}.weight', f'{ours}/kernel', DENSE)
  return rows + (tensor(f'{theirs}.bias', f'{ours}/bias') if bias else [])


def pointwise(theirs: str, ours: str, *, bias: bool = True) -> list[Row]:
  """nn.Conv2d of size 1 that is a dense layer here."""
  rows = tensor(f'{theirs}.weight', f'{ours}/kernel', POINTWISE)
  return rows + (tensor(f'{theirs}.bias', f'{ours}/bias') if bias else [])


def norm(theirs: str, ours: str) -> list[Row]:
  """nn.LayerNorm, or the trained half of a batch norm."""
  return [
    *tensor(f'{theirs}.weight', f'{ours}/scale'),
    *tensor(f'{theirs}.bias', f'{ours}/bias'),
  ]


def batch_norm(theirs: str, ours: str) -> list[Row]:
  """nn.BatchNorm2d with its running statistics."""
  return norm(theirs, ours) + [
    Row(f'{theirs}.running_{leaf}', f'batch_stats/{ours}/{leaf}', SAME)
    for leaf in ('mean', 'var')
  ]


def projections(
  theirs: str, ours: str, parts: Iterable[str], num_heads: int, bias=True
) -> list[Row]:
  """One nn.Linear that makes the heads of `parts`, one after the other.

  `projections('attn.qkv', 'attn', ('query', 'key', 'value'), 6)`.
  """
  paths = lambda leaf: tuple(f'params/{ours}/{part}/{leaf}' for part in parts)
  rows = [Row(f'{theirs}.weight', paths('kernel'), heads_in(num_heads))]
  if bias:
    rows.append(Row(f'{theirs}.bias', paths('bias'), heads_bias(num_heads)))
  return rows


def from_heads(theirs: str, ours: str, num_heads: int) -> list[Row]:
  """The nn.Linear that takes all heads, `out` of our attention."""
  return [
    *tensor(f'{theirs}.weight', f'{ours}/kernel', heads_out(num_heads)),
    *tensor(f'{theirs}.bias', f'{ours}/bias'),
  ]


# What rows are for.


def load(state_dict: Mapping[str, np.ndarray], rows: Iterable[Row]) -> dict:
  """A published state dict -> nested variables, float32.

  Args:
    state_dict: name -> tensor, in their layout.
    rows: of the network.

  Returns:
    {'params': ..., 'batch_stats': ...}. What the state dict lacks is left
    out; what no row names stays under its own name, so that
    `weights.merge.merge` can report both.

  Raises:
    UserError: a tensor has not the form that its row says.
  """
  table = {row.theirs: row for row in rows}
  flat = {}
  for name, value in state_dict.items():
    row = table.get(name)
    if row is None:
      if not IGNORED.fullmatch(name):
        flat[name] = np.asarray(value)
      continue
    value = np.asarray(value, np.float32)
    paths = (row.ours,) if isinstance(row.ours, str) else row.ours
    try:
      parts = np.split(value, len(paths)) if len(paths) > 1 else [value]
      for path, part in zip(paths, parts, strict=True):
        flat[path] = np.ascontiguousarray(row.form.load(part))
    except (ValueError, IndexError) as error:
      raise UserError(
        f'{name} has the shape {value.shape} in the checkpoint, which does '
        f'not fit {", ".join(paths)}: it is of another model or size'
      ) from error
  return layout.unflatten(flat)


def save(variables: Mapping, rows: Iterable[Row]) -> dict[str, np.ndarray]:
  """Our variables -> the published state dict: `load` undone.

  Raises:
    ValueError: variables without a row, or rows without their variables.
  """
  flat, tensors = layout.flatten(variables), {}
  for row in rows:
    paths = (row.ours,) if isinstance(row.ours, str) else row.ours
    missing = [path for path in paths if path not in flat]
    if missing:
      raise ValueError(f'{row.theirs} needs {", ".join(missing)}')
    parts = [
      row.form.save(np.asarray(flat.pop(path), np.float32)) for path in paths
    ]
    joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
    tensors[row.theirs] = np.ascontiguousarray(joined)
  if flat:
    raise ValueError(f'no rows for {", ".join(sorted(flat))}')
  return tensors


def fold_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
  """A stem kernel [h, w, 3, out] for images of another number of channels.

  One channel gets the sum over the three, so that a grey image gives what it
  gave as three equal ones; more take the three in turn, scaled by 3 / channels
  so that the response keeps its size.
  """
  old = kernel.shape[2]
  if channels == old:
    return kernel
  if channels == 1:
    return kernel.sum(2, keepdims=True)
  turns = np.take(kernel, np.arange(channels) % old, axis=2)
  return turns * (old / channels)
