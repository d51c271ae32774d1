"""FLOPs against counts by hand, and what must and must not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import pallas
from jax.sharding import Mesh, PartitionSpec

from jaxzoo import catalog, runs
from jaxzoo.system import alternate, from_loss
from jaxzoo.train.flops import count_flops, training_flops


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


# Single operations.


def test_matrix_product_is_2mkn():
  assert count_flops(jnp.matmul, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7


@pytest.mark.parametrize(
  'subscripts, a, b, want',
  [
    ('bqhd,bkhd->bhqk', (2, 5, 3, 4), (2, 6, 3, 4), 2 * 2 * 3 * 5 * 6 * 4),
    ('bhqk,bkhd->bqhd', (2, 3, 5, 6), (2, 6, 3, 4), 2 * 2 * 3 * 5 * 6 * 4),
    ('bd,bd->b', (7, 9), (7, 9), 2 * 7 * 9),
    ('abc,bcd->ad', (2, 3, 4), (3, 4, 5), 2 * 2 * 3 * 4 * 5),
  ],
)
def test_batched_product_counts_every_axis_once(subscripts, a, b, want):
  einsum = functools.partial(jnp.einsum, subscripts)
  assert count_flops(einsum, array(*a), array(*b)) == want


def convolve(x, w, **options):
  return jax.lax.conv_general_dilated(
    x,
    w,
    **{'window_strides': (1, 1), 'padding': 'SAME', **options},
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )


@pytest.mark.parametrize(
  'options, weights, outputs',
  [
    ({}, (3, 3, 4, 8), 2 * 6 * 6 * 8),
    ({'window_strides': (2, 2)}, (3, 3, 4, 8), 2 * 3 * 3 * 8),
    ({'padding': 'VALID'}, (3, 3, 4, 8), 2 * 4 * 4 * 8),
    ({'feature_group_count': 4}, (3, 3, 1, 8), 2 * 6 * 6 * 8),
    ({'batch_group_count': 2}, (3, 3, 4, 8), 1 * 6 * 6 * 8),
  ],
  ids=str,
)
def test_convolution_is_2_outputs_times_the_window(options, weights, outputs):
  height, width, channels, _ = weights
  got = count_flops(
    functools.partial(convolve, **options), array(2, 6, 6, 4), array(*weights)
  )
  assert got == 2 * outputs * height * width * channels


def test_transposed_convolution_costs_as_much_as_the_one_it_transposes():
  weights = np.zeros((2, 2, 4, 8), np.float32)
  forward = lambda x: convolve(
    x, weights, window_strides=(2, 2), padding='VALID'
  )
  backward = lambda y: jax.linear_transpose(forward, array(2, 6, 6, 4))(y)
  want = 2 * (2 * 3 * 3 * 8) * 2 * 2 * 4
  assert count_flops(forward, array(2, 6, 6, 4)) == want
  assert count_flops(backward, array(2, 3, 3, 8)) == want


def test_elementwise_operations_and_gathers_are_free():
  assert count_flops(lambda x: jax.nn.softmax(x)[jnp.arange(2)], array(3)) == 0


# Control flow.


def square(x, _=None):
  return x @ x, None


def test_scan_multiplies_by_its_length_also_nested():
  inner = lambda x, _: jax.lax.scan(square, x, None, length=5)
  outer = lambda x: jax.lax.scan(inner, x, None, length=3)[0]
  assert count_flops(outer, array(4, 4)) == 15 * 2 * 4**3


def test_loop_over_a_fixed_range_multiplies():
  loop = lambda x: jax.lax.fori_loop(0, 6, lambda _, x: x @ x, x)
  assert count_flops(loop, array(4, 4)) == 6 * 2 * 4**3


def test_cond_counts_its_most_expensive_branch():
  branches = [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x]
  switch = lambda i, x: jax.lax.switch(i, branches, x)
  index = jax.ShapeDtypeStruct((), jnp.int32)
  assert count_flops(switch, index, array(4, 4)) == 2 * 2 * 4**3


def test_while_loop_counts_one_round():
  loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ x, x)
  assert count_flops(loop, array(4, 4)) == 2 * 4**3


def test_body_of_shard_map_counts_on_every_device():
  mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ('a', 'b'))
  product = jax.shard_map(
    jnp.matmul,
    mesh=mesh,
    in_specs=(PartitionSpec('a'), PartitionSpec(None, 'b')),
    out_specs=PartitionSpec('a', 'b'),
  )
  assert count_flops(product, array(8, 4), array(4, 6)) == 2 * 8 * 4 * 6


def test_body_of_a_kernel_counts_at_every_point_of_the_grid():
  def kernel(x, y, out):
    out[...] = x[...] @ y[...]

  product = pallas.pallas_call(
    kernel,
    out_shape=array(8, 8),
    grid=(2, 4),
    in_specs=[
      pallas.BlockSpec((4, 8), lambda i, j: (i, 0)),
      pallas.BlockSpec((8, 2), lambda i, j: (0, j)),
    ],
    out_specs=pallas.BlockSpec((4, 2), lambda i, j: (i, j)),
    interpret=True,
  )
  assert count_flops(product, array(8, 8), array(8, 8)) == 2 * 8**3


@jax.custom_vjp
def own(x):
  return x @ x


own.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x.T + x.T @ g,))


@pytest.mark.parametrize(
  'wrap',
  [jax.jit, jax.checkpoint, jax.vmap, lambda _: own],
  ids=['jit', 'checkpoint', 'vmap', 'custom_vjp'],
)
def test_wrapped_function_counts_once(wrap):
  shape = (3, 4, 4) if wrap is jax.vmap else (4, 4)
  want = 2 * 4**3 * (3 if wrap is jax.vmap else 1)
  assert count_flops(wrap(lambda x: x @ x), array(*shape)) == want


def test_what_no_result_needs_does_not_count():
  def wasteful(x):
    useless = x @ x @ x
    return jax.lax.scan(lambda c, _: ((c[0] @ x, c[1] @ useless), None),
                        (x, x), None, length=3)[0][0]  # fmt: skip

  assert count_flops(wasteful, array(4, 4)) == 3 * 2 * 4**3


def test_forward_of_rematerialised_layers_counts_once():
  def loss(x, remat):
    layer = lambda x, _: (jnp.tanh(x @ x), None)
    layer = jax.checkpoint(layer) if remat else layer
    return jax.lax.scan(layer, x, None, length=5)[0].sum()

  value = lambda x, remat: jax.value_and_grad(loss)(x, remat)[0]
  both = lambda x, remat: jax.value_and_grad(loss)(x, remat)
  forward = 5 * 2 * 4**3
  for remat in (False, True):
    wrt = lambda function, remat=remat: functools.partial(function, remat=remat)
    assert count_flops(wrt(value), array(4, 4)) == forward
    # The hardware's count, which model FLOPs are not.
    assert count_flops(wrt(both), array(4, 4)) == forward * (3 + remat)


# Systems.


def two_layers(microbatches=1):
  def loss(params, extra, batch, rng):
    hidden = jnp.tanh(batch['x'] @ params['a'])
    return jnp.mean((hidden @ params['b']) ** 2), (extra, {})

  params = {'a': jnp.ones((5, 7)), 'b': jnp.ones((7, 3))}
  return from_loss(
    lambda *_: (params, {}),
    loss,
    None,
    optax.contrib.muon(0.1),
    microbatches=microbatches,
  )


@pytest.mark.parametrize('microbatches', [1, 2])
def test_training_is_three_forwards_and_no_optimizer(microbatches):
  system, batch = two_layers(microbatches), {'x': array(4, 5)}
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  want = 3 * 2 * 4 * (5 * 7 + 7 * 3)
  assert training_flops(system, state, batch) == want


def test_players_without_a_common_loss_count_as_they_run():
  loss = lambda own, *_: (jnp.sum(own @ own), ({}, {}))
  system = alternate(
    lambda *_: ({'a': jnp.ones((4, 4)), 'b': jnp.ones((4, 4))}, {}),
    {'a': loss, 'b': loss},
    None,
    {'a': optax.sgd(0.1), 'b': optax.sgd(0.1)},
  )
  state = jax.eval_shape(system.init, jax.random.key(0), {})
  assert training_flops(system, state, {}) == 2 * 3 * 2 * 4**3


def flops_of(name, **overrides):
  config = catalog.get_config(name)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  config.update(overrides)
  system = runs.build_system(config, optax.sgd(0.1))
  batch = jax.eval_shape(lambda: data.example_batch(config))
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  return config, training_flops(system, state, batch)


def transformer_flops(tokens, width, depth):
  """Forward, one sample: 24 w^2 a token and block, and 4 n^2 w a block."""
  return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def test_published_irra_counts_what_its_layers_need():
  config, got = flops_of('irra:cuhk_pedes')
  b, n, t, d = config.batch_size, 193, 77, 512
  image = 2 * 192 * (16 * 16 * 3) * 768 + transformer_flops(n, 768, 12)
  image += 2 * n * 768 * d
  text = transformer_flops(t, d, 12) + 2 * t * d * d
  # MHA with n keys for t queries, four blocks, the head at 24 words a caption.
  reasoning = 4 * t * d**2 + 4 * n * d**2 + 4 * t * n * d
  reasoning += transformer_flops(t, d, 4)
  head = 24 * (2 * d * d + 2 * d * 49408)
  classifier = 2 * 2 * d * config.num_classes
  similarity = 2 * b * d
  sample = image + text + reasoning + head + classifier + similarity
  assert got == 3 * b * sample


@pytest.mark.parametrize('scan', [False, True])
def test_layout_and_rematerialisation_change_no_model_flops(scan):
  _, want = flops_of('cfam:tiny', scan=False, remat='none')
  for remat in ('none', 'dots', 'full'):
    assert flops_of('cfam:tiny', scan=scan, remat=remat)[1] == want
