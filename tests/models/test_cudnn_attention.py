"""cuDNN's attention: when it is asked, and what is asked of it."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.layers import cudnn_attention as cudnn
from jaxzoo.models.layers.attention import dot_product_attention, xla_attention


def draw(queries, keys, dtype=jnp.float32):
  shapes = [(2, 3, n, 2, 8) for n in (queries, keys, keys)]
  rngs = jax.random.split(jax.random.key(0), 3)
  return [
    jax.random.normal(rng, shape, dtype)
    for rng, shape in zip(rngs, shapes, strict=True)
  ]


@pytest.fixture
def gpu(monkeypatch):
  """A program for a GPU; what cuDNN would compute, XLA does."""
  real, calls = cudnn.padded, []

  def padded(*args):
    calls.append([x.shape for x in args[:3]])
    return real(*args, implementation='xla')

  monkeypatch.setattr(cudnn, 'platform', lambda: 'cuda')
  monkeypatch.setattr(cudnn, 'padded', padded)
  return calls


@pytest.mark.parametrize('lengths', [(7, 7), (4, 9)])
def test_padding_to_even_lengths_changes_nothing(lengths):
  q, k, v = (x[0] for x in draw(*lengths))

  def value(attend):
    loss = lambda q, k, v: (attend(q, k, v) ** 2).sum()
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

  got = value(lambda *args: cudnn.padded(*args, None, implementation='xla'))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    got,
    value(xla_attention),
  )


def test_gpus_take_it_for_half_precision_without_masks(gpu):
  q, k, v = draw(5, 5, jnp.bfloat16)
  out = dot_product_attention(q, k, v)
  assert gpu == [[(6, 5, 2, 8)] * 3]
  want = xla_attention(q, k, v)
  assert out.dtype == want.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    out.astype(jnp.float32), want.astype(jnp.float32), atol=0.05
  )
  mask = jnp.ones((1, 1, 5, 5), bool)
  dot_product_attention(q, k, v, mask)
  dot_product_attention(*draw(5, 5))  # float32
  odd = q[..., :4]  # heads of four
  dot_product_attention(odd, odd, odd)
  assert len(gpu) == 1


def test_cpus_never_ask_it(monkeypatch):
  monkeypatch.setattr(cudnn, 'padded', None)
  dot_product_attention(*draw(5, 5, jnp.bfloat16))


def test_where_it_is_missing_xla_computes_and_that_is_said_once(monkeypatch):
  monkeypatch.setattr(cudnn, 'platform', lambda: 'cuda')
  cudnn._say.cache_clear()
  arrays = draw(4, 4, jnp.bfloat16)
  # There is no cuDNN on a machine without a GPU's libraries.
  with pytest.warns(UserWarning, match='goes without cuDNN'):
    out = dot_product_attention(*arrays)
  np.testing.assert_array_equal(out, xla_attention(*arrays))
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    dot_product_attention(*arrays)
