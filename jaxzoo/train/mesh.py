"""The device mesh, and the sharding of any state inferred from its paths."""

import re
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxzoo.errors import UserError, nearest
from jaxzoo.train.optim import path_name

AXES = ('data', 'fsdp', 'tensor')
# Leaves below this many elements stay whole on every device: cutting them
# saves nothing and costs a collective each.
MIN_SHARDED_SIZE = 2**14

Rules = Sequence[tuple[str, Sequence[str | None]]]


def make_mesh(shape: Mapping[str, int], devices=None) -> Mesh:
  """A mesh with axes data, fsdp and tensor.

  Of several TPU slices `data` is the axis that spans them, its outer part over
  the data-centre network.

  Args:
    shape: size of each axis; an axis left out has size 1, and one axis may be
      -1: whatever the devices leave for it.
    devices: default all devices of all processes.

  Raises:
    UserError: unknown axis, or a product other than the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  for axis in shape:
    if axis not in AXES:
      raise UserError(f'mesh: no axis {axis!r}; ' + nearest(axis, AXES))
  sizes = [int(shape.get(axis, 1)) for axis in AXES]
  known = int(np.prod([size for size in sizes if size != -1]))
  text = ', '.join(f'{a}={s}' for a, s in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise UserError(f'mesh {text}: sizes are positive, at most one is -1')
  if -1 in sizes and len(devices) % known == 0:
    sizes[sizes.index(-1)] = len(devices) // known
  if int(np.prod(sizes)) != len(devices):
    raise UserError(
      f'mesh {text} does not fit {len(devices)} devices: make the product '
      f'{len(devices)}, or leave one axis at -1'
    )
  types = (AxisType.Auto,) * len(AXES)
  # Of GPUs a "slice" is a host.
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if slices == 1:
    # An axis may have a part of a side of the torus: fsdp=8 on 4x4.
    grid = mesh_utils.create_device_mesh(
      tuple(sizes), devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=types)
  return Mesh(_over_slices(sizes, slices, devices), AXES, axis_types=types)


def _over_slices(sizes: Sequence[int], slices: int, devices) -> np.ndarray:
  """Devices of several slices in the shape of a mesh."""
  data, *rest = sizes
  if data % slices == 0:
    return mesh_utils.create_hybrid_device_mesh(
      (data // slices, *rest),
      (slices, *(1 for _ in rest)),
      devices,
      allow_split_physical_axes=True,
    )
  if devices[0].platform == 'tpu':
    raise UserError(
      f'mesh data={data} over {slices} slices: only data spans slices, so that '
      f'it must be a multiple of {slices}'
    )
  return np.array(devices, object).reshape(sizes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Examples over data and fsdp, everything else whole."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same on every device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(batch_size: int, mesh: Mesh, microbatches: int = 1) -> None:
  """Raises UserError where a global batch does not divide over the devices.

  Or where `tensor` spans processes: each reads a part of the batch of its own,
  so that those of one tensor group would read different parts of one.
  """
  process = np.vectorize(lambda device: device.process_index)(mesh.devices)
  if (process != process[..., :1]).any():
    raise UserError(
      f'mesh tensor={mesh.shape["tensor"]} spans processes: make it a divisor '
      f'of the {(process == process.flat[0]).sum()} devices of one process'
    )
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  if microbatches < 1:
    raise UserError(f'microbatches={microbatches}: it must be at least 1')
  if batch_size < 1 or batch_size % (ways * microbatches):
    need = ways * microbatches
    below = max(need, batch_size // need * need)
    raise UserError(
      f'batch_size={batch_size} does not divide over {ways} devices '
      f'(mesh data={mesh.shape["data"]} x fsdp={mesh.shape["fsdp"]})'
      + (f' and {microbatches} microbatches' if microbatches > 1 else '')
      + f': use a multiple of {need}, such as {below}'
    )


def spec_of(
  name: str, shape: Sequence[int], mesh: Mesh, rules: Rules = ()
) -> PartitionSpec:
  """Where the array called `name` is cut.

  The first rule whose regex is found in the name cuts over `tensor`; its spec
  is aligned to the LAST dimensions, so that one rule serves a scanned stack of
  layers and a single layer, and an entry that does not divide is left whole.
  Of the dimensions that remain, the largest that divides goes over `fsdp`.
  """
  spec = [None] * len(shape)
  if int(np.prod(shape)) < MIN_SHARDED_SIZE:
    return PartitionSpec()
  for pattern, axes in rules:
    if re.search(pattern, name):
      if len(axes) <= len(shape):
        spec[len(shape) - len(axes) :] = axes
      break
  for i, axis in enumerate(spec):
    if axis and (mesh.shape[axis] == 1 or shape[i] % mesh.shape[axis]):
      spec[i] = None
  ways = mesh.shape['fsdp']
  free = [
    i for i in range(len(shape)) if spec[i] is None and shape[i] % ways == 0
  ]
  if ways > 1 and free and 'fsdp' not in spec:
    spec[max(free, key=lambda i: shape[i])] = 'fsdp'
  return PartitionSpec(*spec)


def infer_shardings(tree, mesh: Mesh, rules: Rules = ()):
  """A NamedSharding for every leaf of a (possibly abstract) state.

  An optimizer's moments, averages and masks lie at paths that end like their
  parameter's, so that the same rules place them beside it.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, spec_of(path_name(path), leaf.shape, mesh, rules)
    ),
    tree,
  )


def placed(abstract, shardings):
  """Shapes and dtypes that say where each array lies or is to lie."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    abstract,
    shardings,
  )


def to_devices(batch: dict, sharding: NamedSharding) -> dict:
  """This process's part of a batch (numpy) as global arrays on the devices."""
  return {
    key: jax.make_array_from_process_local_data(sharding, np.asarray(value))
    for key, value in batch.items()
  }


def abstract_batch(batch: dict, mesh: Mesh) -> dict:
  """Shapes, dtypes and sharding of the global batch, from one process's part.

  `corrupt`, which the pipeline keeps for itself, is left out.

  Raises:
    UserError: arrays of the batch, such as masks that many examples share,
      whose rows do not divide over the devices.
  """
  ways = mesh.shape['data'] * mesh.shape['fsdp']
  for key, value in batch.items():
    rows = value.shape[0] * jax.process_count()
    if rows % ways:
      raise UserError(
        f'the {rows} rows of {key!r} in a batch do not divide over {ways} '
        'devices: make their number a multiple of it'
      )
  return {
    key: jax.ShapeDtypeStruct(
      (value.shape[0] * jax.process_count(), *value.shape[1:]),
      value.dtype,
      sharding=batch_sharding(mesh),
    )
    for key, value in batch.items()
    if key != 'corrupt'
  }
