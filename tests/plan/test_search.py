"""What is tried, in which order, and what is proposed; nothing is compiled."""

import types

import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.plan import command, search
from jaxzoo.plan.estimate import Times
from jaxzoo.plan.report import GIB, Memory, Report
from jaxzoo.plan.topology import Topology, parse

TOPOLOGY = Topology(parse('v5e:4x4'), [], None)
RULES = (('kernel$', (None, 'tensor')),)


def config_of(name='cfam:tiny', **fields):
  fields = {
    'mesh.data': 16,
    'mesh.fsdp': 1,
    'mesh.tensor': 1,
    'batch_size': 64,
    **{key.replace('__', '.'): value for key, value in fields.items()},
  }
  return search.changed(catalog.get_config(name), fields)


def report_of(config, need, seconds=1.0):
  fits = need <= 16
  settings = {'mesh': dict(config.mesh), 'remat': config.remat}
  return Report(
    {**settings, 'microbatches': 1, 'batch_size': config.batch_size},
    fits,
    Memory(16 * GIB, need * GIB),
    {},
    0,
    0,
    {},
    [],
    Times(seconds, 0, 0, 0, 0, 0) if fits else None,
  )


def first_fit(config, attempt, tries=99):
  told = []
  done = search.first_fit(config, TOPOLOGY, attempt, tries, told.append)
  assert told == done
  return [change.options for change in done]


def test_remedies_begin_with_rematerialisation_and_end_with_parts():
  need = lambda config: 64 / (config.microbatches * config.mesh.fsdp**0.5)
  got = first_fit(config_of(), lambda config: report_of(config, need(config)))
  assert got == [
    '--config.remat=dots',
    '--config.remat=attention',
    '--config.remat=full',
    '--config.remat=full --config.mesh.data=1 --config.mesh.fsdp=16',
  ]


def test_parts_come_last_and_only_where_the_batch_divides():
  got = first_fit(config_of(remat='full'), lambda config: report_of(config, 99))
  assert got == [
    '--config.mesh.data=1 --config.mesh.fsdp=16',
    '--config.mesh.data=1 --config.mesh.fsdp=16 --config.microbatches=2',
    '--config.mesh.data=1 --config.mesh.fsdp=16 --config.microbatches=4',
  ]  # 8 parts of 64 are less than 16 devices


def test_loss_that_compares_all_examples_is_cut_in_its_towers():
  got = first_fit(
    config_of('clip:tiny', remat='full', mesh__fsdp=16, mesh__data=1),
    lambda config: report_of(config, 99),
  )
  assert got[0] == '--config.loss.tower_microbatches=2'


def test_batch_is_cut_into_more_parts_than_it_is():
  config = config_of(remat='full', mesh__fsdp=16, mesh__data=1, microbatches=2)
  got = first_fit(config, lambda config: report_of(config, 99))
  assert got == ['--config.microbatches=4']


def test_program_that_does_not_change_is_no_attempt():
  def attempt(config):
    return None if config.remat != 'none' and config.mesh.fsdp == 1 else (
      report_of(config, 8)
    )  # fmt: skip

  got = first_fit(config_of(), attempt)
  assert got == [
    '--config.remat=full --config.mesh.data=1 --config.mesh.fsdp=16'
  ]


def test_attempts_end_with_their_number():
  got = first_fit(config_of(), lambda config: report_of(config, 99), tries=2)
  assert len(got) == 2


def test_candidates_are_meshes_with_every_rematerialisation():
  shapes = [
    (c['mesh.data'], c['mesh.fsdp'], c['mesh.tensor'])
    for c in search.candidates(config_of(), TOPOLOGY, RULES)
    if c['remat'] == 'none'
  ]
  assert shapes[:2] == [(16, 1, 1), (1, 16, 1)]
  assert (8, 1, 2) in shapes and (4, 1, 4) in shapes
  assert all(a * b * c == 16 for a, b, c in shapes)


def test_tensor_of_gpus_stays_in_their_host():
  names = {'h100:4': {1, 2, 4}, 'h100:2x8': {1, 2, 4}, 'h100:4x6': {1, 2}}
  for name, want in names.items():
    machine = TOPOLOGY._replace(target=parse(name))
    changes = search.candidates(config_of(), machine, RULES)
    assert {c['mesh.tensor'] for c in changes} == want


def test_only_data_spans_slices_and_tensor_needs_rules():
  two = TOPOLOGY._replace(target=parse('2xv5e:4x4'))
  shapes = {
    (c['mesh.data'], c['mesh.tensor'])
    for c in search.candidates(config_of(), two, ())
  }
  assert all(data % 2 == 0 and tensor == 1 for data, tensor in shapes)


def test_fastest_that_fits_is_first():
  seconds = {'none': 1.0, 'dots': 0.5, 'attention': 0.7, 'full': 2.0}

  def attempt(config):
    need = 20 if config.remat == 'none' else 8
    return report_of(config, need, seconds[config.remat] + config.mesh.fsdp)

  done = search.fastest(
    config_of(), TOPOLOGY, attempt, (), 99, lambda change: None
  )
  assert done[0].options == (
    '--config.mesh.data=16 --config.mesh.fsdp=1 --config.mesh.tensor=1 '
    '--config.remat=dots'
  )
  assert not done[-1].report.fits


def test_search_cuts_the_batch_where_nothing_else_fits():
  need = lambda config: 24 / config.microbatches
  done = search.fastest(
    config_of(),
    TOPOLOGY,
    lambda config: report_of(config, need(config)),
    (),
    3,
    lambda change: None,
  )
  assert done[0].fields['microbatches'] == 2 and done[0].report.fits


def test_search_cuts_the_batch_of_what_needs_the_least():
  def attempt(config):
    need = 99 if config.mesh.fsdp < 16 else 24
    return report_of(config, need / config.microbatches)

  done = search.fastest(
    config_of(), TOPOLOGY, attempt, (), 99, lambda change: None
  )
  assert done[0].fields['mesh.fsdp'] == 16
  assert done[0].fields['microbatches'] == 2 and done[0].report.fits


def test_mesh_that_cannot_be_is_told_and_left_out():
  def attempt(config):
    if config.mesh.tensor == 4:
      raise UserError('spans processes')
    return report_of(config, 8)

  told = []
  done = search.fastest(config_of(), TOPOLOGY, attempt, RULES, 99, told.append)
  assert {change.fields['mesh.tensor'] for change in done} == {1, 2}
  refused = [change for change in told if change.report is None]
  assert [c.refusal for c in refused] == ['spans processes'] * 4
  lines = []
  command._tell(lines.append, refused[0])
  assert lines[0].endswith('cannot be: spans processes')


def test_config_that_cannot_be_ends_a_search():
  def attempt(config):
    raise UserError('no such field')

  with pytest.raises(UserError, match='no such field'):
    search.fastest(config_of(), TOPOLOGY, attempt, (), 99, lambda change: None)


# Before anything is compiled.


def plan(config, name, tmp_path, **options):
  console = types.SimpleNamespace(print=lambda *_, **__: None)
  return command.run(config, name, tmp_path / 'p.json', console, **options)


@pytest.fixture
def opened(monkeypatch):
  """Devices of this process in place of the topology's: 8 of them."""
  import jax

  monkeypatch.setattr(
    command.topology,
    'open_topology',
    lambda target: Topology(target, jax.devices()[:4], None),
  )


def test_batch_of_less_than_an_example_a_chip_is_raised(opened):
  config = catalog.get_config('cfam:tiny')
  config.batch_size = 2
  topology = command.topology.open_topology(parse('v5e:2x2'))
  config, note = command.whole_mesh(config, topology)
  assert config.batch_size == 4 and dict(config.mesh)['data'] == 4
  assert '--config.batch_size=4' in note


def test_batch_that_does_not_divide_is_an_error(opened, tmp_path):
  config = catalog.get_config('cfam:tiny')
  config.batch_size = 6
  with pytest.raises(UserError, match='does not divide over 4 devices'):
    plan(config, 'v5e:2x2', tmp_path)


def test_mesh_that_does_not_fit_is_an_error(opened, tmp_path):
  config = catalog.get_config('cfam:tiny')
  config.mesh.fsdp = 3
  with pytest.raises(UserError, match='does not fit 4 devices'):
    plan(config, 'v5e:2x2', tmp_path)


def test_number_of_tries_is_checked(tmp_path):
  with pytest.raises(UserError, match='plan_tries'):
    plan(catalog.get_config('cfam:tiny'), 'v5e:2x2', tmp_path, tries=-1)
