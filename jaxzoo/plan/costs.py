"""FLOPs, bytes and cycles of a compiled program, loops multiplied."""

import json
import math
import re
from typing import NamedTuple

import numpy as np

from jaxzoo.plan import hlo
from jaxzoo.train.utilization import Chip

# Operations that move nothing by themselves.
FREE = (
  'after-all',
  'bitcast',
  'call',
  'conditional',
  'constant',
  'get-tuple-element',
  'opt-barrier',
  'parameter',
  'partition-id',
  'replica-id',
  'tuple',
  'while',
)
# And custom calls: room for what a loop is going to fill, slices side by side.
FREE_CALLS = re.compile(r'custom_call_target="(AllocateBuffer|ConcatBitcast)"')
SLICES = ('dynamic-slice', 'gather', 'slice')


class Costs(NamedTuple):
  """What one device does in one step.

  Attributes:
    flops: of matrix products and convolutions, those computed again included.
    bytes: between the chip and its memory (HBM), without padding.
    cycles: that the TPU compiler expects; 0 from others.
    seconds: at the chip's roofline: of every operation the longer of its FLOPs
      and its bytes.
    unknown: custom calls whose FLOPs are not counted, by target.
    kernels: seconds of the project's own kernels at the roofline, by the FLOPs
      that they say of themselves. Cycles do not have them.
  """

  flops: float
  bytes: float
  cycles: float
  seconds: float
  unknown: dict[str, int]
  kernels: float = 0.0


def count(program: hlo.Program, chip: Chip) -> Costs:
  """The costs of a program that was compiled for one device of a mesh."""
  flops = moved = cycles = seconds = kernels = 0.0
  unknown = {}
  for name, times in hlo.executions(program):
    scope = program.computations[name].instructions
    for instruction in scope.values():
      work = instruction_flops(program, scope, instruction)
      size = instruction_bytes(program, scope, instruction)
      flops += times * work
      moved += times * size
      least = max(work / chip.flops, size / chip.bandwidth)
      seconds += times * least
      cycles += times * estimated_cycles(instruction)
      target = _kernel(instruction)
      if target and work:
        kernels += times * least
      elif target:
        unknown[target] = unknown.get(target, 0) + times
  return Costs(flops, moved, cycles, seconds, unknown, kernels)


def estimated_cycles(instruction: hlo.Instruction) -> int:
  """Of one execution, as the TPU compiler notes it down; 0 where it does not.

  Its own kernels' and those of asynchronous transfers are not there.
  """
  found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
  return int(found.group(1)) if found else 0


def _kernel(instruction: hlo.Instruction) -> str:
  """The target of a custom call that computes something of its own."""
  if instruction.opcode != 'custom-call':
    return ''
  target = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
  name = target.group(1) if target else ''
  own = name == 'tpu_custom_call' or 'fmha' in name or 'triton' in name
  return name if own else ''


# FLOPs.


def instruction_flops(program, scope, instruction) -> float:
  """FLOPs of an instruction with what is fused into it."""
  if instruction.opcode == 'dot':
    return _dot_flops(scope, instruction)
  if instruction.opcode == 'convolution' or (
    instruction.opcode == 'custom-call'
    and '"__cudnn$conv' in instruction.attributes
  ):
    return _convolution_flops(scope, instruction)
  if instruction.opcode == 'custom-call':
    told = re.search(
      r'"cost_estimate":\{"flops":"(\d+)"', instruction.attributes
    )
    return float(told.group(1)) if told else _product_flops(scope, instruction)
  if instruction.opcode not in ('fusion', 'async-start'):
    return 0
  return sum(
    instruction_flops(program, inner, each)
    for name in hlo.called(instruction, 'calls')
    for inner in [program.computations[name].instructions]
    for each in inner.values()
  )


def _dot_flops(scope, instruction) -> float:
  """2 x elements of the result x elements of a contracted row."""
  left = scope[instruction.operands[0]].arrays[0]
  contracted = _numbers(
    re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
  )
  row = math.prod(left.sizes[i] for i in contracted)
  return 2 * math.prod(instruction.arrays[0].sizes) * row


def _product_flops(scope, instruction) -> float:
  """Of a matrix product that cuBLAS computes, as `_dot_flops`; else 0."""
  found = re.search(
    r'"dot_dimension_numbers":(\{[^}]*\})', instruction.attributes
  )
  if not found:
    return 0
  left = scope[instruction.operands[0]].arrays[0]
  numbers = json.loads(found.group(1))['lhs_contracting_dimensions']
  row = math.prod(left.sizes[int(i)] for i in numbers)
  return 2 * math.prod(instruction.arrays[0].sizes) * row


def _convolution_flops(scope, instruction) -> float:
  """2 for every product of an input element, not of padding, and a weight.

  TPUs compute matrix products as convolutions, with batches as dilated windows
  that touch one element each: only pairs inside the input count. cuDNN's
  gradients are written with the labels and the window of the forward pass,
  whose data or kernel they then make of the other two.
  """
  attributes = instruction.attributes
  labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', attributes).groups()
  data, kernel = (
    scope[name].arrays[0].sizes for name in instruction.operands[:2]
  )
  result = instruction.arrays[0].sizes
  if 'convBackwardInput' in attributes:
    data, result = result, data
  elif 'convBackwardFilter' in attributes:
    kernel, result = result, kernel
  window = re.search(r'window=\{([^}]*)\}', attributes)
  fields = dict(
    item.split('=', 1) for item in (window.group(1).split() if window else [])
  )
  pairs = 1
  for axis in sorted(c for c in labels[2] if c.isdigit()):
    pairs *= _pairs(
      data[labels[0].index(axis)],
      result[labels[2].index(axis)],
      int(axis),
      fields,
    )
  features = kernel[labels[1].index('i')] * result[labels[2].index('f')]
  # Of two operands that are both batches each row meets its own group alone.
  groups = re.search(r'batch_group_count=(\d+)', attributes)
  batch = data[labels[0].index('b')] / int(groups.group(1) if groups else 1)
  return 2 * batch * features * pairs


def _pairs(size: int, outputs: int, axis: int, window: dict[str, str]) -> int:
  """(position of the window, place in it) that meet an element of the input."""

  def field(name, default):
    values = window.get(name)
    return values.split('x')[axis] if values else default

  stride, dilation, spread = (
    int(field(name, 1)) for name in ('stride', 'rhs_dilate', 'lhs_dilate')
  )
  low = int(field('pad', '0_0').split('_')[0])
  place = (
    np.arange(outputs)[:, None] * stride
    + np.arange(int(field('size', 1))) * dilation
    - low
  )
  inside = (place >= 0) & (place <= (size - 1) * spread)
  return int((inside & (place % spread == 0)).sum())


def _numbers(match) -> list[int]:
  return [int(x) for x in match.group(1).split(',') if x] if match else []


# Bytes.


def instruction_bytes(program, scope, instruction) -> float:
  """Bytes that an instruction reads from the device's memory and writes to it.

  A slice reads what it gives, and an update in place writes what is new, also
  where they are fused into something else.
  """
  code = instruction.opcode
  if code in FREE or code.endswith(('-done', '-update')):
    return 0
  if code == 'custom-call' and FREE_CALLS.search(instruction.attributes):
    return 0
  operands = [scope[name] for name in instruction.operands]
  if code in ('copy-start', 'slice-start'):
    # (what is made, what it is made of, ...), or the other way round.
    least = min(x.bytes for x in instruction.arrays[:2])
    return sum(least for x in instruction.arrays[:2] if not x.space)
  if code == 'fusion':
    fused = program.computations[hlo.called(instruction, 'calls')[0]]
    return _fused_bytes(fused, instruction, operands)
  if code in SLICES:
    sides = (not _space(instruction)) + (not _space(operands[0]))
    return sides * _plain(instruction.arrays)
  if code in ('dynamic-update-slice', 'scatter'):
    new = operands[1 if code == 'dynamic-update-slice' else -1]
    sides = (not _space(instruction)) + (not _space(new))
    return sides * _plain(new.arrays)
  # Their operands lie in their shape; a started all-reduce is without.
  if code == 'send' or (code.endswith('-start') and code != 'all-reduce-start'):
    return _outside(instruction.arrays)
  made = instruction.arrays
  if code == 'custom-call' and '"__cu' in instruction.attributes:
    made = made[:1]  # the other is cuBLAS's or cuDNN's work space
  read = sum(_outside(operand.arrays) for operand in operands)
  return read + _outside(made)


def _fused_bytes(fused: hlo.Computation, instruction, operands) -> float:
  """Of a fusion, by how its parameters are used and its results are made."""
  inner = fused.instructions
  users = {}
  for each in inner.values():
    if each.opcode in hlo.SAME:
      continue  # its users are those of what it passes on
    for place, name in enumerate(each.operands):
      source = hlo.through(inner, name).name
      users.setdefault(source, []).append((each, place))
  read = 0
  for each in inner.values():
    if each.opcode != 'parameter' or int(each.inside) >= len(operands):
      continue
    operand = operands[int(each.inside)]
    used = users.get(each.name, [])
    if used and all(u.opcode in SLICES and not p for u, p in used):
      part = sum(_plain(user.arrays) for user, _ in used)
      read += min(part, _plain(operand.arrays)) * (not _space(operand))
    elif used and all(
      u.opcode == 'dynamic-update-slice' and not p for u, p in used
    ):
      continue  # only overwritten
    else:
      read += _outside(operand.arrays)
  root = hlo.through(inner, fused.root)
  made = root.operands if root.opcode == 'tuple' else (root.name,)
  written = 0
  for name, array in zip(made, instruction.arrays, strict=False):
    part = hlo.through(inner, name)
    if part.opcode == 'dynamic-update-slice':
      update = _plain(inner[part.operands[1]].arrays)
      written += min(update, array.bytes) * (not array.space)
    else:
      written += _outside([array])
  return read + written


def _plain(arrays) -> float:
  return sum(array.bytes for array in arrays)


def _outside(arrays) -> float:
  """Bytes of those that lie in the device's memory."""
  return sum(array.bytes for array in arrays if not array.space)


def _space(instruction) -> int:
  return instruction.arrays[0].space if instruction.arrays else 0
