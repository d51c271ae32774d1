"""FusionSF: quantiser, rotary codes, masking, fusion, weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.models.forecasting import fusionsf
from jaxzoo.models.forecasting import fusionsf_network as network
from jaxzoo.models.layers import residual_vq as vq

KEY = jax.random.key(0)
HOURS = 3


def config_of(**overrides):
  config = catalog.get_config('fusionsf:tiny').unlock()
  config.network.update(width=8, depth=1, decoder_depth=1, patch_size=(2, 2))
  config.quantizer.update(size=5, stages=2)
  config.scan = False
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(seed=0, rows=2, side=4):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: rng.normal(size=(rows, *shape)).astype(np.float32)
  grid = np.linspace(-1, 1, side)
  coordinates = np.stack(np.meshgrid(grid, grid, indexing='ij'), -1)
  return {
    'satellite': normal(HOURS, side, side, 1),
    'coordinates': np.tile(coordinates, (rows, 1, 1, 1)).astype(np.float32),
    'site': 0.3 * normal(2),
    'time': rng.integers(1, 12, (rows, HOURS, 3)).astype(np.int32),
    'power': np.abs(normal(HOURS, 1)),
    'weather': normal(HOURS, 3),
    'target': np.abs(normal(HOURS, 1)),
  }


@functools.cache
def started(**overrides):
  """(system, first state, its compiled step)."""
  system = fusionsf.build(config_of(**overrides), optax.sgd(1e-2))
  state = jax.jit(system.init)(KEY, batch_of())
  return system, state, jax.jit(system.step)


# The quantiser.


def codebook_of(size=5, width=3):
  codes = jax.random.normal(KEY, (size, width))
  sizes = jnp.arange(1.0, size + 1)
  return vq.Codebook(codes, sizes, codes * sizes[:, None], jnp.array(True))


def points_of(count=7, width=3):
  return jax.random.normal(jax.random.key(1), (count, width))


def test_stages_take_the_nearest_code_of_what_is_left():
  book, x = codebook_of(), np.asarray(points_of())
  found = vq.quantize(book, x, 3)
  codes, left = np.asarray(book.codes), x.copy()
  for stage in range(3):
    index = ((left[:, None] - codes) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(found.indices[:, stage], index)
    left = left - codes[index]
  np.testing.assert_allclose(found.vectors, x - left, atol=1e-5)


def test_training_moves_the_codes_after_every_stage():
  book, x = codebook_of(), np.asarray(points_of(), np.float64)
  found, after = vq.quantize_and_learn(book, points_of(), 2, KEY)
  codes, sizes, sums = (
    np.asarray(leaf, np.float64) for leaf in (book.codes, book.sizes, book.sums)
  )
  left, errors = x.copy(), []
  for _ in range(2):
    index = ((left[:, None] - codes) ** 2).sum(-1).argmin(1)
    chosen = np.eye(5)[index]
    own = codes[index]
    sizes = 0.8 * sizes + 0.2 * chosen.sum(0)
    sums = 0.8 * sums + 0.2 * chosen.T @ left
    smooth = (sizes + 1e-5) / (sizes.sum() + 5e-5) * sizes.sum()
    codes = sums / smooth[:, None]
    errors.append(((own - left) ** 2).mean())
    left = left - own
  np.testing.assert_allclose(after.codes, codes, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(after.sizes, sizes, rtol=1e-5)
  np.testing.assert_allclose(found.commitment, np.mean(errors), rtol=1e-4)


def test_every_stage_hands_the_whole_gradient_through():
  x = points_of(1)[0]
  jacobian = jax.jacobian(
    lambda x: vq.quantize_and_learn(codebook_of(), x, 4, KEY)[0].vectors
  )(x)
  np.testing.assert_allclose(jacobian, 4 * np.eye(3), atol=1e-6)


def test_commitment_pulls_vectors_alone():
  def commitment(codes, x):
    book = codebook_of()._replace(codes=codes)
    return vq.quantize_and_learn(book, x, 2, KEY)[0].commitment

  of_codes, of_x = jax.grad(commitment, (0, 1))(
    codebook_of().codes, points_of()
  )
  assert jnp.any(of_x)
  # Codes of the first stage are moved by averages; of later ones, what is left
  # would carry a gradient to them where the code were not stopped.
  step = 1e-3 * of_x
  assert commitment(codebook_of().codes, points_of() - step) < commitment(
    codebook_of().codes, points_of()
  )
  assert of_codes.shape == (5, 3)


def test_k_means_finds_separate_clusters_and_is_done_once():
  centres = 10 * np.eye(4)
  rng = np.random.default_rng(0)
  x = (centres[:, None] + 0.01 * rng.normal(size=(4, 20, 4))).reshape(-1, 4)
  # From one start per cluster there is one answer; random starts may share one.
  books = [
    vq.find_codes(vq.empty_codebook(4, 4), x.astype(np.float32), key)
    for key in jax.random.split(KEY, 8)
  ]
  exact = [
    book for book in books
    if np.allclose(np.sort(np.abs(book.codes).max(1)), 10, atol=0.1)
  ]  # fmt: skip
  assert exact
  np.testing.assert_allclose(exact[0].sizes, 20)
  again, _ = vq.quantize_and_learn(exact[0], x, 1, KEY)
  assert again.commitment < 1e-3


@pytest.mark.slow
def test_codes_are_found_in_the_first_step():
  _, state, step = started()
  assert not state.extra['codebooks']['power']['ready']
  after, _ = step(state, batch_of())
  book = after.extra['codebooks']['power']
  assert book['ready'] and jnp.any(book['codes'])
  # The clusters of the first batch, moved by two stages.
  more, _ = step(after, batch_of(1))
  assert jnp.any(more.extra['codebooks']['power']['codes'] != book['codes'])


# Codes of time and place.


def test_scores_under_rotation_depend_on_the_offset_alone():
  q, k = jax.random.normal(KEY, (2, 1, 1, 8))
  a, b = np.array([[0.1, -0.2]]), np.array([[0.4, 0.3]])

  def score(shift):
    turn = lambda x, place: network.rotate(
      x, network.rotary_angles(jnp.asarray(place + shift), 8, 16.0)
    )
    return jnp.sum(turn(q, a) * turn(k, b))

  np.testing.assert_allclose(score(0.0), score(0.37), rtol=1e-4)
  assert not np.allclose(score(0.0), jnp.sum(q * k), rtol=1e-2)


def test_reference_order_counts_columns_slowly():
  rows, columns = np.meshgrid(np.arange(4.0), np.arange(6.0), indexing='ij')
  grid = np.stack([columns, rows], -1)  # first along the width
  ours = network.patch_coordinates(grid, (2, 2), 'consistent')
  theirs = network.patch_coordinates(grid, (2, 2), 'reference')
  np.testing.assert_allclose(ours[:2], [[0.5, 0.5], [2.5, 0.5]])
  np.testing.assert_allclose(theirs[:3], [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5]])


def test_time_code_comes_round():
  early, late = jnp.array([[12, 31, 24]]), jnp.array([[0, 0, 0]])
  np.testing.assert_allclose(
    network.time_code(early), network.time_code(late), atol=1e-5
  )


def test_patches_are_read_row_by_row():
  frame = np.arange(16.0).reshape(4, 4, 1)
  np.testing.assert_array_equal(network.patches(frame, (2, 2))[1], [2, 3, 6, 7])


# Masking.


@pytest.mark.parametrize('ratio', [0.0, 0.5, 0.99, 1.0])
def test_as_many_patches_are_kept_as_the_ratio_says(ratio):
  masking = fusionsf.Masking(ratio, uniform=False)
  kept = fusionsf.draw_kept(KEY, (3, 5, 64), masking)
  np.testing.assert_array_equal(kept.sum(-1), int(64 * (1 - ratio) + 1e-9))
  if 0 < ratio < 0.9:
    assert (kept[0, 0] != kept[0, 1]).any(), 'each frame has its own'


def test_uniform_ratios_differ_between_batches():
  counts = {
    int(fusionsf.draw_kept(key, (1, 64), fusionsf.Masking(0.99)).sum())
    for key in jax.random.split(KEY, 6)
  }
  assert len(counts) > 2 and min(counts) >= 0


@functools.cache
def tokens_and_forecast():
  system, state, _ = started()
  del system
  module = fusionsf.make_network(config_of())
  variables, batch = {'params': state.params}, batch_of()
  tokens = module.apply(variables, batch, method='embed')

  @jax.jit
  def forecast(tokens, kept):
    return module.apply(
      variables, tokens, batch['coordinates'], batch['site'], kept,
      method='forecast',
    )  # fmt: skip

  return tokens, forecast


@pytest.mark.slow
def test_hidden_patches_change_nothing():
  tokens, forecast = tokens_and_forecast()
  kept = fusionsf.draw_kept(
    KEY, tokens['satellite'].shape[:-1], fusionsf.Masking(0.5, False)
  )
  noise = jax.random.normal(KEY, tokens['satellite'].shape)
  moved = tokens['satellite'] + 10 * noise * ~kept[..., None]
  want = forecast(tokens, kept)
  np.testing.assert_allclose(
    forecast({**tokens, 'satellite': moved}, kept), want, atol=1e-5
  )
  seen = tokens['satellite'] + 10 * noise * kept[..., None]
  assert not np.allclose(
    forecast({**tokens, 'satellite': seen}, kept), want, atol=1e-3
  )


def test_no_patch_at_all_is_finite_and_needs_no_frame():
  tokens, forecast = tokens_and_forecast()
  none = jnp.zeros(tokens['satellite'].shape[:-1], bool)
  want = forecast(tokens, none)
  assert jnp.isfinite(want).all()
  other = {**tokens, 'satellite': -3 * tokens['satellite']}
  np.testing.assert_allclose(forecast(other, none), want, atol=1e-5)


# The system.


def test_forecast_is_no_negative_power():
  system, state, step = started()
  state, _ = step(state, batch_of())
  forecast = jax.jit(system.predict)(state, batch_of(3))['forecast']
  assert forecast.shape == (2, HOURS, 1) and (forecast >= 0).all()


@pytest.mark.slow
def test_baseline_has_neither_weather_nor_codebooks():
  system, state, step = started(
    **{'network.weather': False, 'quantizer.modalities': ()}
  )
  assert not state.extra['codebooks']
  assert not any('weather' in name for name in state.params)
  _, metrics = step(state, batch_of())
  assert metrics['commitment'] == 0
  other = {**batch_of(), 'weather': batch_of(5)['weather']}
  np.testing.assert_array_equal(
    system.predict(state, batch_of())['forecast'],
    system.predict(state, other)['forecast'],
  )


@pytest.mark.parametrize(
  'field, value, message',
  [
    ('quantizer.modalities', ('sattelite',), 'satellite'),
    ('loss.kind', 'l2', 'loss.kind'),
    ('masking.ratio', 1.5, 'masking.ratio'),
    ('network.rope_order', 'row', 'rope_order'),
  ],
)
def test_wrong_fields_are_named(field, value, message):
  with pytest.raises(UserError, match=message):
    fusionsf.build(config_of(**{field: value}), optax.sgd(1.0))


def test_weather_cannot_be_quantised_where_there_is_none():
  config = config_of(
    **{'network.weather': False, 'quantizer.modalities': ('weather',)}
  )
  with pytest.raises(UserError, match='weather'):
    fusionsf.build(config, optax.sgd(1.0))


# Weights.


def blank(**overrides):
  """(config, parameters, extra), arbitrary numbers; nothing is compiled."""
  config = config_of(**overrides)
  system = fusionsf.build(config, optax.sgd(1.0))
  state = jax.eval_shape(system.init, KEY, batch_of())
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(size=x.shape).astype(np.float32)
  extra = jax.tree.map(draw, dict(state.extra))
  for book in extra['codebooks'].values():
    book['ready'] = np.array(True)
  return config, jax.tree.map(draw, state.params), extra


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('depth', [1, 2])
def test_export_and_convert_undo_each_other(scan, depth):
  config, params, extra = blank(scan=scan, **{'network.depth': depth})
  tensors = fusionsf.export(params, extra, config)
  assert tensors['ctx_encoder.blocks.0.0.fn.to_kv.weight'].shape == (32, 8)
  back = fusionsf.convert(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, back, dict(params))
  found = fusionsf.convert_extra(tensors, config)
  jax.tree.map(np.testing.assert_array_equal, found, extra)


def test_training_prefix_and_unused_tensors_are_passed_over():
  config, params, extra = blank()
  tensors = fusionsf.export(params, extra, config)
  tensors['ctx_mask_token'] = np.zeros(8, np.float32)
  named = {f'net.{name}': x for name, x in tensors.items()}
  back = fusionsf.convert(named, config)
  jax.tree.map(np.testing.assert_array_equal, back, dict(params))
