"""How a sparsity is divided over the layers: uniform, ERK, by path, global."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from jaxzoo.compress.schedules import exact

# (names, shapes, density of all) -> density of each leaf; or 'uniform', 'erk',
# or regexes on the path with the sparsity of what they match. ('global' is no
# division beforehand: methods that offer it rank all layers together.)
Allocation = str | Mapping[str, float] | Callable

Shapes = Sequence[tuple[int, ...]]


def uniform(
  names: Sequence[str], shapes: Shapes, density: Fraction
) -> list[Fraction]:
  """The same density everywhere."""
  del shapes
  return [density] * len(names)


def erk(
  names: Sequence[str], shapes: Shapes, density: Fraction
) -> list[Fraction]:
  """Erdos-Renyi-Kernel: density_l ~ sum of the axes / product of the axes.

  Layers that would be denser than 1 are dense, and the rest share what is left
  (Evci et al., arXiv 1911.11134, section 3). Counts are rounded so that their
  sum is exactly round(density * size of all).
  """
  del names
  sizes = [math.prod(shape) for shape in shapes]
  raw = [
    Fraction(sum(shape), size)
    for shape, size in zip(shapes, sizes, strict=True)
  ]
  budget = round(density * sum(sizes))
  dense: set[int] = set()
  while True:
    sparse = [i for i in range(len(sizes)) if i not in dense]
    if not sparse:
      break
    left = budget - sum(sizes[i] for i in dense)
    factor = Fraction(left) / sum(raw[i] * sizes[i] for i in sparse)
    over = {i for i in sparse if factor * raw[i] > 1}
    if not over:
      break
    # The densest first: one that is over now may not be after it.
    dense.add(max(over, key=lambda i: raw[i]))
  wanted = [
    Fraction(sizes[i]) if i in dense else factor * raw[i] * sizes[i]
    for i in range(len(sizes))
  ]
  counts = _round_to(wanted, budget)
  return [Fraction(k, size) for k, size in zip(counts, sizes, strict=True)]


def _round_to(wanted: Sequence[Fraction], total: int) -> list[int]:
  """Integers near `wanted` that sum to `total`: largest remainders are up."""
  counts = [math.floor(x) for x in wanted]
  order = sorted(range(len(wanted)), key=lambda i: (counts[i] - wanted[i], i))
  for i in order[: total - sum(counts)]:
    counts[i] += 1
  return counts


def by_path(sparsities: Mapping[str, float]) -> Callable:
  """Densities 1 - sparsity by the last regex that is found in the path.

  Layers that none is found in get the density of all.
  """

  def allocate(names, shapes, density):
    del shapes
    densities = []
    for name in names:
      found = [
        s for pattern, s in sparsities.items() if re.search(pattern, name)
      ]
      densities.append(1 - exact(found[-1]) if found else density)
    return densities

  return allocate


def leaf_densities(
  allocation: Allocation, names: Sequence[str], shapes: Shapes, sparsity
) -> list[Fraction]:
  """The final density of every eligible leaf, exactly.

  Args:
    allocation: see the module.
    names: paths of the leaves.
    shapes: theirs.
    sparsity: of all, in [0, 1], taken as the decimal that is written.

  Raises:
    ValueError: an unknown allocation or a sparsity outside [0, 1].
  """
  density = 1 - exact(sparsity)
  if not 0 <= density <= 1:
    raise ValueError(f'sparsity {sparsity}: it must be in [0, 1]')
  if isinstance(allocation, Mapping):
    allocation = by_path(allocation)
  elif isinstance(allocation, str):
    known = {'uniform': uniform, 'erk': erk}
    if allocation not in known:
      raise ValueError(
        f'allocation {allocation!r}: this method knows {", ".join(known)}'
      )
    allocation = known[allocation]
  return [exact(x) for x in allocation(names, shapes, density)]
