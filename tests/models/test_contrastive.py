"""Properties of the losses on similarity matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxzoo.models.losses import contrastive

BATCH, WIDTH, SCALE = 6, 5, 4.0
PID = np.array([3, 3, 1, 7, 1, 9], np.int32)


def features(seed=0, batch=BATCH):
  rng = np.random.default_rng(seed)
  draw = lambda: jnp.asarray(rng.standard_normal((batch, WIDTH)), jnp.float32)
  return draw(), draw()


def soft_sdm(a, b, pid):
  labels = contrastive.identity_labels(pid, jnp.arange(len(pid)) // 2)
  similarity = contrastive.cosine_similarity(a, b)
  return contrastive.sdm(similarity, None, SCALE, labels=labels)


# Every loss as a function of raw features and identities.
LOSSES = {
  'info_nce': lambda a, b, pid: contrastive.info_nce(
    contrastive.cosine_similarity(a, b), SCALE
  ),
  'sdm': lambda a, b, pid: contrastive.sdm(
    contrastive.cosine_similarity(a, b), pid, SCALE
  ),
  'sdm_soft': soft_sdm,
  'cmpm': contrastive.cmpm,
  'identity': lambda a, b, pid: contrastive.identity_loss(a, b, pid % WIDTH),
}
each_loss = pytest.mark.parametrize('name', LOSSES)


@each_loss
def test_gradient_equals_finite_differences(name):
  loss = lambda a, b: LOSSES[name](a, b, PID)
  check_grads(loss, features(), order=1, modes=['rev'], atol=0.02, rtol=0.02)


@pytest.mark.parametrize('name', [n for n in LOSSES if n != 'sdm_soft'])
def test_loss_does_not_depend_on_the_order_of_the_batch(name):
  a, b = features()
  order = np.random.default_rng(1).permutation(BATCH)
  np.testing.assert_allclose(
    LOSSES[name](a, b, PID),
    LOSSES[name](a[order], b[order], PID[order]),
    rtol=1e-5,
  )


@each_loss
def test_loss_does_not_depend_on_which_modality_comes_first(name):
  a, b = features()
  np.testing.assert_allclose(
    LOSSES[name](a, b, PID), LOSSES[name](b, a, PID), rtol=1e-5
  )


@each_loss
def test_bfloat16_features_give_a_float32_loss(name):
  a, b = features()
  low = LOSSES[name](a.astype(jnp.bfloat16), b.astype(jnp.bfloat16), PID)
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(low, LOSSES[name](a, b, PID), rtol=0.05)


@each_loss
def test_one_pair_gives_a_finite_loss_and_gradient(name):
  a, b = features(batch=1)
  value, grads = jax.value_and_grad(LOSSES[name], (0, 1))(a, b, PID[:1])
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize('name', ['info_nce', 'sdm', 'sdm_soft'])
def test_cosine_losses_ignore_the_length_of_features(name):
  a, b = features()
  np.testing.assert_allclose(
    LOSSES[name](a, b, PID), LOSSES[name](3 * a, 0.2 * b, PID), rtol=1e-4
  )


def test_cosine_similarity_equals_numpy():
  a, b = features()
  want = np.array(
    [[x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b] for x in a]
  )
  np.testing.assert_allclose(
    contrastive.cosine_similarity(a, b), want, atol=1e-6
  )


def test_zero_vector_has_similarity_zero_and_a_finite_gradient():
  a, b = features()
  a = a.at[0].set(0)
  similarity = contrastive.cosine_similarity(a, b)
  assert (similarity[0] == 0).all()
  grad = jax.grad(lambda a: contrastive.cosine_similarity(a, b).sum())(a)
  assert np.isfinite(grad).all()


def test_info_nce_is_log_batch_without_information():
  loss = contrastive.info_nce(jnp.full((BATCH, BATCH), 0.3), SCALE)
  np.testing.assert_allclose(loss, np.log(BATCH), rtol=1e-6)


def test_info_nce_counts_images_and_texts_equally():
  similarity = contrastive.cosine_similarity(*features())
  rows = lambda s: -np.mean(np.diag(jax.nn.log_softmax(SCALE * s, axis=1)))
  np.testing.assert_allclose(
    contrastive.info_nce(similarity, SCALE),
    (rows(similarity) + rows(similarity.T)) / 2,
    rtol=1e-6,
  )


def test_sdm_vanishes_where_similarity_follows_identity():
  same = (PID[:, None] == PID[None, :]).astype(np.float32)
  loss = contrastive.sdm(jnp.asarray(same), PID, 100.0)
  np.testing.assert_allclose(loss, 0, atol=1e-5)


def test_sdm_weighs_mass_on_other_identities_by_log_epsilon():
  # Two identities; image and text vectors tell nothing, so half of every row's
  # mass lies on the other identity: log(1/2) - (log 1 + log epsilon) / 2.
  loss = contrastive.sdm(
    jnp.zeros((2, 2)), jnp.array([0, 1]), SCALE, epsilon=1e-8
  )
  want = 2 * (np.log(0.5) - 0.5 * np.log(1e-8))
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_sdm_with_soft_labels_divides_columns_as_the_released_code():
  similarity = np.asarray(contrastive.cosine_similarity(*features()))
  labels = np.asarray(contrastive.identity_labels(PID, np.arange(BATCH) // 2))
  want = 0.0
  for s in (similarity, similarity.T):
    p = np.exp(SCALE * s) / np.exp(SCALE * s).sum(1, keepdims=True)
    q = np.array(
      [
        [labels[i, j] / labels[j].sum() for j in range(BATCH)]
        for i in range(BATCH)
      ]
    )
    want += (p * (np.log(p) - np.log(q + 1e-8))).sum(1).mean()
  got = contrastive.sdm(similarity, None, SCALE, labels=labels)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_identity_labels_are_one_for_an_image_and_less_for_its_identity():
  labels = contrastive.identity_labels(
    np.array([0, 0, 0, 1]), np.array([5, 5, 6, 7]), same_identity=0.3
  )
  want = [[1, 1, 0.3, 0], [1, 1, 0.3, 0], [0.3, 0.3, 1, 0], [0, 0, 0, 1]]
  np.testing.assert_allclose(labels, want)


def test_cmpm_grows_with_the_length_of_features():
  # Unlike the cosine losses: projections are not normalised.
  a, b = features()
  assert LOSSES['cmpm'](3 * a, 3 * b, PID) != LOSSES['cmpm'](a, b, PID)


def test_identity_loss_averages_both_modalities():
  zeros = jnp.zeros((2, 4))
  sure = 100.0 * jax.nn.one_hot(jnp.array([1, 2]), 4)
  loss = contrastive.identity_loss(sure, zeros, jnp.array([1, 2]))
  np.testing.assert_allclose(loss, np.log(4) / 2, rtol=1e-6)


def test_in_batch_top1_accepts_another_caption_of_the_same_identity():
  similarity = jnp.array([[0.1, 0.9, 0.0], [0.0, 0.2, 0.9], [0.0, 0.0, 1.0]])
  top1 = contrastive.in_batch_top1(similarity, jnp.array([4, 4, 5]))
  np.testing.assert_allclose(top1, 2 / 3, rtol=1e-6)
