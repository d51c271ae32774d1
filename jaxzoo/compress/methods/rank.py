"""How far weight matrices are from low rank, and the gradient of that.

The adversarial term of RPG (arXiv 2311.17493, section 3.2). No autodiff goes
through a decomposition: the best low-rank approximation is a constant by the
envelope theorem, and eigenvectors of the Gram matrix of the smaller side give
what is left of the matrix without it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxzoo.compress.turns import after


class RankLoss(NamedTuple):
  """Of each matrix of a stack.

  Attributes:
    loss: -(energy outside the best approximation of rank k), in [-1, 0]; 0 of
      a matrix of zeros.
    rank: k, chosen so that this energy is nearest to delta.
    grad: d loss / d matrix, dense.
  """

  loss: Float[Array, ' g']
  rank: Int[Array, ' g']
  grad: Float[Array, 'g n m']


def rank_loss(matrix: Float[Array, 'g n m'], delta: float) -> RankLoss:
  """L = -||A - A_k||^2 with A = W / ||W||, for n <= m.

  With s^2 the eigenvalues of A A^T, a_j the sum of the j + 1 smallest and j*
  the first minimiser of |a_j - delta|: k = n - 1 - j*, L = -a_j*. With R = Q
  Q^T A, Q the eigenvectors of these: dL/dW = -2 (R - a_j* A) / ||W||.

  Args:
    matrix: a stack of matrices, the smaller side first; float32.
    delta: the energy to be left out, in (0, 1).
  """
  dot = lambda a, b: jnp.matmul(a, b, precision='highest')
  norm = jnp.sqrt(jnp.sum(matrix**2, axis=(1, 2), keepdims=True))
  counted = norm > 0
  scale = jnp.where(counted, 1 / jnp.where(counted, norm, 1), 0)
  a = matrix * scale
  energy, vectors = jnp.linalg.eigh(dot(a, a.swapaxes(1, 2)))
  tails = jnp.cumsum(jnp.maximum(energy, 0), axis=1)
  last = jnp.argmin(jnp.abs(tails - delta), axis=1)
  in_tail = jnp.arange(a.shape[1]) <= last[:, None]
  tail = vectors * in_tail[:, None, :]
  rest = dot(tail, dot(tail.swapaxes(1, 2), a))
  left = jnp.take_along_axis(tails, last[:, None], 1)[..., None]
  return RankLoss(
    jnp.where(counted, -left, 0)[:, 0, 0],
    a.shape[1] - 1 - last,
    -2 * scale * (rest - left * a),
  )


def _oriented(kernel: Array) -> tuple[Array, bool]:
  """[n, m] of a kernel [..., out] with n <= m, and whether out is m."""
  matrix = kernel.reshape(-1, kernel.shape[-1]).astype(jnp.float32)
  turned = matrix.shape[0] > matrix.shape[1]
  return (matrix.T if turned else matrix), not turned


def kernel_rank_loss(kernel: Float[Array, '... o'], delta: float) -> RankLoss:
  """`rank_loss` of one kernel; scalars, and a gradient of its shape."""
  matrix, straight = _oriented(kernel)
  loss, rank, grad = (x[0] for x in rank_loss(matrix[None], delta))
  return RankLoss(
    loss, rank, (grad if straight else grad.T).reshape(kernel.shape)
  )


def rank_gradients(
  kernels: Sequence[Float[Array, '... o']], delta: float
) -> tuple[Float[Array, ''], list[Float[Array, '... o']]]:
  """The mean rank loss of kernels and its gradient.

  A kernel is the matrix of its output channels by everything else. Kernels
  whose matrices are of one shape are decomposed in one batch; of zeros only,
  a kernel does not count.

  Args:
    kernels: outputs on the last axis.
    delta: see `rank_loss`.

  Returns:
    The mean over the kernels that count, and its gradient for each.
  """
  oriented = [_oriented(kernel) for kernel in kernels]
  groups: dict[tuple, list[int]] = {}
  for i, (matrix, _) in enumerate(oriented):
    groups.setdefault(matrix.shape, []).append(i)
  losses, grads = [], [None] * len(kernels)
  for members in groups.values():
    stack = jnp.stack([oriented[i][0] for i in members])
    found = rank_loss(after(stack, losses[-1]) if losses else stack, delta)
    losses.append(found.loss)
    for i, grad in zip(members, found.grad, strict=True):
      straight = oriented[i][1]
      grads[i] = (grad if straight else grad.T).reshape(kernels[i].shape)
  losses = jnp.concatenate(losses)
  counted = jnp.maximum((losses != 0).sum(), 1).astype(jnp.float32)
  return losses.sum() / counted, [grad / counted for grad in grads]


def relative_ranks(kernels: dict[str, np.ndarray]) -> dict[str, float]:
  """rank / smaller side of every kernel [..., out], in float32 on the host."""
  found = {}
  for name, kernel in kernels.items():
    matrix = np.asarray(kernel, np.float32).reshape(-1, kernel.shape[-1])
    found[name] = np.linalg.matrix_rank(matrix) / min(matrix.shape)
  return found
