"""How much of the devices a run uses: MFU and memory, where they can be told."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxzoo.system import System
from jaxzoo.train.flops import training_flops


class Chip(NamedTuple):
  """What a device can do at the most, as its maker says.

  Attributes:
    flops: a second, of dense bfloat16 products.
    memory: GiB.
    bandwidth: of the memory, bytes a second.
    usable: GiB that a program may fill: of TPUs what the compiler allows, of
      GPUs nine tenths. 0: not known, as below.
    link: bytes a second one way over one link to a neighbour: of TPUs that of
      the torus (ICI), of GPUs all of NVLink.
    network: bytes a second and device between slices, of GPUs between hosts.
    clock: Hz, of the cycles that the TPU compiler counts.
  """

  flops: float
  memory: float
  bandwidth: float
  usable: float = 0
  link: float = 0
  network: float = 0
  clock: float = 0


# `device_kind` of JAX, as a pattern. TPU v2 and v3 show each of a chip's two
# cores as a device. A TPU's `network` is that of its host or pod shared evenly:
# 200 Gbit/s for 4 chips, 6.4 and 25.6 Tbit/s for 256.
CHIPS = {
  r'TPU v2': Chip(22.5e12, 8, 350e9),
  r'TPU v3': Chip(61.5e12, 16, 450e9),
  r'TPU v4': Chip(275e12, 32, 1200e9, 30.75, 45e9, 6.25e9, 1.05e9),
  r'TPU v5( lite|e)': Chip(197e12, 16, 819e9, 15.75, 45e9, 3.125e9, 1.5e9),
  r'TPU v5p?': Chip(459e12, 95, 2765e9, 95.74, 90e9, 6.25e9, 1.75e9),
  r'TPU v6( lite|e)': Chip(918e12, 32, 1640e9, 31.25, 90e9, 12.5e9, 1.75e9),
  r'.*A100.*40GB': Chip(312e12, 40, 1555e9, 36, 300e9, 25e9),
  r'.*A100.*': Chip(312e12, 80, 2039e9, 72, 300e9, 25e9),
  r'.*H100.*PCIe': Chip(756e12, 80, 2000e9),
  r'.*H100.*': Chip(989e12, 80, 3350e9, 71, 450e9, 50e9),
  r'.*H200.*': Chip(989e12, 141, 4800e9, 126, 450e9, 50e9),
}


def find_chip(kind: str) -> Chip | None:
  """The chip of a `device_kind`; None for one that is not in the table.

  >>> find_chip('TPU v5 lite').memory
  16
  """
  for pattern, chip in CHIPS.items():
    if re.fullmatch(pattern, kind):
      return chip
  return None


def make_gauge(
  system: System, state, batch, mesh: jax.sharding.Mesh
) -> Callable[[float], dict[str, float]]:
  """steps a second -> `mfu` and `memory_peak_gib`, what can be told of them.

  MFU: model FLOPs (see `flops.training_flops`) a second, of the most that all
  devices of the mesh can do in bfloat16. The memory is the most that any device
  of this process has used so far. Reading it does not wait for the devices.

  Args:
    system: what is trained.
    state: abstract or arrays.
    batch: global, likewise.
    mesh: the devices.
  """
  kinds = {device.device_kind for device in mesh.devices.flat}
  chips = [find_chip(kind) for kind in kinds]
  here = jax.process_index()
  local = [d for d in mesh.devices.flat if d.process_index == here]
  # Traced for chips of the table alone: large systems take seconds.
  known = all(chips)
  work = training_flops(system, state, batch) if known else 0

  def gauge(rate: float) -> dict[str, float]:
    told = {}
    if known:
      most = min(chip.flops for chip in chips) * mesh.devices.size
      told['mfu'] = work * rate / most
    peaks = [(d.memory_stats() or {}).get('peak_bytes_in_use') for d in local]
    if peaks and all(peaks):
      told['memory_peak_gib'] = max(peaks) / 2**30
    return told

  return gauge
