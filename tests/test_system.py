"""What `from_loss` and the combinators compute, against loops by hand."""

import doctest
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.system import State, System, alternate, federate, from_loss
from jaxzoo.system import with_ema as ema_of
from jaxzoo.train.mesh import make_mesh

KEY = jax.random.key(0)
DOCUMENTED = (
  'jaxzoo.catalog',
  'jaxzoo.configuration',
  'jaxzoo.errors',
  'jaxzoo.assembly',
  'jaxzoo.system',
  'jaxzoo.train.checkpoint',
  'jaxzoo.train.optim',
  'jaxzoo.train.writers',
)


@pytest.mark.parametrize('name', DOCUMENTED)
def test_examples_in_docstrings_hold(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.attempted and not result.failed


def batch(size=8, seed=0):
  rng = np.random.default_rng(seed)
  return {
    'x': jnp.asarray(rng.standard_normal((size, 3)), jnp.float32),
    'y': jnp.asarray(rng.standard_normal(size), jnp.float32),
  }


def init(rng, batch):
  w = jax.random.normal(rng, batch['x'].shape[-1:])
  return {'w': w}, {'seen': jnp.int32(0)}


def loss(params, extra, batch, rng):
  error = batch['x'] @ params['w'] - batch['y']
  extra = {'seen': extra['seen'] + batch['x'].shape[0]}
  metrics = {'error': jnp.abs(error).mean(), 'draw': jax.random.uniform(rng)}
  return jnp.mean(error**2), (extra, metrics)


def predict(params, extra, batch):
  del extra
  return batch['x'] @ params['w']


def regression(tx=None, **options) -> System:
  return from_loss(init, loss, predict, tx or optax.adam(0.1), **options)


def run(system, steps, state=None, data=batch):
  """State and metrics after steps on batches that depend on the step."""
  state = jax.jit(system.init)(KEY, data()) if state is None else state
  step, history = jax.jit(system.step), []
  for _ in range(steps):
    state, metrics = step(state, data(seed=int(state.step)))
    history.append(jax.device_get(metrics))
  return state, history


# from_loss.


def test_from_loss_equals_a_loop_by_hand():
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
  state, history = run(regression(tx), 5)
  init_rng, _ = jax.random.split(KEY)
  w = init(init_rng, batch())[0]
  opt = tx.init(w)
  for step in range(5):
    data = batch(seed=step)
    mean = lambda w, data=data: jnp.mean((data['x'] @ w['w'] - data['y']) ** 2)
    value, grad = jax.value_and_grad(mean)(w)
    update, opt = tx.update(grad, opt, w)
    w = optax.apply_updates(w, update)
    np.testing.assert_allclose(history[step]['loss'], value, rtol=1e-5)
    norm = jnp.linalg.norm(grad['w'])
    np.testing.assert_allclose(history[step]['grad_norm'], norm, rtol=1e-5)
  np.testing.assert_allclose(state.params['w'], w['w'], rtol=1e-5)
  assert state.step == 5 and state.extra['seen'] == 5 * 8


def test_advance_sees_the_updated_parameters():
  def advance(params, extra):
    return {'w': jnp.round(params['w'])}, dict(extra, before=params['w'])

  def with_before(rng, batch):
    params, extra = init(rng, batch)
    return params, dict(extra, before=params['w'])

  def with_extra(params, extra, batch, rng):
    value, (new, metrics) = loss(params, extra, batch, rng)
    return value, ({**extra, **new}, metrics)

  tx = optax.sgd(0.1)
  system = from_loss(with_before, with_extra, predict, tx, advance=advance)
  state, _ = run(system, 1)
  plain, _ = run(regression(tx), 1)
  np.testing.assert_array_equal(state.extra['before'], plain.params['w'])
  np.testing.assert_array_equal(state.params['w'], jnp.round(plain.params['w']))


def test_optimizers_that_need_the_loss_get_it():
  plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
  tx = optax.chain(optax.sgd(0.0), plateau)
  state, _ = run(regression(tx), 4, data=lambda seed=0: batch())
  assert state.opt[-1].scale < 1  # the loss did not fall


def test_init_reads_only_shapes():
  abstract = jax.eval_shape(lambda: batch())
  state = jax.eval_shape(regression().init, KEY, abstract)
  assert state.params['w'].shape == (3,)


def test_randomness_of_a_step_depends_on_the_step_alone():
  system = regression()
  _, whole = run(system, 6)
  state, _ = run(system, 3)
  state = jax.tree.map(lambda x: x, state)  # as if it came from disk
  _, rest = run(system, 3, state)
  assert [m['draw'] for m in rest] == [m['draw'] for m in whole[3:]]
  assert [m['loss'] for m in rest] == [m['loss'] for m in whole[3:]]
  assert len({float(m['draw']) for m in whole}) == 6


# Microbatches.


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_microbatches_equal_the_full_batch(parts):
  whole, (full,) = run(regression(optax.sgd(0.1)), 1)
  split, (cut,) = run(regression(optax.sgd(0.1), microbatches=parts), 1)
  for name in ('loss', 'grad_norm', 'error'):
    np.testing.assert_allclose(cut[name], full[name], rtol=1e-5)
  np.testing.assert_allclose(split.params['w'], whole.params['w'], rtol=1e-5)
  # Extras pass through the parts one after another.
  assert split.extra['seen'] == whole.extra['seen']


def test_microbatches_draw_different_numbers():
  means = [
    run(regression(microbatches=parts), 1)[1][0]['draw'] for parts in (2, 4)
  ]
  assert means[0] != means[1]


def test_batch_that_does_not_divide_into_microbatches_is_an_error():
  system = regression(microbatches=3)
  state = system.init(KEY, batch())
  with pytest.raises(ValueError, match='8 does not divide into 3'):
    jax.eval_shape(system.step, state, batch())


# with_ema.


def test_ema_follows_its_formula_and_predicts():
  decay = 0.25  # the warm-up (1 + t) / (10 + t) is below it until t = 2
  system = ema_of(regression(), decay)
  state = system.init(KEY, batch())
  ema = np.asarray(state.params['w'])
  for t in range(1, 6):
    state, _ = jax.jit(system.step)(state, batch(seed=t))
    d = min(decay, (1 + t) / (10 + t))
    ema = d * ema + (1 - d) * np.asarray(state.params['w'])
    np.testing.assert_allclose(state.extra['ema']['w'], ema, rtol=1e-5)
  assert not np.allclose(ema, state.params['w'])
  np.testing.assert_allclose(
    system.predict(state, batch()), batch()['x'] @ ema, rtol=1e-5
  )


def test_ema_averages_the_statistics_that_belong_to_the_parameters():
  def with_stats(rng, batch):
    return init(rng, batch)[0], {'batch_stats': jnp.zeros(3)}

  def moving(params, extra, batch, rng):
    stats = 0.9 * extra['batch_stats'] + 0.1 * batch['x'].mean(0)
    value, (_, metrics) = loss(params, {'seen': 0}, batch, rng)
    return value, ({**extra, 'batch_stats': stats}, metrics)

  shown = lambda params, extra, batch: extra['batch_stats']
  plain = from_loss(with_stats, moving, shown, optax.sgd(0.1))
  state, _ = run(ema_of(plain, 0.9), 3)
  want = np.zeros(3)
  for step in range(3):
    now, _ = run(plain, step + 1)
    d = min(0.9, (2 + step) / (11 + step))
    want = d * want + (1 - d) * np.asarray(now.extra['batch_stats'])
  np.testing.assert_allclose(state.extra['ema_stats'], want, rtol=1e-5)
  got = ema_of(plain, 0.9).predict(state, batch())
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(
    state.extra['batch_stats'], now.extra['batch_stats'], rtol=1e-5
  )


def test_ema_does_not_change_the_training():
  plain, _ = run(regression(), 3)
  averaged, _ = run(ema_of(regression(), 0.9), 3)
  np.testing.assert_array_equal(plain.params['w'], averaged.params['w'])


def test_ema_shares_no_buffer_with_the_parameters():
  system = ema_of(regression(), 0.9)
  state = system.init(KEY, batch())
  step = jax.jit(system.step, donate_argnums=0)
  state, _ = step(state, batch())  # donating a buffer twice would raise
  assert np.isfinite(state.extra['ema']['w']).all()


# alternate.


def players(order=('critic', 'actor')):
  """Each has one number; its gradient is what it sees of the other."""

  def start(rng, batch):
    del rng, batch
    return {'critic': jnp.float32(1), 'actor': jnp.float32(2)}, {'moves': ()}

  def of(other):
    def loss(own, params, extra, batch, rng):
      value = own * params[other]
      return value, (
        extra,
        {'saw': params[other], 'draw': jax.random.key_data(rng)[1]},
      )

    return loss

  other = {'critic': 'actor', 'actor': 'critic'}
  return alternate(
    start,
    {name: of(other[name]) for name in order},
    lambda params, extra, batch: params['actor'],
    {'critic': optax.sgd(1.0), 'actor': optax.adam(0.5)},
  )


def test_players_see_the_moves_before_theirs():
  state, (metrics,) = run(players(), 1)
  assert state.params['critic'] == 1 - 2
  assert metrics['critic/saw'] == 2 and metrics['actor/saw'] == -1
  assert metrics['critic/draw'] != metrics['actor/draw']
  state, (metrics,) = run(players(('actor', 'critic')), 1)
  assert metrics['actor/saw'] == 1
  np.testing.assert_allclose(metrics['critic/saw'], 2 - 0.5, rtol=1e-5)


def test_a_player_moves_only_its_own_parameters():
  system = players()
  one = alternate(
    lambda rng, batch: (system.init(rng, batch).params, {}),
    {'actor': lambda own, all, *_: (own * all['critic'], ({}, {}))},
    lambda params, extra, batch: params,
    {'actor': optax.sgd(1.0)},
  )
  state, _ = run(one, 3)
  assert state.params['critic'] == 1 and state.params['actor'] == 2 - 3
  assert set(state.opt) == {'actor'}


def test_players_and_optimizers_must_match():
  with pytest.raises(ValueError, match='critic'):
    alternate(None, {'actor': None}, None, {'critic': optax.sgd(1.0)})


# federate.

CLIENTS = 3


def clients_batch(seed=0):
  parts = [batch(seed=100 * seed + client) for client in range(CLIENTS)]
  return jax.tree.map(lambda *x: jnp.stack(x), *parts)


def test_clients_differ_between_averages_and_agree_after_them():
  system = federate(regression(optax.sgd(0.1)), CLIENTS, every=3)
  state = None
  for step in range(1, 7):
    state, _ = run(system, 1, state, clients_batch)
    w = np.asarray(state.params['w'])
    assert w.shape == (CLIENTS, 3)
    spread = np.ptp(w, axis=0)
    assert (spread == 0).all() if step % 3 == 0 else (spread > 0).all()


def test_an_average_is_the_mean_of_clients_that_trained_alone():
  tx = optax.sgd(0.1)
  state, _ = run(
    federate(regression(tx), CLIENTS, every=2), 2, None, clients_batch
  )
  alone = federate(regression(tx), CLIENTS, every=100)
  apart, history = run(alone, 2, None, clients_batch)
  np.testing.assert_allclose(
    state.params['w'][0], apart.params['w'].mean(0), rtol=1e-5
  )
  np.testing.assert_allclose(
    alone.predict(apart, batch()),
    batch()['x'] @ apart.params['w'].mean(0),
    rtol=1e-5,
  )
  assert np.ndim(history[0]['loss']) == 0


def test_clients_do_the_same_one_after_the_other_as_on_a_mesh():
  tx = optax.adam(0.1)
  system = federate(regression(tx), CLIENTS, every=2)
  alone, _ = run(system, 3, None, clients_batch)
  with jax.set_mesh(make_mesh({'data': 8})):
    together, _ = run(system, 3, None, clients_batch)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    (alone.params, alone.opt),
    (together.params, together.opt),
  )


def test_clients_have_keys_of_their_own():
  state = federate(regression(), CLIENTS, every=2).init(KEY, clients_batch())
  keys = jax.random.key_data(state.rng).tolist()
  assert len({tuple(key) for key in keys}) == CLIENTS


def test_one_client_is_the_system_itself_but_for_its_key():
  tx = optax.sgd(0.1)
  one = lambda seed=0: jax.tree.map(lambda x: x[None], batch(seed=seed))
  state, history = run(federate(regression(tx), 1, every=1), 3, None, one)
  init_rng, _ = jax.random.split(KEY)
  plain = regression(tx).init(init_rng, batch())
  plain, want = run(regression(tx), 3, plain)
  np.testing.assert_allclose(state.params['w'][0], plain.params['w'], rtol=1e-5)
  for got, expected in zip(history, want, strict=True):
    np.testing.assert_allclose(got['loss'], expected['loss'], rtol=1e-5)


def test_combinators_nest():
  system = ema_of(federate(regression(), CLIENTS, every=2), 0.9)
  state, _ = run(system, 2, None, clients_batch)
  assert isinstance(state, State)
  assert state.extra['ema']['w'].shape == (CLIENTS, 3)
  assert system.predict(state, batch()).shape == (8,)
