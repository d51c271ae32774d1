"""Where arrays are cut, and meshes and batches that cannot be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxzoo.errors import UserError
from jaxzoo.system import from_loss, with_ema
from jaxzoo.train import mesh as meshes
from jaxzoo.train.mesh import MIN_SHARDED_SIZE, make_mesh, spec_of

RULES = (
  ('query/kernel$', (None, 'tensor', None)),
  ('out/kernel$', ('tensor', None, None)),
  ('fc1/kernel$', (None, 'tensor')),
)


@pytest.fixture(scope='module')
def mesh():
  return make_mesh(dict(data=2, fsdp=2, tensor=2))


def spec(mesh, name, *shape):
  """The spec with its trailing Nones, so that its length is the rank."""
  got = tuple(spec_of(name, shape, mesh, RULES))
  return got + (None,) * (len(shape) - len(got))


# Inference.


def test_rule_cuts_over_tensor_and_the_largest_other_dimension_over_fsdp(mesh):
  assert spec(mesh, 'a/query/kernel', 256, 8, 64) == ('fsdp', 'tensor', None)
  assert spec(mesh, 'a/query/kernel', 64, 8, 256) == (None, 'tensor', 'fsdp')


def test_rule_is_aligned_to_the_last_dimensions(mesh):
  # One rule for a layer and for a stack of 12 scanned ones.
  assert spec(mesh, 'a/fc1/kernel', 128, 256) == ('fsdp', 'tensor')
  assert spec(mesh, 'a/fc1/kernel', 12, 128, 256) == (None, 'fsdp', 'tensor')
  assert spec(mesh, 'a/out/kernel', 12, 8, 64, 64) == (
    None,
    'tensor',
    'fsdp',
    None,
  )


def test_rule_longer_than_the_shape_does_not_apply(mesh):
  assert spec(mesh, 'a/query/kernel', 256, 128) == ('fsdp', None)


def test_first_rule_that_matches_decides(mesh):
  rules = (('kernel$', (None, None)), *RULES)
  assert spec_of('a/fc1/kernel', (128, 256), mesh, rules) == P(None, 'fsdp')


def test_dimension_that_does_not_divide_is_left_whole(mesh):
  assert spec(mesh, 'a/fc1/kernel', 256, 255) == ('fsdp', None)
  assert spec(mesh, 'a/fc1/kernel', 255, 256) == (None, 'tensor')
  assert spec(mesh, 'b', 257, 255) == (None, None)


def test_without_a_rule_the_largest_divisible_dimension_goes_over_fsdp(mesh):
  assert spec(mesh, 'b', 64, 256, 128) == (None, 'fsdp', None)
  assert spec(mesh, 'b', 64, 1001, 128) == (None, None, 'fsdp')


def test_axes_of_size_one_cut_nothing():
  mesh = make_mesh(dict(data=8))
  assert spec(mesh, 'a/fc1/kernel', 128, 256) == (None, None)


def test_small_arrays_and_scalars_are_whole(mesh):
  assert spec(mesh, 'a/fc1/kernel', 2, MIN_SHARDED_SIZE // 2 - 2) == (
    None,
    None,
  )
  assert spec(mesh, 'a/fc1/kernel', 2, MIN_SHARDED_SIZE // 2) != (None, None)
  assert spec(mesh, 'step') == ()


def test_rule_that_names_fsdp_itself_is_obeyed(mesh):
  rules = (('w$', ('fsdp', None)),)
  assert spec_of('w', (128, 512), mesh, rules) == P('fsdp', None)


def test_moments_and_averages_lie_beside_their_parameter(mesh):
  def init(rng, batch):
    fc1 = jax.random.normal(rng, (128, 256))
    return {'block': {'fc1': {'kernel': fc1, 'bias': jnp.zeros(256)}}}, {}

  system = with_ema(from_loss(init, None, None, optax.adam(0.1)), 0.9)
  state = jax.eval_shape(system.init, jax.random.key(0), {})
  shardings = meshes.infer_shardings(state, mesh, RULES)
  for tree in (
    shardings.params,
    shardings.extra['ema'],
    shardings.opt[0].mu,
    shardings.opt[0].nu,
  ):
    assert tree['block']['fc1']['kernel'].spec == P('fsdp', 'tensor')
    assert tree['block']['fc1']['bias'].spec == P()
  assert shardings.step.spec == shardings.rng.spec == P()


# Meshes.


def test_axis_of_minus_one_takes_what_is_left():
  assert dict(make_mesh(dict(data=-1)).shape) == dict(data=8, fsdp=1, tensor=1)
  assert make_mesh(dict(data=2, fsdp=-1)).shape['fsdp'] == 4
  assert make_mesh(dict(tensor=2), jax.devices()[:2]).size == 2


@pytest.mark.parametrize(
  'shape, words',
  [
    (dict(data=3), 'data=3, fsdp=1, tensor=1 does not fit 8 devices'),
    (dict(data=-1, tensor=3), 'does not fit 8 devices.*leave one axis at -1'),
    (dict(data=-1, fsdp=-1), 'at most one is -1'),
    (dict(data=0), 'sizes are positive'),
    (dict(data=-2), 'sizes are positive'),
    (dict(dta=8), "no axis 'dta'; did you mean data"),
    (dict(), 'does not fit 8 devices'),
  ],
)
def test_mesh_that_does_not_fit_is_an_error(shape, words):
  with pytest.raises(UserError, match=f'mesh.*{words}'):
    make_mesh(shape)


# Batches.


def test_batch_that_divides_is_accepted(mesh):
  meshes.check_batch(4, mesh)  # tensor does not cut the batch
  meshes.check_batch(8, mesh, microbatches=2)


@pytest.mark.parametrize(
  'size, parts, words',
  [
    (6, 1, '4 devices.*data=2 x fsdp=2.*multiple of 4, such as 4'),
    (12, 2, 'and 2 microbatches.*multiple of 8, such as 8'),
    (2, 1, 'such as 4'),
    (0, 1, 'batch_size=0'),
    (-4, 1, 'batch_size=-4.*such as 4'),
    (8, 0, 'microbatches=0'),
  ],
)
def test_batch_that_does_not_divide_is_an_error(mesh, size, parts, words):
  with pytest.raises(UserError, match=words):
    meshes.check_batch(size, mesh, parts)


def test_rows_that_do_not_divide_over_the_devices_are_named(mesh):
  batch = {'image': np.zeros((8, 3)), 'keep': np.zeros((2, 5))}
  with pytest.raises(UserError, match="2 rows of 'keep'.*over 4 devices"):
    meshes.abstract_batch(batch, mesh)


def test_batch_goes_to_the_devices_in_order_and_whole(mesh):
  batch = {'x': np.arange(24, dtype=np.int32).reshape(8, 3)}
  array = meshes.to_devices(batch, meshes.batch_sharding(mesh))['x']
  np.testing.assert_array_equal(array, batch['x'])
  assert {shard.data.shape for shard in array.addressable_shards} == {(2, 3)}
  abstract = meshes.abstract_batch({**batch, 'corrupt': np.zeros(8)}, mesh)
  assert set(abstract) == {'x'}
  assert (abstract['x'].shape, abstract['x'].dtype) == ((8, 3), np.int32)
  assert abstract['x'].sharding.is_equivalent_to(array.sharding, 2)
