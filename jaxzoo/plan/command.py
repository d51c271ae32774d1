"""`--plan`: what a run needs and how fast it is, before there is a machine.

python -m jaxzoo.main --config=configs/cfam.py:ufine6926 --plan=v5e:4x4
python -m jaxzoo.main --config=... --plan=search:v5e:16x16
"""

import functools
import json

from etils import epath

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.plan import report as reports
from jaxzoo.plan import search, step, topology
from jaxzoo.train import mesh as meshes

TRIES = 8


def run(config, name: str, out, console, *, tries: int = TRIES) -> dict:
  """Plans a config for a topology; prints the plan, and writes it as JSON.

  Args:
    config: of the run.
    name: of the topology, see `topology.parse`; with `search:` in front mesh,
      rematerialisation and parts of the batch are looked for.
    out: path of the JSON file.
    console: where to print.
    tries: compilations at the most, beside that of the config as it is; a
      search that finds nothing that fits goes on with parts of the batch.

  Returns:
    What is in the file.

  Raises:
    UserError: no such topology, no compiler for it, or a config that cannot be.
  """
  if tries < 0:
    raise UserError(f'--plan_tries={tries}: it must be at least 0')
  searching = name.startswith('search:')
  opened = topology.open_topology(topology.parse(name.removeprefix('search:')))
  say = functools.partial(
    console.print, markup=False, highlight=False, soft_wrap=True
  )
  config, note = whole_mesh(config, opened)
  if note:
    say(f'note: {note}')
  attempt = step.make_attempt(opened)
  plan = (_search if searching else _plan)(
    config, opened, attempt, tries, console, say
  )
  if note:
    plan['note'] = note
  out = epath.Path(out).expanduser()
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(plan, indent=1) + '\n')
  except OSError as error:
    raise UserError(
      f'{out} cannot be written ({error}): choose another with --plan_out'
    ) from error
  say(f'written to {out}')
  return plan


def whole_mesh(config, opened: topology.Topology):
  """(config with every axis of its mesh given, what was changed).

  A published batch may have fewer examples than a pod has chips: one example
  a chip is then the least that can be planned.
  """
  mesh = meshes.make_mesh(config.mesh, opened.devices)
  fields = {f'mesh.{axis}': size for axis, size in mesh.shape.items()}
  least = mesh.shape['data'] * mesh.shape['fsdp'] * step.parts(config)
  note = ''
  if 0 < config.batch_size < least:
    note = (
      f'batch_size={config.batch_size} is less than one example a chip; '
      f'planned with {least}, which a run needs as --config.batch_size={least}'
    )
    fields['batch_size'] = least
  return search.changed(config, fields), note


def _plan(config, opened, attempt, tries, console, say) -> dict:
  """The plan of a config as it is, and what makes it fit."""
  report = attempt(config)
  console.print(reports.table(report))
  plan = reports.as_json(report)
  if report.fits or not tries:
    return plan
  say('It does not fit. Trying what needs less memory:')
  done = search.first_fit(
    config, opened, attempt, tries, functools.partial(_tell, say)
  )
  plan['tried'] = [_tried(change) for change in done]
  if done and done[-1].report.fits:
    plan['change'] = done[-1].options
    say(f'It fits with {done[-1].options}')
    console.print(reports.table(done[-1].report))
  else:
    say(
      f'None of {len(done)} changes makes it fit: take more chips, a smaller '
      'batch_size, or more attempts (--plan_tries)'
    )
  return plan


def _search(config, opened, attempt, tries, console, say) -> dict:
  """The best of what was tried."""
  done = search.fastest(
    config,
    opened,
    attempt,
    catalog.sharding(config),
    max(1, tries),
    functools.partial(_tell, say),
  )
  if not done:
    raise UserError(
      f'batch_size={config.batch_size} divides over no mesh of '
      f'{opened.target.devices} devices: use a multiple of that'
    )
  console.print(reports.overview([change.report for change in done]))
  best = done[0]
  plan = {
    **reports.as_json(best.report),
    'tried': [_tried(change) for change in done],
  }
  if best.report.fits:
    plan['change'] = best.options
    say(f'proposed: {best.options}')
    console.print(reports.table(best.report))
  else:
    say('None of them fits: take more chips or a smaller batch_size')
  return plan


def _tell(say, change: search.Change) -> None:
  report = change.report
  if report is None:
    say(f'  {change.options}: cannot be: {change.refusal}')
    return
  speed = f', {1e3 * report.times.step:,.2f} ms a step' if report.times else ''
  say(f'  {change.options}: {reports.fit_text(report)}{speed}')


def _tried(change: search.Change) -> dict:
  return {'change': change.options, **reports.as_json(change.report)}
