"""Max pooling by slices is XLA's, gradients and ties included."""

import jax
import numpy as np
import pytest

from jaxzoo.models.layers import pooling


@pytest.mark.parametrize(
  ('shape', 'size', 'stride', 'pad'),
  [
    ((2, 8, 10, 3), 3, 2, 1),
    ((3, 8, 10, 3), 3, 2, 1),
    ((1, 7, 9, 2), 3, 2, 1),
    ((1, 6, 6, 2), 2, 2, 0),
    ((1, 7, 8, 2), 3, 1, 1),
    ((1, 11, 9, 2), 3, 4, 0),  # places that no square sees
    ((1, 9, 9, 1), 5, 3, 2),
  ],
)
def test_value_and_gradient(shape, size, stride, pad):
  rng = np.random.default_rng(0)
  # Of few values, as after a ReLU: the first of equals has the gradient.
  x = rng.integers(0, 3, shape).astype(np.float32)
  value, pull = jax.vjp(lambda x: pooling.native(x, size, stride, pad), x)
  towards = rng.standard_normal(value.shape, np.float32)
  ours, ours_pull = jax.vjp(
    lambda x: pooling.by_slices(x, size, stride, pad), x
  )
  np.testing.assert_array_equal(ours, value)
  np.testing.assert_allclose(
    ours_pull(towards)[0], pull(towards)[0], rtol=1e-6, atol=1e-6
  )


def test_what_lies_outside_never_wins():
  x = -np.ones((1, 4, 4, 1), np.float32)
  np.testing.assert_array_equal(pooling.max_pool(x, 3, 2), -1)
