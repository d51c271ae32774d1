"""How alike the tokens of an image are: what becomes of them in deep layers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def token_similarity(tokens: Float[Array, '*b n c']) -> Float[Array, '']:
  """Cosine of two different tokens of an image: mean over pairs and images.

  float32, in [-1, 1]; 1 where all tokens point one way. (arXiv 2109.03810:
  high in networks that train badly.) The sum over all pairs of unit vectors u
  is |sum u|², so that it costs n c rather than n² c:
  (|sum u|² - n) / (n (n - 1)).
  """
  unit = _unit(tokens)
  count = tokens.shape[-2]
  square = jnp.sum(jnp.sum(unit, axis=-2) ** 2, axis=-1)
  own = jnp.sum(unit**2, axis=(-2, -1))  # n, less for zero vectors
  return jnp.mean((square - own) / (count * (count - 1)))


def similarity_to_mean(tokens: Float[Array, '*b n c']) -> Float[Array, '']:
  """Cosine of a token and the mean token of its image: mean over all.

  float32, in [-1, 1]. (arXiv 2106.00515.)
  """
  mean = jnp.mean(tokens.astype(jnp.float32), axis=-2, keepdims=True)
  return jnp.mean(jnp.sum(_unit(tokens) * _unit(mean), axis=-1))


def _unit(x, epsilon=1e-12):
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, epsilon**2))
