"""Contrastive losses of large batches, without the whole matrix anywhere.

Values and gradients are those of `contrastive.py`. Two ways to the same sums:

  chunked   one program over the global batch: the texts come in chunks, whose
            similarities are made again in the backward pass. Memory: rows of a
            device times the chunk; XLA gathers the texts once.
  ring      inside `shard_map`: texts go round from device to device, with what
            is known of their columns, and come home. Memory: rows of a device
            squared, whatever the number of devices; nothing is gathered.

Either way the pairs on the diagonal are computed on their own, from the
vectors: image i and text i lie on one device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxzoo.models.losses.contrastive import l2_normalize


class Sums(NamedTuple):
  """What is known of rows (or columns) of a matrix from a part of it.

  Attributes:
    peak: largest logit so far.
    mass: sum of exp(logit - peak).
    moment: sum of exp(logit - peak) (logit - target).
  """

  peak: Float[Array, ' b']
  mass: Float[Array, ' b']
  moment: Float[Array, ' b']


def nothing(size: int) -> Sums:
  """Of no logits at all."""
  return Sums(jnp.full(size, -jnp.inf), jnp.zeros(size), jnp.zeros(size))


def sums_of(
  logits: Float[Array, 'b c'], targets: Float[Array, 'b c'], axis: int
) -> Sums:
  """Over an axis of a part of the matrix."""
  peak = jax.lax.stop_gradient(logits.max(axis))
  weight = jnp.exp(logits - jnp.expand_dims(peak, axis))
  return Sums(peak, weight.sum(axis), (weight * (logits - targets)).sum(axis))


def join(a: Sums, b: Sums) -> Sums:
  """Of both parts together."""
  peak = jnp.maximum(a.peak, b.peak)
  # Of nothing joined with nothing: -inf - -inf is no number.
  scale = lambda x: jnp.where(x == peak, 1.0, jnp.exp(x - peak))
  left, right = scale(a.peak), scale(b.peak)
  return Sums(
    peak,
    left * a.mass + right * b.mass,
    left * a.moment + right * b.moment,
  )


def log_sum(sums: Sums) -> Float[Array, ' b']:
  """log sum_j exp(logit_j)."""
  return sums.peak + jnp.log(sums.mass)


def divergence(sums: Sums) -> Float[Array, ' b']:
  """sum_j P_j (log P_j - target_j) of the softmax P of the logits."""
  return sums.moment / sums.mass - log_sum(sums)


class Side(NamedTuple):
  """One modality: unit vectors, and labels where the loss needs them.

  Attributes:
    vectors: unit vectors.
    pid: identities; None for losses of pairs.
    total: how many of the batch have each identity.
  """

  vectors: Float[Array, 'b d']
  pid: Int[Array, ' b'] | None = None
  total: Float[Array, ' b'] | None = None


def make_part(
  scale, epsilon: float | None
) -> Callable[[Side, Side], tuple[Any, Any]]:
  """(images, some texts) -> (sums of their rows, sums of their columns).

  Args:
    scale: inverse temperature.
    epsilon: of SDM's targets; None: InfoNCE, which has none.
  """

  def part(image: Side, text: Side) -> tuple[Sums, Sums]:
    logits = scale * jnp.matmul(
      image.vectors, text.vectors.T, precision=jax.lax.Precision.HIGHEST
    )
    if epsilon is None:
      rows = columns = jnp.zeros_like(logits)
    else:
      same = (image.pid[:, None] == text.pid[None, :]).astype(jnp.float32)
      rows = jnp.log(same / text.total[None, :] + epsilon)
      columns = jnp.log(same / image.total[:, None] + epsilon)
    return sums_of(logits, rows, 1), sums_of(logits, columns, 0)

  return jax.checkpoint(part)


def _chunks(image: Side, text: Side, part, chunk: int):
  """(sums of all rows, sums of all columns), `chunk` texts at a time."""
  size = text.vectors.shape[0]
  if size % chunk:
    raise ValueError(f'{size} texts do not divide into chunks of {chunk}')
  cut = lambda x: x.reshape(size // chunk, chunk, *x.shape[1:])

  def one(rows, piece):
    own, columns = part(image, piece)
    return join(rows, own), columns

  rows, columns = jax.lax.scan(one, nothing(size), jax.tree.map(cut, text))
  return rows, jax.tree.map(lambda x: x.reshape(size), columns)


def chunked_info_nce(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  scale,
  *,
  chunk: int,
) -> Float[Array, '']:
  """`contrastive.info_nce` of the cosines of both, `chunk` texts at a time.

  Raises:
    ValueError: the batch does not divide into chunks.
  """
  a, b = Side(l2_normalize(image)), Side(l2_normalize(text))
  rows, columns = _chunks(a, b, make_part(scale, None), chunk)
  own = scale * jnp.sum(a.vectors * b.vectors, axis=1)
  return 0.5 * jnp.mean(log_sum(rows) + log_sum(columns) - 2 * own)


def chunked_sdm(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  pid: Int[Array, ' b'],
  scale,
  *,
  chunk: int,
  epsilon: float = 1e-8,
) -> Float[Array, '']:
  """`contrastive.sdm` with identities as labels, `chunk` texts at a time."""
  total = _counts(pid, pid)
  a = Side(l2_normalize(image), pid, total)
  b = Side(l2_normalize(text), pid, total)
  rows, columns = _chunks(a, b, make_part(scale, epsilon), chunk)
  return divergence(rows).mean() + divergence(columns).mean()


def chunked_sigmoid(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  scale,
  bias,
  *,
  chunk: int,
) -> Float[Array, '']:
  """SigLIP's loss (arXiv 2303.15343), `chunk` texts at a time.

  1/b sum_ij softplus(-y_ij (s S_ij + bias)), y = 1 for pairs and -1 otherwise:
  all as negatives, and a correction of the diagonal, softplus(-z) =
  softplus(z) - z.
  """
  image, text = l2_normalize(image), l2_normalize(text)
  size = text.shape[0]
  if size % chunk:
    raise ValueError(f'{size} texts do not divide into chunks of {chunk}')

  @jax.checkpoint
  def negatives(piece):
    logits = scale * jnp.matmul(
      image, piece.T, precision=jax.lax.Precision.HIGHEST
    )
    return jax.nn.softplus(logits + bias).sum()

  pieces = text.reshape(size // chunk, chunk, -1)
  total, _ = jax.lax.scan(
    lambda so_far, piece: (so_far + negatives(piece), None),
    jnp.float32(0),
    pieces,
  )
  own = scale * jnp.sum(image * text, axis=1) + bias
  return (total - own.sum()) / size


def _counts(pid, others) -> Float[Array, ' b']:
  """How many of `others` have each identity; by sorting, not by pairs."""
  ordered = jnp.sort(others)
  right = jnp.searchsorted(ordered, pid, side='right')
  left = jnp.searchsorted(ordered, pid, side='left')
  return (right - left).astype(jnp.float32)


# Rings.


def _round(image: Side, text: Side, part, axis: str):
  """(sums of this device's rows, sums of its texts' columns)."""
  devices = jax.lax.axis_size(axis)
  onwards = [(i, (i + 1) % devices) for i in range(devices)]

  def hop(carry, _):
    rows, columns, travelling = carry
    own, theirs = part(image, travelling)
    columns, travelling = jax.tree.map(
      lambda x: jax.lax.ppermute(x, axis, onwards),
      (join(columns, theirs), travelling),
    )
    return (join(rows, own), columns, travelling), None

  size = text.vectors.shape[0]
  vary = lambda tree: jax.tree.map(
    lambda x: jax.lax.pcast(x, axis, to='varying'), tree
  )
  start = (vary(nothing(size)), vary(nothing(size)), text)
  # After as many hops as there are devices, texts and columns are home.
  (rows, columns, _), _ = jax.lax.scan(hop, start, None, length=devices)
  return rows, columns


def ring_info_nce(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  scale,
  *,
  axis: str,
) -> Float[Array, '']:
  """`contrastive.info_nce` over all devices of a mesh axis; call in `shard_map`.

  Args:
    image: of this device.
    text: of this device, row i belonging to image i.
    scale: inverse temperature, the same everywhere.
    axis: name, or names, of the mesh axes that the batch is cut over.

  Returns:
    The mean over the global batch, the same on every device.
  """
  a, b = Side(l2_normalize(image)), Side(l2_normalize(text))
  rows, columns = _round(a, b, make_part(scale, None), axis)
  own = scale * jnp.sum(a.vectors * b.vectors, axis=1)
  local = 0.5 * jnp.mean(log_sum(rows) + log_sum(columns) - 2 * own)
  return jax.lax.pmean(local, axis)


def ring_sdm(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  pid: Int[Array, ' b'],
  scale,
  *,
  axis: str,
  epsilon: float = 1e-8,
) -> Float[Array, '']:
  """`contrastive.sdm` with identities as labels; as `ring_info_nce`."""
  everyone = jax.lax.all_gather(pid, axis, tiled=True)
  total = _counts(pid, everyone)
  a = Side(l2_normalize(image), pid, total)
  b = Side(l2_normalize(text), pid, total)
  rows, columns = _round(a, b, make_part(scale, epsilon), axis)
  local = divergence(rows).mean() + divergence(columns).mean()
  return jax.lax.pmean(local, axis)
