"""LightCLIP: three losses that make small CLIP models better.

arXiv 2312.00674. Softened labels of the contrastive loss, an alignment of words
with patches, and masked language modelling that sees the image. The paper gives
the parts and their roles; details without a published formula are this
project's.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxzoo.models.losses.contrastive import info_nce, l2_normalize


def softened_info_nce(
  logits: Float[Array, 'b b'], softness: float | Float[Array, '']
) -> Float[Array, '']:
  """InfoNCE whose negatives get a share of the label, by their similarity.

  y_ii = 1 - a, y_ij = a softmax_{j != i}(Z_i)_j without a gradient; the cross
  entropy of each row, and the same of each column with labels of its own,
  averaged. Softness 0 is `contrastive.info_nce`.

  Args:
    logits: Z, cosines times the learned scale.
    softness: a, in [0, 1); it grows from 0 in the course of training, since
      early similarities say nothing.
  """
  logits = logits.astype(jnp.float32)
  eye = jnp.eye(len(logits), dtype=bool)

  def rows(z):
    others = jax.lax.stop_gradient(jnp.where(eye, -jnp.inf, z))
    labels = jnp.where(
      eye, 1 - softness, softness * jax.nn.softmax(others, axis=1)
    )
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(z, axis=1), axis=1))

  return 0.5 * (rows(logits) + rows(logits.T))


def token_similarity(
  patches: Float[Array, 'm p d'],
  words: Float[Array, 'n w d'],
  lengths: Int[Array, ' n'],
  *,
  one_to_one: bool = False,
) -> Float[Array, 'm n']:
  """s_ij: the mean over the words of text j of their cosine with a patch of i.

  The relaxed matching gives every word its best patch. `one_to_one` gives
  distinct patches to the words, by the Hungarian algorithm on fixed shapes;
  words beyond the number of patches stay without one and count as 0.

  Texts come one after the other, so that no array has all pairs of texts and
  patches; the backward pass makes the cosines again.

  Args:
    patches: of the images.
    words: of the texts, padding at the end.
    lengths: words of each text, at least 1.
    one_to_one: the exact matching instead of the relaxed.
  """
  patches, words = l2_normalize(patches), l2_normalize(words)
  match = _assigned if one_to_one else lambda cosines, _: cosines.max(1)

  @jax.checkpoint
  def one_text(text):
    vectors, length = text
    cosines = jnp.einsum(
      'mpd,wd->mpw', patches, vectors, precision=jax.lax.Precision.HIGHEST
    )
    valid = jnp.arange(vectors.shape[0]) < length
    scores = jnp.where(valid, match(cosines, valid), 0)
    return scores.sum(1) / length

  return jax.lax.map(one_text, (words, lengths)).T


def _assigned(cosines: Float[Array, 'm p w'], valid) -> Float[Array, 'm w']:
  """The cosine of every word with its own patch in the best assignment."""
  count, words = cosines.shape[1:]
  spare = max(0, words - count)

  def one_image(cosines):
    # Padding costs the same everywhere, so it takes what the words leave; a
    # spare column is worse for a word than any patch.
    cost = jnp.where(valid[:, None], 1 - cosines.T, 0.0)
    unmatched = jnp.where(valid[:, None], 4.0, 0.0)
    cost = jnp.concatenate(
      [cost, jnp.broadcast_to(unmatched, (words, spare))], axis=1
    )
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(words, jnp.int32).at[rows].set(columns)

  chosen = jax.vmap(one_image)(jax.lax.stop_gradient(cosines))
  padded = jnp.pad(cosines, ((0, 0), (0, spare), (0, 0)))
  return jnp.take_along_axis(padded, chosen[:, None], axis=1)[:, 0]


def token_loss(
  similarity: Float[Array, 'b b'], scale: float | Float[Array, '']
) -> Float[Array, '']:
  """Symmetric InfoNCE on `token_similarity`, with the scale of the vectors.

  The score averages over words; transposed for texts against images it is the
  same matrix.
  """
  return info_nce(similarity, scale)
