"""Eight virtual devices for every test, and folders that last one session."""

import atexit
import os
import shutil
import tempfile

# All of this comes before jax starts, and holds for subprocesses as well.
FLAGS = (
  '--xla_force_host_platform_device_count=8',
  # Programs that run for milliseconds are not worth optimising: compilation
  # is nearly all of the suite's time, and these make it three times shorter.
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)
os.environ['XLA_FLAGS'] = ' '.join(FLAGS)
os.environ['JAX_PLATFORMS'] = 'cpu'
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit the folders
  session = tempfile.mkdtemp(prefix='jaxzoo-tests-')
  atexit.register(shutil.rmtree, session, ignore_errors=True)
  os.environ['JAXZOO_DATA'] = f'{session}/data'
  os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{session}/compiled'
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.3'

import jax  # noqa: E402
import pytest  # noqa: E402

# A pytest plugin may have imported jax before its variables were set.
jax.config.update('jax_platforms', 'cpu')
jax.config.update(
  'jax_compilation_cache_dir', os.environ['JAX_COMPILATION_CACHE_DIR']
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(scope='session')
def pedestrians_root():
  """The smallest embedded data set; the tiny configs read the same one."""
  from jaxzoo import catalog
  from jaxzoo.data import pedestrians

  settings = catalog.get_config('cfam:tiny').data.embedded
  return pedestrians.prepare(pedestrians.Settings(**settings))


@pytest.fixture(scope='session', autouse=True)
def eight_devices():
  """Fails early where something started jax before the flags were set."""
  assert jax.device_count() == 8
