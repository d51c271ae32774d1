"""CARD: its pieces against plain loops, what may and may not mix, weights."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxzoo.errors import UserError
from jaxzoo.models.forecasting import card
from jaxzoo.models.layers.hashed_dropout import HashedDropout, hashed_bits
from jaxzoo.weights import card as names
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def config_of(**fields):
  config = ml_collections.ConfigDict(
    dict(
      history=24,
      horizon=6,
      dtype='float32',
      scan=False,
      remat='none',
      microbatches=1,
      loss=dict(kind='decayed_mae'),
      network=dict(
        width=8,
        depth=1,
        heads=2,
        d_ff=8,
        patch=8,
        stride=4,
        rank=3,
        merge=2,
        alpha=0.5,
        ema_full=False,
        hidden=True,
        channel_attention=True,
        use_statistic=False,
        dropout=0.0,
      ),
    )
  )
  config.update_from_flattened_dict(fields)
  return config


def history(b=3, t=24, c=4, seed=0):
  x = np.random.default_rng(seed).normal(size=(b, t, c))
  return np.cumsum(x, 1).astype(np.float32)


@functools.cache
def network(channels=4, **fields):
  """(variables with busy statistics, compiled forecast)."""
  module = card.make_network(config_of(**fields))
  variables = jax.jit(module.init)(KEY, history(1, c=channels))
  stats = jax.tree.map(
    lambda x: x + 0.3 * np.abs(RNG.normal(size=x.shape)).astype(np.float32),
    variables['batch_stats'],
  )
  variables = {'params': variables['params'], 'batch_stats': stats}
  return variables, jax.jit(module.apply)


# Pieces.


@pytest.mark.parametrize('alpha', [0.3, 0.5, 1.0])
def test_smoothing_is_the_recurrence(alpha):
  x = RNG.normal(size=(6, 2))
  want = [x[0]]
  for row in x[1:]:
    want.append((1 - alpha) * want[-1] + alpha * row)
  np.testing.assert_allclose(
    card.smoothing(6, alpha) @ x, want, rtol=1e-5, atol=1e-6
  )
  cut = card.smoothing(6, alpha, rows=4) @ x
  np.testing.assert_allclose(cut[:4], want[:4], rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(cut[4:], 0)


@pytest.mark.parametrize(
  'heads, length, merge', [(2, 6, 2), (4, 5, 2), (6, 4, 3)]
)
def test_blend_is_the_reshape_that_the_paper_draws(heads, length, merge):
  e = 3
  x = RNG.normal(size=(1, 1, heads, length, e))
  flat = x.reshape(heads * length, e)
  want = np.zeros((length, heads * e))
  for i in range(length):
    features = []
    for m in range(merge):
      for g in range(heads // merge):
        features.append(flat[(g * length + i) * merge + m])
    want[i] = np.concatenate(features)
  np.testing.assert_array_equal(card.blend(x, merge)[0, 0], want)


def test_blend_of_two_puts_neighbours_of_a_head_into_a_token():
  # As the specification spells it out: even heads first, then odd ones.
  x = np.arange(2 * 6)[:, None].reshape(1, 1, 2, 6, 1)
  np.testing.assert_array_equal(
    card.blend(x, 2)[0, 0],
    [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]],
  )


def plain_attention(params, u, heads, rank, rows):
  """`CardAttention` up to its feed-forward networks, by loops over places."""
  w = {name: jax.tree.map(np.float64, x) for name, x in params.items()}
  softmax = lambda s: (
    np.exp(s - s.max(-1, keepdims=True))
    / np.exp(s - s.max(-1, keepdims=True)).sum(-1, keepdims=True)
  )
  b, g, n, d = u.shape
  e = d // heads
  outputs = np.zeros((2, b, g, heads, n, e))
  for i in range(b):
    for j in range(g):
      qkv = u[i, j] @ w['qkv']['kernel'] + w['qkv']['bias']
      for h in range(heads):
        at = lambda part, h=h, qkv=qkv: qkv[:, part * d + h * e :][:, :e]
        q, k, v = at(0), at(1), at(2)
        keys, values = k, v
        if rank:
          p = softmax(k @ w['summary_k']['kernel'] + w['summary_k']['bias'])
          keys = p.T @ k
          p = softmax(v @ w['summary_v']['kernel'] + w['summary_v']['bias'])
          values = p.T @ v
        smooth = lambda x: card.smoothing(len(x), 0.5, rows).astype(float) @ x
        a = softmax(smooth(q) @ smooth(keys).T * e**0.5)
        outputs[0, i, j, h] = a @ values
        a = softmax(q.T @ k * n**0.5)
        outputs[1, i, j, h] = v @ a.T
  return outputs


@pytest.mark.parametrize('rank, rows', [(0, None), (3, 4), (3, None)])
def test_attention_is_that_of_plain_loops(rank, rows):
  u = RNG.normal(size=(2, 2, 6, 8)).astype(np.float32)
  module = card.CardAttention(2, 8, rank=rank, smoothed=rows)
  variables = module.init(KEY, u)
  seen = {}

  def spy(next_method, args, kwargs, context):
    if context.method_name == '_feed_forward':
      seen[args[1]] = args[0]
    return next_method(*args, **kwargs)

  with card.nn.intercept_methods(spy):
    module.apply(variables, u)
  want = plain_attention(variables['params'], u.astype(float), 2, rank, rows)
  for number, part in ((1, want[0]), (2, want[1])):
    np.testing.assert_allclose(
      seen[number], card.blend(part, 2), rtol=1e-4, atol=1e-5
    )


def test_loss_weighs_near_steps_more():
  forecast, target = RNG.normal(size=(2, 5, 6, 3)).astype(np.float32)
  want = np.mean(
    [
      abs(forecast[i, t, j] - target[i, t, j]) / np.sqrt(t + 1)
      for i in range(5)
      for t in range(6)
      for j in range(3)
    ]
  )
  np.testing.assert_allclose(
    card.decayed_mae(forecast, target), want, rtol=1e-5
  )
  np.testing.assert_allclose(
    card.compare('mse', forecast, target),
    np.mean((forecast - target) ** 2),
    rtol=1e-5,
  )
  check_grads(
    lambda x: card.decayed_mae(x, jnp.asarray(target, jnp.float32)),
    (jnp.asarray(forecast, jnp.float32),),
    1,
    modes=['rev'],
    rtol=1e-2,
    atol=1e-3,
  )


# The network.


def test_forecast_moves_and_scales_with_its_window():
  variables, forecast = network()
  x = history()
  y = forecast(variables, x)
  scale, shift = np.array([2.0, 1, 0.5, 3]), np.array([1.0, -4, 0, 7])
  got = forecast(variables, (x * scale + shift).astype(np.float32))
  np.testing.assert_allclose(got, y * scale + shift, rtol=1e-2, atol=2e-2)


def test_constant_channel_is_forecast_as_it_is():
  variables, forecast = network()
  x = history()
  x[:, :, 1] = 5.0
  y = forecast(variables, x)
  assert np.isfinite(y).all()
  np.testing.assert_allclose(y[:, :, 1], 5.0, atol=1e-2)


def changed_channels(**fields):
  """Which forecasts change when channel 2 does."""
  variables, forecast = network(**fields)
  x = history()
  other = x.copy()
  other[:, :, 2] = history(seed=1)[:, :, 2]
  moved = np.abs(forecast(variables, other) - forecast(variables, x))
  return moved.max((0, 1)) > 1e-4


def test_channels_exchange_information():
  assert changed_channels().all()


def test_without_channel_attention_each_is_on_its_own():
  moved = changed_channels(**{'network.channel_attention': False})
  np.testing.assert_array_equal(moved, [False, False, True, False])


def test_windows_of_a_batch_do_not_meet_at_test_time():
  variables, forecast = network()
  x = history(4)
  np.testing.assert_allclose(
    forecast(variables, x)[1:2], forecast(variables, x[1:2]), atol=1e-5
  )


def test_smoothing_over_channels_ends_with_the_tokens_unless_asked():
  # 6 tokens (24 rows: 5 patches and one in front), 9 channels.
  variables, cut = network(9)
  _, full = network(9, **{'network.ema_full': True})
  x = history(c=9)
  assert np.abs(cut(variables, x) - full(variables, x)).max() > 1e-4
  few = x[..., :6]
  np.testing.assert_allclose(
    cut(variables, few), full(variables, few), atol=1e-6
  )


@pytest.mark.parametrize(
  'fields',
  [
    {'network.merge': 0},
    {'network.alpha': 1.0},
    {'network.hidden': False},
    {'network.use_statistic': True},
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_every_ablation_changes_the_forecast(fields):
  module = card.make_network(config_of(**fields))
  variables, forecast = network()
  mine = jax.eval_shape(module.init, KEY, history(1))['params']
  theirs = layout.flatten(variables['params'])
  flat = {
    path: jnp.asarray(theirs[path])
    if path in theirs
    else 0.1 * jax.random.normal(KEY, x.shape)
    for path, x in layout.flatten(mine).items()
  }
  got = module.apply({**variables, 'params': layout.unflatten(flat)}, history())
  assert np.abs(got - forecast(variables, history())).max() > 1e-3


def test_one_channel_has_a_statistic_too():
  module = card.make_network(config_of(**{'network.use_statistic': True}))
  x = history(c=1)
  y, _ = module.init_with_output(KEY, x)
  assert y.shape == (3, 6, 1) and np.isfinite(y).all()


# Published sizes, weights.

BIG = dict(width=128, heads=16, d_ff=256)


@pytest.mark.parametrize(
  'rows, horizon, fields, millions',
  [
    (96, 96, dict(), 0.0335),  # ETTh1
    (96, 96, BIG, 0.98),  # electricity
    (96, 720, BIG, 1.94),  # traffic
    (720, 96, dict(BIG, heads=8, depth=3), 2.36),  # electricity
  ],
)
def test_sizes_are_the_published_ones(rows, horizon, fields, millions):
  module = card.Card(horizon, **fields)
  window = jax.ShapeDtypeStruct((1, rows, 7), jnp.float32)
  params = jax.eval_shape(module.init, KEY, window)['params']
  count = sum(x.size for x in jax.tree.leaves(params))
  # The published count has layers that are made and not used: two linear ones
  # and the summaries of the attention over tokens in each layer, W_statistic.
  d, e = module.width, module.width // module.heads
  unused = module.depth * 2 * (d * d + d + module.rank * (e + 1)) + 3 * d
  assert round((count + unused) / 1e6, 4 if millions < 0.1 else 2) == millions


def state_dict(config, channels=4):
  """A published checkpoint of random numbers, its unused layers included."""
  module = card.make_network(config)
  variables = jax.eval_shape(module.init, KEY, history(1, c=channels))
  if config.scan:
    unrolled = card.make_network(config.copy_and_resolve_references())
    variables = jax.eval_shape(
      unrolled.clone(scan=False).init, KEY, history(1, c=channels)
    )
  filled = jax.tree.map(
    lambda x: RNG.normal(size=x.shape).astype(np.float32), variables
  )
  rows = names.rows(config.network.depth, config.network.use_statistic)
  theirs = to.save(filled, rows)
  theirs['model.Attentions_over_token.0.dp_k.weight'] = np.zeros((8, 8))
  theirs['model.Attentions_over_channel.0.mlp.bias'] = np.zeros(8)
  theirs['model.Attentions_over_channel.1.ema_matrix'] = np.zeros((8, 8))
  return theirs, filled


@pytest.mark.parametrize('use_statistic', [False, True])
def test_published_names_are_read_back(use_statistic):
  config = config_of(
    **{'network.use_statistic': use_statistic, 'network.depth': 2}
  )
  theirs, ours = state_dict(config)
  got = {
    'params': card.convert(theirs, config), **card.convert_extra(theirs, config)
  }  # fmt: skip
  jax.tree.map(np.testing.assert_array_equal, got, ours)


def test_unknown_tensors_are_kept_to_be_reported():
  config = config_of()
  theirs, _ = state_dict(config)
  theirs['model.other.weight'] = np.zeros(3)
  assert 'model.other.weight' in card.convert(theirs, config)


def test_scanned_layers_are_the_same_layers():
  config = config_of(**{'network.depth': 2})
  theirs, _ = state_dict(config)
  outputs = []
  for scan in (False, True):
    config.scan = scan
    variables = {
      'params': card.convert(theirs, config),
      **card.convert_extra(theirs, config),
    }
    variables = jax.tree.map(np.abs, variables)  # variances
    outputs.append(
      jax.jit(card.make_network(config).apply)(variables, history())
    )
  np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'network.heads': 3}, 'heads=3 must divide network.width=8'),
    ({'network.merge': 4}, 'merge=4 must divide network.heads=2'),
    ({'network.patch': 25}, 'patch=25.*history=24'),
    ({'network.stride': 0}, 'network.stride=0'),
    ({'network.dropout': 1.0}, r'dropout=1.0.*\[0, 1\)'),
    ({'loss.kind': 'decay_mae'}, 'did you mean decayed_mae'),
  ],
)
def test_impossible_sizes_are_refused(fields, words):
  with pytest.raises(UserError, match=words):
    card.build(config_of(**fields), optax.identity())


# Dropout.


def test_hashed_dropout_keeps_its_share_and_the_mean():
  x = jnp.ones((200, 500))
  drop = jax.jit(
    lambda key: HashedDropout(0.3).apply({}, x, True, rngs={'dropout': key})
  )
  y = np.asarray(drop(KEY))
  assert set(np.unique(y)) == {0, np.float32(1 / 0.7)}
  kept = y > 0
  assert abs(kept.mean() - 0.7) < 0.005
  # By rows, columns, neighbours and draws: none knows of another.
  spread = (0.21 / 500) ** 0.5
  assert abs(kept.mean(1).std() / spread - 1) < 0.2
  spread = (0.21 / 200) ** 0.5
  assert abs(kept.mean(0).std() / spread - 1) < 0.2
  other = np.asarray(drop(jax.random.key(1))) > 0
  for a, b in (
    (kept[1:], kept[:-1]),
    (kept[:, 1:], kept[:, :-1]),
    (kept, other),
  ):
    pair = np.corrcoef(a.reshape(-1), b.reshape(-1))[0, 1]
    assert abs(pair) < 0.02
  np.testing.assert_array_equal(HashedDropout(0.3).apply({}, x, False), x)


def test_hashed_bits_are_uniform():
  bits = np.asarray(hashed_bits(KEY, (64, 1024)))
  for shift in range(0, 32, 8):
    counts = np.bincount((bits >> shift).reshape(-1) & 255, minlength=256)
    assert ((counts - 256) ** 2 / 256).sum() < 350  # chi-square, 255 degrees
