"""Many processes as one: found by itself where the platform tells."""

import os
from collections.abc import Mapping

import jax

from jaxzoo.errors import UserError

TIMEOUT = 300  # seconds until all processes must have come


def start(
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  environ: Mapping[str, str] = os.environ,
) -> bool:
  """Connects this process with the others of its run, before any use of jax.

  Args:
    coordinator: HOST:PORT of process 0; with the two numbers, by hand.
    num_processes: of the run.
    process_id: this one's, from 0.
    environ: where the platform is told by: a Cloud TPU slice, several slices, a
      SLURM job, an MPI or a Kubernetes job.

  Returns:
    Whether there are others: False on a machine alone, where nothing is done.

  Raises:
    UserError: one of the three without the others, numbers that cannot be, or
      processes that do not come.
  """
  by_hand = {
    '--coordinator': coordinator or None,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in by_hand.items() if value is None]
  if len(missing) == len(by_hand):
    if not told(environ):
      return False
    _connect(initialization_timeout=TIMEOUT)
    return jax.process_count() > 1
  if missing:
    raise UserError(
      f'{" and ".join(missing)}: where one of --coordinator, --num_processes '
      'and --process_id is given, all are needed'
    )
  if ':' not in coordinator:
    raise UserError(f'--coordinator={coordinator}: write HOST:PORT')
  if not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id={process_id}: it must be in 0..{num_processes - 1}'
    )
  _connect(
    coordinator_address=coordinator,
    num_processes=num_processes,
    process_id=process_id,
    initialization_timeout=TIMEOUT,
  )
  return num_processes > 1


def told(environ: Mapping[str, str]) -> bool:
  """Whether the platform says that this process is one of several.

  >>> told({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'})
  True
  >>> told({'TPU_WORKER_HOSTNAMES': 'localhost'})
  False
  """
  several = lambda name: _number(environ.get(name)) > 1
  hosts = environ.get('TPU_WORKER_HOSTNAMES', '')
  return (
    len(hosts.split(',')) > 1
    or several('MEGASCALE_NUM_SLICES')
    or ('SLURM_PROCID' in environ and several('SLURM_NTASKS'))
    or several('OMPI_COMM_WORLD_SIZE')
    or several('JOB_COMPLETIONS')  # set by the manifest of launch/gke
  )


def _number(text: str | None) -> int:
  return int(text) if text and text.isdigit() else 0


def _connect(**settings) -> None:
  # Processes on CPUs talk through gloo; other backends do not look at it.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(**settings)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'the processes of the run did not find each other: {reason}. Start '
      'the same command on every host at the same time; by hand with '
      '--coordinator=HOST:PORT --num_processes=N --process_id=I'
    ) from error
