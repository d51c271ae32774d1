"""Baguan: aggregation, masking, roll-out, ensembles, scores, weights."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.models.forecasting import baguan
from jaxzoo.models.forecasting import baguan_codes as codes
from jaxzoo.models.layers.attention import (
  chunked_attention,
  dot_product_attention,
)
from jaxzoo.models.losses import weather
from jaxzoo.system import State

KEY = jax.random.key(0)
GRID = (6, 8)


def config_of(**overrides):
  config = catalog.get_config('baguan:tiny').unlock()
  config.grid, config.patch, config.pad = GRID, 2, 0
  config.variables = ('t2m', 'z_500', 'u_500')
  config.constants = ('lake_cover',)
  config.encoder.update(width=12, depth=1, num_heads=2)
  config.decoder.update(width=8, depth=1, num_heads=2)
  config.scan = False
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed=0, rows=2, steps=2):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=(rows, *shape)).astype(np.float32)
  return {
    'field': normal(*GRID, 4),
    'lead': np.full(rows, 24, np.float32),
    'target': normal(steps, *GRID, 3),
  }


def shaken(params, scale=0.3):
  """Parameters of which none is 0: much starts there."""
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(KEY, len(leaves))
  return jax.tree.unflatten(
    tree,
    [
      x + scale * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ],
  )


@functools.cache
def started(**overrides):
  """(config, networks, parameters)."""
  config = config_of(**overrides)
  networks = baguan.make_networks(config)
  init = functools.partial(baguan.init_params, networks, config.task)
  params = jax.jit(init)(KEY, batch_of())[0]
  return config, networks, shaken(params)


# Names and codes.


def test_order_of_the_tables_is_the_published_one():
  data = (*codes.DYNAMIC, *codes.CONSTANTS)
  assert codes.internal_order(data) == codes.VARIABLES
  assert len(codes.VARIABLES) == 75


def test_height_of_the_lowest_level_is_that_of_the_surface():
  heights = [codes.height_index(n) for n in ('t2m', 'z_50', 'z_925', 'z_1000')]
  assert heights == [0, 3, 38, 0]


def test_patches_and_fields_undo_each_other():
  field = jax.random.normal(KEY, (2, 6, 8, 3))
  patches = codes.to_patches(field, 2)
  np.testing.assert_array_equal(codes.from_patches(patches, (3, 4), 2), field)
  np.testing.assert_array_equal(
    patches[0, 1, 2], field[0, :2, 2:4, 2].reshape(-1)
  )


# The encoder.


def naive_aggregation(params, names, inputs, patches, grid, heads):
  """Attention over tokens that are really made, [b, n, d]."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  rows = [names.index(name) for name in inputs]
  width = p['query'].shape[0]
  place, high = codes.volume_sincos(
    grid, [codes.height_index(name) for name in inputs], width
  )
  tokens = np.einsum('bnvp,vpd->bnvd', patches, p['kernel'][rows])
  tokens += p['bias'][rows] + p['variable_embed'][rows] + high
  tokens += place[:, None]
  project = lambda part, x: (
    np.einsum('...d,dhe->...he', x, p[f'to_{part}']['kernel'])
    + p[f'to_{part}']['bias']
  )
  q, k, v = (
    project('query', p['query']),
    *(project(part, tokens) for part in ('key', 'value')),
  )
  logits = np.einsum('he,bnvhe->bnhv', q, k) / np.sqrt(width // heads)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  mixed = np.einsum('bnhv,bnvhe->bnhe', weights, v)
  return (
    np.einsum('bnhe,hed->bnd', mixed, p['out']['kernel']) + p['out']['bias']
  )


@pytest.mark.slow
@pytest.mark.parametrize('places', [None, [[3, 0, 7], [5, 11, 2]]])
def test_aggregation_is_attention_over_tokens_never_made(places):
  from jaxzoo.models.forecasting.baguan_network import VariableAggregation

  _, networks, params = started()
  encoder, own = networks.encoder, params['encoder']['aggregation']
  patches = codes.to_patches(batch_of()['field'], 2)
  want = naive_aggregation(
    own, encoder.names, encoder.inputs, np.asarray(patches), encoder.grid, 2
  )
  module = VariableAggregation(
    encoder.names, encoder.inputs, encoder.grid, encoder.width, 2
  )
  if places is not None:
    places = jnp.array(places)
    patches = jnp.take_along_axis(patches, places[..., None, None], 1)
    want = np.take_along_axis(want, np.asarray(places)[..., None], 1)
  got = module.apply({'params': own}, patches, places)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_first_forecast_is_the_mean_state():
  config, networks, _ = started()
  params = baguan.init_params(networks, 'forecast', KEY, batch_of())[0]
  forecast = baguan.forecast(
    networks, params, batch_of()['field'], batch_of()['lead']
  )
  assert forecast.shape == (2, *GRID, 3) and not jnp.any(forecast)
  del config


def test_added_rows_repeat_the_northernmost_and_are_cut_off():
  grid = (5, 8)
  config = config_of(grid=grid, pad=1)
  networks = baguan.make_networks(config)
  field = jnp.asarray(batch_of()['field'][:, :5])
  patches = networks.encoder.apply({}, field, method='patches')
  rows = codes.from_patches(patches, (3, 4), 2)
  np.testing.assert_array_equal(rows[:, 0], field[:, 0])
  np.testing.assert_array_equal(rows[:, 1:], field)


@pytest.mark.slow
def test_released_decoder_is_head_of_the_tokens():
  config, networks, params = started(**{'decoder.kind': 'identity'})
  assert not {'mask_token', 'position', 'block_0'} & set(params['decoder'])
  batch = batch_of()
  got = baguan.forecast(networks, params, batch['field'], batch['lead'])
  assert got.shape == (2, *GRID, 3) and jnp.any(got)
  del config


def test_lead_time_changes_the_forecast():
  _, networks, params = started()
  run = jax.jit(functools.partial(baguan.forecast, networks, params))
  field = batch_of()['field']
  early, late = run(field, jnp.full(2, 6.0)), run(field, jnp.full(2, 24.0))
  assert not np.allclose(early, late, atol=1e-3)


def test_attention_in_chunks_is_attention():
  q, k, v = jax.random.normal(KEY, (3, 2, 12, 2, 4))
  both = [
    jax.value_and_grad(lambda q, f=f: jnp.sum(f(q, k, v) ** 2))(q)
    for f in (
      dot_product_attention,
      functools.partial(chunked_attention, most=5),  # four chunks of 3
    )
  ]
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *both
  )


# Pre-training.


def test_mask_parts_the_patches_in_the_order_of_their_noise():
  noise = jax.random.uniform(KEY, (2, 12))
  hidden, seen = baguan.masked_places(noise, 0.75)
  assert hidden.shape == (2, 9) and seen.shape == (2, 3)
  both = np.concatenate([hidden, seen], 1)
  np.testing.assert_array_equal(both, np.argsort(noise, 1))


def rebuilt(params, networks, before, after, places, siamese=True):
  return baguan.reconstruct(
    networks, params, before, after, jnp.full(2, 6.0), places, siamese=siamese
  )


@pytest.mark.slow
def test_hidden_patches_do_not_reach_the_reconstruction():
  _, networks, params = started(task='pretrain')
  places = jnp.array([[0, 5, 11]] * 2)
  run = jax.jit(functools.partial(rebuilt, params, networks))
  before, after = batch_of()['field'], batch_of(1)['field']
  patches = codes.to_patches(jnp.asarray(after), 2)
  hidden = jnp.ones((12, 1, 1)).at[places[0]].set(0)
  other = codes.from_patches(patches + 5 * hidden, (3, 4), 2)
  want = run(before, after, places)
  np.testing.assert_allclose(run(before, other, places), want, atol=1e-4)
  seen = codes.from_patches(patches + 5 * (1 - hidden), (3, 4), 2)
  assert not np.allclose(run(before, seen, places), want, atol=1e-2)
  assert not np.allclose(run(before + 1, after, places), want, atol=1e-2)
  # The masked autoencoder of one field is not told of the earlier one.
  single = functools.partial(rebuilt, params, networks, siamese=False)
  np.testing.assert_array_equal(
    single(before, after, places), single(before + 1, after, places)
  )


def test_loss_of_the_hidden_patches_leaves_the_others_out(monkeypatch):
  config = config_of(task='pretrain', **{'pretrain.masked_only': True})
  networks = baguan.make_networks(config)
  shifts = {'all': lambda seen: 1.0, 'seen': lambda seen: seen}

  def loss(which):
    def fake(networks, params, before, after, lead, places, **options):
      seen = jnp.zeros((2, 12)).at[jnp.arange(2)[:, None], places].set(1)
      seen = codes.from_patches(
        jnp.broadcast_to(seen[..., None, None], (2, 12, 3, 4)), (3, 4), 2
      )
      return after[..., :3] + shifts[which](seen)

    monkeypatch.setattr(baguan, 'reconstruct', fake)
    return baguan.pretraining_loss(networks, config, {}, batch_of(), KEY)

  assert loss('seen') == 0
  np.testing.assert_allclose(loss('all'), 1.0, atol=0.2)


# Roll-out and ensembles.


@pytest.mark.slow
def test_no_gradient_passes_between_the_steps_of_a_rollout():
  config, networks, params = started()
  batch = batch_of()

  def two(params):
    total, field = 0.0, batch['field']
    for k in range(2):
      after = baguan.forecast(networks, params, field, batch['lead'])
      total += baguan.weighted_loss(
        after, batch['target'][:, k], *baguan.weights_of(config)
      )
      field = jax.lax.stop_gradient(baguan.with_constants(after, field))
    return total / 2

  loss = functools.partial(baguan.rollout_loss, networks, config)
  want, expected = jax.jit(jax.value_and_grad(two))(params)
  value = jax.jit(
    jax.value_and_grad(lambda p, count: loss(p, batch, count, None))
  )
  got, grads = value(params, jnp.int32(2))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    grads,
    expected,
  )
  # One step of two counts alone.
  short, _ = value(params, jnp.int32(1))
  first = {**batch, 'target': batch['target'][:, :1]}
  np.testing.assert_allclose(short, loss(params, first, 1, None), rtol=1e-5)


def test_rollout_grows_with_the_updates():
  config = config_of(
    **{'rollout.first': 1, 'rollout.every': 2, 'rollout.steps': 2}
  )
  system = baguan.build(config, optax.sgd(1e-3))
  state = jax.jit(system.init)(KEY, batch_of())
  step, counts = jax.jit(system.step), []
  for _ in range(4):
    state, metrics = step(state, batch_of())
    counts.append(int(metrics['rollout_steps']))
  assert counts == [1, 1, 2, 2]


def test_compositions_are_all_orders_of_few_steps():
  found = baguan.compositions(48, (1, 6, 24), most=100)
  assert found[0] == (24, 24)
  assert sorted(found[1:]) == sorted(
    (6,) * i + (24,) + (6,) * (4 - i) for i in range(5)
  )
  assert len(baguan.compositions(48, (1, 6, 24), most=3)) == 3
  with pytest.raises(UserError, match='7 h'):
    baguan.compositions(7, (6,))


def test_ensemble_is_the_mean_over_the_compositions():
  field = jnp.asarray(batch_of()['field'])
  steps = {6: lambda x: 2 * x[..., :3], 12: lambda x: x[..., :3] + x[..., 3:]}
  got = baguan.ensemble(steps, field, 12)
  want = (4 * field[..., :3] + field[..., :3] + field[..., 3:]) / 2
  np.testing.assert_allclose(got, want, rtol=1e-6)


# Losses and scores.


def test_weights_of_variables_and_rows_are_normalised():
  weights = weather.variable_weights(codes.DYNAMIC)
  np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
  rows = weather.latitude_weights(weather.latitudes(32))
  np.testing.assert_allclose(rows.mean(), 1, rtol=1e-6)
  np.testing.assert_allclose(weather.latitudes(721)[[0, -1]], [90, -90])
  np.testing.assert_allclose(weather.latitudes(720)[0], 89.75)
  np.testing.assert_allclose(weather.latitudes(32)[0], 87.1875)


def test_gradient_of_the_loss_is_that_of_finite_differences():
  rows, variables = baguan.weights_of(config_of())
  target = jnp.asarray(batch_of()['target'][:, 0])
  loss = lambda x, **options: baguan.weighted_loss(
    x, target, rows, variables, **options
  )
  x = target + jax.random.normal(KEY, target.shape)
  check_grads(
    lambda x: loss(x, squared=True, power=1.0), (x,), 1, ['rev'],
    rtol=1e-2, atol=1e-2,
  )  # fmt: skip
  with jax.numpy_rank_promotion('allow'):
    want = (np.abs(x - target) * np.sqrt(rows)[:, None, None]).mean((0, 1, 2))
  np.testing.assert_allclose(loss(x), (want * variables).sum(), rtol=1e-5)


def test_scores_of_parts_add_up_to_those_of_the_whole():
  rng = np.random.default_rng(0)
  f, y = rng.normal(size=(2, 5, *GRID, 3)).astype(np.float32)
  f = 0.5 * f + y + 1
  climate = rng.normal(size=(*GRID, 3)).astype(np.float32)
  rows = weather.latitude_weights(weather.latitudes(GRID[0]))
  parts = [weather.scores(f[i], y[i], climate, rows)
           for i in (slice(0, 2), slice(2, 5))]  # fmt: skip
  total = weather.Scores(
    *(
      sum(np.asarray(x).sum(0) for x in each)
      for each in zip(*parts, strict=True)
    )
  )
  rmse, acc = weather.rmse_and_acc(total)
  w = rows[:, None, None].astype(np.float64)
  want = np.sqrt((w * (f - y) ** 2).mean((1, 2))).mean(0)
  np.testing.assert_allclose(rmse, want, rtol=1e-5)
  centred = lambda x: x - climate - (x - climate).mean((0, 1, 2))
  a, b = centred(f.astype(np.float64)), centred(y.astype(np.float64))
  sums = lambda x: (w * x).sum((0, 1, 2))
  want = sums(a * b) / np.sqrt(sums(a * a) * sums(b * b))
  np.testing.assert_allclose(acc, want, rtol=1e-4)
  a, b = f - climate, y - climate
  want = sums(a * b) / np.sqrt(sums(a * a) * sums(b * b))
  _, plain = weather.rmse_and_acc(total, centred=False)
  np.testing.assert_allclose(plain, want, rtol=1e-4)


def test_predict_scores_on_the_device_what_it_forecasts():
  config = config_of(forecast_steps=2)
  system = baguan.build(config, optax.sgd(1.0))
  state = jax.jit(system.init)(KEY, batch_of())
  state = state._replace(params=shaken(state.params))
  predict, batch = jax.jit(system.predict), batch_of()
  fields = predict(state, batch)['forecast']
  climate = np.zeros((2, *GRID, 3), np.float32)
  found = predict(state, {**batch, 'climatology': climate})
  assert 'forecast' not in found and found['rmse'].shape == (2, 2, 3)
  rows, _ = baguan.weights_of(config)
  error = (fields - batch['target']) ** 2 * rows[:, None, None]
  np.testing.assert_allclose(
    found['rmse'], np.sqrt(error.mean((2, 3))), rtol=1e-4
  )


# Stages and weights.


def blank(task, **overrides):
  """(config, parameters in the config's layout): zeros, nothing compiled."""
  config = config_of(task=task, **overrides)
  networks = baguan.make_networks(config)
  init = functools.partial(baguan.init_params, networks, task)
  params, _ = jax.eval_shape(init, KEY, batch_of())
  return config, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params)


@pytest.mark.parametrize('before, after', [(False, True), (True, False)])
def test_fine_tuning_takes_the_encoder_alone(before, after):
  deep = {'encoder.depth': 2}
  _, params = blank('pretrain', scan=before, **deep)
  config, wanted = blank('forecast', scan=after, **deep)
  state = State(None, None, params, None, {})
  loaded, extra = baguan.from_stages({'pretrain': (None, state)}, config)
  assert set(loaded) == {'encoder'} and extra == {}
  chex.assert_trees_all_equal_shapes(loaded['encoder'], wanted['encoder'])


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('depth', [1, 2])
def test_export_and_convert_undo_each_other(scan, depth):
  config, params = blank('forecast', scan=scan, **{'encoder.depth': depth})
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(0)
  leaves = [rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  params = jax.tree.unflatten(tree, leaves)
  tensors = baguan.export(params, {}, config)
  assert tensors['token_embeds.3.proj.weight'].shape == (12, 1, 2, 2)
  back = baguan.convert(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, back, params)


def test_released_table_of_shapes_is_passed_over():
  config, _, params = started()
  tensors = baguan.export(params, {}, config)
  tensors['pos_3d_tokens'] = np.zeros((1, 2), np.float32)
  back = baguan.convert(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, back, dict(params))


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('grid', (5, 8), 'pad=1'),
    ('decoder.kind', 'papre', 'paper'),
    ('task', 'finetune', 'task'),
    ('constants', ('t2m',), 'twice'),
    ('pretrain.mask_ratio', 1.0, 'mask_ratio'),
  ],
)
def test_wrong_fields_are_named(field, value, message):
  with pytest.raises(UserError, match=message):
    baguan.build(config_of(**{field: value}), optax.sgd(1.0))
