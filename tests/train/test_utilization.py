"""MFU is model FLOPs over what the devices can do, and told where known."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.system import from_loss
from jaxzoo.train.utilization import find_chip, make_gauge


def system_of(width=8):
  return from_loss(
    init=lambda rng, batch: ({'w': jnp.ones((width, width))}, {}),
    loss=lambda params, extra, batch, rng: (
      jnp.mean((batch['x'] @ params['w']) ** 2),
      (extra, {}),
    ),
    predict=lambda params, extra, batch: batch['x'] @ params['w'],
    tx=optax.sgd(0.1),
  )


def gauge_of(kinds, peaks):
  devices = [
    types.SimpleNamespace(
      device_kind=kind,
      process_index=0,
      memory_stats=lambda peak=peak: peak,
    )
    for kind, peak in zip(kinds, peaks, strict=True)
  ]
  system = system_of()
  batch = {'x': jax.ShapeDtypeStruct((16, 8), jnp.float32)}
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  mesh = types.SimpleNamespace(devices=np.array(devices, object))
  return make_gauge(system, state, batch, mesh)


def test_mfu_is_model_flops_a_second_of_all_devices():
  peak = {'peak_bytes_in_use': 2**31}
  gauge = gauge_of(['TPU v5 lite'] * 2, [peak, {'peak_bytes_in_use': 2**30}])
  told = gauge(1000.0)
  work = 3 * 2 * 16 * 8 * 8  # forward, and twice as much backward
  assert told['mfu'] == pytest.approx(work * 1000 / (2 * 197e12))
  assert told['memory_peak_gib'] == 2.0


def test_nothing_is_told_of_devices_that_say_nothing():
  assert gauge_of(['cpu'], [None])(1000.0) == {}
  assert gauge_of(['cpu', 'TPU v4'], [{}, {}])(1.0) == {}


@pytest.mark.parametrize(
  'kind, flops',
  [
    ('TPU v4', 275e12),
    ('TPU v5', 459e12),
    ('TPU v5p', 459e12),
    ('TPU v5e', 197e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('NVIDIA H100 80GB HBM3', 989e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989e12),
  ],
)
def test_chips_are_found_by_the_names_that_jax_gives(kind, flops):
  assert find_chip(kind).flops == flops
