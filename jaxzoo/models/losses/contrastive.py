"""Losses on a matrix of similarities between images (rows) and texts (columns).

Everything is float32, whatever comes in, and is a mean over the batch that it
is given: under `jit` with a sharded batch that is the global one.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.models.layers.norm import at_least_float32


def l2_normalize(
  x: Float[Array, '... d'], epsilon: float = 1e-12
) -> Float[Array, '... d']:
  """x / max(|x|, epsilon) along the last axis, in float32 or wider.

  A zero vector stays zero, with a finite gradient rather than NaN.
  """
  x = x.astype(at_least_float32(x))
  squared = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, epsilon**2))


def cosine_similarity(
  a: Float[Array, 'm d'], b: Float[Array, 'n d']
) -> Float[Array, 'm n']:
  """Cosine of every row of `a` with every row of `b`, float32 in [-1, 1]."""
  return jnp.matmul(
    l2_normalize(a), l2_normalize(b).T, precision=jax.lax.Precision.HIGHEST
  )


def info_nce(similarity: Float[Array, 'b b'], scale) -> Float[Array, '']:
  """The matched pair against all other pairs of its row and of its column.

  N(S) = 1/2 mean_i [-log softmax_j(s S_ij) - log softmax_j(s S_ji)] at j = i,
  the symmetric loss of CLIP (arXiv 2103.00020, figure 3).

  Args:
    similarity: S; image i and text i belong together.
    scale: s, the inverse temperature; a number or a learned scalar.

  Returns:
    The loss, at least 0; log b where all similarities are equal.
  """
  logits = scale * similarity.astype(jnp.float32)
  rows = jnp.diagonal(jax.nn.log_softmax(logits, axis=1))
  columns = jnp.diagonal(jax.nn.log_softmax(logits, axis=0))
  return -0.5 * (rows.mean() + columns.mean())


def identity_labels(
  pid: Int[Array, ' b'],
  image_id: Int[Array, ' b'] | None = None,
  same_identity: float = 0.3,
) -> Float[Array, 'b b']:
  """How much image i and text j belong together: y, symmetric.

  1 for one identity and 0 for two. With `image_id`, 1 only for one image, and
  `same_identity` for two images of one identity (IRRA's soft labels).
  """
  same = (pid[:, None] == pid[None, :]).astype(jnp.float32)
  if image_id is None:
    return same
  return jnp.where(
    image_id[:, None] == image_id[None, :], 1.0, same_identity * same
  )


def sdm(
  similarity: Float[Array, 'b b'],
  pid: Int[Array, ' b'] | None,
  scale,
  *,
  epsilon: float = 1e-8,
  labels: Float[Array, 'b b'] | None = None,
) -> Float[Array, '']:
  """Similarity distribution matching (IRRA, arXiv 2303.12501, section 3.3).

  KL(P_i || q_i) averaged over i, for images against texts plus for texts
  against images, with P_i = softmax_j(s S_ij) and q_ij = y_ij / sum_k y_jk.
  The prediction comes first, so log epsilon = -18.4 weighs the mass that it
  puts on other identities.

  The paper normalises a row of labels by its own sum; the released code, which
  we follow, divides column j by the sum of row j. The two differ for soft
  labels only.

  Args:
    similarity: S, cosines.
    pid: identities, whose equality gives the labels y; unused with `labels`.
    scale: s, the inverse temperature.
    epsilon: added to q before its logarithm.
    labels: y, symmetric and non-negative; default `identity_labels(pid)`.

  Returns:
    The loss, the sum of both directions.
  """
  labels = identity_labels(pid) if labels is None else labels
  target = jnp.log(labels / labels.sum(axis=1) + epsilon)
  logits = scale * similarity.astype(jnp.float32)
  return _divergence(logits, target) + _divergence(logits.T, target)


def cmpm(
  image: Float[Array, 'b d'],
  text: Float[Array, 'b d'],
  pid: Int[Array, ' b'],
  *,
  epsilon: float = 1e-8,
) -> Float[Array, '']:
  """Cross-modal projection matching (Zhang and Lu, ECCV 2018, section 3.2).

  As `sdm`, with the length of the projection of one vector onto the direction
  of the other for s S_ij, so that norms matter. The labels follow IRRA's
  release: y_ij over the Euclidean norm, not the sum, of the row of labels.

  Args:
    image: raw features of the images.
    text: raw features of the texts, row i belonging to image i.
    pid: identities.
    epsilon: added to the target before its logarithm.

  Returns:
    The loss, the sum of both directions.
  """
  labels = identity_labels(pid)
  norms = jnp.sqrt(jnp.sum(labels * labels, axis=1))
  target = jnp.log(labels / norms + epsilon)
  image, text = image.astype(jnp.float32), text.astype(jnp.float32)
  project = lambda a, b: jnp.matmul(
    a, l2_normalize(b).T, precision=jax.lax.Precision.HIGHEST
  )
  return _divergence(project(image, text), target) + _divergence(
    project(text, image), target
  )


def identity_loss(
  image_logits: Float[Array, 'b c'],
  text_logits: Float[Array, 'b c'],
  pid: Int[Array, ' b'],
) -> Float[Array, '']:
  """1/2 [CE(image_logits, pid) + CE(text_logits, pid)], means over the batch.

  Both modalities are to be recognised as one of the c training identities by
  one classifier, on features that are not normalised (IRRA, arXiv 2303.12501,
  section 3.4).
  """
  cross_entropy = optax.softmax_cross_entropy_with_integer_labels
  return 0.5 * (
    cross_entropy(image_logits.astype(jnp.float32), pid).mean()
    + cross_entropy(text_logits.astype(jnp.float32), pid).mean()
  )


def in_batch_top1(
  similarity: Float[Array, 'b b'], pid: Int[Array, ' b']
) -> Float[Array, '']:
  """Share of the images whose most similar text has their identity, in 0..1.

  Within the batch, so an easier task than retrieval from a gallery.
  """
  return jnp.mean(pid[jnp.argmax(similarity, axis=1)] == pid)


def _divergence(logits, log_target):
  """mean_i sum_j P_ij (log P_ij - log_target_ij), P the softmax of the rows."""
  log_p = jax.nn.log_softmax(logits, axis=1)
  return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_target), axis=1))
