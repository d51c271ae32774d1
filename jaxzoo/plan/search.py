"""What to change so that a step fits or is faster, found by trying."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxzoo.configuration import REMATS
from jaxzoo.plan.report import Report
from jaxzoo.plan.step import Attempt, parts, parts_field
from jaxzoo.plan.topology import GPUS, Topology

PARTS = (2, 4, 8, 16, 32, 64)
FSDP = (1, 16, 4, 64, 256, 2, 8)
TENSOR = (2, 4)


class Change(NamedTuple):
  """Fields of a config, by name, and the report of the config with them."""

  fields: dict[str, Any]
  report: Report

  @property
  def options(self) -> str:
    """As they are written on the command line."""
    return ' '.join(f'--config.{k}={v}' for k, v in self.fields.items())


def changed(config, fields: dict[str, Any]):
  """A copy of a config with some fields changed."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(fields)
  return config


def divides(config) -> bool:
  """Whether the batch can be cut over the mesh and into its parts."""
  ways = config.mesh.data * config.mesh.fsdp
  return config.batch_size % (ways * parts(config)) == 0


def remedies(config, topology: Topology) -> Iterator[dict[str, Any]]:
  """Changes by which less memory is needed, the cheapest first.

  More of the activations is computed again; then the state is cut over fsdp;
  then the batch into parts; each beside the ones before.

  Args:
    config: with every axis of its mesh given.
    topology: what it is to fit.
  """
  fields = {}
  for remat in REMATS[REMATS.index(config.remat) + 1 :]:
    fields = {'remat': remat}
    yield dict(fields)
  ways = config.mesh.data * config.mesh.fsdp
  for fsdp in (16, 64, 256):
    if config.mesh.fsdp < fsdp <= ways and _spans(fsdp, ways, topology):
      fields |= {'mesh.data': ways // fsdp, 'mesh.fsdp': fsdp}
      yield dict(fields)
  field = parts_field(config)
  for count in PARTS:
    yield {**fields, field: count}


def _spans(fsdp: int, ways: int, topology: Topology) -> bool:
  """Whether fsdp divides what is left in one slice."""
  return ways % (fsdp * topology.target.slices) == 0


def candidates(config, topology: Topology, rules) -> Iterator[dict[str, Any]]:
  """Meshes, each with every policy of rematerialisation.

  Data alone first; then fsdp; then tensor, inside of one host, where the
  system has rules for it.
  """
  devices = topology.target.devices
  shapes = [
    (devices // fsdp, fsdp, 1)
    for fsdp in FSDP
    if fsdp <= devices and _spans(fsdp, devices, topology)
  ]
  host = 8 if topology.target.kind in GPUS else 4
  shapes += [
    (devices // tensor, 1, tensor)
    for tensor in TENSOR
    if any('tensor' in axes for _, axes in rules)
    and devices % (tensor * topology.target.slices) == 0
    and host % tensor == 0
    and devices >= host
  ]
  for data, fsdp, tensor in shapes:
    for remat in REMATS:
      yield {
        'mesh.data': data,
        'mesh.fsdp': fsdp,
        'mesh.tensor': tensor,
        'remat': remat,
      }


def first_fit(
  config,
  topology: Topology,
  attempt: Attempt,
  tries: int,
  tell: Callable[[Change], None],
) -> list[Change]:
  """Tries `remedies` until one fits; that is then the last."""
  done = []
  for fields in remedies(config, topology):
    if len(done) == tries:
      break
    change = _try(config, fields, attempt, tell)
    if change:
      done.append(change)
      if change.report.fits:
        break
  return done


def fastest(
  config,
  topology: Topology,
  attempt: Attempt,
  rules,
  tries: int,
  tell: Callable[[Change], None],
) -> list[Change]:
  """Tries `candidates`, and smaller parts where none of them fits.

  Returns:
    What was tried, the shortest predicted step that fits first.
  """
  done, least = [], {}
  for fields in candidates(config, topology, rules):
    if len(done) == tries:
      break
    least = fields if fields['mesh.tensor'] == 1 else least
    change = _try(config, fields, attempt, tell)
    done += [change] if change else []
  field = parts_field(config)
  for count in PARTS:
    if any(change.report.fits for change in done):
      break
    change = _try(config, {**least, field: count}, attempt, tell)
    done += [change] if change else []
  return sorted(done, key=_rank)


def _rank(change: Change):
  report = change.report
  if report.fits:
    return (0, report.times.step)
  return (1, report.memory.needed)


def _try(config, fields, attempt, tell) -> Change | None:
  """One attempt; None where the batch does not divide, or nothing changes."""
  other = changed(config, fields)
  if not divides(other):
    return None
  report = attempt(other)
  if report is None:
    return None
  change = Change(fields, report)
  tell(change)
  return change
