"""Whether a process is one of many, and what the user is told if not."""

import jax
import pytest

from jaxzoo.errors import UserError
from jaxzoo.train import distributed


@pytest.mark.parametrize(
  ('environ', 'many'),
  [
    ({}, False),
    ({'SLURM_PROCID': '1', 'SLURM_NTASKS': '8'}, True),
    ({'SLURM_NTASKS': '8'}, False),  # in the batch script, before srun
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '1'}, False),
    ({'TPU_WORKER_HOSTNAMES': 't-0,t-1'}, True),
    ({'TPU_WORKER_HOSTNAMES': 't-0'}, False),
    ({'TPU_WORKER_HOSTNAMES': 't-0', 'MEGASCALE_NUM_SLICES': '2'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '4'}, True),
    ({'JOB_COMPLETIONS': '4'}, True),
    ({'JOB_COMPLETIONS': 'all'}, False),
  ],
)
def test_platforms_tell_how_many_processes_there_are(environ, many):
  assert distributed.told(environ) == many


def test_nothing_is_started_on_a_machine_alone(monkeypatch):
  monkeypatch.setattr(jax.distributed, 'initialize', None)
  assert distributed.start(environ={}) is False


def test_platform_is_asked_where_it_tells(monkeypatch):
  calls = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda **settings: calls.append(settings)
  )
  distributed.start(environ={'JOB_COMPLETIONS': '2'})
  assert calls == [{'initialization_timeout': distributed.TIMEOUT}]


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    (dict(coordinator='a:1'), '--num_processes and --process_id'),
    (dict(num_processes=2, process_id=0), '--coordinator'),
    (dict(coordinator='a', num_processes=2, process_id=0), 'HOST:PORT'),
    (dict(coordinator='a:1', num_processes=2, process_id=2), '0..1'),
  ],
)
def test_half_of_an_address_is_refused(given, message):
  with pytest.raises(UserError, match=message):
    distributed.start(environ={}, **given)


def test_processes_that_do_not_come_are_reported(monkeypatch):
  def fail(**settings):
    raise RuntimeError('deadline exceeded\nmuch more')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(UserError, match='deadline exceeded. Start the same'):
    distributed.start('a:1', 2, 0, environ={})
