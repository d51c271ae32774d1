"""The product of dense layers is that of flax, gradients included."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxzoo.models.layers import dense


def value_and_gradients(layer, x, towards):
  params = layer.init(jax.random.key(0), x)
  value, pull = jax.vjp(layer.apply, params, x)
  return value, pull(towards)


@pytest.mark.parametrize(
  ('make', 'shape'),
  [
    (lambda **o: nn.Dense(9, **o), (2, 3, 9)),
    (lambda **o: nn.Dense(2, **o), (2, 3, 2)),
    (lambda **o: nn.DenseGeneral((3, 4), **o), (2, 3, 3, 4)),
    (lambda **o: nn.DenseGeneral(5, axis=(-2, -1), **o), (2, 5)),
  ],
)
def test_value_and_gradients(make, shape):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 3, 6), np.float32)
  towards = rng.standard_normal(shape, np.float32)
  got = value_and_gradients(make(dot_general=dense.dot_general), x, towards)
  want = value_and_gradients(make(), x, towards)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
    got,
    want,
  )


def test_other_products_are_left_alone():
  x = np.ones((2, 3, 4), np.float32)
  numbers = (((2,), (2,)), ((0,), (0,)))  # of batches
  got = dense.dot_general(x, x, numbers)
  np.testing.assert_array_equal(got, jax.lax.dot_general(x, x, numbers))
