"""Metrics of text-to-image retrieval, and ranked lists.

Every query ranks the whole gallery by cosine similarity; a gallery image is
relevant when its identity equals the query's. All work is done on the device by
tiles of queries, so memory grows with tile x gallery and not with the number of
queries; one tile shape is compiled once.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxzoo.errors import UserError

# Relevant images of a query up to which counting is faster than sorting.
FEW = 64


class PerQuery(NamedTuple):
  """What one ranking a query amounts to; shares are in [0, 1].

  With relevant ranks r_1 < ... < r_P, counted from 1, similarities mapped to
  u = (cosine + 1) / 2, and relevance y_k of the k-th ranked image:

  Attributes:
    relevant: int32 [q], P. 0 where the query is masked or has no relevant
      gallery image; the other fields are then 0 and mean nothing.
    first_rank: int32 [q], r_1.
    average_precision: float32 [q], AP = 1/P sum_m m / r_m.
    inverse_negative_penalty: float32 [q], INP = P / r_P.
    similarity_distribution: float32 [q], SD = (1 - exp(-a_p / a_n)) 1/P
      sum_{k: y_k = 1} (sum_{j<=k} y_j u_j) / (sum_{j<=k} u_j), u in ranked
      order, a_p and a_n the mean u of relevant and of other images. Without
      other images a_n counts as 0, so that the first factor is 1.
    similarity_distribution_as_released: float32 [q], the same with u left in
      the gallery's order while y is ranked, as the authors' script has it.

  A query whose similarities are not all finite has NaN in the last four and
  ranks nothing.
  """

  relevant: np.ndarray
  first_rank: np.ndarray
  average_precision: np.ndarray
  inverse_negative_penalty: np.ndarray
  similarity_distribution: np.ndarray
  similarity_distribution_as_released: np.ndarray


def retrieval_metrics(
  query: Float[Array, 'q d'],
  gallery: Float[Array, 'g d'],
  query_pids: Int[Array, ' q'],
  gallery_pids: Int[Array, ' g'],
  *,
  query_mask: Bool[Array, ' q'] | None = None,
  gallery_mask: Bool[Array, ' g'] | None = None,
  ranks: Sequence[int] = (1, 5, 10),
  tile: int = 256,
) -> dict[str, float]:
  """R@k, mAP, mINP and mSD of a retrieval run, in percent.

  Means over the queries that have a relevant gallery image. R@k is the share
  with r_1 <= k; mAP, mINP and mSD are the means of `PerQuery`'s AP, INP and
  SD. mSD follows the formula of the paper (Zuo et al. 2024, UFineBench), which
  the published numbers agree with; `mSD_as_released` is what the authors'
  script computes, for comparison with numbers made by it.

  Args:
    query, gallery, query_pids, gallery_pids, query_mask, gallery_mask, tile:
      see `per_query`.
    ranks: the k of R@k.

  Returns:
    'R@k' for each k, 'mAP', 'mINP', 'mSD', 'mSD_as_released' in 0..100, NaN
    where an embedding that counts is not finite; 'queries', how many entered
    the means, and 'queries_without_match', how many unmasked ones did not
    because no gallery image is relevant to them.

  Raises:
    UserError: no query has a relevant gallery image.
    ValueError: shapes do not fit.
  """
  each = per_query(
    query,
    gallery,
    query_pids,
    gallery_pids,
    query_mask=query_mask,
    gallery_mask=gallery_mask,
    tile=tile,
  )
  counted = each.relevant > 0
  asked = len(counted) if query_mask is None else int(np.sum(query_mask))
  if not counted.any():
    raise UserError(
      f'none of the {asked} queries has a relevant image in the gallery: no '
      'identity is in both. Query and gallery must come from the same split'
    )

  def percent(values):
    return 100 * float(np.mean(values[counted], dtype=np.float64))

  broken = np.isnan(each.average_precision)
  found = {k: np.where(broken, np.nan, each.first_rank <= k) for k in ranks}
  return {
    **{f'R@{k}': percent(found[k]) for k in ranks},
    'mAP': percent(each.average_precision),
    'mINP': percent(each.inverse_negative_penalty),
    'mSD': percent(each.similarity_distribution),
    'mSD_as_released': percent(each.similarity_distribution_as_released),
    'queries': float(counted.sum()),
    'queries_without_match': float(asked - counted.sum()),
  }


def per_query(
  query: Float[Array, 'q d'],
  gallery: Float[Array, 'g d'],
  query_pids: Int[Array, ' q'],
  gallery_pids: Int[Array, ' g'],
  *,
  query_mask: Bool[Array, ' q'] | None = None,
  gallery_mask: Bool[Array, ' g'] | None = None,
  tile: int = 256,
) -> PerQuery:
  """The metrics of each query, as numpy arrays.

  Embeddings are L2-normalised here, in float32 (a zero vector stays zero), and
  multiplied at full float32 precision. Equal similarities keep the gallery's
  order.

  Args:
    query: embeddings of the captions.
    gallery: embeddings of the images, each image once.
    query_pids: identities of the captions.
    gallery_pids: identities of the images.
    query_mask: False for rows to leave out: padding, unreadable records.
    gallery_mask: likewise.
    tile: queries at a time. About 40 tile x g bytes are needed: 200 MB for 256
      queries and 20,000 images.

  Raises:
    ValueError: shapes do not fit.

  Where no query has more than `FEW` relevant images nothing is sorted: the rank
  of each of them is the number of images ahead of it.
  """
  query, query_pids, query_mask = _checked(
    'query', query, query_pids, query_mask
  )
  gallery, gallery_pids, gallery_mask = _checked(
    'gallery', gallery, gallery_pids, gallery_mask
  )
  _check_widths(query, gallery)
  # Padding goes to the end: the released mSD depends on the gallery's order.
  order = np.argsort(~gallery_mask, kind='stable')
  most = _most_relevant(query_pids[query_mask], gallery_pids[gallery_mask])
  measure = _measure_by_sorting
  if most <= FEW:
    # A few sizes, so that there are few programs.
    count = min(1 << max(0, most - 1).bit_length(), len(gallery))
    measure = functools.partial(_measure_by_counting, count=count)
  compute = functools.partial(
    measure,
    gallery=_normalize(gallery[order]),
    gallery_pids=gallery_pids[order],
    gallery_mask=gallery_mask[order],
  )
  return _by_tiles(compute, tile, query, query_pids, query_mask)


def rank(
  query: Float[Array, 'q d'],
  gallery: Float[Array, 'g d'],
  k: int,
  *,
  gallery_mask: Bool[Array, ' g'] | None = None,
  tile: int = 256,
) -> tuple[Float[np.ndarray, 'q k'], Int[np.ndarray, 'q k']]:
  """The `k` most similar gallery images of each query, best first.

  Args:
    query: [q, d] embeddings; normalised here as in `per_query`.
    gallery: [g, d] embeddings.
    k: how many. With a smaller gallery the lists have g entries.
    gallery_mask: False for images that must not appear. Where fewer than k
      are left, they fill the end of the list with score -inf.
    tile: queries at a time.

  Returns:
    scores: float32 [q, min(k, g)], cosines, falling.
    indices: int32 [q, min(k, g)], rows of `gallery`; among equal scores the
      smaller comes first.

  Raises:
    ValueError: shapes do not fit, or k < 1.
  """
  if k < 1:
    raise ValueError(f'k must be at least 1, got {k}')
  query, _, _ = _checked('query', query, None, None)
  gallery, _, gallery_mask = _checked('gallery', gallery, None, gallery_mask)
  _check_widths(query, gallery)
  compute = functools.partial(
    _best,
    gallery=_normalize(gallery),
    gallery_mask=gallery_mask,
    k=min(k, len(gallery)),
  )
  return _by_tiles(compute, tile, query)


def _most_relevant(query_pids, gallery_pids) -> int:
  """Relevant images of the query that has most."""
  identities, counts = np.unique(gallery_pids, return_counts=True)
  return int(counts[np.isin(identities, query_pids)].max(initial=0))


def _compare(
  query, query_pids, query_mask, gallery, gallery_pids, gallery_mask
):
  """(cosines s, relevance y), [q, g] each; y is False where masked."""
  y = query_pids[:, None] == gallery_pids[None]
  y &= query_mask[:, None] & gallery_mask[None]
  return _cosine(query, gallery), y


@jax.jit
def _measure_by_sorting(
  query, query_pids, query_mask, *, gallery, gallery_pids, gallery_mask
) -> PerQuery:
  s, y = _compare(
    query, query_pids, query_mask, gallery, gallery_pids, gallery_mask
  )
  # Masked images go last, where they weigh nothing.
  key = jnp.where(gallery_mask[None], -s, jnp.inf)
  key, ranked_y = lax.sort((key, y), num_keys=1, is_stable=True)
  u = jnp.where(gallery_mask[None], _to_unit(s), 0)
  ranked_u = jnp.where(key == jnp.inf, 0, _to_unit(-key))

  relevant = jnp.sum(y, axis=1)
  ranks = jnp.arange(1, s.shape[1] + 1)
  m_over_r = jnp.cumsum(ranked_y, axis=1) / ranks
  average_precision = _mean_where(m_over_r, ranked_y)
  last_rank = jnp.max(ranked_y * ranks, axis=1)
  first_rank = jnp.where(relevant > 0, jnp.argmax(ranked_y, axis=1) + 1, 0)

  values = [
    average_precision,
    relevant / jnp.maximum(last_rank, 1),
    *(
      _similarity_distribution(
        jnp.cumsum(ranked_y * v, axis=1), jnp.cumsum(v, axis=1), ranked_y,
        jnp.sum(ranked_y * v, axis=1), jnp.sum(~ranked_y * v, axis=1),
        jnp.sum(gallery_mask),
      )
      for v in (ranked_u, u)
    ),
  ]  # fmt: skip
  return _told(s, gallery_mask, relevant, first_rank, values)


@functools.partial(jax.jit, static_argnames='count')
def _measure_by_counting(
  query, query_pids, query_mask, *, gallery, gallery_pids, gallery_mask, count
) -> PerQuery:
  """As `_measure_by_sorting`, where no query has more than `count` relevant."""
  s, y = _compare(
    query, query_pids, query_mask, gallery, gallery_pids, gallery_mask
  )
  u = jnp.where(gallery_mask[None], _to_unit(s), 0)
  ranked = jnp.where(gallery_mask[None], s, -jnp.inf)
  relevant = jnp.sum(y, axis=1)
  _, places = lax.top_k(y.astype(jnp.float32), count)  # the first ones first
  real = jnp.arange(count) < relevant[:, None]
  places_of_all = jnp.arange(s.shape[1])

  def sums(place):
    """Of the images that are not behind one place [q]: of 1, y, u and y u."""
    own = jnp.take_along_axis(ranked, place[:, None], axis=1)
    near = (ranked == own) & (places_of_all <= place[:, None])
    ahead = (ranked > own) | near
    parts = (ahead, ahead & y, ahead * u, (ahead & y) * u)
    return [jnp.sum(x, axis=1) for x in parts]

  rank, hits, sum_u, sum_yu = (x.T for x in lax.map(sums, places.T))
  rank = jnp.where(real, rank, 0)
  # The same sums where u keeps the gallery's order: those of its first places.
  first = lambda x: jnp.take_along_axis(x, jnp.maximum(rank - 1, 0), axis=1)
  released = jnp.where(real, first(u), 0)
  before = (rank[:, None] <= rank[..., None]) & real[:, None]
  values = [
    _mean_where(hits / jnp.maximum(rank, 1), real),
    relevant / jnp.maximum(rank.max(1), 1),
    *(
      _similarity_distribution(
        shares, totals, real, positive, jnp.sum(u, axis=1) - positive,
        jnp.sum(gallery_mask),
      )
      for shares, totals, positive in (
        (sum_yu, sum_u, jnp.sum(y * u, axis=1)),
        (
          jnp.sum(before * released[:, None], axis=2),
          first(jnp.cumsum(u, axis=1)),
          released.sum(1),
        ),
      )
    ),
  ]  # fmt: skip
  first_rank = jnp.min(jnp.where(real, rank, s.shape[1]), axis=1)
  first_rank = jnp.where(relevant > 0, first_rank, 0)
  return _told(s, gallery_mask, relevant, first_rank, values)


def _told(s, gallery_mask, relevant, first_rank, values) -> PerQuery:
  """The measures, NaN where a cosine that counts is not finite."""
  finite = jnp.all(jnp.isfinite(s) | ~gallery_mask[None], axis=1)
  bad = ~finite & (relevant > 0)
  values = [jnp.where(bad, jnp.nan, v).astype(jnp.float32) for v in values]
  return PerQuery(relevant, first_rank, *values)


def _similarity_distribution(
  sum_yu, sum_u, relevant, positive, negative, images
):
  """SD of `PerQuery`.

  Args:
    sum_yu, sum_u: [q, n] sums of y u and of u up to ranks.
    relevant: bool [q, n], which of the ranks count.
    positive, negative: [q] sums of u of relevant and of other images.
    images: how many of both there are.
  """
  tiny = jnp.finfo(jnp.float32).tiny
  count = jnp.sum(relevant, axis=1)
  positive /= jnp.maximum(count, 1)
  negative /= jnp.maximum(images - count, 1)
  contrast = 1 - jnp.exp(-positive / jnp.maximum(negative, tiny))
  return contrast * _mean_where(sum_yu / jnp.maximum(sum_u, tiny), relevant)


@functools.partial(jax.jit, static_argnames='k')
def _best(query, *, gallery, gallery_mask, k):
  s = _cosine(query, gallery)
  # top_k tells -0 from 0, which are equal scores.
  s = jnp.where(s == 0, 0, s)
  return lax.top_k(jnp.where(gallery_mask[None], s, -jnp.inf), k)


@jax.jit
def _normalize(x):
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(norm, 1e-12)


def _cosine(query, gallery):
  """[q, g] from raw queries and a gallery that is already normalised."""
  return jnp.matmul(
    _normalize(query), gallery.T, precision=lax.Precision.HIGHEST
  )


def _to_unit(s):
  return jnp.clip((s + 1) / 2, 0, 1)


def _mean_where(x, where):
  return jnp.sum(x * where, axis=1) / jnp.maximum(jnp.sum(where, axis=1), 1)


def _by_tiles(compute, tile, *arrays):
  """`compute` on tiles of rows, the last one padded with zeros, joined."""
  rows = len(arrays[0])
  tile = max(1, min(tile, rows))
  parts = []
  for start in range(0, rows, tile):
    part = [a[start : start + tile] for a in arrays]
    missing = tile - len(part[0])
    part = [
      np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1)) if missing else a
      for a in part
    ]
    parts.append(compute(*part))
  parts = jax.device_get(parts)
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:rows], *parts)


def _checked(name, embeddings, pids, mask):
  embeddings = np.asarray(embeddings, np.float32)
  if embeddings.ndim != 2 or 0 in embeddings.shape:
    raise ValueError(f'{name} must be [rows, d], got {embeddings.shape}')
  rows = len(embeddings)
  pids = np.zeros(rows, np.int32) if pids is None else np.asarray(pids)
  mask = np.ones(rows, bool) if mask is None else np.asarray(mask, bool)
  for what, values in (('pids', pids), ('mask', mask)):
    if values.shape != (rows,):
      raise ValueError(
        f'{name}_{what} must be [{rows}] like {name}, got {values.shape}'
      )
  return embeddings, pids.astype(np.int32), mask


def _check_widths(query, gallery):
  if query.shape[1] != gallery.shape[1]:
    raise ValueError(
      f'query and gallery must have one width, got {query.shape[1]} and '
      f'{gallery.shape[1]}'
    )
