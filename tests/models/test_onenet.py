"""OneNet: convolutions, memory, ensemble, replay, and the online step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxzoo import catalog, main
from jaxzoo.errors import UserError
from jaxzoo.models.forecasting import convert, ensemble, fsnet, onenet, replay
from jaxzoo.models.forecasting.tcn import (
  Conv,
  Encoder,
  ScaledConvs,
  Stacks,
  convolve,
  seeing_blocks,
  taps_of,
)

KEY = jax.random.key(0)
METHODS = (
  'onenet', 'onenet_tcn', 'average', 'ocp', 'rl_w', 'fsnet', 'nomem', 'tcn',
  'time_tcn', 'er', 'derpp',
)  # fmt: skip


def noise(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


# Convolutions.


@pytest.mark.parametrize('dilation', [1, 3, 6, 8])
def test_convolution_equals_its_definition(dilation):
  x, kernel, bias = noise(2, 7, 3), noise(3, 3, 4, seed=1), noise(4, seed=2)
  before, after = noise(3, seed=3), noise(4, seed=4)
  want = np.tile(bias, (2, 7, 1))
  for t in range(7):
    for k in range(3):
      place = t + (k - 1) * dilation
      if 0 <= place < 7:
        want[:, t] += (before * x[:, place]) @ kernel[:, k]
  got = convolve(x, Conv(kernel, bias, before, after), dilation)
  np.testing.assert_allclose(got, after * want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('length', [1, 6, 13])
@pytest.mark.parametrize('depth', [2, 5])
def test_last_position_alone_is_the_last_of_all(length, depth):
  def convs(n, i, o, taps, seed):
    if not n:
      return None
    module = ScaledConvs(n, i, o, taps)
    return module.init_with_output(jax.random.key(seed))[0]

  seeing, last = seeing_blocks(depth, length), taps_of(depth, length)
  stacks = Stacks(
    convs(2 * seeing, 4, 4, 3, 0),
    convs(2 * (depth - seeing), 4, 4, 1, 3),
    convs(1, 4, 8, last, 1),
    convs(1, 8, 8, last, 2),
  )
  x = noise(2, length, 3)
  variables = Encoder().init(KEY, x, stacks)
  whole = Encoder().apply(variables, x, stacks)
  last = Encoder(last=True).apply(variables, x, stacks)
  assert whole.shape == (2, length, 8)
  np.testing.assert_allclose(last, whole[:, -1:], rtol=1e-4, atol=1e-5)


# Memory.


def test_recall_reads_and_writes_the_two_strongest_slots():
  memory, query = 0.3 * noise(2, 6, 5), noise(2, 6, seed=1)
  fired = np.array([True, False])
  old, after = fsnet.recall(memory, query, fired)
  logits = query[0] @ memory[0] / 0.5
  a = np.exp(logits - logits.max())
  a /= a.sum()
  slots = np.argsort(-a)[:2]
  want = memory[0][:, slots] @ a[slots]
  np.testing.assert_allclose(old[0], want, rtol=1e-5)
  written = memory[0].copy()
  for slot in slots:
    written[:, slot] = 0.75 * written[:, slot] + 0.25 * want * a[slot]
  written /= max(1, np.linalg.norm(written))
  np.testing.assert_allclose(after[0], written, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(after[1], memory[1])


def test_memory_never_grows_beyond_norm_one():
  _, after = fsnet.recall(9 * noise(1, 6, 5), noise(1, 6), np.array([True]))
  assert np.linalg.norm(after) == pytest.approx(1, rel=1e-5)


def gradients(seed, n=2):
  return {'kernel': noise(n, 4, 3, 8, seed=seed)}


def blank_state(n=2):
  zeros = jnp.zeros((n, 4, 3, 8))
  return {'slow': zeros, 'fast': zeros, 'triggered': jnp.zeros(n, bool)}


def test_averages_are_of_gradients_of_norm_one_over_input_channels():
  grads = gradients(0)
  state = fsnet.remember_gradients(blank_state(), grads, True)
  norms = np.linalg.norm(grads['kernel'], axis=1, keepdims=True)
  unit = grads['kernel'] / norms
  np.testing.assert_allclose(state['fast'], 0.7 * unit, rtol=1e-5)
  np.testing.assert_allclose(state['slow'], 0.1 * unit, rtol=1e-5, atol=1e-7)
  again = fsnet.remember_gradients(state, gradients(0), True)
  np.testing.assert_allclose(again['fast'], 0.91 * unit, rtol=1e-5)
  assert not again['triggered'].any()


@pytest.mark.parametrize('online', [True, False])
def test_gradient_that_turns_triggers_its_layer_online(online):
  state = blank_state()
  for _ in range(5):
    state = fsnet.remember_gradients(state, gradients(0), online)
  turned = gradients(0)['kernel'] * np.array([-1, 1])[:, None, None, None]
  state = fsnet.remember_gradients(state, {'kernel': turned}, online)
  np.testing.assert_array_equal(state['triggered'], [online, False])


def adaptive(online=True, fired=True):
  """(forward, params, state) of one stack."""
  module = fsnet.AdaptiveConvs(2, 4, 8, 5, 6)
  variables = module.init(KEY)
  state = variables['fsnet'] | {
    'slow': noise(2, 4, 3, 8),
    'query': noise(2, 28, seed=1),
    'created': jnp.array(True),
    'triggered': jnp.array([fired, False]),
  }

  def forward(params, state):
    return module.apply(
      {'params': params, 'fsnet': state}, online, mutable=['fsnet']
    )

  return forward, variables['params'], state


def test_trigger_is_used_once_and_only_in_its_layer():
  forward, params, state = adaptive()
  convs, updated = forward(params, state)
  after = updated['fsnet']
  assert not after['triggered'].any()
  changed = np.abs(after['memory'] - state['memory']).max((1, 2)) > 0
  np.testing.assert_array_equal(changed, [True, False])
  quiet, _ = forward(params, state | {'triggered': jnp.zeros(2, bool)})
  assert not np.allclose(convs.inner[0], quiet.inner[0])
  np.testing.assert_array_equal(convs.inner[1], quiet.inner[1])


def test_taps_that_never_saw_anything_need_not_be_there():
  """A kernel of three taps whose averages are 0 outside is one of one tap."""
  forward, params, state = adaptive()
  middle = lambda x, axis: jnp.take(x, jnp.array([1]), axis)
  blind = jnp.array([0, 1, 0])[:, None]
  state = state | {'slow': state['slow'] * blind}
  want, _ = forward(params, state)
  few = fsnet.AdaptiveConvs(2, 4, 8, 5, 6, taps=1)
  params = params | {
    'kernel': middle(params['kernel'], 2),
    'controller_kernel': middle(params['controller_kernel'], 3),
  }
  state = state | {name: middle(state[name], 2) for name in ('slow', 'fast')}
  got, _ = few.apply(
    {'params': params, 'fsnet': state}, True, mutable=['fsnet']
  )
  want = want._replace(
    kernel=middle(want.kernel, 2), inner=middle(want.inner, 2)
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
    got,
    want,
  )


def test_trigger_waits_outside_the_stream():
  forward, params, state = adaptive(online=False)
  _, updated = forward(params, state)
  np.testing.assert_array_equal(updated['fsnet']['triggered'], [True, False])
  np.testing.assert_array_equal(updated['fsnet']['memory'], state['memory'])


def test_state_takes_no_gradient_and_parameters_do():
  forward, params, state = adaptive()
  floats = {k: v for k, v in state.items() if v.dtype == jnp.float32}
  rest = {k: v for k, v in state.items() if k not in floats}

  def value(params, floats):
    convs, _ = forward(params, {**rest, **floats})
    return sum(jnp.sum(jnp.sin(field)) for field in convs)

  check_grads(
    lambda params: value(params, floats), (params,), 1, modes=['rev'],
    rtol=2e-2, atol=2e-2,
  )  # fmt: skip
  grads = jax.grad(value, 1)(params, floats)
  assert not any(jnp.any(x) for x in jax.tree.leaves(grads))


# The ensemble.


def offered(seed=0, b=3, h=2, d=4):
  return [jnp.asarray(x) for x in noise(3, b, h, d, seed=seed)]


def test_exponentiated_gradient_is_multiplicative():
  time, variable, target = offered(b=1)
  weight = jnp.array([0.3, -1.0, 0.0, 2.0])
  grad = jax.grad(
    lambda w: (
      ensemble.losses(w, None, time, variable, target, 'exponentiated').weight
    )
  )(weight)
  eta = 0.7
  error = lambda y: np.square(y - target).mean((0, 1))
  share = np.asarray(jax.nn.sigmoid(weight))
  one = share * np.exp(-eta * error(time))
  other = (1 - share) * np.exp(-eta * error(variable))
  np.testing.assert_allclose(
    jax.nn.sigmoid(weight - eta * grad), one / (one + other), rtol=1e-5
  )


def test_fixed_weight_and_forecasts_take_no_gradient():
  time, variable, target = offered()

  def value(weight, time, variable, kind):
    found = ensemble.losses(
      weight, lambda x: x.mean(-1), time, variable, target, kind
    )
    return found.weight + found.bias

  for kind in ensemble.WEIGHTS:
    grads = jax.grad(value, (0, 1, 2))(jnp.ones(4), time, variable, kind)
    assert not jnp.any(grads[1]) and not jnp.any(grads[2])
    assert jnp.any(grads[0]) == (kind != 'fixed')


def test_ensemble_learns_the_better_forecaster_of_each_variable():
  target = jnp.asarray(noise(1, 2, 2))
  time = target.at[..., 1].add(1.0)
  variable = target.at[..., 0].add(1.0)
  weight, tx = jnp.zeros(2), optax.adam(0.05)
  opt = tx.init(weight)
  for _ in range(30):
    grad = jax.grad(
      lambda w: ensemble.losses(w, None, time, variable, target).weight
    )(weight)
    updates, opt = tx.update(grad, opt)
    weight = optax.apply_updates(weight, updates)
  assert weight[0] > 0.5 and weight[1] < -0.5


# Replay.


def sample(i):
  return {
    'history': jnp.full((1, 3, 2), i),
    'history_marks': jnp.full((1, 3, 7), i),
    'target': jnp.full((1, 1, 2), i),
  }


def test_buffer_drops_the_oldest_and_draws_each_once():
  kept = replay.Replay(('variable',), size=4, draws=3, dark=0.5)
  buffer = kept.init(sample(0))
  empty = kept.draw(buffer, KEY)
  assert not empty.real.any()
  assert kept.loss(empty, {'variable': jnp.ones((3, 1, 2))}) == 0
  for i in range(1, 7):
    buffer = kept.add(buffer, sample(i), {'variable': jnp.full((1, 1, 2), -i)})
  assert sorted(buffer['target'][:, 0, 0].tolist()) == [3, 4, 5, 6]
  seen = set()
  for seed in range(20):
    drawn = kept.draw(buffer, jax.random.key(seed))
    values = drawn.target[:, 0, 0].tolist()
    assert len(set(values)) == 3 and drawn.real.all()
    np.testing.assert_array_equal(drawn.forecasts['variable'], -drawn.target)
    seen |= set(values)
  assert seen == {3, 4, 5, 6}


def test_loss_of_few_samples_is_their_mean():
  kept = replay.Replay(('variable',), size=4, draws=3, strength=0.2, dark=0.5)
  buffer = kept.add(kept.init(sample(0)), sample(2), {
    'variable': jnp.full((1, 1, 2), 5.0)
  })  # fmt: skip
  drawn = kept.draw(buffer, KEY)
  assert drawn.real.sum() == 1
  loss = kept.loss(drawn, {'variable': jnp.full((3, 1, 2), 3.0)})
  assert loss == pytest.approx(0.2 * 1 + 0.5 * 4)


# The system.


@functools.cache
def compiled(method='onenet'):
  """(system, step, predict, the first state) of the tiny config."""
  config = catalog.get_config(f'onenet:tiny,method={method}')
  system = main.create_system(config, 40, 4)
  state = jax.jit(system.init)(KEY, online_batch(0))
  return system, jax.jit(system.step), jax.jit(system.predict), state


def online_batch(seed, first=False):
  x = noise(1, 18, 3, seed=seed)
  marks = noise(1, 18, 7, seed=seed + 100)
  return {
    'history': x[:, :16],
    'history_marks': marks[:, :16],
    'target': x[:, 16:],
    'first': np.array([first]),
  }


def training_batch():
  batch = online_batch(0)
  batch.pop('first')
  return batch


@pytest.mark.parametrize('method', METHODS)
def test_every_method_learns_and_forecasts(method):
  config = catalog.get_config(f'onenet:tiny,method={method}')
  system = main.create_system(config, 40, 4)
  for batch in (training_batch(), online_batch(0)):
    state = jax.eval_shape(system.init, KEY, batch)
    after, metrics = jax.eval_shape(system.step, state, batch)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(
      lambda x: x.shape, state
    )
    assert 'loss' in metrics
    outputs = jax.eval_shape(system.predict, state, batch)
    assert outputs['forecast'].shape == (1, 2, 3)


def test_forecast_mixes_by_weight_and_bias_of_the_step_before():
  _, step, predict, state = compiled()
  state, _ = step(state, online_batch(0, True))
  outputs = predict(state, online_batch(1))
  share = jax.nn.sigmoid(state.params['weight'] + state.extra['bias'])
  np.testing.assert_allclose(outputs['share'][0], share, rtol=1e-6)
  want = share * outputs['time'] + (1 - share) * outputs['variable']
  np.testing.assert_allclose(outputs['forecast'], want, rtol=1e-5, atol=1e-6)
  assert jnp.any(state.extra['bias'])
  # The step that learns this window has forecast it as well.
  _, metrics = step(state, online_batch(1))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    metrics['forecasts'],
    outputs,
  )
  # Before a stream it is the plain mean.
  batch = online_batch(1)
  batch.pop('first')
  plain = jax.jit(compiled()[0].predict)(state, batch)
  np.testing.assert_allclose(
    plain['forecast'], (plain['time'] + plain['variable']) / 2, rtol=1e-6
  )


def test_first_window_begins_anew_and_keeps_the_forecasters():
  _, step, predict, state = compiled()
  used, _ = step(state, online_batch(0, True))
  outputs = predict(used, online_batch(1, True))
  np.testing.assert_array_equal(outputs['share'], 0.5)
  # The same step from a used and from a fresh ensemble, but for the decision.
  fresh = used._replace(
    params={**used.params, 'weight': state.params['weight']},
    opt={**used.opt, 'weight': state.opt['weight']},
    extra={**used.extra, 'bias': state.extra['bias']},
  )
  a, _ = step(used, online_batch(1, True))
  b, _ = step(fresh, online_batch(1, True))
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)
  c, _ = step(used, online_batch(1, False))
  assert not np.array_equal(a.params['weight'], c.params['weight'])


def test_online_rate_stays_that_of_the_last_training_step():
  opt = optax.scale_by_schedule(lambda step: jnp.float32(step)).init({})
  state = (opt._replace(count=jnp.int32(7)), optax.EmptyState())
  assert onenet.at_last_rate(state)[0].count == 6
  _, step, _, state = compiled()
  count = lambda state: [
    x.count
    for x in jax.tree.leaves(
      state.opt['network'],
      is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState),
    )
    if isinstance(x, optax.ScaleByScheduleState)
  ]
  for i in range(3):
    state, _ = step(state, online_batch(i))
    assert count(state) == [1]  # one update at the most


def test_names_of_released_checkpoints_go_to_both_collections():
  shapes = {}
  for branch in ('encoder_time.encoder', 'encoder.encoder'):
    for block in range(2):
      o = 8 if block else 4
      for conv, i in (('conv1', 4), ('conv2', o)):
        name = f'model.{branch}.feature_extractor.net.{block}.{conv}.'
        c = o // i
        shapes |= {
          name + 'conv.weight': (o, i, 3),
          name + 'bias': (o,),
          name + 'W': (i * (3 + 2 * c), 32),
          name + 'controller.0.weight': (5, o * 3),
          name + 'controller.0.bias': (5,),
        }
        for scale, size in (('w', 3), ('b', c), ('f', c)):
          shapes[f'{name}calib_{scale}.weight'] = (size, 5)
          shapes[f'{name}calib_{scale}.bias'] = (size,)
  tensors = {name: noise(*s, seed=i) for i, (name, s) in
             enumerate(shapes.items())}  # fmt: skip
  tensors['unknown'] = np.zeros(1)
  lengths = {'time': 1, 'variable': 6}
  params = convert.convert(tensors, lengths=lengths)
  assert params.pop('unknown').shape == (1,)
  network = params['network']
  want = jax.eval_shape(
    functools.partial(onenet.Forecasters(2, width=4, features=8, depth=1).init),
    KEY, jnp.zeros((1, 6, 1)), jnp.zeros((1, 6, 7)),
  )['params']  # fmt: skip
  stacks = {name for name in want if name[-2:] in ('_1', '_3')}
  assert stacks == set(network)
  for stack in stacks:
    for leaf in ('kernel', 'bias', 'scale_bias'):
      shape = want[stack][leaf].shape
      got = network[stack][leaf].shape
      assert got == shape or leaf == 'scale_bias', (stack, leaf)
  # One position: the middle tap alone.
  for branch, stack, middle in (
    ('encoder', 'inner_3', slice(None)),
    ('encoder_time', 'inner_1', slice(1, 2)),
  ):
    net = f'model.{branch}.encoder.feature_extractor.net.0.conv2.'
    kernel = tensors[net + 'conv.weight'].transpose(1, 2, 0)
    np.testing.assert_array_equal(
      network[stack]['kernel'][1], kernel[:, middle]
    )
  extra = convert.convert_extra(tensors, lengths=lengths)['fsnet']
  assert extra['final_1']['memory'].shape == (1, 40, 32)


def test_lengths_come_from_the_tensors_or_the_config():
  zeros = lambda *shape: np.zeros(shape)
  time = {'model.encoder_time.encoder.input_fc.weight': zeros(5, 6)}
  variable = {'model.encoder.encoder.input_fc.weight': zeros(5, 10)}
  heads = {
    'model.regressor_time.weight': zeros(4, 8),
    'model.regressor.weight': zeros(12, 8),
  }
  lengths = lambda tensors, config=None: convert._lengths(tensors, config, None)
  both = time | variable | heads
  assert lengths(both) == {'time': 3, 'variable': 6}
  config = catalog.get_config('onenet:etth2')
  assert lengths(variable, config) == {'variable': 60}
  for tensors in (time, variable):
    with pytest.raises(UserError, match='data.columns'):
      convert.convert(tensors)
  config.data.columns = ('a', 'b')
  assert lengths(time, config) == {'time': 2}


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('model.convs', 'fsnett', 'fsnet'),
    ('model.branches', 'all', 'both'),
    ('ensemble.weight', 'gradien', 'gradient'),
    ('replay.kind', 'derp', 'derpp'),
    ('model.features', 17, 'multiple'),
    ('data.marks', '', 'standardised'),
  ],
)
def test_mistakes_are_named_with_what_to_do(field, value, words):
  config = catalog.get_config('onenet:tiny')
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=words):
    onenet.build(config, optax.identity())


def test_unknown_method_names_the_nearest():
  with pytest.raises(UserError, match='fsnet'):
    catalog.get_config('onenet:tiny,method=fsnt')
