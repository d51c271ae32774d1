"""The time model against numbers by hand."""

import types

import numpy as np
import pytest

from jaxzoo.plan import estimate
from jaxzoo.plan.collectives import Collective
from jaxzoo.plan.costs import Costs
from jaxzoo.plan.topology import Topology, parse
from jaxzoo.train.utilization import Chip

W = 1e9
CHIP = Chip(1e12, 16, 1e11, 15, link=W, network=1e8, clock=1e9)


def torus(sides, wraps, slices=1):
  places = [(0, (x, y, 0)) for x in range(sides[0]) for y in range(sides[1])]
  return estimate.Network(places, (*sides, 1), (*wraps, False), slices, CHIP)


def collective(kind, groups, size=1e6, axes=('data',), times=1, hidden=False):
  return Collective(kind, axes, groups, size, times, hidden)


def seconds(kind, groups, network, size=1e6):
  return estimate.collective_seconds(collective(kind, groups, size), network)


# One collective.


def test_all_reduce_of_an_open_torus_uses_a_link_on_each_side():
  network = torus((4, 4), (False, False))
  everyone = (tuple(range(16)),)
  want = 2 * 1e6 * 15 / 16 / (2 * W) + 2 * (3 + 3) * 1e-6
  assert seconds('all-reduce', everyone, network) == pytest.approx(want)
  assert seconds('all-gather', everyone, network) == pytest.approx(want / 2)
  assert seconds('reduce-scatter', everyone, network) == pytest.approx(want / 2)


def test_closed_torus_uses_two_links_on_each_side():
  network = torus((16, 16), (True, True))
  everyone = (tuple(range(256)),)
  want = 2 * 1e6 * 255 / 256 / (4 * W) + 2 * (8 + 8) * 1e-6
  assert seconds('all-reduce', everyone, network) == pytest.approx(want)


def test_group_on_one_side_uses_only_that():
  network = torus((16, 16), (True, True))
  row = tuple(range(16))  # y varies
  want = 1e6 * 15 / 16 / (2 * W) + 8e-6
  assert seconds('all-gather', (row,), network) == pytest.approx(want)
  # A part of a ring is not closed.
  want = 1e6 * 3 / 4 / W + 3e-6
  assert seconds('all-gather', (row[:4],), network) == pytest.approx(want)


def test_slowest_group_decides():
  network = torus((4, 4), (False, False))
  assert seconds('all-gather', ((0, 1, 2, 3), (0, 1)), network) == seconds(
    'all-gather', ((0, 1, 2, 3),), network
  )


def test_permutation_takes_the_longest_way():
  network = torus((16, 16), (True, True))
  near = 1e6 / W + 1e-6
  assert seconds('collective-permute', ((0, 1),), network) == pytest.approx(
    near
  )
  # Around the ring it is one hop, to the other side eight.
  assert seconds('collective-permute', ((0, 15),), network) == pytest.approx(
    near
  )
  assert seconds(
    'collective-permute', ((0, 1), (0, 8)), network
  ) == pytest.approx(1e6 / W + 8e-6)


def test_between_slices_the_network_decides():
  network = torus((4, 4), (False, False), slices=2)
  each = collective('all-reduce', (), axes=('slices',))
  got = estimate.collective_seconds(each, network)
  assert got == pytest.approx(2 * 1e6 / 2 / 1e8)
  # Nothing of what is passed on stays in its slice.
  each = collective('collective-permute', (), axes=('slices',))
  assert estimate.collective_seconds(each, network) == pytest.approx(1e6 / 1e8)


def test_gpus_reduce_in_the_host_and_then_between_hosts():
  places = [(host, ()) for host in range(4) for _ in range(8)]
  network = estimate.Network(places, (), (), 1, CHIP)
  host = (tuple(range(8)),)
  inside = 2 * 1e6 * 7 / 8 / W
  assert seconds('all-reduce', host, network) == pytest.approx(inside)
  everyone = (tuple(range(32)),)
  between = 2 * (1e6 / 8) * 3 / 4 / 1e8
  assert seconds('all-reduce', everyone, network) == pytest.approx(
    inside + between
  )


# The step.


def costs(cycles=0.0, moved=0.0, seconds=0.0, kernels=0.0):
  return Costs(0.0, moved, cycles, seconds, {}, kernels)


def test_step_is_computation_and_what_of_the_network_it_does_not_hide():
  network = torus((4, 4), (False, False))
  everyone = (tuple(range(16)),)
  open_ = collective('all-gather', everyone, times=3)
  hidden = open_._replace(hidden=True)
  one = estimate.collective_seconds(open_, network)
  times = estimate.predict(
    costs(cycles=2e6, moved=1e8), [open_, hidden], network, 16e9
  )
  assert times.compute == pytest.approx(2e-3)
  assert times.hbm == pytest.approx(1e-3)
  assert times.interconnect == pytest.approx(6 * one)
  assert times.exposed == pytest.approx(3 * one)
  assert times.step == pytest.approx(2e-3 + 3 * one)
  assert times.model == pytest.approx(16e9 / 16 / 1e12)
  # With nothing to compute, what is hidden shows.
  times = estimate.predict(costs(cycles=1.0), [hidden], network, 0)
  assert times.step == pytest.approx(3 * one, rel=1e-3)


def test_memory_bound_step_takes_as_long_as_its_bytes():
  network = torus((4, 4), (False, False))
  times = estimate.predict(costs(cycles=1e6, moved=1e9), [], network, 0)
  assert times.step == pytest.approx(1e-2)


def test_kernels_are_added_to_the_cycles_which_do_not_have_them():
  network = torus((4, 4), (False, False))
  times = estimate.predict(costs(cycles=1e6, kernels=2e-3), [], network, 0)
  assert times.compute == pytest.approx(1e-3 + 2e-3)


def test_without_cycles_the_roofline_is_the_computation():
  network = torus((4, 4), (False, False))
  times = estimate.predict(costs(seconds=0.3, moved=1e8), [], network, 0)
  assert times.compute == times.step == pytest.approx(0.3)


def test_network_of_several_slices_has_the_places_of_the_first():
  devices = [
    types.SimpleNamespace(coords=[x, y, 0], slice_index=s)
    for s in range(2)
    for x in range(4)
    for y in range(4)
  ]
  mesh = types.SimpleNamespace(devices=np.array(devices, object))
  topology = Topology(parse('2xv5e:4x4'), devices, CHIP)
  network = estimate.make_network(topology, mesh)
  assert len(network.places) == 16 and network.slices == 2
  assert network.places[5] == (0, (1, 1, 0))
  assert network.sides == (4, 4, 1)
  assert network.wraps == (False, False, False)
