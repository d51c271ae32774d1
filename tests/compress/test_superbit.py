"""Super-bit quantisation: levels, gates, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.compress import superbit
from jaxzoo.errors import UserError

X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
SCALE = np.float32(1.2)


def quantize(x=X, thresholds=(0.0, 0.0), **options):
  options = dict(signed=True) | options
  return superbit.quantize(x, SCALE, jnp.array(thresholds), **options)


@pytest.mark.parametrize('bits', [(2, 4, 8), (1, 2, 4), (3, 6)])
def test_sums_of_offsets_are_the_direct_quantisations(bits):
  z = np.random.default_rng(1).uniform(size=1000).astype(np.float32)
  sums, offsets = superbit.decompose(jnp.asarray(z), bits)
  for b, level in zip(bits, sums, strict=True):
    steps = z.astype(np.float64) * (2**b - 1)
    clear = np.abs(steps % 1 - 0.5) > 1e-3  # no ties
    np.testing.assert_allclose(
      level[clear], (np.round(steps) / (2**b - 1))[clear], atol=1e-6
    )
  np.testing.assert_allclose(sum(offsets), sums[-1], atol=1e-6)


@pytest.mark.parametrize(
  'thresholds, width',
  [((9.0, 9.0), 2), ((9.0, 0.0), 2), ((0.0, 9.0), 4), ((0.0, 0.0), 8)],
)
def test_width_follows_the_gates(thresholds, width):
  found = quantize(thresholds=thresholds)
  assert found.width == width
  levels = np.unique(
    np.round((found.value / SCALE + 1) / 2 * (2**width - 1), 3)
  )
  assert len(levels) <= 2**width
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def test_signed_and_unsigned_values_stay_on_their_side():
  assert quantize(signed=False).value.min() == 0
  assert quantize(signed=True).value.min() == -SCALE
  # Zero is no level of the signed form, and a tie between the two nearest.
  zero = quantize(np.zeros(4, np.float32)).value
  np.testing.assert_allclose(np.abs(zero), SCALE / 255, rtol=1e-4)


def test_gradient_of_rounding_passes_and_of_clipping_stops():
  grad = jax.grad(lambda x: quantize(x).value.sum())(jnp.asarray(X))
  np.testing.assert_array_equal(grad, np.abs(X) <= SCALE)
  at = jnp.array([-1.0, 0.0, 1.0, 1.1])
  grad = jax.grad(lambda x: superbit.straight_clip(x, -1.0, 1.0).sum())(at)
  np.testing.assert_array_equal(grad, [1, 1, 1, 0])


def test_gradient_of_a_gate_is_that_of_a_sigmoid():
  sizes, threshold = jnp.array([0.1, 0.5]), jnp.float32(0.3)
  value, (to_size, to_threshold) = jax.value_and_grad(
    lambda s, t: (superbit.gate(s, t) * jnp.array([1.0, 2.0])).sum(), (0, 1)
  )(sizes, threshold)
  s = jax.nn.sigmoid(sizes - threshold)
  assert value == 2
  np.testing.assert_array_equal(to_size, 0)
  np.testing.assert_allclose(
    to_threshold, -(s * (1 - s) * jnp.array([1.0, 2.0])).sum(), rtol=1e-6
  )


def test_closed_gate_hides_the_finer_ones():
  loss = lambda t: quantize(thresholds=t).value.sum()
  grads = jax.grad(lambda t: superbit.quantize(
    X, SCALE, t, signed=True).value.sum())  # fmt: skip
  assert grads(jnp.array([9.0, 0.0]))[1] == 0
  assert grads(jnp.array([0.0, 0.0]))[1] != 0
  assert loss((9.0, 0.0)) == loss((9.0, 9.0))


def test_given_gates_hold_where_they_are_fixed():
  given = jnp.array([1.0, 0.0])
  for fixed, width in ((True, 4), (jnp.bool_(True), 4), (jnp.bool_(False), 8)):
    assert quantize(gates=given, fixed=fixed).width == width


def test_pruned_filters_are_zero_and_others_untouched():
  w = jnp.asarray(X).at[:, :2].multiply(1e-3)
  gates = superbit.filter_gates(w, jnp.float32(0.1), 2)
  np.testing.assert_array_equal(gates, [0, 1, 1, 1])
  pruned = superbit.prune_filters(quantize(w).value, gates)
  assert not pruned[:, :2].any() and pruned[:, 2:].all()
  with pytest.raises(UserError, match='divisor'):
    superbit.filter_gates(w, jnp.float32(0.1), 3)


def test_bits_that_are_not_doubled_are_an_error():
  with pytest.raises(UserError, match='twice'):
    superbit.decompose(jnp.zeros(3), (2, 3))
