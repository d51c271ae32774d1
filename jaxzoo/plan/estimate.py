"""The time of a step, from what the devices compute, move and send."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxzoo.plan.collectives import SLICES, Collective
from jaxzoo.plan.costs import Costs
from jaxzoo.plan.topology import GPUS, Topology
from jaxzoo.train.utilization import Chip

HOP = 1e-6  # seconds to a neighbour in the torus


class Network(NamedTuple):
  """What connects the devices of a mesh.

  Attributes:
    places: of each device of the program, by its position in the mesh: the
      host of a GPU and (), or 0 and the coordinates of a TPU in its slice.
    sides: of the torus; () of GPUs.
    wraps: which sides are closed to rings.
    slices: of the whole mesh.
    chip: its `link` and `network` are the bandwidths.
  """

  places: Sequence[tuple[int, tuple[int, ...]]]
  sides: tuple[int, ...]
  wraps: tuple[bool, ...]
  slices: int
  chip: Chip


class Times(NamedTuple):
  """Seconds of one step.

  Attributes:
    step: predicted.
    compute: by the compiler's cycles, or at the roofline.
    hbm: that all bytes to and from memory need, the first floor.
    interconnect: that all collectives need one after the other, the second.
    exposed: of the collectives, beside which nothing is computed.
    model: that the model FLOPs need at the chips' peak: MFU 100 %.
  """

  step: float
  compute: float
  hbm: float
  interconnect: float
  exposed: float
  model: float


def make_network(topology: Topology, mesh) -> Network:
  """The network under a mesh; of several slices under that of the first."""
  target = topology.target
  devices = list(mesh.devices.flat)
  if target.kind in GPUS:
    places = [(device.process_index, ()) for device in devices]
    return Network(places, (), (), 1, topology.chip)
  places = [
    (0, tuple(device.coords))
    for device in devices[: len(devices) // target.slices]
  ]
  sides = (*target.sides, 1)[:3]
  wraps = (*target.wraps, False)[:3]
  return Network(places, sides, wraps, target.slices, topology.chip)


def predict(
  costs: Costs,
  collectives: Sequence[Collective],
  network: Network,
  model_flops: float,
) -> Times:
  """Step time: computation, and what of the network it does not hide.

    step = max(compute, hbm) + exposed + max(0, hidden - max(compute, hbm))

  Args:
    costs: of one device.
    collectives: likewise.
    network: of the mesh.
    model_flops: of one step on all devices.
  """
  chip = network.chip
  compute = costs.seconds
  if costs.cycles:
    compute = costs.cycles / chip.clock + costs.kernels
  hbm = costs.bytes / chip.bandwidth
  exposed = hidden = 0.0
  for each in collectives:
    seconds = each.times * collective_seconds(each, network)
    if each.hidden:
      hidden += seconds
    else:
      exposed += seconds
  busy = max(compute, hbm)
  exposed += max(0.0, hidden - busy)
  devices = len(network.places) * network.slices
  return Times(
    step=busy + exposed,
    compute=compute,
    hbm=hbm,
    interconnect=sum(
      each.times * collective_seconds(each, network) for each in collectives
    ),
    exposed=exposed,
    model=model_flops / devices / chip.flops,
  )


def collective_seconds(collective: Collective, network: Network) -> float:
  """Of one execution, by bandwidth and hops.

  Of n devices with links of W bytes a second, in rings along every side of the
  torus on which they differ, of which each gives one link, and two where it is
  closed (L in all), an array of V bytes needs

    gather or scatter:  V (n - 1) / n / (W L)
    all-reduce:         twice as much
    all-to-all:         V (n - 1) / n / (W L) times the mean way in hops
    permute:            V / W

  and the hops of its longest way. Between hosts of GPUs the same goes on with
  the part that each GPU of a host has; between slices with what the compiler
  gives to the hosts. The slower of the links decides.
  """
  kind, size, chip = collective.kind, collective.bytes, network.chip
  rounds = 2 if kind == 'all-reduce' else 1
  if SLICES in collective.axes:
    if kind != 'collective-permute':
      size = rounds * _ring(size, network.slices)
    return size / chip.network
  if not network.sides:
    return rounds * max(
      _islands(kind, size, group, network) for group in collective.groups
    )
  if kind == 'collective-permute':
    pairs = [pair for pair in collective.groups if pair[0] != pair[1]]
    hops = max((_distance(*pair, network) for pair in pairs), default=0)
    return size / chip.link + hops * HOP
  return max(
    _torus(kind, rounds, size, group, network) for group in collective.groups
  )


def _ring(size: float, ways: int) -> float:
  """Bytes that each sends so that each has, or gives, all of the array."""
  return size * (ways - 1) / ways


def _torus(kind, rounds, size, group, network) -> float:
  """Of one group of TPUs in one slice."""
  links = hops = way = 0.0
  for axis, (side, wrap) in enumerate(
    zip(network.sides, network.wraps, strict=True)
  ):
    extent = len({network.places[i][1][axis] for i in group})
    if extent == 1:
      continue
    closed = wrap and extent == side
    links += 2 if closed else 1
    hops += extent // 2 if closed else extent - 1
    way += extent / 4 if closed else extent / 3
  spread = way if kind == 'all-to-all' else 1.0
  sent = rounds * _ring(size, len(group)) * max(1.0, spread)
  return sent / (network.chip.link * max(1.0, links)) + rounds * hops * HOP


def _islands(kind, size, group, network) -> float:
  """Of one group of GPUs, one round: within the hosts, and between them."""
  members = {}
  for i in group:
    members.setdefault(network.places[i][0], []).append(i)
  hosts = len(members)
  inside = max(len(gpus) for gpus in members.values())
  chip = network.chip
  if kind == 'collective-permute':
    return size / (chip.network if hosts > 1 else chip.link)
  near = _ring(size, inside) / chip.link
  if hosts == 1:
    return near
  if kind == 'all-to-all':  # every byte goes to its host by itself
    return max(near, _ring(size, hosts) / chip.network)
  return near + _ring(size / inside, hosts) / chip.network


def _distance(one: int, other: int, network: Network) -> int:
  """Hops between two places of the torus."""
  total = 0
  for a, b, side, wrap in zip(
    network.places[one][1],
    network.places[other][1],
    network.sides,
    network.wraps,
    strict=True,
  ):
    way = abs(a - b)
    total += min(way, side - way) if wrap else way
  return total
