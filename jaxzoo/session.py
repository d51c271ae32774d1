"""The loop between a first state and result.json."""

import contextlib
import time
from typing import Any, NamedTuple

import jax

import jaxzoo
from jaxzoo import catalog, compression, stages
from jaxzoo.assembly import as_json, at_end
from jaxzoo.eval.evaluator import make_predict
from jaxzoo.eval.pictures import learning_curves
from jaxzoo.train import checkpoint, loop
from jaxzoo.train.best import Best, better
from jaxzoo.train.utilization import make_gauge
from jaxzoo.train.writers import (
  Display,
  Writer,
  format_scalars,
  result_table,
)


class Session(NamedTuple):
  """A run that is ready to go.

  Attributes:
    config: of the run.
    system: its System.
    program: its compiled functions, see `loop.compile_system`.
    plan: of the loop.
    evaluators: by name.
    checkpoints: of the run, open.
    workdir: where everything is written.
    console: where to print.
  """

  config: Any
  system: Any
  program: Any
  plan: loop.Plan
  evaluators: dict
  checkpoints: checkpoint.Checkpoints
  workdir: Any
  console: Any


def run(session: Session, state, batches, best: Best) -> dict:
  """Trains to the end of the plan, or until it has been enough.

  Args:
    session: the run.
    state: to begin with.
    batches: endless, with the iterator's `state`.
    best: of the evaluations so far.

  Returns:
    The contents of result.json.
  """
  config, plan, workdir = session.config, session.plan, session.workdir
  fields = config.checkpoint
  # Stopped early before: nothing is left but to say how it ended.
  enough = lambda: bool(config.patience) and best.waited >= config.patience
  if enough():
    plan = plan._replace(total=int(state.step))
  writer = Writer(workdir, int(state.step))
  _write_facts(session, writer)
  display = Display(
    plan.total, int(state.step), session.console, config.data.unit
  )
  judge, evaluations = make_judge(session, display)
  report = compression.make_report(config, plan.total)
  waiting = at_end(config)

  def evaluate(state):
    nonlocal best
    started = time.perf_counter()
    now = [name for name in session.evaluators if name not in waiting]
    metrics = judge(state, now)
    if config.compress.method:
      writer.scalars(int(state.step), report(state))
    display.line(f'  evaluated in {time.perf_counter() - started:.0f} s')
    if fields.best:
      step = int(state.step)
      best = better(best, step, metrics, fields.best, fields.best_mode)
    return metrics

  def save(state, metrics):
    meta = {'data': batches.state, 'jaxzoo': jaxzoo.__version__}
    if fields.best:
      meta['best'] = best._asdict()
    session.checkpoints.save(state, meta, metrics)

  with contextlib.closing(writer):
    state, metrics = loop.train(
      session.program.step,
      state,
      batches,
      plan=plan,
      batch_size=config.batch_size,
      evaluate=evaluate,
      save=save,
      writer=writer,
      display=display,
      enough=enough,
      gauge=make_gauge(
        session.system,
        session.program.abstract,
        session.program.batch,
        session.program.mesh,
      ),
      profile_to=str(workdir / 'profile'),
    )
    if waiting:
      last = judge(best_state(session, state, best), waiting)
      writer.scalars(int(state.step), last)
      metrics = {**metrics, **last}
    result = make_result(session, state, metrics, best)
    writer.json('result.json', result)
    _draw(evaluations, writer, int(state.step))
  session.console.print(result_table(metrics, _beside(result)))
  return result


def _write_facts(session, writer) -> None:
  """config.json, and what the data has to say of itself."""
  config = session.config
  writer.json('config.json', as_json(config))
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  if hasattr(data, 'facts'):
    writer.json('data.json', data.facts(config))


def make_judge(session, display):
  """((state, names of evaluators) -> metrics, their latest evaluations)."""
  predict = make_predict(
    session.system,
    session.program.mesh,
    session.config.eval_batch_size,
    session.workdir,
  )
  evaluations = {}

  def judge(state, names):
    predict_now = predict(state)
    metrics = {}
    for name in names:
      evaluations[name] = session.evaluators[name](predict_now)
      for key, value in evaluations[name].metrics.items():
        metrics[f'{name}/{key}'] = value
      display.line(f'  {name}: {format_scalars(evaluations[name].metrics)}')
    return metrics

  return judge, evaluations


def best_state(session, state, best: Best):
  """`state` with the parameters of the best evaluation, if there is one."""
  if best.step in (-1, int(state.step)):
    return state
  session.checkpoints.wait()
  found, _ = checkpoint.read(
    session.checkpoints.directory,
    session.program.abstract,
    session.program.shardings,
    step=best.step,
  )
  return state._replace(params=found.params, extra=found.extra)


def make_result(session, state, metrics, best: Best) -> dict:
  """What result.json holds."""
  config, system = session.config, session.system
  result = {
    'system': config.system,
    'step': int(state.step),
    'metrics': metrics,
  }
  if config.checkpoint.best:
    result['best'] = {'step': best.step, 'metrics': best.metrics}
  if config.compress.method:
    result['compress'] = compression.summary(config, system, state)
  module = catalog.load(config.system)
  if hasattr(module, 'summary'):
    result['summary'] = module.summary(config, state)
  before = stages.results(config, session.workdir)
  if before:
    result['stages'] = before
  if config.baseline:
    result['baseline'] = config.baseline.to_dict()
  return result


def _beside(result: dict) -> dict:
  """Rows of the table beside the run's own: stages, the best, the baseline."""
  rows = {f'({k})': metrics for k, metrics in result.get('stages', {}).items()}
  best = result.get('best')
  if best and best['step'] != result['step']:
    rows[f'(best, step {best["step"]})'] = best['metrics']
  if 'baseline' in result:
    rows['(baseline)'] = result['baseline']
  return rows


def _draw(evaluations, writer, step: int) -> None:
  """Pictures and tables of the last evaluations, by one process."""
  if jax.process_index() != 0:
    return
  for name, evaluation in evaluations.items():
    for picture, image in evaluation.pictures().items():
      writer.picture(f'{name}_{picture}', image, step)
    for table, rows in evaluation.tables().items():
      writer.table(f'{name}_{table}', rows)
  curves = learning_curves(writer.history())
  writer.picture('learning_curves', curves, step)
