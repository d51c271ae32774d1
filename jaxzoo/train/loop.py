"""The one loop that trains every system.

It knows a System's three functions, a stream of batches and a schedule, and
nothing of what is being trained.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax.experimental import multihost_utils

from jaxzoo.platform import options_for_once
from jaxzoo.system import State, System
from jaxzoo.train import mesh as meshes

# Steps that may be queued on the devices: enough to keep them busy, few enough
# to bound the memory of batches in flight.
IN_FLIGHT = 2


class Plan(NamedTuple):
  """When things happen, in steps; 0 means never.

  Attributes:
    total: updates of the whole run.
    log: between two lines of metrics, at least 1.
    evaluate: between two evaluations; the last step is always evaluated.
    save: between two checkpoints; the last step is always saved.
    profile: (first, last) step of a profiler trace, or ().
  """

  total: int
  log: int = 50
  evaluate: int = 0
  save: int = 0
  profile: tuple[int, ...] = ()


class Interrupted(Exception):
  """The run was asked to stop (SIGTERM) and has saved its state."""

  def __init__(self, step):
    super().__init__(f'interrupted at step {step}')
    self.step = step


class NotFinite(Exception):
  """A metric became NaN or infinite.

  `workdir` is of the run that it happened in, which may be a stage of another.
  """

  workdir = ''

  def __init__(self, step, name, value):
    super().__init__(f'{name} is {value} at step {step}')
    self.step, self.name, self.value = step, name, value


class Program(NamedTuple):
  """A system compiled for a mesh.

  Attributes:
    abstract: the state's shapes and dtypes.
    shardings: a NamedSharding for each of its leaves.
    init: () -> State on the devices.
    step: (state, batch) -> (state, metrics); compiled, the state is donated.
    mesh: what it was compiled for.
    batch: shapes and dtypes of every batch, likewise.
  """

  abstract: State
  shardings: State
  init: Callable[[], State]
  step: Callable[[State, Any], tuple[State, dict]]
  mesh: jax.sharding.Mesh
  batch: Any


def compile_system(
  system: System, rng, batch, mesh, rules=(), options=None
) -> Program:
  """Compiles a system for a mesh; nothing is allocated yet.

  Args:
    system: what to train.
    rng: key of the run.
    batch: abstract, with shardings: shapes and dtypes of every batch.
    mesh: from `make_mesh`.
    rules: sharding rules of the model family.
    options: of the compiler, see compiler.py.
  """
  program = lower_system(system, rng, batch, mesh, rules)
  return program._replace(step=program.step.compile(options or None))


def lower_system(system: System, rng, batch, mesh, rules=()) -> Program:
  """`compile_system` up to the compiler: `step` is a `jax.stages.Lowered`.

  The devices of the mesh may be those of a topology that is not there.
  """
  blank = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
  init = lambda: system.init(rng, blank())
  abstract = jax.eval_shape(init)
  shardings = meshes.infer_shardings(abstract, mesh, rules)
  # Kernels that XLA does not cut itself ask the context for the mesh.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    return _lowered(system, init, abstract, shardings, batch, mesh)


def _lowered(system, init, abstract, shardings, batch, mesh) -> Program:
  step = jax.jit(
    system.step,
    donate_argnums=0,
    out_shardings=(shardings, meshes.replicated(mesh)),
  )
  return Program(
    abstract,
    shardings,
    # Compiled with its output shardings, init makes every parameter where it
    # belongs: no device and no host ever holds all of them.
    jax.jit(
      init,
      out_shardings=shardings,
      compiler_options=options_for_once(mesh.devices.flat[0].platform),
    ),
    step.lower(meshes.placed(abstract, shardings), batch),
    mesh,
    batch,
  )


def train(
  step_fn: Callable[[State, Any], tuple[State, dict]],
  state: State,
  batches,
  *,
  plan: Plan,
  batch_size: int,
  evaluate: Callable[[State], Mapping[str, float]],
  save: Callable[[State, Mapping[str, float]], None],
  writer,
  display,
  enough: Callable[[], bool] = lambda: False,
  gauge: Callable[[float], Mapping[str, float]] = lambda rate: {},
  profile_to: str = '',
) -> tuple[State, dict[str, float]]:
  """Runs `step_fn` from `state.step` to the end of the plan.

  Metrics are read one step late, so that reading never empties the devices'
  queue; every step's metrics are checked. The state is donated to each step.

  Args:
    step_fn: compiled; (state, batch) -> (state, metrics).
    state: on the devices; not usable afterwards.
    batches: gives batches on the devices.
    plan: when to log, evaluate, save and profile.
    batch_size: global, for the rates.
    evaluate: state -> metrics.
    save: (state, its evaluation's metrics, {} where it had none).
    writer: see writers.Writer.
    display: see writers.Display.
    enough: asked after each evaluation: whether the run ends with it, its
      state saved, before the plan does.
    gauge: steps a second -> what is logged beside them, see utilization.py.
    profile_to: folder of the profiler trace.

  Returns:
    The final state and the last evaluation's metrics.

  Raises:
    NotFinite: a step's metric is NaN or infinite; nothing is saved after it.
    Interrupted: SIGTERM came; the state has been saved.
  """
  start = step = int(jax.device_get(state.step))
  pending, results = [], {}
  clock = Clock(batch_size, gauge)
  with display, asked_to_stop() as asked, contextlib.ExitStack() as profiler:
    while step < plan.total:
      waited = time.perf_counter()
      batch = next(batches)
      clock.wait += time.perf_counter() - waited
      if plan.profile and step == plan.profile[0]:
        profiler.enter_context(jax.profiler.trace(profile_to))
      # Everything is on the devices: a transfer here would be a bug.
      with jax.transfer_guard('disallow'):
        state, metrics = step_fn(state, batch)
      step += 1
      pending.append((step, metrics))
      if len(pending) > IN_FLIGHT:
        jax.block_until_ready(pending[-1 - IN_FLIGHT][1])
      display.advance(step)
      stop = asked(step)
      last = step == plan.total
      evaluating = last or _due(step, plan.evaluate)
      saving = last or stop or _due(step, plan.save)
      if plan.profile and step == plan.profile[1]:
        jax.block_until_ready(metrics)
        profiler.close()
      if evaluating or saving or _due(step, plan.log):
        # All are read where the devices must be idle anyway; otherwise all but
        # the newest, which is still being computed.
        ready = len(pending) if evaluating or saving else len(pending) - 1
        clock.report(pending[:ready], writer, display)
        pending = pending[ready:]
      if evaluating:
        results = dict(evaluate(state))
        writer.scalars(step, results)
        last = last or enough()
        saving = saving or last
      if saving:
        # Without an evaluation of its own, a checkpoint has no metrics: with
        # former ones it would pass for the best.
        save(state, results if evaluating else {})
      if evaluating or saving:
        clock.restart()
      if last:
        break
      if stop:
        raise Interrupted(step)
    if step == start:  # finished before: nothing left but to say how it ended
      results = dict(evaluate(state))
  return state, results


def _due(step: int, every: int) -> bool:
  return bool(every) and step % every == 0


class Clock:
  """Measures steps and data wait between two reports; evaluations and
  checkpoints do not count."""

  def __init__(self, batch_size: int, gauge: Callable):
    self._batch_size = batch_size
    self._gauge = gauge
    self.restart()

  def restart(self):
    self._since = time.perf_counter()
    self.wait = 0.0

  def report(self, steps, writer, display):
    """Checks and writes the metrics of `steps`, a list of (step, metrics)."""
    if not steps:
      return
    values = jax.device_get([metrics for _, metrics in steps])
    for (step, _), row in zip(steps, values, strict=True):
      for name, value in row.items():
        if not math.isfinite(value):
          raise NotFinite(step, name, float(value))
    step = steps[-1][0]
    means = {
      name: sum(float(row[name]) for row in values) / len(values)
      for name in values[0]
    }
    seconds = max(time.perf_counter() - self._since, 1e-9)
    rate = len(steps) / seconds
    writer.scalars(
      step,
      {
        **means,
        'steps_per_second': rate,
        'examples_per_second': rate * self._batch_size,
        'data_wait': self.wait / seconds,
        **self._gauge(rate),
      },
    )
    display.report(step, means, rate, rate * self._batch_size)
    if self.wait > max(1.0, 0.1 * seconds):  # start-up does not count
      logging.log_first_n(
        logging.WARNING,
        'the devices waited %.0f %% of the time for data: raise data.threads '
        'or data.workers',
        3,
        100 * self.wait / seconds,
      )
    self.restart()


@contextlib.contextmanager
def asked_to_stop():
  """Gives a function step -> bool: whether SIGTERM asks to stop.

  One process: a handler sets a flag. Many: the coordination service, which
  catches the signal on any host and agrees on one step for all.
  """
  if jax.process_count() > 1:
    yield multihost_utils.reached_preemption_sync_point
    return
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: False  # handlers can be set in the main thread alone
    return
  asked = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, before)
