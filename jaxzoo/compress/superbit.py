"""Super-bit quantisation: one tensor at 2, 4 and 8 bits, and which is learned.

ABS (arXiv 2101.04935; later called single-path bit sharing). With bits that
double, b_j = 2 b_(j-1), the value at b_j bits is the value at b_(j-1) plus an
offset: gates decide how many offsets are added, so one network holds all of
them. A gate is open where the residual of its lower level is above a learned
threshold; the gradient of the threshold is that of a sigmoid in its place.

Norms of residuals and filters are means of absolute values, so that thresholds
do not depend on sizes; no gradient runs through them. Both are chosen: the
paper only writes a norm, and no code has been published.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxzoo.errors import UserError

BITS = (2, 4, 8)


class Quantized(NamedTuple):
  """A tensor on its levels.

  Attributes:
    value: as `quantize` was given it, on the levels of the open gates.
    gates: 0 or 1, [len(bits) - 1]; a gate counts if all before it are open.
    width: bits in use, [].
  """

  value: Float[Array, '...']
  gates: Float[Array, ' g']
  width: Float[Array, '']


@jax.custom_vjp
def gate(
  size: Float[Array, '...'], threshold: Float[Array, '...']
) -> Float[Array, '...']:
  """1 where size > threshold, else 0.

  d/d threshold = -s (1 - s) with s = sigmoid(size - threshold); `size` gets no
  gradient.
  """
  return (size > threshold).astype(threshold.dtype)


def _gate_forward(size, threshold):
  return gate(size, threshold), (size, threshold)


def _gate_backward(saved, cotangent):
  size, threshold = saved
  s = jax.nn.sigmoid(size - threshold)
  grad = -cotangent * s * (1 - s)
  # The threshold may be one for several sizes.
  extra = grad.ndim - threshold.ndim
  return jnp.zeros_like(size), grad.sum(tuple(range(extra)))


gate.defvjp(_gate_forward, _gate_backward)


def straight_round(x: Float[Array, '...']) -> Float[Array, '...']:
  """Rounds, ties to even; the gradient passes as it is."""
  return x + jax.lax.stop_gradient(jnp.round(x) - x)


def straight_clip(x: Float[Array, '...'], low, high) -> Float[Array, '...']:
  """Clips; the gradient passes inside and on the bounds.

  (On a bound `jnp.clip` gives a half of it.)
  """
  inside = (x >= low) & (x <= high)
  return jnp.where(inside, x, jax.lax.stop_gradient(jnp.clip(x, low, high)))


def step_size(bits: int) -> float:
  """Distance of two levels of [0, 1]."""
  return 1 / (2**bits - 1)


def discretize(z: Float[Array, '...'], bits: int) -> Float[Array, '...']:
  """s round(z / s), s = 1 / (2^bits - 1)."""
  return straight_round(z * (2**bits - 1)) * step_size(bits)


def decompose(
  z: Float[Array, '...'], bits: Sequence[int] = BITS
) -> tuple[list, list]:
  """Levels of z and the offsets between them.

  Args:
    z: in [0, 1].
    bits: each twice the one before, so that s_(j-1) = (2^b_(j-1) + 1) s_j and
      sums of offsets lie on the finer levels.

  Returns:
    (sums, offsets): sums[j] is z at bits[j], sums[0] + offsets[1] + ... +
    offsets[j] with offsets[0] = sums[0].
  """
  check_bits(bits)
  sums = [discretize(z, bits[0])]
  offsets = [sums[0]]
  for b in bits[1:]:
    offsets.append(discretize(z - sums[-1], b))
    sums.append(sums[-1] + offsets[-1])
  return sums, offsets


def check_bits(bits: Sequence[int]) -> None:
  """Raises UserError unless every width is twice the one before."""
  doubled = all(b == 2 * a for a, b in zip(bits, bits[1:], strict=False))
  if not bits or bits[0] < 1 or not doubled:
    raise UserError(f'bits={tuple(bits)}: each must be twice the one before')


def normalized(
  x: Float[Array, '...'], scale: Float[Array, ''], signed
) -> Float[Array, '...']:
  """x in [0, 1]: clipped to [-scale, scale] if signed, else to [0, scale]."""
  low = jnp.where(signed, -1.0, 0.0).astype(x.dtype)
  return (straight_clip(x / scale, low, 1.0) - low) / (1 - low)


def denormalized(
  z: Float[Array, '...'], scale: Float[Array, ''], signed
) -> Float[Array, '...']:
  """The inverse of `normalized` on [0, 1]."""
  low = jnp.where(signed, -1.0, 0.0).astype(z.dtype)
  return scale * (z * (1 - low) + low)


def quantize(
  x: Float[Array, '...'],
  scale: Float[Array, ''],
  thresholds: Float[Array, ' g'],
  *,
  signed,
  bits: Sequence[int] = BITS,
  gates: Float[Array, ' g'] | None = None,
  fixed=True,
) -> Quantized:
  """The super-bit value of a tensor.

  With z = `normalized` x, its levels z_1, z_2, ... and offsets e_2, e_3, ...:
  z_1 + g_2 (e_2 + g_3 (e_3 + ...)), g_j = 1(mean |z - z_(j-1)| > threshold_j).

  Zero has no level of its own if signed: at 8 bits it becomes scale / 255.

  Args:
    x: weights, or activations.
    scale: v > 0, what is clipped to.
    thresholds: one a gate, [len(bits) - 1].
    signed: whether x may be negative; may be traced.
    bits: see `decompose`.
    gates: instead of those of the thresholds.
    fixed: whether `gates` hold if they are given; may be traced.
  """
  z = normalized(x, scale, signed)
  sums, offsets = decompose(z, bits)
  if gates is None or fixed is not True:
    sizes = [jnp.mean(jnp.abs(z - level)) for level in sums[:-1]]
    live = gate(jax.lax.stop_gradient(jnp.stack(sizes)), thresholds)
    gates = live if gates is None else jnp.where(fixed, gates, live)
  value = jnp.zeros_like(z)
  for g, offset in zip(gates[::-1], offsets[:0:-1], strict=True):
    value = g * (offset + value)
  value = offsets[0] + value
  return Quantized(
    denormalized(value, scale, signed), gates, width_of(gates, bits)
  )


def width_of(
  gates: Float[Array, ' g'], bits: Sequence[int] = BITS
) -> Float[Array, '']:
  """b_1 + g_2 (b_2 - b_1 + g_3 (b_3 - b_2 + ...))."""
  width = jnp.zeros_like(gates[0])
  for j in range(len(bits) - 1, 0, -1):
    width = gates[j - 1] * (bits[j] - bits[j - 1] + width)
  return bits[0] + width


def standardized(w: Float[Array, '...']) -> Float[Array, '...']:
  """(w - mean) / std over the whole kernel, before it is quantised."""
  return (w - w.mean()) / jnp.sqrt(w.var() + 1e-12)


def filter_gates(
  w: Float[Array, '... c'], threshold: Float[Array, ''], group: int
) -> Float[Array, ' n']:
  """1(mean |w| > threshold) for every `group` consecutive filters.

  Raises:
    UserError: `group` does not divide the number of filters.
  """
  filters = w.shape[-1]
  if filters % group:
    raise UserError(
      f'{filters} filters do not divide into groups of {group}: set '
      'quant.filters_per_group to a divisor'
    )
  sizes = jnp.abs(w.reshape(-1, filters // group, group)).mean((0, 2))
  return gate(jax.lax.stop_gradient(sizes), threshold)


def prune_filters(
  w: Float[Array, '... c'], gates: Float[Array, ' n']
) -> Float[Array, '... c']:
  """The filters of closed gates as 0.

  Of quantised weights: a normalised 0 would come back as -scale.
  """
  return w * jnp.repeat(gates, w.shape[-1] // gates.size)


def bit_operations(
  macs, width_weight, width_activation, share_out=1, share_in=1
):
  """macs p_out p_in b_w b_x: what a layer costs with so many bits.

  At full precision 32 x 32 a multiply-add.

  Args:
    macs: of the whole layer, for one example.
    width_weight: bits of its weights.
    width_activation: bits of what it takes.
    share_out: of its filters that are left.
    share_in: of the channels that it takes.
  """
  return macs * share_out * share_in * width_weight * width_activation
