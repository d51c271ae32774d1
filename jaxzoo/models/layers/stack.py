"""A stack of equal blocks, scanned or unrolled, each with its drop path."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def stack(
  make: Callable[[str], nn.Module],
  x: Float[Array, '...'],
  rates: Sequence[float] | Sequence[Sequence[float]],
  train: bool = False,
  *inputs,
  scan: bool = False,
) -> Float[Array, '...']:
  """x = block(x, train, rate, *inputs) for each rate, from within a module.

  Unrolled, the parameters lie under `block_0`, `block_1`, ...; scanned, the
  block is compiled once and they are stacked under `blocks`, where there is
  more than one (`weights/layout.py` turns one into the other).

  Args:
    make: name -> block of the calling module.
    x: what goes through the blocks.
    rates: of the stochastic depth: a number a block, or several where a block
      has several branches of blocks. Known while tracing unless scanned.
    train: whether anything is dropped.
    *inputs: that all blocks get.
    scan: see above.

  Returns:
    What the last block gives.
  """
  if not scan or len(rates) == 1:
    for i, rate in enumerate(rates):
      x = make(f'block_{i}')(x, train, rate, *inputs)
    return x
  # Without rates nothing random is drawn.
  drops = train and np.any(rates)
  over = jnp.asarray(rates, jnp.float32) if drops else None
  none = rates[0] if not drops else None

  def body(block, x, rate):
    return block(x, train, rate if drops else none, *inputs), None

  x, _ = nn.scan(
    body,
    variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
    split_rngs={'params': True, 'dropout': True},
    length=len(rates),
  )(make('blocks'), x, over)
  return x
