"""Attention by products is softmax(q kᵀ / sqrt(d) + bias) v, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.layers.attention import xla_attention

QUERIES, KEYS = 5, 7


def plain(q, k, v, bias, mask):
  logits = jnp.einsum('bqhd,bkhd->bhqk', q, k) * q.shape[-1] ** -0.5
  if bias is not None:
    logits = logits + bias
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(logits), v)


def random(*shape):
  return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def masks():
  seen = np.random.default_rng(0).random((2, 1, QUERIES, KEYS)) < 0.6
  seen[0, 0, 2] = False  # sees nothing
  return {
    'none': None,
    'pairs': seen,
    'keys': seen[:, :, 1:2],
    'causal': np.tril(np.ones((1, 1, QUERIES, KEYS), bool)),
  }


@pytest.mark.parametrize('mask', masks())
@pytest.mark.parametrize(
  'bias', [None, (2, 3, QUERIES, KEYS), (3, QUERIES, KEYS), (1, 3, 1, KEYS)]
)
def test_value_and_gradients(mask, bias):
  mask = masks()[mask]
  arrays = [random(2, QUERIES, 3, 4), random(2, KEYS, 3, 4)]
  arrays += [random(2, KEYS, 3, 4) + 1, bias and random(*bias)]
  towards = random(2, QUERIES, 3, 4)
  ours = lambda q, k, v, bias: xla_attention(q, k, v, mask, bias)

  def value_and_gradients(attend):
    value, pull = jax.vjp(attend, *arrays)
    return value, pull(towards)

  got = jax.jit(lambda: value_and_gradients(ours))()
  want = value_and_gradients(lambda *x: plain(*x, mask))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6),
    got,
    want,
  )


def test_half_precision_stays_near():
  q, k, v = (random(2, n, 3, 4) for n in (QUERIES, KEYS, KEYS))
  half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
  loss = lambda attend, *x: attend(*x).astype(jnp.float32).sum()
  grads = jax.grad(lambda *x: loss(xla_attention, *x), (0, 1, 2))
  got, want = grads(*half), grads(*(x.astype(jnp.float32) for x in half))
  for x, y in zip(got, want, strict=True):
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.05)
