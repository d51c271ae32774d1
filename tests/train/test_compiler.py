"""Named sets of compiler options."""

import importlib.util
import types

import jax
import jax.numpy as jnp
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.cards import MODELS
from jaxzoo.plan import topology
from jaxzoo.train import compiler


def device(platform):
  return types.SimpleNamespace(platform=platform)


def test_default_changes_nothing_and_other_sets_go_by_the_device():
  tpus, cpus = [device('tpu')], jax.devices()
  assert compiler.options('default', tpus) == {}
  assert compiler.options('fsdp', cpus) == {}
  fsdp, data = (compiler.options(n, tpus) for n in ('fsdp', 'data_parallel'))
  assert fsdp != data
  assert all(name.startswith('xla_') for name in {**fsdp, **data})
  assert compiler.options('fsdp', [device('cuda')])


@pytest.mark.parametrize('name', ['small', 'convolution'])
def test_cpu_options_are_known_to_the_compiler(name):
  options = compiler.options(name, jax.devices())
  assert options
  compile_with(options)
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_cpu_no_such'):
    compile_with({'xla_cpu_no_such': True})


def test_families_of_convolutions_have_their_set():
  families = {card.family for card in MODELS.values()}
  assert set(compiler.CONVOLUTIONAL) < families
  assert compiler.set_for('resnet') == 'convolution'
  assert compiler.set_for('vit') == compiler.set_for('swin') == 'default'


def test_set_that_does_not_exist_names_the_nearest():
  with pytest.raises(UserError, match='fsdp'):
    compiler.options('fsd', jax.devices())


def compile_with(options, place=None):
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=place)
  return jax.jit(lambda x: x @ x).lower(x).compile(options)


@pytest.mark.parametrize('name', compiler.NAMES[1:])
def test_gpu_options_are_known_to_the_compiler(name):
  # Every XLA knows the names of all its public options.
  compile_with(compiler.options(name, [device('cuda')]))
  with pytest.raises(jax.errors.JaxRuntimeError, match='xla_gpu_no_such'):
    compile_with({'xla_gpu_no_such': True})


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason="the TPU's compiler is not installed: pip install 'jaxzoo[tpu]'",
)
@pytest.mark.parametrize('name', compiler.NAMES[1:])
def test_tpu_options_are_known_to_the_compiler(name):
  devices = topology.open_topology(topology.parse('v5e:1x1')).devices
  place = jax.sharding.SingleDeviceSharding(devices[0])
  compile_with(compiler.options(name, devices), place)
