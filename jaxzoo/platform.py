"""What devices a program that is being traced is for."""

import os

import jax


def platform() -> str:
  """'cpu', 'gpu' (or 'cuda'), 'tpu': by the mesh that the context has.

  That is what `jax.set_mesh` has set, as training and `--plan` do; without one
  the default backend.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return jax.default_backend()
  return getattr(mesh.abstract_device, 'platform', '')


def options_for_once(platform: str) -> dict | None:
  """Options of the XLA compiler for a program that runs once: to initialise.

  The CPU's spends most of its time on loops of random numbers otherwise
  (docs/performance.md). The numbers are the same. What XLA_FLAGS says of it
  holds.
  """
  level = 'xla_backend_optimization_level'
  if platform != 'cpu' or level in os.environ.get('XLA_FLAGS', ''):
    return None
  return {level: 1}


def one_device() -> bool:
  """Whether it is for a single device: nothing is sharded."""
  return jax.sharding.get_abstract_mesh().size <= 1


def one_cpu() -> bool:
  """Whether that is a CPU."""
  return platform() == 'cpu' and one_device()
