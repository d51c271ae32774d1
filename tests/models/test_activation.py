"""Activations, their derivatives, and what they keep for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.layers.activation import gelu, quick_gelu

X = np.linspace(-8, 8, 4001, dtype=np.float32)
PLAIN = {
  gelu: lambda x: jax.nn.gelu(x, approximate=False),
  quick_gelu: lambda x: x * jax.nn.sigmoid(1.702 * x),
}


@pytest.mark.parametrize('lean', PLAIN)
def test_value_and_derivative(lean):
  plain = PLAIN[lean]
  np.testing.assert_allclose(lean(X), plain(X), rtol=1e-6, atol=1e-6)
  derive = lambda f: jax.vmap(jax.grad(f))(X)
  np.testing.assert_allclose(derive(lean), derive(plain), atol=2e-6)


def test_gelu_of_half_precision_is_rounded_once():
  x = jnp.asarray(X, jnp.bfloat16)
  want = PLAIN[gelu](x.astype(jnp.float32)).astype(jnp.bfloat16)
  got = gelu(x)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    got.astype(jnp.float32), want.astype(jnp.float32), rtol=2**-7, atol=1e-6
  )


@pytest.mark.parametrize('lean', PLAIN)
def test_only_the_input_is_kept(lean):
  x = jnp.asarray(X)
  kept = jax.tree.leaves(jax.vjp(lean, x)[1])
  assert sum(r.size for r in kept) == x.size
