"""Residual vector quantisation with one shared codebook, updated by averages.

A vector is replaced by a sum of codes: the nearest code, the code nearest to
what is left of it, and so on (SoundStream, arXiv 2107.03312, section III-C;
codes learned by moving averages as in arXiv 1711.00937, appendix A.1). Rules
are those of the package vector-quantize-pytorch, release 1.14: all stages have
the same codebook, which every stage of a training pass updates before the
next one uses it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

DECAY = 0.8
EPSILON = 1e-5


class Codebook(NamedTuple):
  """The state of a quantiser.

  Attributes:
    codes: e = M / N, with N smoothed.
    sizes: N, a moving average of how many vectors each code stands for.
    sums: M, likewise of the sum of those vectors.
    ready: whether codes have been found; before that they are all zero.
  """

  codes: Float[Array, 'k d']
  sizes: Float[Array, ' k']
  sums: Float[Array, 'k d']
  ready: Bool[Array, '']


class Quantized(NamedTuple):
  """What a quantiser makes of vectors.

  Attributes:
    vectors: the sum of the codes of all stages, float32.
    indices: of the code of each stage.
    commitment: the mean over the stages of mean |stop(e) - r|^2.
  """

  vectors: Float[Array, '*b d']
  indices: Int[Array, '*b stages']
  commitment: Float[Array, '']


def empty_codebook(size: int, width: int) -> Codebook:
  """Codes that the first training batch is to find."""
  zeros = jnp.zeros((size, width), jnp.float32)
  return Codebook(zeros, jnp.zeros(size), zeros, jnp.array(False))


def nearest(
  vectors: Float[Array, '*b d'], codes: Float[Array, 'k d']
) -> Int[Array, '*b']:
  """argmin_j |r - e_j|, the first of equal ones; computed in float32."""
  # |r|^2 is the same for all codes. The rest is one product of matrices, exact
  # in float32 on every device: near ties must not be decided by bfloat16.
  products = jnp.einsum(
    '...d,kd->...k', vectors, codes, precision=jax.lax.Precision.HIGHEST
  )
  return jnp.argmin(jnp.sum(codes**2, -1) - 2 * products, -1)


def count(
  vectors: Float[Array, '*b d'], indices: Int[Array, '*b'], size: int
) -> tuple[Float[Array, ' k'], Float[Array, 'k d']]:
  """How many vectors each code stands for, and their sums.

  Over the whole batch: where it is sharded, under `jit`, over all devices.
  """
  axes = tuple(range(indices.ndim))
  chosen = jax.nn.one_hot(indices, size, dtype=jnp.float32)
  sums = jnp.tensordot(
    chosen, vectors, (axes, axes), precision=jax.lax.Precision.HIGHEST
  )
  return chosen.sum(axes), sums


def moved(
  codebook: Codebook,
  vectors: Float[Array, '*b d'],
  indices: Int[Array, '*b'],
) -> Codebook:
  """The codebook after one update.

  N <- 0.8 N + 0.2 n; M <- 0.8 M + 0.2 S; e = M / N', where
  N' = (N + 1e-5) / (sum N + 1e-5 k) sum N keeps codes that nothing chose.
  """
  size = codebook.sizes.shape[0]
  n, s = count(vectors, indices, size)
  sizes = DECAY * codebook.sizes + (1 - DECAY) * n
  sums = DECAY * codebook.sums + (1 - DECAY) * s
  total = sizes.sum()
  smoothed = (sizes + EPSILON) / (total + size * EPSILON) * total
  return Codebook(sums / smoothed[:, None], sizes, sums, codebook.ready)


def find_codes(
  codebook: Codebook,
  vectors: Float[Array, '*b d'],
  rng: jax.Array,
  iterations: int = 10,
) -> Codebook:
  """A codebook of the means of the vectors' clusters, by k-means.

  Starts from random vectors, which come several times where there are fewer of
  them than codes; a cluster that becomes empty keeps its mean.
  """
  size, width = codebook.codes.shape
  flat = vectors.reshape(-1, width)
  if len(flat) < size:
    first = jax.random.randint(rng, (size,), 0, len(flat))
  else:
    first = jax.random.permutation(rng, len(flat))[:size]

  def step(carry, _):
    means, _ = carry
    n, s = count(flat, nearest(flat, means), size)
    return (
      jnp.where(n[:, None] > 0, s / jnp.maximum(n, 1)[:, None], means),
      n,
    ), None

  (means, n), _ = jax.lax.scan(
    step, (flat[first], jnp.zeros(size)), None, length=iterations
  )
  return Codebook(means, n, means * n[:, None], jnp.array(True))


def quantize(
  codebook: Codebook, vectors: Float[Array, '*b d'], stages: int
) -> Quantized:
  """The nearest sums of codes. Nothing is learned."""

  def stage(left, _):
    index = nearest(left, codebook.codes)
    code = codebook.codes[index]
    return left - code, (code, index, jnp.mean((code - left) ** 2))

  vectors = vectors.astype(jnp.float32)
  _, (codes, indices, errors) = jax.lax.scan(
    stage, vectors, None, length=stages
  )
  return Quantized(codes.sum(0), jnp.moveaxis(indices, 0, -1), errors.mean())


def quantize_and_learn(
  codebook: Codebook,
  vectors: Float[Array, '*b d'],
  stages: int,
  rng: jax.Array,
) -> tuple[Quantized, Codebook]:
  """A training pass: quantises, and moves the codebook after each stage.

  Each stage hands its whole gradient through, r + stop(e - r), and what is left
  for the next is r - stop(e): the derivative of the output is `stages` times
  the identity, as in the package.

  Args:
    codebook: found by k-means first, where it is not `ready`.
    vectors: what to quantise, e.g. all tokens of the global batch.
    stages: codes to a vector.
    rng: for k-means.

  Returns:
    The quantised vectors, and the codebook for the next pass.
  """
  stop = jax.lax.stop_gradient
  vectors = vectors.astype(jnp.float32)
  codebook = jax.lax.cond(
    codebook.ready,
    lambda: codebook,
    lambda: find_codes(codebook, stop(vectors), rng),
  )

  def stage(carry, _):
    left, codebook = carry
    index = nearest(stop(left), codebook.codes)
    code = codebook.codes[index]
    output = left + stop(code - left)
    error = jnp.mean((code - left) ** 2)
    after = moved(codebook, stop(left), index)
    return (left - code, after), (output, index, error)

  (_, codebook), (outputs, indices, errors) = jax.lax.scan(
    stage, (vectors, codebook), None, length=stages
  )
  return (
    Quantized(outputs.sum(0), jnp.moveaxis(indices, 0, -1), errors.mean()),
    codebook,
  )
