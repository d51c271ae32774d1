"""Large-batch losses are the plain ones, in value and in gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxzoo.models.losses import contrastive, large_batch

RNG = np.random.default_rng(0)
B, D = 16, 6
IMAGE, TEXT = (RNG.standard_normal((B, D)).astype(np.float32) for _ in range(2))
PID = RNG.integers(0, 5, B).astype(np.int32)
SCALE = 12.0


def plain(name, image, text, scale):
  similarity = contrastive.cosine_similarity(image, text)
  if name == 'info_nce':
    return contrastive.info_nce(similarity, scale)
  if name == 'sdm':
    return contrastive.sdm(similarity, PID, scale)
  logits = scale * similarity - 3.0
  sign = 2 * jnp.eye(B) - 1
  return jax.nn.softplus(-sign * logits).sum() / B


def chunked(name, image, text, scale, chunk):
  if name == 'info_nce':
    return large_batch.chunked_info_nce(image, text, scale, chunk=chunk)
  if name == 'sdm':
    return large_batch.chunked_sdm(image, text, PID, scale, chunk=chunk)
  return large_batch.chunked_sigmoid(image, text, scale, -3.0, chunk=chunk)


def ring(name, image, text, scale, devices):
  mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
  if name == 'info_nce':
    function = lambda i, t, p, s: large_batch.ring_info_nce(
      i, t, s, axis='data'
    )
  else:
    function = lambda i, t, p, s: large_batch.ring_sdm(i, t, p, s, axis='data')
  cut = P('data')
  return jax.shard_map(
    function, mesh=mesh, in_specs=(cut, cut, cut, P()), out_specs=P()
  )(image, text, PID, scale)


def assert_equal(function, name):
  both = lambda f: jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(
    IMAGE, TEXT, jnp.float32(SCALE)
  )
  got = both(function)
  want = both(functools.partial(plain, name))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6),
    got,
    want,
  )


@pytest.mark.parametrize('chunk', [1, 4, B])
@pytest.mark.parametrize('name', ['info_nce', 'sdm', 'sigmoid'])
def test_chunks_change_nothing(name, chunk):
  assert_equal(functools.partial(chunked, name, chunk=chunk), name)


@pytest.mark.parametrize('devices', [1, 4, 8])
@pytest.mark.parametrize('name', ['info_nce', 'sdm'])
def test_rings_change_nothing(name, devices):
  assert_equal(functools.partial(ring, name, devices=devices), name)


def test_batch_that_makes_no_whole_chunks_is_refused():
  with pytest.raises(ValueError, match='chunks of 5'):
    large_batch.chunked_info_nce(IMAGE, TEXT, SCALE, chunk=5)


def temporaries(function, *shapes):
  lowered = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*shapes)
  return lowered.compile().memory_analysis().temp_size_in_bytes


def test_memory_follows_the_chunk_and_not_the_batch():
  b, chunk = 2048, 64
  shape = jax.ShapeDtypeStruct((b, 16), jnp.float32)
  plain = temporaries(
    lambda i, t: contrastive.info_nce(
      contrastive.cosine_similarity(i, t), SCALE
    ),
    shape,
    shape,
  )
  small = temporaries(
    lambda i, t: large_batch.chunked_info_nce(i, t, SCALE, chunk=chunk),
    shape,
    shape,
  )
  assert plain > 4 * b * b  # the whole matrix at least
  assert small < plain / 8


def test_memory_of_a_ring_does_not_grow_with_its_devices():
  rows, found = 64, []
  for devices in (2, 8):
    mesh = Mesh(np.array(jax.devices()[:devices]), ('data',))
    loss = jax.shard_map(
      lambda i, t: large_batch.ring_info_nce(i, t, SCALE, axis='data'),
      mesh=mesh,
      in_specs=(P('data'), P('data')),
      out_specs=P(),
    )
    shape = jax.ShapeDtypeStruct((rows * devices, 16), jnp.float32)
    found.append(temporaries(loss, shape, shape))
  # But for what is kept of each hop: the texts that went through.
  assert found[1] < found[0] + 8 * 6 * rows * (16 + 8) * 4
