"""The loop on a system of a few numbers: when it logs, saves and stops."""

import contextlib
import math
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.system import from_loss
from jaxzoo.train import loop
from jaxzoo.train import mesh as meshes
from jaxzoo.train.checkpoint import Checkpoints

BATCH = 8
POISON = -1.0  # a batch with this value gives a loss of NaN


def system():
  def init(rng, batch):
    return {'w': jax.random.normal(rng, batch['x'].shape[1:])}, {}

  def loss(params, extra, batch, rng):
    noise = jax.random.normal(rng, batch['x'].shape)
    value = jnp.mean((batch['x'] + 0.1 * noise - params['w']) ** 2)
    poisoned = (batch['x'] == POISON).any()
    metrics = {'odd': jnp.where(poisoned, jnp.inf, 1.0)}
    return jnp.where(poisoned, jnp.nan, value), (extra, metrics)

  predict = lambda params, extra, batch: batch['x'] - params['w']
  return from_loss(init, loss, predict, optax.adam(0.1))


@pytest.fixture(scope='module')
def program():
  mesh = meshes.make_mesh(dict(data=4, fsdp=2))
  batch = meshes.abstract_batch({'x': np.zeros((BATCH, 3), np.float32)}, mesh)
  return loop.compile_system(system(), jax.random.key(0), batch, mesh)


class Batches:
  """Batch t is a function of t; `before[t]` runs before it is given out."""

  def __init__(self, mesh, start=0, poison=None, before=None):
    self.state, self.given = start, 0
    self._sharding = meshes.batch_sharding(mesh)
    self._poison, self._before = poison, before or {}

  def __next__(self):
    self._before.get(self.state, lambda: None)()
    x = np.random.default_rng(self.state).random((BATCH, 3), np.float32)
    if self.state == self._poison:
      x[0, 0] = POISON
    self.state += 1
    self.given += 1
    return meshes.to_devices({'x': x}, self._sharding)


class Recorder:
  """A writer and a display that remember."""

  def __init__(self):
    self.lines, self.reports, self.steps = [], [], []

  def scalars(self, step, values):
    self.lines.append((step, dict(values)))

  def report(self, step, values, rate, examples):
    self.reports.append((step, dict(values), rate, examples))

  def advance(self, step):
    self.steps.append(step)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


class Run:
  """What happened in a run of the loop."""

  def __init__(self, program, *, state=None, batches=None, keep=None, **plan):
    self.log, self.events = Recorder(), []
    self.batches = batches or Batches(program.mesh)
    self.state = self.results = self.error = None
    self._keep = keep
    self._plan = loop.Plan(**plan)
    self._program, self._start = program, state

  def evaluate(self, state):
    step = int(state.step)
    self.events.append(('evaluate', step))
    return {'test/w': float(state.params['w'][0]), 'test/step': step}

  def save(self, state, metrics):
    self.events.append(('save', int(state.step), metrics.get('test/step')))
    if self._keep:
      self._keep(state, metrics)

  def __call__(self):
    try:
      self.state, self.results = loop.train(
        self._program.step,
        self._program.init() if self._start is None else self._start,
        self.batches,
        plan=self._plan,
        batch_size=BATCH,
        evaluate=self.evaluate,
        save=self.save,
        writer=self.log,
        display=self.log,
      )
    except Exception as error:
      self.error = error
    return self

  def training_lines(self):
    return [line for line in self.log.lines if 'loss' in line[1]]


def by_hand(program, steps):
  """States after every step, and their metrics, without the loop."""
  one, batches = jax.jit(system().step), Batches(program.mesh)
  state = program.init()
  for _ in range(steps):
    state, metrics = one(state, next(batches))
    yield state, jax.device_get(metrics)


def weights(state):
  return np.asarray(state.params['w'])


# The schedule.


def test_loop_trains_like_a_loop_by_hand(program):
  run = Run(program, total=7)()
  *_, (want, _) = by_hand(program, 7)
  assert run.error is None and int(run.state.step) == 7
  np.testing.assert_allclose(weights(run.state), weights(want), rtol=1e-6)
  assert run.log.steps == list(range(1, 8))


def test_evaluations_and_checkpoints_come_on_schedule_and_at_the_end(program):
  run = Run(program, total=10, evaluate=4, save=3)()
  assert run.events == [
    ('save', 3, None),
    ('evaluate', 4),
    ('save', 6, None),  # the evaluation of step 4 is not one of step 6
    ('evaluate', 8),
    ('save', 9, None),
    ('evaluate', 10),
    ('save', 10, 10),
  ]
  assert run.results['test/step'] == 10


def test_without_a_schedule_only_the_last_step_counts(program):
  run = Run(program, total=5)()
  assert run.events == [('evaluate', 5), ('save', 5, 5)]


def test_evaluation_of_a_checkpointed_step_is_stored_with_it(program):
  run = Run(program, total=4, evaluate=2, save=2)()
  assert [e for e in run.events if e[0] == 'save'] == [
    ('save', 2, 2),
    ('save', 4, 4),
  ]


def test_finished_run_is_evaluated_and_not_trained(program):
  state = Run(program, total=3)().state
  run = Run(program, total=3, state=state)()
  assert run.events == [('evaluate', 3)]
  assert run.batches.given == 0 and run.results['test/step'] == 3


# Metrics.


def test_metrics_are_means_over_the_steps_since_the_line_before(program):
  run = Run(program, total=10, log=3)()
  losses = [float(metrics['loss']) for _, metrics in by_hand(program, 10)]
  # One step late, so that the newest is never waited for; all at the end.
  want = {2: losses[:2], 5: losses[2:5], 8: losses[5:8], 10: losses[8:]}
  lines = run.training_lines()
  assert [step for step, _ in lines] == list(want)
  for step, values in lines:
    np.testing.assert_allclose(values['loss'], np.mean(want[step]), rtol=1e-5)


def test_all_metrics_are_read_before_an_evaluation(program):
  run = Run(program, total=8, log=100, evaluate=3)()
  assert [step for step, _ in run.training_lines()] == [3, 6, 8]


def test_rates_belong_to_each_other(program):
  run = Run(program, total=6, log=2)()
  for (_, values), (_, _, rate, examples) in zip(
    run.training_lines(), run.log.reports, strict=True
  ):
    assert values['steps_per_second'] == rate > 0
    assert values['examples_per_second'] == examples == rate * BATCH
    assert 0 <= values['data_wait'] <= 1
    assert all(type(value) is float for value in values.values())


def test_evaluation_time_is_not_step_time(program, monkeypatch):
  now = [0.0]
  monkeypatch.setattr(loop.time, 'perf_counter', lambda: now[0])

  def tick():
    now[0] += 1.0

  run = Run(program, total=6, log=100, evaluate=2)
  run.batches = Batches(program.mesh, before={t: tick for t in range(6)})
  evaluate = run.evaluate

  def slow(state):
    now[0] += 1000.0
    return evaluate(state)

  run.evaluate = slow
  run()
  rates = [values['steps_per_second'] for _, values in run.training_lines()]
  assert rates == [1.0, 1.0, 1.0]


# Numbers that are not finite.


@pytest.mark.parametrize('log, save', [(1, 0), (3, 4), (100, 0), (100, 1)])
def test_nan_stops_with_its_step_and_nothing_is_saved_after_it(
  program, log, save
):
  bad = 5  # batch 5 makes step 6
  batches = Batches(program.mesh, poison=bad)
  run = Run(program, total=20, log=log, save=save, batches=batches)()
  assert isinstance(run.error, loop.NotFinite)
  assert run.error.step == bad + 1
  assert run.error.name in ('loss', 'odd', 'grad_norm')
  assert not math.isfinite(run.error.value)
  assert str(run.error).endswith(f'at step {bad + 1}')
  assert all(step <= bad for kind, step, *_ in run.events)


def test_nan_in_the_last_step_is_found_before_the_end(program):
  batches = Batches(program.mesh, poison=4)
  run = Run(program, total=5, log=100, batches=batches)()
  assert isinstance(run.error, loop.NotFinite) and run.events == []


# Interruption.


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_the_resumed_run_equals_an_uninterrupted_one(
  program, tmp_path
):
  def keep_in(checkpoints, batches):
    return lambda state, metrics: checkpoints.save(
      state, {'data': batches.state}, metrics
    )

  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    batches = Batches(program.mesh, before={4: terminate})
    run = Run(
      program, total=9, batches=batches, keep=keep_in(checkpoints, batches)
    )()
  assert isinstance(run.error, loop.Interrupted) and run.error.step == 5
  assert run.events == [('save', 5, None)]
  with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
    restored = checkpoints.restore(program.abstract, program.shardings)
    batches = Batches(program.mesh, restored.meta['data'])
    resumed = Run(program, total=9, batches=batches, state=restored.state)()
  whole = Run(program, total=9)()
  assert resumed.batches.given == 4
  np.testing.assert_array_equal(weights(resumed.state), weights(whole.state))
  assert resumed.results == whole.results
  late = [metrics for _, metrics in by_hand(program, 9)][5:]
  ((_, values),) = resumed.training_lines()
  np.testing.assert_allclose(
    values['loss'], np.mean([m['loss'] for m in late]), rtol=1e-5
  )


def test_sigterm_in_the_last_step_ends_the_run_as_usual(program):
  batches = Batches(program.mesh, before={2: terminate})
  run = Run(program, total=3, batches=batches)()
  assert run.error is None and run.events[-1] == ('save', 3, 3)


def test_handler_of_the_caller_comes_back(program):
  before = signal.getsignal(signal.SIGTERM)
  Run(program, total=2)()
  assert signal.getsignal(signal.SIGTERM) is before
  Run(program, total=2, batches=Batches(program.mesh, poison=0))()
  assert signal.getsignal(signal.SIGTERM) is before


def test_loop_runs_in_another_thread_than_the_main_one(program):
  run = Run(program, total=2)
  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert run.error is None and run.events[-1] == ('save', 2, 2)


# Compilation, transfers, memory.


def test_parameters_are_made_where_they_belong(program):
  state = program.init()
  for leaf, sharding in zip(
    jax.tree.leaves(state), jax.tree.leaves(program.shardings), strict=True
  ):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_batch_of_another_shape_or_type_is_refused_not_compiled(program):
  sharding = meshes.batch_sharding(program.mesh)
  for x in (np.zeros((16, 3), np.float32), np.zeros((BATCH, 3), np.int32)):
    with pytest.raises((TypeError, ValueError)):
      program.step(program.init(), meshes.to_devices({'x': x}, sharding))


def test_nothing_is_compiled_while_the_loop_runs(program):
  Run(program, total=3)()  # the first run compiles what the test itself does
  compiled = []
  listen = lambda event, *_, **__: (
    compiled.append(event) if 'backend_compile' in event else None
  )
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    state = program.init()
    before = len(compiled)
    run = Run(program, total=9, log=2, evaluate=4, save=3, state=state)()
    assert run.error is None and len(compiled) == before
    jax.jit(lambda x: x + 12.5)(1.0)
    assert len(compiled) > before, 'the listener hears compilations'
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_batch_that_is_not_on_the_devices_is_refused(program):
  class OnTheHost(Batches):
    def __next__(self):
      return jax.device_get(super().__next__())

  run = Run(program, total=3, batches=OnTheHost(program.mesh))()
  assert 'transfer' in str(run.error)


def test_buffers_do_not_grow_with_the_steps(program):
  counts = []
  count = lambda: counts.append(len(jax.live_arrays()))
  batches = Batches(program.mesh, before={t: count for t in range(5, 65)})
  run = Run(program, total=65, log=5, evaluate=20, save=10, batches=batches)()
  assert run.error is None and len(counts) == 60
  assert max(counts[-20:]) <= max(counts[:20])


def test_profile_of_the_steps_that_are_asked(program, tmp_path):
  def train(**plan):
    return loop.train(
      program.step,
      program.init(),
      Batches(program.mesh),
      plan=loop.Plan(**plan),
      batch_size=BATCH,
      evaluate=lambda state: {},
      save=lambda state, metrics: None,
      writer=Recorder(),
      display=Recorder(),
      profile_to=str(tmp_path),
    )

  train(total=4, profile=(1, 2))
  assert list(tmp_path.rglob('*.xplane.pb'))
