"""`sparsify` around every optimizer of optax, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from jaxzoo.compress import (
  assert_sparsity,
  constant,
  find_state,
  magnitude,
  make_refresh,
  mask_summary,
  pack_masks,
  random,
  rigl,
  saliency,
  sparsify,
  unpack_masks,
)
from jaxzoo.compress.masks import eligible_tree, names_of
from jaxzoo.compress.transform import Method, Write

RATE = 1e-2
ALIASES = (
  'adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad '
  'fromage lamb lars lion nadam nadamw noisy_sgd novograd '
  'optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop sgd '
  'sign_sgd sm3 yogi'
).split()
MORE = {
  'lbfgs': lambda: optax.lbfgs(RATE, linesearch=None),
  'lbfgs_line_search': lambda: optax.lbfgs(),
  'polyak_sgd': lambda: optax.polyak_sgd(),
  'momentum': lambda: optax.sgd(RATE, 0.9, nesterov=True),
  'adafactor_factored': lambda: optax.adafactor(RATE, min_dim_size_to_factor=4),
  'inject': lambda: optax.inject_hyperparams(optax.adamw)(
    optax.linear_schedule(RATE, 0.0, 10)
  ),
  'chain': lambda: optax.chain(
    optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.1)
  ),
  'accumulated_inside': lambda: optax.MultiSteps(
    optax.adam(RATE), 2
  ).gradient_transformation(),
  'masked': lambda: optax.masked(
    optax.adam(RATE), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
  ),
  'partition': lambda: optax.partition(
    {'a': optax.adam(RATE), 'b': optax.sgd(RATE, 0.9)},
    lambda p: jax.tree.map(lambda x: 'a' if x.ndim > 1 else 'b', p),
  ),
  'apply_if_finite': lambda: optax.apply_if_finite(optax.adam(RATE), 2),
  'ema': lambda: optax.chain(optax.ema(0.9), optax.sgd(RATE)),
  'muon': lambda: optax.contrib.muon(RATE),
  'schedule_free': lambda: optax.contrib.schedule_free_adamw(RATE),
}
OPTIMIZERS = {name: getattr(optax, name, None) for name in ALIASES}
# The first stage of CI has what people use most.
FAST = ('adamw', 'lion', 'adafactor_factored', 'momentum', 'inject', 'muon')


def make_params():
  draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
  return {'kernel': draw(0, 6, 8), 'bias': draw(1, 8)}


def make_optimizer(name):
  if name in MORE:
    return MORE[name]()
  if OPTIMIZERS[name] is None:
    pytest.skip(f'this optax has no {name}')
  try:
    return OPTIMIZERS[name](RATE)
  except TypeError:  # arguments of its own
    return OPTIMIZERS[name](learning_rate=RATE, eta=0.01, gamma=0.55, key=0)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(n, marks=[] if n in FAST else pytest.mark.slow)
    for n in (*ALIASES, *MORE)
  ],
)
def test_every_optimizer_of_optax_can_be_wrapped(name):
  inner = make_optimizer(name)
  tx = sparsify(inner, random(0.75), inline=False)
  loss = lambda p: sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(p))

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(
      grads, state, params, value=value, grad=grads, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  params = make_params()
  state = tx.init(params)
  for turned in (False, False, True, True):
    if turned:  # new masks, among them entries that had no moments
      mask = ~state.masks['kernel'] & (jnp.arange(8) < 3)
      state = state._replace(masks={'kernel': mask, 'bias': None})
    before = params
    params, state = step(params, state)
    assert_sparsity(params, state.masks)
    assert np.all(np.isfinite(params['kernel']))
    mask = state.masks['kernel']
    for leaf in jax.tree.leaves(state.inner):
      if leaf.shape == mask.shape and leaf.dtype.kind == 'f':
        assert not np.any(leaf[~mask])
  if name not in ('accumulated_inside', 'lars'):
    assert np.any(params['bias'] != before['bias'])


def test_accumulated_gradients_count_real_updates():
  tx = optax.MultiSteps(
    sparsify(optax.sgd(RATE), magnitude(0.5, constant(begin=2))), 3
  ).gradient_transformation()
  params = make_params()
  state, update = tx.init(params), jax.jit(tx.update)
  kept = []
  for _ in range(7):
    updates, state = update(params, state, params)
    params = optax.apply_updates(params, updates)
    kept.append(int(find_state(state).masks['kernel'].sum()))
  assert kept == [48] * 5 + [24] * 2


def test_skipped_steps_train_nothing_and_their_schedule_goes_on():
  inner = optax.chain(
    optax.trace(0.9), optax.scale_by_schedule(lambda step: -0.1 * (step + 1))
  )
  params = make_params()
  for advance in (True, False):
    method = rigl(
      0.5, constant(every=2, last=4), advance_schedule=advance,
      allocation='uniform',
    )  # fmt: skip
    tx = sparsify(inner, method)
    state, update = tx.init(params), jax.jit(tx.update)
    _, state = update(params, state, params)
    updates, after = update(params, state, params)  # the second changes masks
    assert not np.any(updates['bias'])
    np.testing.assert_array_equal(
      after.inner[0].trace['bias'], state.inner[0].trace['bias']
    )
    assert int(after.inner[1].count) == 1 + advance


def test_growth_sees_dense_gradients_and_grown_entries_start_at_zero():
  params = {'kernel': jnp.arange(1.0, 9).reshape(2, 4)}
  method = rigl(0.5, constant(every=1, last=4), alpha=0.5, allocation='uniform')
  tx = sparsify(optax.sgd(RATE), method)
  state = tx.init(params)._replace(
    masks={'kernel': jnp.asarray([[True] * 4, [False] * 4])}
  )
  params = {'kernel': params['kernel'] * state.masks['kernel']}
  grads = {'kernel': jnp.asarray([[0.0, 0, 0, 0], [0, 9, 0, 0]])}
  updates, state = jax.jit(tx.update)(grads, state, params)
  assert state.masks['kernel'].tolist() == [
    [False, True, True, True],
    [False, True, False, False],
  ]
  after = optax.apply_updates(params, updates)
  assert after['kernel'].tolist() == [[0, 2, 3, 4], [0, 0, 0, 0]]


def test_entries_get_the_values_that_a_method_writes():
  masks = {'kernel': jnp.asarray([True, True, False, True]).reshape(4, 1)}
  values = {'kernel': jnp.asarray([5.0, 6, 7, 8]).reshape(4, 1)}
  first = {'kernel': jnp.asarray([True, False, True, False]).reshape(4, 1)}
  chosen = {'kernel': jnp.asarray([True, False, False, False]).reshape(4, 1)}
  for override, want in (
    (values, [1, 6, 0, 8]),  # what is newly grown
    (Write(chosen, values), [5, 0, 0, 0]),  # what is said
  ):
    method = Method(
      update_masks=lambda *args, o=override: (masks, o, ()),
      is_update=lambda step: step == 1,
      initial_masks=lambda *args: first,
    )
    tx = sparsify(optax.sgd(0.0), method)
    params = {'kernel': jnp.asarray([1.0, 0, 3, 0]).reshape(4, 1)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    got = optax.apply_updates(params, updates)['kernel'].ravel().tolist()
    assert got == want


def test_refresh_outside_is_the_change_of_masks_inside():
  method = magnitude(0.5, constant(begin=1))
  params = make_params()
  inside = sparsify(optax.adam(RATE), method)
  outside = sparsify(optax.adam(RATE), method, inline=False)
  refresh = jax.jit(make_refresh(method))
  want = jax.jit(inside.update)(params, inside.init(params), params)
  state, _ = refresh(outside.init(params), params, params)
  got = jax.jit(outside.update)(params, state, params)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_saliency_sums_gradients_before_the_absolute_value():
  params = {'kernel': jnp.ones((1, 4))}
  tx = sparsify(optax.sgd(1.0), saliency(0.5, batches=2))
  state, update = tx.init(params), jax.jit(tx.update)
  for grads in ([9.0, 1, 0, 2], [-9.0, 1, 0, 2]):
    updates, state = update({'kernel': jnp.asarray([grads])}, state, params)
  assert state.masks['kernel'].tolist() == [[False, True, False, True]]


# Masks.


def test_packed_masks_come_back_whatever_the_axis():
  masks = {'a': jnp.asarray(np.random.default_rng(0).random((3, 5, 11)) < 0.4),
           'b': None}  # fmt: skip
  for axis in (-1, 0, lambda shape: int(np.argmax(shape))):
    packed = pack_masks(masks, axis)
    assert packed['a'].dtype == np.uint8 and packed['a'].ndim == 3
    back = unpack_masks(packed, {'a': masks['a'], 'b': None}, axis)
    np.testing.assert_array_equal(back['a'], masks['a'])
    assert back['b'] is None
  assert pack_masks(masks)['a'].shape == (3, 5, 2)


def test_kernels_are_eligible_and_depthwise_ones_and_vectors_are_not():
  shapes = {
    'conv': {'kernel': (3, 3, 4, 8), 'bias': (8,)},
    'depthwise': {'kernel': (3, 3, 1, 8)},
    'embed': {'table': (10, 4)},
  }
  params = jax.tree.map(
    jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple)
  )
  flags = eligible_tree(params)
  chosen = [n for n, f in zip(names_of(params), jax.tree.leaves(flags),
                              strict=True) if f]  # fmt: skip
  assert chosen == ['conv/kernel']
  assert sum(jax.tree.leaves(eligible_tree(params, ['table$', '^conv']))) == 3
  with pytest.raises(ValueError, match='no parameter is eligible'):
    eligible_tree(params, ['nothing'])


def test_a_mask_that_lies_is_found():
  params = {'kernel': jnp.ones((2, 4))}
  masks = {'kernel': jnp.asarray([[True] * 4, [False] * 4])}
  assert mask_summary(params, masks)['kernel'] == (4, 8)
  with pytest.raises(ValueError, match='kernel: 4 entries off the mask'):
    assert_sparsity(params, masks)
  with pytest.raises(ValueError, match='4 entries kept, not 3'):
    assert_sparsity(params, masks, 3)


def test_update_without_parameters_is_an_error():
  tx = sparsify(optax.sgd(RATE), random(0.5))
  params = make_params()
  with pytest.raises(ValueError, match='needs the parameters'):
    tx.update(params, tx.init(params))
