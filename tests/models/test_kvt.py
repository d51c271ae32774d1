"""k-NN attention: exactly k keys, ties by index, no gradient to the others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import kvt
from jaxzoo.models.create import build_model
from jaxzoo.models.layers.attention import dot_product_attention
from jaxzoo.models.layers.knn_attention import (
  kept_mass,
  knn_attention,
  knn_mask,
)
from jaxzoo.weights import layout

B, N, H, D = 2, 9, 3, 4
Q, K, V = (
  np.random.default_rng(0).normal(size=(3, B, N, H, D)).astype('float32')
)
TINY = dict(
  width=12, depth=2, num_heads=3, patch_size=4, num_classes=5, image_size=12
)


def brute_force(scores, k):
  """The k first of a stable sort from large to small."""
  order = np.argsort(-scores, axis=-1, kind='stable')[..., :k]
  mask = np.zeros(scores.shape, bool)
  np.put_along_axis(mask, order, True, axis=-1)
  return mask


@pytest.mark.parametrize('k', [1, 4, 8, 9])
@pytest.mark.parametrize('levels', [1, 2, 3, 1000])
def test_k_largest_are_kept_and_ties_go_to_the_lower_index(k, levels):
  rng = np.random.default_rng(levels)
  scores = rng.integers(-levels, levels, (50, 9)).astype(np.float32)
  got = np.asarray(jax.jit(functools.partial(knn_mask, k=k))(scores))
  np.testing.assert_array_equal(got, brute_force(scores, k))


def test_zeros_of_both_signs_are_ties():
  scores = np.array([[-0.0, 0.0, -0.0, 0.0, -1.0]], np.float32)
  for k in range(1, 6):
    np.testing.assert_array_equal(knn_mask(scores, k)[0], np.arange(5) < k)


def test_infinite_and_tiny_scores_are_in_order():
  scores = [-np.inf, -1e-30, 1e-30, np.inf, -3e38, 0.0, 1.0, np.inf]
  scores = np.array([scores], np.float32)
  for k in range(1, 9):
    got = np.asarray(knn_mask(scores, k))
    assert got.sum() == k
    assert scores[got].min() >= scores[~got].max(initial=-np.inf)


def test_with_all_keys_it_is_the_dense_attention():
  got = knn_attention(Q, K, V, k=N)
  np.testing.assert_allclose(got, dot_product_attention(Q, K, V), atol=1e-6)


def test_weights_are_a_softmax_over_the_kept_keys():
  k = 4
  scores = np.einsum('bqhd,bkhd->bhqk', Q, K) / np.sqrt(D)
  weights = np.where(brute_force(scores, k), np.exp(scores), 0)
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum('bhqk,bkhd->bqhd', weights, V)
  np.testing.assert_allclose(knn_attention(Q, K, V, k=k), want, atol=1e-5)


def test_what_is_not_kept_gets_no_gradient():
  q, k, v = Q[:1, :1, :1], K[:1, :, :1], V[:1, :, :1]
  kept = knn_mask(np.einsum('bqhd,bkhd->bhqk', q, k), 4)[0, 0, 0]
  loss = lambda k, v: jnp.sum(knn_attention(q, k, v, k=4)[..., 0])
  for grad in jax.grad(loss, (0, 1))(k, v):
    moved = np.abs(grad[0, :, 0]).max(-1) > 0
    np.testing.assert_array_equal(moved, kept)


def test_gradient_is_that_of_finite_differences():
  rng = np.random.default_rng(1)
  weight = rng.normal(size=Q.shape).astype(np.float32)
  loss = lambda q, k, v: jnp.sum(weight * knn_attention(q, k, v, k=4))
  check_grads(
    loss, (Q, K, V), order=1, modes=['rev'], eps=1e-3, atol=5e-2, rtol=5e-2
  )


def test_order_of_the_keys_does_not_matter():
  turn = np.random.default_rng(2).permutation(N)
  got = knn_attention(Q, K[:, turn], V[:, turn], k=4)
  np.testing.assert_allclose(got, knn_attention(Q, K, V, k=4), atol=1e-5)


def test_masked_keys_are_never_among_the_k():
  mask = np.arange(N) < 6
  got = knn_attention(Q, K, V, mask, k=4)
  want = knn_attention(Q, K[:, :6], V[:, :6], k=4)
  np.testing.assert_allclose(got, want, atol=1e-6)
  few = knn_attention(Q, K, V, np.arange(N) < 2, k=4)
  want = dot_product_attention(Q, K[:, :2], V[:, :2])
  np.testing.assert_allclose(few, want, atol=1e-6)


def test_bias_takes_part_in_the_choice():
  bias = np.where(np.arange(N) == 5, 100.0, 0.0).astype(np.float32)
  got = knn_attention(Q, K, V, bias=bias, k=1)
  np.testing.assert_allclose(got, np.broadcast_to(V[:, 5:6], V.shape))


@pytest.mark.parametrize('k', [0, N + 1])
def test_impossible_numbers_of_keys_are_errors(k):
  with pytest.raises(UserError, match='knn'):
    knn_attention(Q, K, V, k=k)


def test_batch_and_heads_shard_without_a_collective():
  mesh = jax.make_mesh((2, 4), ('data', 'tensor'))
  where = NamedSharding(mesh, PartitionSpec('data', None, 'tensor', None))
  shape = jax.ShapeDtypeStruct((2, N, 4, D), jnp.float32, sharding=where)
  loss = lambda *x: knn_attention(*x, k=4) * 2
  step = jax.jit(
    lambda *x: jax.vjp(loss, *x)[1](x[0]), out_shardings=(where,) * 3
  )
  text = step.lower(shape, shape, shape).compile().as_text()
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'permute'):
    assert collective not in text


def test_kept_mass_is_one_with_all_keys_and_at_least_the_share_of_the_keys():
  masses = [float(kept_mass(Q, K, k)) for k in (2, 5, N)]
  assert masses == sorted(masses)
  np.testing.assert_allclose(masses[-1], 1, rtol=1e-6)
  assert masses[0] > 2 / N
  equal = kept_mass(np.zeros_like(Q), K, 3)
  np.testing.assert_allclose(equal, 3 / N, rtol=1e-6)


def filled(built, seed=0):
  shapes = jax.eval_shape(
    lambda: built.module.init(
      jax.random.key(0), *(jnp.zeros(x.shape) for x in built.inputs)
    )
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )


def test_weights_of_a_deit_are_those_of_its_knn_network():
  host = build_model('deit_tiny_patch16_224', **TINY)
  whole = build_model('kvt_deit_tiny_patch16_224', knn=10, **TINY)
  few = build_model('kvt_deit_tiny_patch16_224', knn=4, **TINY)
  variables = filled(host)
  state_dict = host.export(variables)
  image = np.random.default_rng(3).normal(size=(2, 12, 12, 3))
  run = lambda built: built.module.apply(built.convert(state_dict), image)
  np.testing.assert_allclose(run(whole), run(host), rtol=1e-4, atol=1e-4)
  assert np.abs(run(few) - run(host)).max() > 1e-2


def test_kept_masses_are_one_a_layer_scanned_or_not():
  image = np.random.default_rng(3).normal(size=(2, 12, 12, 3))
  unrolled = build_model('kvt_deit_tiny_patch16_224', knn=4, **TINY)
  scanned = build_model('kvt_deit_tiny_patch16_224', knn=4, scan=True, **TINY)
  state_dict = unrolled.export(filled(unrolled))
  got = kvt.kept_masses(unrolled.module, unrolled.convert(state_dict), image)
  assert got.shape == (2,) and np.all((got > 0.4) & (got <= 1))
  stacked = layout.to_layout(scanned.convert(state_dict), filled(scanned))
  again = kvt.kept_masses(scanned.module, stacked, image)
  np.testing.assert_allclose(again, got, rtol=1e-4)


def test_more_keys_than_tokens_is_an_error_that_says_how_many():
  with pytest.raises(UserError, match='10 tokens'):
    build_model('kvt_deit_tiny_patch16_224', **TINY)
