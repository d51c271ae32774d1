"""Depth-wise convolution by shifts is the convolution that XLA has."""

import jax
import numpy as np
import pytest

from jaxzoo.models.layers import convolution
from jaxzoo.models.layers.convolution import convolve
from jaxzoo.models.layers.dense_convolution import Form
from jaxzoo.models.layers.depthwise import depthwise, native

FORMS = {
  'plain': (3, Form(padding=((1, 1), (1, 1)))),
  'strided': (3, Form((2, 2), ((1, 1), (1, 1)))),
  'large': (5, Form((2, 2), ((2, 2), (2, 2)))),
  'dilated': (3, Form((1, 1), ((2, 2), (2, 2)), (2, 2))),
  'one-sided': (3, Form((2, 1), ((0, 1), (1, 0)))),
  'unpadded': (3, Form((3, 3))),
}


@pytest.mark.parametrize('kind', FORMS)
def test_result_and_gradients_are_those_of_the_convolution(kind):
  size, form = FORMS[kind]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, 11, 8, 3), np.float32)
  kernel = rng.standard_normal((size, size, 1, 3), np.float32)

  @jax.jit
  def both(x, kernel):
    ours, pull = jax.vjp(lambda *a: depthwise(*a, form), x, kernel)
    theirs, pull_theirs = jax.vjp(lambda *a: native(*a, form), x, kernel)
    weights = jax.numpy.cos(theirs)
    return (ours, *pull(weights)), (theirs, *pull_theirs(weights))

  for got, want in zip(*both(x, kernel), strict=True):
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_summed_in_float32():
  x = np.full((1, 33, 33, 1), 1.0)
  kernel = np.full((33, 33, 1, 1), 1.0)
  as_bfloat16 = lambda y: jax.numpy.asarray(y, 'bfloat16')
  y = depthwise(as_bfloat16(x), as_bfloat16(kernel), Form())
  assert y.dtype == 'bfloat16'
  # 1089 to the 8 bits of a bfloat16; sums of bfloat16 would stop at 256.
  assert abs(float(y[0, 0, 0, 0]) - 1089) <= 4


@pytest.mark.parametrize(
  'groups, expected', [(4, True), (2, False), (1, False)]
)
def test_a_layer_takes_it_where_every_channel_is_by_itself(groups, expected):
  layer = convolution.conv(4, 3, groups=groups, name='conv')
  x = np.zeros((1, 6, 6, 4), np.float32)
  program = jax.make_jaxpr(
    lambda x: layer.init_with_output(jax.random.key(0), x)[0]
  )(x)
  assert ('name=depthwise' in str(program)) == expected


def test_other_convolutions_pass_through():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((1, 6, 6, 1), np.float32)
  kernel = rng.standard_normal((3, 3, 1, 1), np.float32)
  arguments = ((1, 1), ((1, 1), (1, 1)))
  names = dict(dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  got = convolve(x, kernel, *arguments, **names)
  want = jax.lax.conv_general_dilated(x, kernel, *arguments, **names)
  np.testing.assert_array_equal(got, want)


def test_the_gradient_of_a_maximum_goes_to_one_of_equals():
  parts = [np.float32([1, 2, 5]), np.float32([3, 2, 4]), np.float32([0, 2, 6])]
  np.testing.assert_array_equal(convolution.largest(parts), [3, 2, 6])
  grads = jax.grad(lambda x: convolution.largest(x).sum())(parts)
  np.testing.assert_array_equal(grads, [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
