"""What the devices of a mesh send each other in one step, by kind and axis."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxzoo.plan import hlo

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
SLICES = 'slices'  # the axis between slices, which the program of one lacks

Groups = tuple[tuple[int, ...], ...]


class Collective(NamedTuple):
  """One collective operation of a program.

  Attributes:
    kind: one of `KINDS`.
    axes: of the mesh, along which its devices differ.
    groups: positions in the mesh of the devices that take part together; of a
      permutation the pairs (from, to). () between slices.
    bytes: of the whole array on one device: what a gather makes, what anything
      else begins with.
    times: how often it runs in one step.
    hidden: whether the device computes something else in the meantime.
  """

  kind: str
  axes: tuple[str, ...]
  groups: Groups
  bytes: float
  times: int
  hidden: bool

  @property
  def size(self) -> int:
    """Devices that take part together."""
    return len(self.groups[0]) if self.groups else 1


def find(program: hlo.Program, mesh: Mapping[str, int]) -> list[Collective]:
  """The collectives of a compiled program, in the order of their loops.

  A collective that the TPU compiler lets go on beside several fusions appears
  in each of them, as links of one chain, and counts once.

  Args:
    program: of one device.
    mesh: its axes and their sizes; of several slices, those of one slice.
  """
  found, seen = [], set()
  for name, times in hlo.executions(program):
    for instruction, fusion in _with_fused(program, name):
      kind = _kind(instruction)
      if not kind:
        continue
      chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
      if chain and fusion:
        if (name, chain.group(1)) in seen:
          continue
        seen.add((name, chain.group(1)))
      found.append(_collective(instruction, fusion, kind, times, mesh))
  return [each for each in found if each.size > 1 or SLICES in each.axes]


def _with_fused(program, name: str) -> Iterator[tuple[hlo.Instruction, str]]:
  """Instructions of a computation, and those fused, with the fusion's names."""
  for instruction in program.computations[name].instructions.values():
    yield instruction, ''
    if instruction.opcode in ('fusion', 'async-start'):
      for inner in hlo.called(instruction, 'calls'):
        for each in program.computations[inner].instructions.values():
          yield each, f'{instruction.name} {inner}'


def _kind(instruction) -> str:
  if instruction.opcode in ('send', 'recv'):  # between slices, by the hosts
    transfer = re.search(
      r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes
    )
    name = transfer.group(1).lower().replace('_', '-') if transfer else ''
    # The whole array is what a gather receives, and what others send.
    if instruction.opcode != ('recv' if name == 'all-gather' else 'send'):
      return ''
    return name if name in KINDS else 'collective-permute' if name else ''
  name = instruction.opcode.removesuffix('-start')
  return name if name in KINDS else ''


def _collective(instruction, fusion, kind, times, mesh) -> Collective:
  arrays = instruction.arrays
  if instruction.opcode in ('send', 'recv'):
    return Collective(kind, (SLICES,), (), arrays[0].bytes, times, True)
  groups = device_groups(instruction.attributes, math.prod(mesh.values()))
  if ' all-reduce-scatter' in fusion:
    kind = 'reduce-scatter'
  size = sum(array.bytes for array in arrays)
  if instruction.opcode.endswith('-start') and kind != 'all-reduce':
    # (operands, results, ...): the whole is the larger of the two.
    size = _whole(kind, instruction, len(groups[0]))
  elif kind == 'reduce-scatter' and instruction.opcode == 'reduce-scatter':
    size *= len(groups[0])
  # One that had been started early and is not any more has become a plain one,
  # and keeps of it an `async_collective_name`.
  hidden = 'async' in fusion or (
    instruction.opcode.endswith('-start')
    and '"is_sync":true' not in instruction.attributes
  )
  axes = varying_axes(groups, mesh)
  return Collective(kind, axes, groups, size, times, hidden)


def _whole(kind: str, instruction, ways: int) -> float:
  """Bytes of the whole array, of an operation whose shape has both sides."""
  shape = instruction.shape[1:-1]
  if shape.startswith('('):
    size = sum(x.bytes for x in hlo.arrays(shape[: hlo.closing(shape, 0)]))
  else:
    size = hlo.arrays(shape)[0].bytes
  return size * ways if kind == 'all-gather' else size


# Who takes part.


def device_groups(attributes: str, devices: int) -> Groups:
  """The groups of devices of a collective, in any of HLO's three notations.

  >>> device_groups('replica_groups=[2,2]<=[2,2]T(1,0), x', 4)
  ((0, 2), (1, 3))
  >>> device_groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", 4)
  ((0, 1), (2, 3))
  """
  pairs = re.search(r'source_target_pairs=\{((?:\{[^}]*\},?)*)\}', attributes)
  if pairs:
    return _lists(pairs.group(1))
  named = re.search(
    r'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*\)?)\))?'
    r' \{([^}]*)\}',
    attributes,
  )
  if named:
    return _mesh_groups(*named.groups())
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)', attributes
  )
  if iota:
    return _rows(_iota(iota.group(2)).reshape(_integers(iota.group(1))))
  lists = re.search(r'replica_groups=\{((?:\{[^}]*\},?)*)\}', attributes)
  if lists and lists.group(1):
    return _lists(lists.group(1))
  return (tuple(range(devices)),)


def _mesh_groups(axes: str, ids: str | None, chosen: str) -> Groups:
  """Groups along the chosen axes of a mesh that the text describes.

  A chosen axis may be a part of one: 'a':(2)4 are the 4 in the middle of an
  axis that is cut into 2, 4 and what is left.
  """
  sizes = {
    name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)
  }
  names, shape, along = list(sizes), [], []
  parts = re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", chosen)
  for name in names:
    cuts = {1, sizes[name]}
    wanted = []
    for other, before, size in parts:
      if other == name:
        low = int(before or 1)
        high = low * int(size or sizes[name])
        cuts |= {low, high}
        wanted.append((low, high))
    edges = sorted(cuts)
    for low, high in zip(edges, edges[1:], strict=False):
      if any(a <= low and high <= b for a, b in wanted):
        along.append(len(shape))
      shape.append(high // low)
  total = math.prod(sizes.values())
  order = _iota(ids) if ids else np.arange(total)
  others = [i for i in range(len(shape)) if i not in along]
  grid = order.reshape(shape).transpose(others + along)
  return _rows(grid.reshape(-1, math.prod(shape[i] for i in along)))


def _iota(text: str) -> np.ndarray:
  """Numbers from 0 in the order that '[4,2]T(1,0)' says, flat."""
  shape, _, order = text.partition('T')
  shape = _integers(shape)
  numbers = np.arange(math.prod(shape)).reshape(shape)
  return (numbers.transpose(_integers(order)) if order else numbers).ravel()


def _integers(text: str) -> list[int]:
  return [int(x) for x in re.findall(r'\d+', text)]


def _lists(text: str) -> Groups:
  return tuple(
    tuple(_integers(group)) for group in re.findall(r'\{([^}]*)\}', text)
  )


def _rows(array: np.ndarray) -> Groups:
  return tuple(tuple(map(int, row)) for row in array)


def varying_axes(
  groups: Sequence[Sequence[int]], mesh: Mapping[str, int]
) -> tuple[str, ...]:
  """Axes of the mesh along which devices of one group differ.

  >>> varying_axes([(0, 1), (2, 3)], {'data': 2, 'fsdp': 2})
  ('fsdp',)
  """
  sizes = tuple(mesh.values())
  differ = np.zeros(len(sizes), bool)
  for group in groups:
    places = np.stack(np.unravel_index(np.asarray(group), sizes), -1)
    differ |= (places != places[0]).any(0)
  return tuple(axis for axis, found in zip(mesh, differ, strict=True) if found)


def totals(collectives: Sequence[Collective]) -> list[dict]:
  """Sums by kind and axes: bytes a device and step, and how many run."""
  rows = {}
  for each in collectives:
    row = rows.setdefault(
      (each.kind, each.axes),
      {'kind': each.kind, 'axes': list(each.axes), 'count': 0, 'bytes': 0.0},
    )
    row['count'] += each.times
    row['bytes'] += each.times * each.bytes
  return [rows[key] for key in sorted(rows)]
