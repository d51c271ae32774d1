"""What every system of the catalogue must do, each with its tiny config.

A new row of the catalogue is tested by this file without a change to it.
"""

import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo import catalog, main
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes
from jaxzoo.train.checkpoint import Checkpoints

KEY = jax.random.key(0)
STEPS = 4  # an epoch of the tiny data
ONE = (1, 1, 1)  # devices over data, fsdp, tensor
ALL = (2, 2, 2)
# In the first stage two towers, one network, and series; the others wait for
# the second.
FIRST = ('classification', 'card')


def staged(name):
  """A case of the first stage or of the second, by its system."""
  first = name.partition(':')[0] in FIRST
  return pytest.param(name, marks=[] if first else [pytest.mark.slow])


PUBLISHED = [
  staged(f'{entry.slug}:{variant}')
  for entry in catalog.SYSTEMS.values()
  for variant in entry.variants
  if variant not in ('tiny', 'baseline')
]


class Case:
  """A system with its data, compiled for a mesh when it is asked for."""

  def __init__(self, slug):
    self.config = catalog.get_config(f'{slug}:tiny')
    self.data = catalog.part(catalog.DATA, self.config.data.kind, 'data.kind')
    self.dataset = main.make_dataset(
      self.config, self.data.train_data(self.config)
    )
    self.program = functools.cache(self._program)

  def system(self, **overrides):
    return main.create_system(self.config, 10 * STEPS, STEPS, **overrides)

  @functools.cached_property
  def example(self):
    return self.data.example_batch(self.config)

  @functools.cached_property
  def start(self):
    """The first state, on the host."""
    return jax.device_get(plain(self.program(ONE).init()))

  def _program(self, sizes, **overrides):
    mesh = mesh_of(sizes)
    return loop.compile_system(
      self.system(**overrides),
      KEY,
      meshes.abstract_batch(self.example, mesh),
      mesh,
      catalog.sharding(self.config),
    )

  def begin(self, program):
    """The first state of the one-device program, wherever it belongs."""
    state = jax.tree.map(
      lambda x, like: (
        jax.random.wrap_key_data(x) if is_key(like) else jnp.asarray(x)
      ),
      self.start,
      program.abstract,
    )
    return jax.device_put(state, program.shardings)

  def run(self, program, state, first=0, steps=2):
    """The state and the metrics after steps on the real stream."""
    sharding = meshes.batch_sharding(program.mesh)
    history = []
    for i in range(first, first + steps):
      batch = dict(self.dataset[i])
      batch.pop('corrupt')
      state, metrics = program.step(state, meshes.to_devices(batch, sharding))
      history.append(jax.device_get(metrics))
    return state, history


def mesh_of(sizes):
  shape = dict(zip(meshes.AXES, sizes, strict=True))
  return meshes.make_mesh(shape, jax.devices()[: math.prod(sizes)])


def is_key(x):
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def plain(state):
  return jax.tree.map(
    lambda x: jax.random.key_data(x) if is_key(x) else x, state
  )


def assert_same(got, want):
  got, want = jax.device_get(plain(got)), jax.device_get(plain(want))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def sizes_of(tree):
  return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


SLUGS = [staged(slug) for slug in catalog.SYSTEMS]


@pytest.fixture(scope='module', params=SLUGS)
def case(request):
  return Case(request.param)


# Shapes.


def test_init_and_step_need_no_arrays(case):
  system = case.system()
  state = jax.eval_shape(system.init, KEY, case.example)
  after, metrics = jax.eval_shape(system.step, state, case.example)
  assert sizes_of(after) == sizes_of(state)
  assert {x.shape for x in metrics.values()} == {()}
  assert 'loss' in ' '.join(metrics)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))


def test_example_batch_is_what_the_pipeline_gives(case):
  real = dict(case.dataset[0])
  real.pop('corrupt')
  assert sizes_of(case.example) == sizes_of(real)


@pytest.mark.parametrize(
  'options',
  [
    dict(scan=True, remat='full'),
    dict(scan=False, remat='dots'),
    dict(microbatches=2),
    dict(ema=0.99),
  ],
  ids=lambda options: '-'.join(map(str, options)),
)
def test_common_options_of_the_config_are_obeyed(case, options):
  system = case.system(**options)
  state = jax.eval_shape(system.init, KEY, case.example)
  after, _ = jax.eval_shape(system.step, state, case.example)
  assert sizes_of(after) == sizes_of(state)
  outputs = jax.eval_shape(system.predict, state, case.example)
  for name, rows in outputs.items():
    assert rows.shape[0] == case.config.batch_size, name


# Training.


def test_loss_of_a_batch_that_comes_again_falls(case):
  program = case.program(ONE)
  state, losses = case.begin(program), []
  for _ in range(8):
    state, (metrics,) = case.run(program, state, steps=1)
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    losses.append(metrics['loss'])
  assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
  'sizes',
  [
    ALL,  # what the others test, at once
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
    pytest.param((4, 2, 1), marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_one_device_equals_eight(case, sizes):
  single, many = case.program(ONE), case.program(sizes)
  want, expected = case.run(single, case.begin(single), steps=1)
  got, metrics = case.run(many, case.begin(many), steps=1)
  for name, value in expected[0].items():
    np.testing.assert_allclose(
      metrics[0][name], value, rtol=2e-3, atol=1e-4, err_msg=name
    )
  # The first moments of the first step are the gradients, parameter by
  # parameter. (The parameters would not do: Adam's update is nearly the sign
  # of a gradient, which rounding turns where it is nearly zero.)
  paths, moments = zip(
    *jax.tree_util.tree_flatten_with_path(jax.device_get(got.opt))[0],
    strict=True,
  )
  expected = jax.tree.leaves(jax.device_get(want.opt))
  scale = max(np.abs(x).max() for x in expected)
  for path, a, b in zip(paths, moments, expected, strict=True):
    error = np.linalg.norm(np.subtract(a, b, dtype=np.float64))
    bound = 5e-3 * np.linalg.norm(b) + 1e-6 * scale * math.sqrt(np.size(b))
    assert error <= bound, (jax.tree_util.keystr(path), error, bound)
  # And the second step, whose parameters have been updated.
  _, after = case.run(single, want, 1, 1)
  _, follows = case.run(many, got, 1, 1)
  np.testing.assert_allclose(follows[0]['loss'], after[0]['loss'], rtol=2e-3)


@pytest.mark.slow
def test_parameters_start_the_same_on_every_mesh(case):
  assert_same(case.program(ALL).init(), case.program(ONE).init())


def test_resumed_run_equals_an_uninterrupted_one(case, tmp_path):
  program = case.program(ALL)
  whole, history = case.run(program, case.begin(program), steps=2)
  half, _ = case.run(program, case.begin(program), steps=1)
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    checkpoints.save(half, {})
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    restored = checkpoints.restore(program.abstract, program.shardings)
  # The compiled step takes no other layout and is not compiled again.
  resumed, rest = case.run(program, restored.state, first=1, steps=1)
  assert_same(resumed, whole)
  assert_same(rest, history[1:])


def test_bfloat16_is_finite_and_keeps_float32_parameters(case):
  program = case.program(ONE, dtype='bfloat16')
  state, history = case.run(program, case.begin(program), steps=2)
  exact, _ = case.run(case.program(ONE), case.begin(program), steps=2)
  assert sizes_of(state) == sizes_of(exact), 'the computation alone is bfloat16'
  for metrics in history:
    assert all(np.isfinite(value) for value in metrics.values()), metrics
    assert metrics['loss'].dtype == np.float32
  leaves = jax.tree.leaves(jax.device_get(plain(state)))
  assert all(np.isfinite(x).all() for x in leaves)


def test_step_is_one_program_for_all_batches(case):
  # Whatever step gives back goes in again: shapes, dtypes, layouts. (The
  # compiled program refuses everything else.)
  program = case.program(ALL)
  state, _ = case.run(program, case.begin(program), steps=2)
  for leaf, sharding in zip(
    jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


# Published sizes.


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_variant_lowers_at_full_size(name):
  config = catalog.get_config(name)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  mesh = mesh_of(ALL)
  meshes.check_batch(config.batch_size, mesh, config.microbatches)
  batch = meshes.abstract_batch(
    jax.eval_shape(lambda: data.example_batch(config)), mesh
  )
  system = main.create_system(config, 1000, 100)
  state = jax.eval_shape(system.init, KEY, batch)
  shardings = meshes.infer_shardings(state, mesh, catalog.sharding(config))
  placed = meshes.placed(state, shardings)
  jax.jit(
    system.step,
    donate_argnums=0,
    out_shardings=(shardings, meshes.replicated(mesh)),
  ).lower(placed, batch)
  # No large array lies whole on every device.
  paths = jax.tree_util.tree_flatten_with_path(shardings)[0]
  for (path, sharding), leaf in zip(paths, jax.tree.leaves(state), strict=True):
    if leaf.size >= 2**20:
      name = jax.tree_util.keystr(path)
      assert math.prod(sharding.shard_shape(leaf.shape)) < leaf.size, name
