"""Streams: forecast first, learn after, in the order of the protocol."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.data.windows import Windows
from jaxzoo.errors import UserError
from jaxzoo.eval import online_pictures, stream, stream_state
from jaxzoo.system import State, System
from jaxzoo.train import mesh as meshes

KEY = jax.random.key(0)
HISTORY, VARIABLES = 4, 2


def linear(rate=0.1) -> System:
  """Each step ahead by a linear map of the last values, by gradient steps."""

  def forecast(params, batch):
    return jnp.einsum('btd,th->bhd', batch['history'], params)

  def init(rng, batch):
    shape = batch['history'].shape[1], batch['target'].shape[1]
    return State(jnp.int32(0), rng, jax.random.normal(rng, shape) / 9, (), {
      'firsts': jnp.int32(0)
    })  # fmt: skip

  def step(state, batch):
    loss = lambda params: jnp.square(
      forecast(params, batch) - batch['target']
    ).mean()
    value, grads = jax.value_and_grad(loss)(state.params)
    firsts = state.extra['firsts'] + batch['first'].sum()
    state = state._replace(
      step=state.step + 1,
      params=state.params - rate * grads,
      extra={'firsts': firsts},
    )
    return state, {'loss': value}

  def predict(state, batch):
    y = forecast(state.params, batch)
    return {'forecast': y, 'zero': 0 * y, 'size': jnp.abs(y).mean(1)}

  return System(init, step, predict)


def windows(rows=40, horizon=1, seed=0, change=None):
  values = np.random.default_rng(seed).normal(size=(rows, VARIABLES))
  values = values.astype(np.float32)
  if change is not None:
    values[change:] += 5
  marks = np.zeros((rows, 7), np.float32)
  times = np.datetime64('2020-01-01') + np.arange(rows)
  return Windows('w', values, HISTORY, horizon, marks=marks, times=times)


def run(source, protocol='published', **options):
  online = stream.make_stream(source, protocol)
  system = linear()
  state = system.init(KEY, online.batch(0, True))
  return stream.run(system, online, state, **options)[0]


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, plain(a), plain(b))


def plain(tree):
  is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.tree.map(
    lambda x: (
      jax.random.key_data(x) if isinstance(x, jax.Array) and is_key(x) else x
    ),
    tree,
  )


def test_scan_is_predict_score_step_in_turn():
  source = windows()
  found = run(source)
  system, online = linear(), stream.make_stream(source)
  state = system.init(KEY, online.batch(0, True))
  for i in range(len(source)):
    batch = {k: x[None] for k, x in source[i].items()}
    batch['first'] = jnp.array([i == 0])
    y = system.predict(state, batch)['forecast']
    error = np.square(y - batch['target'])[0].mean(0)
    np.testing.assert_allclose(
      found.record.mse['forecast'][i], error, rtol=1e-5
    )
    step_error = np.square(y - batch['target'])[0].mean(1)
    np.testing.assert_allclose(found.record.steps[i], step_error, rtol=1e-5)
    np.testing.assert_allclose(found.record.last[i], y[0, -1], rtol=1e-5)
    state, _ = system.step(state, batch)
  assert found.record.mse['forecast'].shape == (len(source), VARIABLES)
  assert found.state.extra['firsts'] == 1 and found.state.step == len(source)
  np.testing.assert_array_equal(
    found.record.mse['zero'], np.square(source.targets()).mean(1)
  )


@pytest.mark.parametrize('protocol', stream.PROTOCOLS)
def test_chunks_and_one_scan_are_the_same(protocol):
  source = windows(horizon=3)
  whole = run(source, protocol, chunk=1000)
  same(run(source, protocol, chunk=5), whole)


@pytest.mark.parametrize('protocol', stream.PROTOCOLS)
def test_forecasts_know_nothing_of_the_future_but_in_the_published_way(
  protocol,
):
  # Rows from 20 on are changed: windows that are forecast before those rows
  # have come must not know.
  change, horizon = 20, 3
  before = run(windows(horizon=horizon), protocol)
  after = run(windows(horizon=horizon, change=change), protocol)
  stride = stream.make_stream(windows(horizon=horizon), protocol).stride
  ends = np.arange(len(before.record.last)) * stride + HISTORY
  blind = ends <= change
  equal = (before.record.last == after.record.last).all(1)
  assert equal[blind].all() == (protocol != 'published')
  assert not equal[ends > change + horizon].any()


def test_protocols_are_one_for_a_single_step_ahead():
  source = windows(horizon=1)
  published = run(source)
  same(run(source, 'delayed'), published)
  same(run(source, 'strided'), published)


def test_strided_targets_do_not_overlap():
  source = windows(horizon=3)
  online = stream.make_stream(source, 'strided')
  targets = [online.batch(i, False)['target'][0] for i in range(online.windows)]
  joined = np.concatenate(targets)
  np.testing.assert_array_equal(
    joined, source.values[HISTORY : HISTORY + len(joined)]
  )


def test_stopped_stream_goes_on_bit_for_bit(tmp_path):
  source = windows(horizon=3)
  whole = run(source, 'delayed', chunk=6)

  class Stop(Exception):
    pass

  def save(progress):
    stream_state.save(tmp_path, 'k', progress)
    if progress.position > 12:
      raise Stop

  with pytest.raises(Stop):
    run(source, 'delayed', chunk=6, save=save)
  loaded = stream_state.load(tmp_path, 'k', whole.state)
  assert loaded[0] > 12
  same(
    run(source, 'delayed', chunk=6, progress=stream.Progress(*loaded)), whole
  )


def test_saved_stream_of_another_form_is_not_taken(tmp_path):
  progress = run(windows())
  stream_state.save(tmp_path, 'k', progress)
  other = progress.state._replace(params=jnp.zeros((9, 9)))
  assert stream_state.load(tmp_path, 'k', other) is None
  assert stream_state.load(tmp_path, 'other', progress.state) is None
  (tmp_path / 'streams' / 'k.npz').write_bytes(b'damaged')
  assert stream_state.load(tmp_path, 'k', progress.state) is None


def test_seeds_over_eight_devices_equal_one_device():
  online, system = stream.make_stream(windows()), linear()
  keys = jax.random.split(KEY, 8)
  states = jax.vmap(lambda key: system.init(key, online.batch(0, True)))(keys)
  function = lambda state, start: stream.learn(
    system, online, state, start, online.windows
  )
  results = []
  for devices in (jax.devices()[:1], jax.devices()[:8]):
    mesh = meshes.make_mesh({'data': len(devices)}, devices)
    results.append(stream.over_seeds(function, mesh)(states, jnp.int32(0)))
    assert len(results[-1][1].last.sharding.device_set) == len(devices)
  one, eight = results
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    plain(one),
    plain(eight),
  )
  assert one[1].last.shape == (8, online.windows, VARIABLES)
  assert len(np.unique(one[0].params[:, 0, 0])) == 8


def test_size_of_a_scan_divides_the_stream_where_it_can():
  assert stream.chunk_size(10800, 600) == 600
  assert stream.chunk_size(10777, 600) == 829
  assert stream.chunk_size(10753, 600) == 600  # a prime
  assert stream.chunk_size(5, 600) == 5


def test_metrics_are_means_in_both_units():
  record = run(windows()).record
  std = np.array([2.0, 3.0])
  found = stream.metrics(record, std)
  assert found['mse'] == pytest.approx(record.mse['forecast'].mean())
  assert found['original_mse'] == pytest.approx(
    (record.mse['forecast'] * [4, 9]).mean()
  )
  assert found['original_mae'] == pytest.approx(
    (record.mae['forecast'] * [2, 3]).mean()
  )
  assert found['zero_mse'] == pytest.approx(record.mse['zero'].mean())


def test_worst_share_is_that_of_the_worst_hundredth_of_the_windows():
  record = run(windows()).record
  even = np.ones((250, 2))
  even[17] = 101.0
  uneven = record._replace(
    mse={name: even for name in record.mse},
    mae={name: even for name in record.mae},
  )
  found = stream.metrics(uneven, np.ones(2))
  assert found['worst_share'] == pytest.approx(102 / 350)
  # Of few windows, the worst one.
  errors = record.mse['forecast'].mean(1)
  assert len(errors) < 200
  found = stream.metrics(record, np.ones(2))
  share = errors.max() / errors.sum()
  assert found['worst_share'] == pytest.approx(share, rel=1e-5)


def test_rolling_error_is_the_mean_of_the_last_windows():
  source = windows(60)
  record = run(source).record
  times = source.times[HISTORY:]
  curves = online_pictures.rolling(record, times, 10)
  each = record.mse['forecast'].mean(1)
  np.testing.assert_allclose(curves.mse['forecast'][30], each[21:31].mean())
  np.testing.assert_allclose(curves.mse['forecast'][3], each[:4].mean())
  np.testing.assert_allclose(curves.cumulative['forecast'][-1], each.mean())
  table = online_pictures.rolling_table(curves)
  assert len(table) == 1 + len(times) and len(table[0]) == len(table[1])
  picture = online_pictures.rolling_picture(curves)
  assert picture.dtype == np.uint8 and picture.std() > 10


def test_errors_say_what_to_do():
  with pytest.raises(UserError, match='published'):
    stream.make_stream(windows(), 'publishd')
  bare = Windows('w', np.zeros((20, 2), np.float32), 4, 1)
  with pytest.raises(UserError, match='data.marks'):
    stream.make_stream(bare)
  with pytest.raises(UserError, match='too few'):
    run(windows(9, horizon=5), 'delayed')
