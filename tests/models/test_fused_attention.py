"""The TPU kernel for short sequences, interpreted, against plain attention."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo import catalog, main
from jaxzoo.models.layers import fused_attention as fused
from jaxzoo.models.layers.attention import causal_mask, dot_product_attention
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes

KEYS = jax.random.split(jax.random.key(0), 5)


def padding(batch, keys):
  """The first sequence sees no key at all."""
  return (jnp.arange(keys) < 2 * jnp.arange(batch)[:, None])[:, None, None]


# name: (lead, queries, keys, heads, mask, bias)
CASES = {
  'plain': ((8,), 17, 17, 2, None, None),
  'across': ((8,), 7, 9, 4, None, None),
  'causal': ((8,), 9, 9, 2, causal_mask(9), None),
  'padding': ((8,), 9, 9, 2, padding(8, 9), None),
  'bias of heads': ((2, 4), 9, 9, 2, None, (1, 2, 9, 9)),
  'one bias': ((8,), 9, 9, 2, causal_mask(9), (9, 9)),
}
MESH = {'data': 2, 'fsdp': 2, 'tensor': 2}


@functools.cache
def arrays(name):
  lead, queries, keys, heads, mask, bias = CASES[name]
  draw = lambda i, *shape: jax.random.normal(KEYS[i], shape)
  inputs = [
    draw(0, *lead, queries, heads, 8),
    draw(1, *lead, keys, heads, 8),
    draw(2, *lead, keys, heads, 8),
  ]
  if bias is not None:
    inputs.append(draw(3, *bias))
  return inputs, mask, draw(4, *inputs[0].shape)


def results(function, name):
  """(the output, gradients of all inputs), compiled."""
  inputs, mask, weights = arrays(name)

  def loss(inputs):
    bias = inputs[3] if len(inputs) > 3 else None
    out = function(*inputs[:3], mask, bias)
    return (out * weights).sum(), out

  grads, out = jax.jit(jax.grad(loss, has_aux=True))(inputs)
  return out, grads


@pytest.fixture
def interpreted(monkeypatch):
  monkeypatch.setattr(fused, 'mode', lambda: 'interpret')


def close(got, want):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6),
    got,
    want,
  )


@pytest.mark.parametrize('name', CASES)
def test_kernel_equals_plain_attention(name, monkeypatch):
  want = results(dot_product_attention, name)
  monkeypatch.setattr(fused, 'mode', lambda: 'interpret')
  close(results(fused.attend, name), want)


@pytest.mark.parametrize('name', CASES)
def test_eight_devices_give_what_one_does(name, interpreted):
  want = results(fused.attend, name)
  with jax.set_mesh(meshes.make_mesh(MESH)):
    close(results(fused.attend, name), want)


def test_what_it_cannot_do_is_left_to_xla(interpreted):
  q = jnp.ones((4, 9, 2, 8))
  assert fused.attend(q, q, q) is not None
  by_head = jnp.ones((4, 2, 9, 9), bool)
  assert fused.attend(q, q, q, by_head) is None
  by_sequence = jnp.ones((4, 1, 9, 9))
  assert fused.attend(q, q, q, None, by_sequence) is None
  half = q.astype(jnp.float16)
  assert fused.attend(half, half, half) is None
  long = jnp.ones((1, 300, 2, 8))
  assert fused.attend(long, long, long) is None
  with jax.set_mesh(meshes.make_mesh(MESH)):
    three = jnp.ones((3, 9, 2, 8))  # over four devices
    assert fused.attend(three, three, three) is None


def test_elsewhere_it_is_not_used():
  q = jnp.ones((4, 9, 2, 8))
  assert fused.mode() == ''
  assert fused.attend(q, q, q) is None


def test_room_on_the_chip():
  published = functools.partial(fused.fits, itemsize=2)
  assert published(fused.Extent(1, 197, 197, 12, 64), biased=False)
  assert published(fused.Extent(1, 257, 257, 16, 64), biased=False)
  assert published(fused.Extent(1, 77, 77, 8, 64), biased=True)
  assert not published(fused.Extent(1, 577, 577, 16, 64), biased=False)
  assert not published(fused.Extent(1, 257, 257, 64, 64), biased=False)


def test_training_step_over_a_mesh_with_the_kernel(monkeypatch):
  """The step is lowered where the kernel finds the mesh."""
  config = catalog.get_config('clip:tiny').unlock()
  config.batch_size = 8
  seen = []

  def mode():
    mesh = jax.sharding.get_abstract_mesh()
    seen.append(dict(mesh.shape))
    return '' if mesh.empty else 'interpret'

  monkeypatch.setattr(fused, 'mode', mode)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  mesh = meshes.make_mesh(MESH)
  program = loop.lower_system(
    main.create_system(config, total_steps=2),
    jax.random.key(0),
    meshes.abstract_batch(
      jax.eval_shape(lambda: data.example_batch(config)), mesh
    ),
    mesh,
    catalog.sharding(config),
  )
  assert MESH in seen
  assert 'shard_map' in program.step.as_text() or 'manual' in (
    program.step.as_text()
  )
