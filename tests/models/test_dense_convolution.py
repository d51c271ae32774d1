"""A convolution with gradients of its own."""

import itertools

import jax
import numpy as np
import pytest

from jaxzoo.models.layers import convolution, dense_convolution
from jaxzoo.models.layers.dense_convolution import Form
from jaxzoo.train.mesh import make_mesh

FORMS = {
  'plain': (3, Form(padding=((1, 1), (1, 1)))),
  'strided': (3, Form((2, 2), ((1, 1), (1, 1)))),
  'stem': (7, Form((2, 2), ((3, 3), (3, 3)))),
  'dilated': (3, Form((1, 1), ((2, 2), (2, 2)), (2, 2))),
  'one-sided': (3, Form((2, 1), ((0, 1), (1, 0)))),
  'patches': (3, Form((3, 3))),
  'pointwise': (1, Form()),
  'shortcut': (1, Form((2, 2))),
}
# Of maps: larger than the kernels, and smaller.
SIZES = ((12, 9), (4, 3))


@pytest.mark.parametrize(
  ('kind', 'shape'),
  [
    *itertools.product(FORMS, SIZES[:1]),
    *itertools.product(('plain', 'strided', 'stem', 'dilated'), SIZES[1:]),
    # A kernel larger than its map's gradient.
    *itertools.product(('plain', 'strided', 'dilated'), [(2, 1)]),
    ('one-sided', (3, 2)),
  ],
)
def test_gradients_are_those_of_the_convolution(kind, shape):
  size, form = FORMS[kind]
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, *shape, 3), np.float32)
  kernel = rng.standard_normal((size, size, 3, 2), np.float32)

  def result_and_gradients(convolve):
    result, pull = jax.vjp(lambda *a: convolve(*a, form), x, kernel)
    return result, *pull(jax.numpy.cos(result))

  got = result_and_gradients(dense_convolution.convolution)
  want = result_and_gradients(dense_convolution.native)
  for ours, theirs in zip(got, want, strict=True):
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def program_of(layer, x) -> str:
  return str(
    jax.make_jaxpr(
      lambda x: jax.grad(
        lambda v: (layer.apply(v, x) ** 2).astype(jax.numpy.float32).sum()
      )(layer.init(jax.random.key(0), x))
    )(x)
  )


def conv(size, **options):
  return convolution.conv(32, size, name='conv', **options)


def test_gradients_have_the_axes_of_the_forward_pass_on_one_cpu():
  """Others are slow inside of the loops and branches of a program."""
  x = np.zeros((2, 8, 8, 32), np.float32)
  forward = 'ConvDimensionNumbers(lhs_spec=(0, 3, 1, 2), rhs_spec=(3, 2, 0, 1)'
  specs = lambda *args: program_of(*args).count('lhs_spec')
  plain = lambda *args: program_of(*args).count(forward)
  assert specs(conv(3), x) == plain(conv(3), x) > 1
  assert plain(conv(3, groups=2), x) < specs(conv(3, groups=2), x)
  with jax.set_mesh(make_mesh({'data': 8})):
    assert plain(conv(3), x) < specs(conv(3), x)


def test_a_map_smaller_than_the_kernel_stays_the_map():
  """The compiler would convolve the kernel with it: many times slower."""
  turned = lambda side: (
    jax.jit(
      lambda x, kernel: dense_convolution.convolution(
        x, kernel, FORMS['plain'][1]
      )
    )
    .lower(np.zeros((8, side, side, 16), 'f'), np.zeros((3, 3, 16, 16), 'f'))
    .compile()
    .as_text()
    .count('rhs_reversal')
  )
  assert [turned(side) for side in (1, 2, 3, 4)] == [0] * 4


def test_examples_can_be_mapped_over():
  """Gradients of each example, as influence functions take them."""
  rng = np.random.default_rng(0)
  x = rng.standard_normal((3, 1, 16, 16, 2), np.float32)
  kernel = rng.standard_normal((3, 3, 2, 4), np.float32)
  form = Form(padding=((1, 1), (1, 1)))
  gradient = lambda convolve: jax.vmap(
    jax.grad(lambda k, x: (convolve(x, k, form) ** 2).sum()), (None, 0)
  )(kernel, x)
  np.testing.assert_allclose(
    gradient(dense_convolution.convolution),
    gradient(dense_convolution.native),
    rtol=1e-4,
    atol=1e-3,
  )
