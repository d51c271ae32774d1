import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzoo.errors import UserError
from jaxzoo.eval import retrieval


@pytest.fixture(scope='module', autouse=True, params=['counting', 'sorting'])
def way(request):
  """Both ways to the ranks of the relevant images."""
  with pytest.MonkeyPatch.context() as patch:
    if request.param == 'sorting':
      patch.setattr(retrieval, 'FEW', 0)
    yield


def unit(rows):
  return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def cosines(query, gallery):
  return unit(np.float64(query)) @ unit(np.float64(gallery)).T


def brute_force(similarity, relevant, released=False):
  """One query's (first rank, AP, INP, SD), by loops over the definition."""
  order = sorted(range(len(similarity)), key=lambda j: -similarity[j])
  ranks = [r for r, j in enumerate(order, 1) if relevant[j]]
  if not ranks:
    return None
  ap = np.mean([m / r for m, r in enumerate(ranks, 1)])
  u = [(similarity[j] + 1) / 2 for j in order]
  if released:
    u = [(s + 1) / 2 for s in similarity]
  y = [bool(relevant[j]) for j in order]
  shares = [
    sum(a for a, b in zip(u[:r], y[:r], strict=True) if b) / sum(u[:r])
    for r in ranks
  ]
  positive = np.mean([a for a, b in zip(u, y, strict=True) if b])
  negative = [a for a, b in zip(u, y, strict=True) if not b]
  factor = 1 - np.exp(-positive / np.mean(negative)) if negative else 1
  return ranks[0], ap, len(ranks) / ranks[-1], factor * np.mean(shares)


def assert_equals_brute_force(query, gallery, query_pids, gallery_pids, **kw):
  got = retrieval.per_query(query, gallery, query_pids, gallery_pids, **kw)
  s = cosines(query, gallery)
  for i in range(len(query)):
    relevant = query_pids[i] == gallery_pids
    want = brute_force(s[i], relevant)
    assert got.relevant[i] == relevant.sum()
    if want is None:
      assert got.first_rank[i] == 0
      continue
    assert got.first_rank[i] == want[0]
    row = [float(values[i]) for values in got[2:]]
    want = want[1:] + brute_force(s[i], relevant, released=True)[3:]
    np.testing.assert_allclose(row, want, rtol=2e-5)
  return got


def random_case(seed, queries=37, images=53, width=16, identities=9):
  rng = np.random.default_rng(seed)
  return (
    rng.standard_normal((queries, width)).astype(np.float32),
    rng.standard_normal((images, width)).astype(np.float32),
    rng.integers(0, identities, queries),
    rng.integers(0, identities, images),
  )


@pytest.mark.parametrize('tile', [1, 7, 37, 256])
def test_every_query_equals_brute_force_whatever_the_tile(tile):
  assert_equals_brute_force(*random_case(0), tile=tile)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), identities=st.integers(1, 12))
def test_exact_ties_keep_the_gallery_order(seed, identities):
  # Vectors of four +-1 have norm 2, so every cosine is an exact multiple of
  # 1/2 and most of them are tied.
  rng = np.random.default_rng(seed)
  query = rng.choice([-1.0, 1.0], (5, 4)).astype(np.float32)
  gallery = rng.choice([-1.0, 1.0], (30, 4)).astype(np.float32)
  query_pids = rng.integers(0, identities, 5)
  gallery_pids = rng.integers(0, identities, 30)
  got = retrieval.per_query(query, gallery, query_pids, gallery_pids)
  s = cosines(query, gallery)
  for i in range(5):
    want = brute_force(s[i], query_pids[i] == gallery_pids)
    if want is not None:
      assert got.first_rank[i] == want[0]
      np.testing.assert_allclose(got.average_precision[i], want[1], rtol=1e-5)
  scores, indices = retrieval.rank(query, gallery, 30)
  np.testing.assert_array_equal(indices, np.argsort(-s, axis=1, kind='stable'))
  np.testing.assert_array_equal(scores, np.take_along_axis(s, indices, 1))


def test_positive_and_negative_zero_similarities_are_tied():
  query = np.float32([[0]])  # times -1 and 1 is -0 and 0
  gallery = np.float32([[-1], [1], [-1], [1]])
  _, indices = retrieval.rank(query, gallery, 4)
  assert indices.tolist() == [[0, 1, 2, 3]]
  pids = np.arange(4)
  for pid in pids:
    got = retrieval.per_query(query, gallery, np.array([pid]), pids)
    assert got.first_rank[0] == pid + 1


def test_the_worked_example_of_the_spec():
  # Unit vectors with exactly these cosines: one query an axis.
  s = np.array([[0.9, 0.2, 0.5, -0.1], [0.1, 0.3, 0.6, 0.4]])
  rest = np.sqrt(1 - (s**2).sum(0))
  gallery = np.concatenate([s, rest[None]]).T
  got = retrieval.retrieval_metrics(
    np.eye(3)[:2], gallery, np.array([1, 2]), np.array([1, 2, 1, 3])
  )
  assert got['mSD'] == pytest.approx(49.37296, abs=1e-3)
  assert got['mSD_as_released'] == pytest.approx(50.604, abs=1e-3)
  assert got['mAP'] == pytest.approx(200 / 3, abs=1e-3)
  assert got['mINP'] == pytest.approx(200 / 3, abs=1e-3)
  assert got['R@1'] == 50
  assert got['R@5'] == got['R@10'] == 100


def test_masked_rows_change_nothing_wherever_they_stand():
  query, gallery, query_pids, gallery_pids = random_case(1)
  rng = np.random.default_rng(2)
  want = retrieval.retrieval_metrics(query, gallery, query_pids, gallery_pids)

  def spread(rows, pids, extra):
    mask = np.ones(len(rows) + extra, bool)
    mask[rng.permutation(len(mask))[:extra]] = False
    wide = np.full((len(mask), rows.shape[1]), np.nan, np.float32)
    wide_pids = np.zeros(len(mask), int)
    wide[mask], wide_pids[mask] = rows, pids
    return wide, wide_pids, mask

  query, query_pids, query_mask = spread(query, query_pids, 4)
  gallery, gallery_pids, gallery_mask = spread(gallery, gallery_pids, 9)
  got = retrieval.retrieval_metrics(
    query,
    gallery,
    query_pids,
    gallery_pids,
    query_mask=query_mask,
    gallery_mask=gallery_mask,
    tile=16,
  )
  assert got == pytest.approx(want, rel=1e-6)
  _, indices = retrieval.rank(
    np.nan_to_num(query), gallery, 53, gallery_mask=gallery_mask
  )
  assert gallery_mask[indices].all()


def test_a_gallery_without_others_has_full_contrast():
  query, gallery, *_ = random_case(3)
  got = assert_equals_brute_force(
    query, gallery, np.zeros(37, int), np.zeros(53, int)
  )
  np.testing.assert_allclose(got.similarity_distribution, 1, rtol=1e-5)
  np.testing.assert_allclose(got.average_precision, 1, rtol=1e-6)


def test_a_single_relevant_image_has_equal_ap_and_inp():
  query, gallery, *_ = random_case(4, queries=53)
  got = assert_equals_brute_force(query, gallery, np.arange(53), np.arange(53))
  np.testing.assert_array_equal(
    got.average_precision, got.inverse_negative_penalty
  )
  np.testing.assert_allclose(
    got.average_precision, 1 / got.first_rank, rtol=1e-6
  )


def test_opposite_vectors_divide_nothing_by_zero():
  query = np.float32([[1, 0], [0, 0]])
  gallery = -np.float32([[1, 0], [1, 0], [1, 0]])
  got = retrieval.per_query(
    query, gallery, np.array([0, 0]), np.array([1, 0, 0])
  )
  assert all(np.isfinite(values).all() for values in got)
  assert got.first_rank.tolist() == [2, 2]


def test_queries_without_a_match_are_left_out_and_counted():
  query, gallery, query_pids, gallery_pids = random_case(5)
  want = retrieval.retrieval_metrics(query, gallery, query_pids, gallery_pids)
  got = retrieval.retrieval_metrics(
    np.concatenate([query, query[:3]]),
    gallery,
    np.concatenate([query_pids, [90, 91, 92]]),
    gallery_pids,
  )
  assert got.pop('queries_without_match') == 3
  assert want.pop('queries_without_match') == 0
  assert got == pytest.approx(want)
  assert got['queries'] == 37


def test_no_common_identity_is_an_error_that_says_so():
  query, gallery, query_pids, gallery_pids = random_case(6)
  with pytest.raises(UserError, match='no identity is in both'):
    retrieval.retrieval_metrics(query, gallery, query_pids + 50, gallery_pids)


def test_a_perfect_model_scores_one_hundred():
  vectors = np.eye(12, dtype=np.float32)
  got = retrieval.retrieval_metrics(
    vectors, vectors, np.arange(12), np.arange(12)
  )
  assert all(got[k] == 100 for k in ('R@1', 'R@5', 'R@10', 'mAP', 'mINP'))


def test_not_finite_embeddings_give_nan_and_no_rank():
  query, gallery, query_pids, gallery_pids = random_case(7)
  query[3] = np.nan
  got = retrieval.retrieval_metrics(query, gallery, query_pids, gallery_pids)
  names = ('R@1', 'R@5', 'R@10', 'mAP', 'mINP', 'mSD', 'mSD_as_released')
  assert all(np.isnan(got[name]) for name in names)


def test_scale_of_the_embeddings_does_not_matter():
  query, gallery, query_pids, gallery_pids = random_case(8)
  want = retrieval.retrieval_metrics(query, gallery, query_pids, gallery_pids)
  lengths = 2.0 ** np.random.default_rng(0).integers(-9, 9, (53, 1))
  got = retrieval.retrieval_metrics(
    8 * query, gallery * lengths, query_pids, gallery_pids
  )
  assert got == pytest.approx(want, rel=1e-6)


def test_wide_galleries_keep_float32_sums_exact_enough():
  query, gallery, query_pids, gallery_pids = random_case(
    9, queries=6, images=4000, width=8, identities=300
  )
  s = np.float32(cosines(query, gallery))
  got = retrieval.per_query(query, gallery, query_pids, gallery_pids)
  for i in range(6):
    want = brute_force(np.float64(s[i]), query_pids[i] == gallery_pids)
    if want is not None:
      assert got.similarity_distribution[i] == pytest.approx(want[3], rel=1e-4)


def test_a_last_tile_that_is_not_full_compiles_nothing_new():
  query, gallery, query_pids, gallery_pids = random_case(10)
  programs = (retrieval._measure_by_counting, retrieval._measure_by_sorting)
  compiled = lambda: [program._cache_size() for program in programs]
  retrieval.per_query(
    query[:32], gallery, query_pids[:32], gallery_pids, tile=8
  )
  before = compiled()
  retrieval.per_query(query, gallery, query_pids, gallery_pids, tile=8)
  assert compiled() == before


@pytest.mark.parametrize('k, tile', [(1, 256), (5, 8), (99, 16)])
def test_ranked_lists_are_the_best_cosines_in_order(k, tile):
  query, gallery, *_ = random_case(11)
  scores, indices = retrieval.rank(query, gallery, k, tile=tile)
  s = cosines(query, gallery)
  assert scores.shape == indices.shape == (37, min(k, 53))
  np.testing.assert_array_equal(
    indices, np.argsort(-s, axis=1, kind='stable')[:, :k]
  )
  np.testing.assert_allclose(scores, -np.sort(-s, axis=1)[:, :k], atol=1e-6)


def test_ranked_lists_end_in_minus_infinity_when_images_run_out():
  query, gallery, *_ = random_case(12)
  mask = np.zeros(53, bool)
  mask[[4, 8]] = True
  scores, indices = retrieval.rank(query, gallery, 4, gallery_mask=mask)
  assert set(indices[0, :2].tolist()) == {4, 8}
  assert np.isneginf(scores[:, 2:]).all()


def test_device_arrays_and_bfloat16_are_taken():
  query, gallery, query_pids, gallery_pids = map(
    jax.numpy.asarray, random_case(13)
  )
  got = retrieval.retrieval_metrics(
    query.astype('bfloat16'), gallery, query_pids, gallery_pids
  )
  assert all(type(value) is float for value in got.values())


@pytest.mark.parametrize(
  'change',
  [
    {'query': np.zeros((37, 15))},
    {'query': np.zeros(37)},
    {'gallery': np.zeros((0, 16))},
    {'query_pids': np.zeros(36, int)},
    {'gallery_mask': np.ones(52, bool)},
  ],
)
def test_shapes_that_do_not_fit_are_named(change):
  names = ('query', 'gallery', 'query_pids', 'gallery_pids')
  arguments = dict(zip(names, random_case(14), strict=True)) | change
  with pytest.raises(ValueError, match='query|gallery'):
    retrieval.per_query(**arguments)
