"""What to change so that a step fits or is faster, found by trying."""

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxzoo.configuration import REMATS
from jaxzoo.errors import UserError
from jaxzoo.plan.report import Report
from jaxzoo.plan.step import Attempt, parts, parts_field
from jaxzoo.plan.topology import GPUS, Topology

PARTS = (2, 4, 8, 16, 32, 64)
FSDP = (1, 16, 4, 64, 256, 2, 8)
TENSOR = (2, 4)


class Change(NamedTuple):
  """Fields of a config, by name, and what came of the config with them.

  Attributes:
    fields: the changed ones.
    report: None where it cannot be.
    refusal: then why.
  """

  fields: dict[str, Any]
  report: Report | None
  refusal: str = ''

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
  for cut in _cuts(config):
    yield fields | cut


def _cuts(config) -> Iterator[dict[str, Any]]:
  """Changes by which the batch has more parts."""
  field = parts_field(config)
  now = operator.attrgetter(field)(config)
  return ({field: count} for count in PARTS if count > now)


def _spans(fsdp: int, ways: int, topology: Topology) -> bool:
  """Whether fsdp divides what is left in one slice."""
  return ways % (fsdp * topology.target.slices) == 0


def candidates(config, topology: Topology, rules) -> Iterator[dict[str, Any]]:
  """Meshes, each with every policy of rematerialisation.

  Data alone first; then fsdp; then tensor, inside of one host, where the
  system has rules for it.
  """
  devices = topology.target.devices
  gpus = topology.target.kind in GPUS
  host = topology.target.sides[1] if gpus else 4
  shapes = [
    (devices // fsdp, fsdp, 1)
    for fsdp in FSDP
    if fsdp <= devices and _spans(fsdp, devices, topology)
  ]
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

  Raises:
    UserError: the first of them cannot be.
  """
  done = []
  for fields in candidates(config, topology, rules):
    if len(done) == tries:
      break
    change = _try(config, fields, attempt, tell, strict=not done)
    done += [change] if change else []
  done.sort(key=_rank)
  if done and not done[0].report.fits:
    for cut in _cuts(config):
      # Beside what needs the least of them.
      change = _try(config, done[0].fields | cut, attempt, tell)
      done += [change] if change else []
      if change and change.report.fits:
        break
  return sorted(done, key=_rank)


def _rank(change: Change):
  report = change.report
  if report.fits:
    return (0, report.times.step)
  return (1, report.memory.needed)


def _try(config, fields, attempt, tell, strict=False) -> Change | None:
  """One attempt; None where the batch does not divide, or nothing changes.

  None, too, where it cannot be: not every mesh can be laid over every machine,
  and a compiler may refuse one. `strict` raises that instead.
  """
  other = changed(config, fields)
  if not divides(other):
    return None
  try:
    report = attempt(other)
  except UserError as error:
    if strict:
      raise
    tell(Change(fields, None, str(error)))
    return None
  if report is None:
    return None
  change = Change(fields, report)
  tell(change)
  return change
