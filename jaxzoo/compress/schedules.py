"""Sparsity schedules: when masks change, and how dense they then are.

Everything here is a function of Python integers: the densities of all updates
of a run are a table that is known before the first step, so that no count is
ever the result of a floating-point operation on a device.

Steps are counted by the calls of the optimizer, from 1; step 0 is the
initialisation.
"""

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np


def exact(value) -> Fraction:
  """The decimal that was written: 0.9 is 9/10, not the float next to it."""
  return value if isinstance(value, Fraction) else Fraction(str(value))


class Schedule(NamedTuple):
  """Updates at `begin`, `begin + every`, ..., at `end`, and on to `last`.

  Attributes:
    begin: first step at which masks change.
    end: from here on the density is the final one; an update falls on it even
      where `every` does not.
    every: steps between two updates.
    curve: (final density, progress in [0, 1]) -> density.
    last: no update after it; methods that regrow go on changing masks of the
      final density until then.
  """

  begin: int
  end: int
  every: int
  curve: Callable[[Fraction, Fraction], Fraction | float]
  last: int


def _make(curve, begin, end, every, last) -> Schedule:
  last = end if last is None else last
  if not 0 <= begin <= end <= last or every < 1:
    raise ValueError(
      f'a schedule needs 0 <= begin <= end <= last and every >= 1, not '
      f'begin={begin}, end={end}, last={last}, every={every}'
    )
  return Schedule(int(begin), int(end), int(every), curve, int(last))


def constant(begin: int = 0, every: int = 1, last: int | None = None):
  """The final density from `begin` on, at once."""
  return _make(lambda d, p: d, begin, begin, every, last)


def cubic(begin: int, end: int, every: int = 1, last: int | None = None):
  """D + (1 - D) (1 - p)^3: gradual pruning (arXiv 1710.01878)."""
  return _make(lambda d, p: d + (1 - d) * (1 - p) ** 3, begin, end, every, last)


def exponential(begin: int, end: int, every: int = 1, last: int | None = None):
  """D^p (RPG, arXiv 2311.17493): each update removes the same share."""
  return _make(
    lambda d, p: float(d) ** float(p) if d else 1 - p, begin, end, every, last
  )


def cosine(begin: int, end: int, every: int = 1, last: int | None = None):
  """D + (1 - D) (1 + cos(pi p)) / 2."""
  return _make(
    lambda d, p: d + (1 - d) * (1 + math.cos(math.pi * p)) / 2,
    begin,
    end,
    every,
    last,
  )


CURVES = {
  'cubic': cubic,
  'exponential': exponential,
  'cosine': cosine,
}


def update_steps(schedule: Schedule) -> list[int]:
  """Every step at which masks change, ascending."""
  regular = range(schedule.begin, schedule.last + 1, schedule.every)
  return sorted({*regular, schedule.end})


def is_update(schedule: Schedule, step):
  """bool []: whether masks change at `step`; a few integer operations."""
  since = step - schedule.begin
  regular = (since >= 0) & (since % schedule.every == 0)
  return (regular & (step <= schedule.last)) | (step == schedule.end)


def update_index(schedule: Schedule, step):
  """int32 []: number of the newest update at or before `step`; at least 0."""
  steps = np.asarray(update_steps(schedule), np.int32)
  return jnp.maximum(
    jnp.sum(jnp.asarray(steps) <= step, dtype=jnp.int32) - 1, 0
  )


def density_at(schedule: Schedule, final: Fraction, step: int) -> Fraction:
  """Of the update at `step`; exactly `final` from `end` on, 1 before begin."""
  if step < schedule.begin:
    return Fraction(1)
  if step >= schedule.end:
    return final
  span = schedule.end - schedule.begin
  value = schedule.curve(final, Fraction(step - schedule.begin, span))
  return min(max(Fraction(value), Fraction(0)), Fraction(1))


@functools.lru_cache(maxsize=64)
def count_table(
  schedule: Schedule, densities: tuple[Fraction, ...], sizes: tuple[int, ...]
) -> np.ndarray:
  """int64 [updates, leaves]: round(density * size), in exact arithmetic."""
  return np.asarray(
    [
      [
        round(density_at(schedule, final, step) * size)
        for final, size in zip(densities, sizes, strict=True)
      ]
      for step in update_steps(schedule)
    ],
    np.int64,
  )


def cosine_decay(amplitude: float, step: int, last: int) -> float:
  """amplitude (1 + cos(pi step / last)) / 2: the share that is regrown."""
  return amplitude / 2 * (1 + math.cos(math.pi * min(1.0, step / last)))
