"""Compiled HLO as text, taken apart, and how often each part of it runs.

`cost_analysis` of a compiled program counts the body of a loop once, and for a
TPU its time is no use; the text has the loops, every collective with the
devices that take part, and the cycles that the compiler expects of every
operation.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

WIDTHS = {  # bytes
  'pred': 1,
  's4': 0.5,
  'u4': 0.5,
  's8': 1,
  'u8': 1,
  's16': 2,
  'u16': 2,
  'bf16': 2,
  'f16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
  's64': 8,
  'u64': 8,
  'f64': 8,
  'c64': 8,
  'c128': 16,
}
_ARRAY = re.compile(r'(\w+)\[([\d,]*)\](\{[^}]*\})?')
_COMMENT = re.compile(r'/\*.*?\*/')
# What passes a value on as it is.
SAME = ('bitcast', 'convert', 'copy', 'copy-done', 'copy-start', 'reshape')


class Array(NamedTuple):
  """One array of a shape.

  Attributes:
    dtype: as HLO calls it.
    sizes: of its dimensions.
    space: of the memory that it lies in: 0 is that of the device (HBM), others
      are on the chip or belong to the host.
  """

  dtype: str
  sizes: tuple[int, ...]
  space: int = 0

  @property
  def bytes(self) -> float:
    """Without the padding of tiled layouts; a token has none."""
    width = 1 if self.dtype.startswith('f8') else WIDTHS.get(self.dtype, 0)
    return math.prod(self.sizes) * width


class Instruction(NamedTuple):
  """One line of a computation.

  Attributes:
    name: unique in the computation.
    shape: text, of an array or a tuple.
    opcode: such as 'fusion'.
    operands: names of instructions of the same computation.
    inside: text between the parentheses: a constant's value, a parameter's
      number.
    attributes: text behind them.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  inside: str
  attributes: str

  @property
  def arrays(self) -> list[Array]:
    return arrays(self.shape)


class Computation(NamedTuple):
  """Instructions by name, in their order, and the name of the last."""

  instructions: dict[str, Instruction]
  root: str


class Program(NamedTuple):
  """Computations by name, and the name of the one that runs."""

  computations: dict[str, Computation]
  entry: str


def arrays(shape: str) -> list[Array]:
  """The arrays of a shape, those of a tuple in their order.

  >>> [x.bytes for x in arrays('(bf16[8,4]{1,0:T(8,128)S(1)}, u32[])')]
  [64, 4]
  """
  found = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    space = re.search(r'S\((\d+)\)', layout)
    found.append(
      Array(
        dtype,
        tuple(map(int, filter(None, sizes.split(',')))),
        int(space.group(1)) if space else 0,
      )
    )
  return found


def parse(text: str) -> Program:
  """The program of `compiled.as_text()`.

  Raises:
    ValueError: no entry computation in the text.
  """
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if current is None:
      if line.endswith('{') and '->' in line:
        name = line.removeprefix('ENTRY ').split(' ', 1)[0].lstrip('%')
        entry = name if line.startswith('ENTRY ') else entry
        current, root = {}, ''
    elif line.startswith('}'):
      computations[name] = Computation(current, root)
      current = None
    elif ' = ' in line:
      instruction = _instruction(line)
      current[instruction.name] = instruction
      if line.lstrip().startswith('ROOT '):
        root = instruction.name
  if not entry:
    raise ValueError('no ENTRY computation in the text')
  return Program(computations, entry)


def _instruction(line: str) -> Instruction:
  name, rest = _COMMENT.sub('', line).strip().split(' = ', 1)
  if rest.startswith('('):
    end = closing(rest, 0) + 1
  else:
    end = rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opening = rest.index('(')
  end = closing(rest, opening)
  inside = rest[opening + 1 : end]
  return Instruction(
    name.removeprefix('ROOT ').lstrip('%'),
    shape,
    rest[:opening],
    tuple(re.findall(r'%([\w.-]+)', inside)),
    inside,
    rest[end + 1 :],
  )


def closing(text: str, opening: int) -> int:
  """Where the parenthesis at `opening` is closed."""
  depth = 0
  for i in range(opening, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i
  raise ValueError(f'no closing parenthesis: {text[:80]}')


def called(instruction: Instruction, *names: str) -> list[str]:
  """Computations that an attribute names: calls, body, condition, to_apply."""
  found = []
  for name in names:
    text = re.search(
      rf'\b{name}=(\{{[^}}]*\}}|%[\w.-]+)', instruction.attributes
    )
    if text:
      found += re.findall(r'%([\w.-]+)', text.group(1))
  return found


def executions(program: Program) -> Iterator[tuple[str, int]]:
  """(computation, how often it runs in one execution of the program).

  Loops multiply what is in their body. Of a conditional every branch counts.
  What a fusion, a reduction or a sort is made of is not listed: those are one
  operation of the computation that they stand in.
  """
  pending = [(program.entry, 1)]
  while pending:
    name, times = pending.pop()
    yield name, times
    for instruction in program.computations[name].instructions.values():
      if instruction.opcode == 'while':
        rounds = trip_count(program, name, instruction)
        pending += [(c, times * rounds) for c in called(instruction, 'body')]
      elif instruction.opcode == 'conditional':
        pending += [
          (c, times)
          for c in called(
            instruction,
            'branch_computations',
            'true_computation',
            'false_computation',
          )
        ]
      elif instruction.opcode == 'call':
        pending += [(c, times) for c in called(instruction, 'to_apply')]


def trip_count(program: Program, computation: str, loop: Instruction) -> int:
  """How often the body of a `while` runs; 1 where the text does not tell.

  GPU and CPU compilers write it down. For a TPU it follows from the start, the
  bound and the stride of the counter that the condition compares.
  """
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
  if known:
    return int(known.group(1))
  scope = program.computations[computation].instructions
  condition = program.computations[called(loop, 'condition')[0]]
  body = program.computations[called(loop, 'body')[0]]
  test = through(condition.instructions, condition.root)
  direction = re.search(r'direction=(\w+)', test.attributes)
  if test.opcode != 'compare' or direction is None:
    return 1
  initial = lambda i: _number(scope, _element(scope, loop.operands[0], i))
  sides = [through(condition.instructions, name) for name in test.operands]
  numbers = [
    initial(_index(side))
    if side.opcode == 'get-tuple-element'
    else _number(condition.instructions, side.name)
    for side in sides
  ]
  for side, (start, bound) in zip(sides, [numbers, numbers[::-1]], strict=True):
    if side.opcode != 'get-tuple-element' or None in (start, bound):
      continue
    stride = _stride(body, _index(side))
    if stride:
      rounds = (bound - start) / stride
      inclusive = direction.group(1) in ('LE', 'GE')
      return max(0, math.floor(rounds) + 1 if inclusive else math.ceil(rounds))
  return 1


def through(scope: Mapping[str, Instruction], name: str) -> Instruction:
  """The instruction whose value it is, behind copies and conversions."""
  instruction = scope[name]
  while instruction.opcode in SAME and instruction.operands:
    instruction = scope[instruction.operands[0]]
  return instruction


def _index(instruction: Instruction) -> int:
  return int(re.search(r'index=(\d+)', instruction.attributes).group(1))


def _element(scope, name: str, index: int) -> str | None:
  """The operand of a tuple; None where it is no tuple."""
  instruction = scope[name]
  return instruction.operands[index] if instruction.opcode == 'tuple' else None


def _number(scope, name: str | None) -> int | None:
  """The value of an integer constant; None of anything else."""
  if name is None:
    return None
  instruction = through(scope, name)
  if instruction.opcode == 'constant':
    digits = re.fullmatch(r'-?\d+', instruction.inside.strip())
    return int(digits.group()) if digits else None
  return None


def _stride(body: Computation, index: int) -> int | None:
  """By how much a loop's body raises one of its elements."""
  name = _element(body.instructions, body.root, index)
  added = through(body.instructions, name) if name else None
  if added is None or added.opcode != 'add':
    return None
  for one, other in (added.operands, added.operands[::-1]):
    source = through(body.instructions, one)
    if source.opcode == 'get-tuple-element' and _index(source) == index:
      return _number(body.instructions, other)
  return None
