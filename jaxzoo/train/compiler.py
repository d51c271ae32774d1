"""Options of the XLA compiler, in named sets for each kind of device.

`config.compiler` names the set. They are given to the compiler with the
training step, so that nothing depends on the environment of a process, and
`--plan` predicts a step with the same.

The TPU's sets are those that MaxText publishes for data-parallel and for
sharded training; which names a compiler knows is tested with `libtpu`.
'small' is for steps of many small operations, as those of an online stream,
'convolution' for networks of convolutions.
"""

from collections.abc import Mapping

from jaxzoo.errors import UserError, nearest

Options = Mapping[str, bool | int | str]

# Collectives run beside products, cut into several steps.
_FUSED_COLLECTIVES = {
  'xla_tpu_enable_async_collective_fusion': True,
  'xla_tpu_enable_async_collective_fusion_multiple_steps': True,
  'xla_tpu_overlap_compute_collective_tc': True,
}
_TPU = {
  # All-reduces of gradients, of whatever sizes, beside the backward pass.
  'data_parallel': {
    **_FUSED_COLLECTIVES,
    'xla_tpu_enable_data_parallel_all_reduce_opt': True,
    'xla_tpu_data_parallel_opt_different_sized_ops': True,
  },
  # All-gathers of parameters beside the layers before.
  'fsdp': {
    **_FUSED_COLLECTIVES,
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,
    'xla_enable_async_all_gather': True,
  },
}
# The same names, also where there is nothing to choose.
_GPU = {
  'data_parallel': {
    'xla_gpu_enable_latency_hiding_scheduler': True,
    'xla_gpu_all_reduce_combine_threshold_bytes': 2**28,
  },
  'fsdp': {
    'xla_gpu_enable_latency_hiding_scheduler': True,
    'xla_gpu_enable_pipelined_all_gather': True,
    'xla_gpu_enable_pipelined_reduce_scatter': True,
  },
}
_CPU = {
  # Eigen's products instead of YNNPACK's, and fewer copies in loops.
  'small': {
    'xla_cpu_experimental_ynn_fusion_type': '',
    'xla_cpu_copy_insertion_use_region_analysis': True,
  },
  # Eigen's convolutions and products, which are shared out among all cores,
  # where YNNPACK's of few channels are not; of its own only the sums.
  'convolution': {
    'xla_cpu_experimental_ynn_fusion_type': 'LIBRARY_FUSION_TYPE_REDUCE'
  },
}
SETS = {'tpu': _TPU, 'cuda': _GPU, 'gpu': _GPU, 'cpu': _CPU}
NAMES = ('default', 'data_parallel', 'fsdp', 'small', 'convolution')
# Families of backbones that consist of convolutions.
CONVOLUTIONAL = (
  'dcd',
  'efficientnet',
  'genet',
  'mobilenetv1',
  'mobilenetv2',
  'mobilenetv3',
  'preact_resnet',
  'resnet',
  'shufflenetv2',
  'zennet',
)


def set_for(family: str) -> str:
  """The name of the set for networks of a family (`ModelCard.family`)."""
  return 'convolution' if family in CONVOLUTIONAL else 'default'


def options(name: str, devices) -> dict[str, bool | int | str]:
  """The set `name` for some devices; {} where it changes nothing.

  Args:
    name: of `NAMES`. 'default' leaves everything to the compiler.
    devices: of the mesh, of one kind.

  Raises:
    UserError: no such set.
  """
  if name not in NAMES:
    raise UserError(f'compiler: no {name!r}; ' + nearest(name, NAMES))
  return dict(SETS.get(devices[0].platform, {}).get(name, {}))
