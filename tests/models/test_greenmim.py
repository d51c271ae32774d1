"""GreenMIM: packing of windows, the encoder on groups, loss and system."""

import functools
import itertools

import jax
import ml_collections
import numpy as np
import optax
import pytest
from tiny_retrieval import filled

from jaxzoo import catalog, initial, main
from jaxzoo.errors import UserError
from jaxzoo.models.create import build_model
from jaxzoo.models.self_supervised import greenmim, window_groups
from jaxzoo.weights import layout
from jaxzoo.weights.writers import write_safetensors

GRID, WINDOW = (4, 4), 4
ENCODER = dict(width=8, depths=(2, 2), num_heads=(1, 2), window=WINDOW)
DEEP = dict(ENCODER, depths=(4, 2))
# Patches of 8 pixels, 2 x 2 tokens in the first stage.
SIDE, STAGES = 2, 2


def config(**fields):
  return ml_collections.ConfigDict(
    dict(
      dict(
        image_size=(32, 32),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        visible_only=True,
        encoder=ENCODER,
        decoder=dict(width=8, depth=1, num_heads=2),
        mask_ratio=0.25,
        norm_pix_loss=True,
        match_reference_order=False,
        dtype='float32',
        scan=False,
        remat='none',
        microbatches=1,
      ),
      **fields,
    )
  )


def plans(kept):
  return window_groups.plan_stages(GRID, kept, WINDOW, SIDE, STAGES)


def batch(images=4, masks=2, ratio=0.25, seed=0):
  rng = np.random.default_rng(seed)
  kept = window_groups.kept_patches(GRID, ratio)
  return {
    'image': rng.integers(0, 256, (images, 32, 32, 3)).astype(np.uint8),
    **window_groups.draw_masks(rng, masks, GRID, ratio, plans(kept)),
  }


@functools.cache
def shapes():
  system = greenmim.build(config(), optax.sgd(0.1))
  return jax.eval_shape(system.init, jax.random.key(0), batch())


@functools.cache
def parameters():
  return filled(shapes().params)


# Packing.


@pytest.mark.parametrize('seed', range(5))
def test_knapsack_is_as_full_as_any_choice(seed):
  rng = np.random.default_rng(seed)
  counts, capacity = rng.integers(1, 12, 9).tolist(), 20
  total, chosen = window_groups.knapsack(counts, capacity)
  sums = [
    sum(choice)
    for size in range(10)
    for choice in itertools.combinations(counts, size)
  ]
  assert total == max(x for x in sums if x <= capacity)
  assert sum(counts[i] for i in chosen) == total
  assert chosen == sorted(set(chosen))


def test_every_window_is_in_one_group_that_holds_it():
  counts = np.random.default_rng(0).integers(1, 50, 60)
  groups = window_groups.pack_windows(counts, 49)
  assert sorted(i for group in groups for i in group) == list(range(60))
  assert max(counts[group].sum() for group in groups) <= 49


@pytest.mark.parametrize('window, groups', [(7, [20, 6]), (14, [6, 1])])
def test_published_masks_fit_the_planned_groups(window, groups):
  stages = window_groups.plan_stages((7, 7), 12, window)
  assert [plan.groups for plan in stages] == [*groups, 1, 1]
  rng = np.random.default_rng(0)
  for _ in range(10):
    keep = rng.permutation(49)[:12]
    found = window_groups.group_stages(keep, (7, 7), stages)
    for stage, plan in enumerate(stages[: sum(n > 1 for n in groups)], 1):
      order = found[f'groups{stage}_shifted']
      y, x = window_groups.coordinates(np.sort(keep), 7, plan.side)
      ids = window_groups.window_ids(
        y, x, plan.window, plan.shift, 7 * plan.side
      )
      tokens = order[order >= 0]
      assert sorted(tokens) == list(range(12 * plan.side**2))
      rows = [set(ids[row[row >= 0]]) for row in order]
      # No window is torn: its number is met in one group only.
      assert sum(map(len, rows)) == len(set(ids))


def test_blank_masks_have_the_form_of_drawn_ones():
  for ratio, window in ((0.75, 7), (0.75, 14), (0.25, 7)):
    kept = window_groups.kept_patches((7, 7), ratio)
    stages = window_groups.plan_stages((7, 7), kept, window)
    drawn = window_groups.draw_masks(
      np.random.default_rng(0), 1, (7, 7), ratio, stages
    )
    blank = window_groups.blank_masks(1, (7, 7), ratio, stages)
    form = lambda masks: {k: (x.shape, x.dtype) for k, x in masks.items()}
    assert form(blank) == form(drawn)


def test_more_groups_than_planned_are_refused():
  assert window_groups.group_tokens(np.arange(5), 2, groups=2) is None
  assert window_groups.group_tokens(np.arange(5), 2, groups=3).shape == (3, 2)


def test_masks_follow_from_the_generator():
  one, two, other = batch(), batch(), batch(seed=1)
  jax.tree.map(np.testing.assert_array_equal, one, two)
  assert (one['keep'] != other['keep']).any()
  assert one['keep'].shape == (2, 12) and one['groups1'].shape[0] == 2


# Encoder.


@functools.cache
def encoder(scan=False, depths=(2, 2)):
  """The module, and its compiled forward pass."""
  sizes = dict(ENCODER, depths=depths)
  module, _ = greenmim.make_modules(config(scan=scan, encoder=sizes))
  return module, jax.jit(
    lambda params, *inputs: module.apply({'params': params}, *inputs)
  )


def image(images=2):
  rng = np.random.default_rng(3)
  return rng.standard_normal((images, 32, 32, 3)).astype(np.float32)


def test_with_nothing_masked_it_is_swin():
  keep = np.arange(16, dtype=np.int32)
  groups = window_groups.group_stages(keep, GRID, plans(16))
  assert set(groups) == {'groups1', 'groups1_shifted'}
  _, encode = encoder()
  params = parameters()['encoder']
  built = build_model('swin_tiny', **ENCODER, image_size=32, epsilon=1e-6)
  _, inner = jax.jit(
    lambda params: built.module.apply(
      {'params': params}, image(), method='features', mutable=['intermediates']
    )
  )(params)
  want = inner['intermediates']['normed'][0].reshape(2, 16, -1)
  np.testing.assert_allclose(
    encode(params, image(), keep, groups), want, atol=2e-4
  )


def test_outputs_do_not_depend_on_the_grouping():
  keep = np.array([14, 3, 0, 7, 9, 8, 2, 4, 5, 10, 13, 12], np.int32)
  groups = window_groups.group_stages(keep, GRID, plans(12))
  _, encode = encoder()
  params = parameters()['encoder']
  want = encode(params, image(), keep, groups)
  rng = np.random.default_rng(0)
  shuffle = lambda order: rng.permutation(rng.permuted(order, axis=1))
  shuffled = {name: shuffle(order) for name, order in groups.items()}
  for other in (shuffled, {}):  # {}: all tokens are one group
    np.testing.assert_allclose(
      encode(params, image(), keep, other), want, atol=1e-4
    )


def test_masked_pixels_are_never_seen():
  keep = np.array([0, 5, 6, 9], np.int32)
  _, encode = encoder()
  params, x = parameters()['encoder'], image()
  hidden = np.ones(GRID)
  hidden.reshape(-1)[keep] = 0
  hidden = np.kron(hidden, np.ones((8, 8)))[None, :, :, None]
  np.testing.assert_array_equal(
    encode(params, x, keep, {}),
    encode(params, (x + 5 * hidden).astype(np.float32), keep, {}),
  )


def test_scanned_encoder_is_the_unrolled_one():
  keep = np.arange(12, dtype=np.int32)
  inputs = image(), keep, window_groups.group_stages(keep, GRID, plans(12))
  (module, encode), (scanned, encode_scanned) = (
    encoder(scan, (4, 2)) for scan in (False, True)
  )
  init = lambda module: jax.eval_shape(module.init, jax.random.key(0), *inputs)[
    'params'
  ]
  params = filled(init(module))
  np.testing.assert_allclose(
    encode_scanned(layout.to_layout(params, init(scanned)), *inputs),
    encode(params, *inputs),
    atol=1e-5,
  )


# Decoder and loss.


def test_positions_have_the_column_first():
  table = greenmim.sincos_positions((2, 3), 8)
  np.testing.assert_allclose(table[0], [0, 0, 1, 1] * 2)
  np.testing.assert_array_equal(table[1, 4:], table[0, 4:])  # same row
  np.testing.assert_array_equal(table[3, :4], table[0, :4])  # same column
  np.testing.assert_allclose(table[1, 0], np.sin(1), rtol=1e-6)
  np.testing.assert_allclose(table[1, 1], np.sin(0.01), rtol=1e-6)


def test_loss_counts_masked_patches_against_normalised_pixels():
  x, keep = image(), np.array([0, 5], np.int32)
  target = np.asarray(greenmim.patches(x, 8))
  target = target - target.mean(-1, keepdims=True)
  target = target / np.sqrt(target.var(-1, keepdims=True, ddof=1) + 1e-6)
  errors = functools.partial(
    greenmim.reconstruction_errors, image=x, keep=keep, side=8
  )
  assert errors(target).max() < 1e-8
  target[:, keep] += 3
  assert errors(target).max() < 1e-8
  target[0, 1] += 1
  np.testing.assert_allclose(errors(target), [1 / 14, 0], rtol=1e-4, atol=1e-8)


@pytest.mark.slow
def test_order_of_the_released_code_moves_the_latents():
  keep = np.array([9, 2, 13, 4], np.int32)
  modules, params = greenmim.make_modules(config()), parameters()

  @functools.partial(jax.jit, static_argnames='match_reference_order')
  def predict(keep, match_reference_order=False):
    return greenmim.predict_patches(
      *modules,
      params,
      image(),
      keep,
      {},
      match_reference_order=match_reference_order,
    )

  want = predict(keep=np.sort(keep))[1]
  np.testing.assert_allclose(predict(keep=keep)[1], want, atol=1e-6)
  moved = predict(keep=keep, match_reference_order=True)[1]
  assert np.abs(moved - want).max() > 1e-3
  _, decoder = modules
  latent = predict(keep=keep)[0]
  np.testing.assert_allclose(
    moved, decoder.apply({'params': params['decoder']}, latent, keep), atol=1e-6
  )


# System.


@pytest.mark.slow
def test_loss_falls():
  tx = optax.adam(3e-3)
  system = greenmim.build(config(), tx)
  params = parameters()
  state = shapes()._replace(
    step=np.int32(0), rng=jax.random.key(1), params=params, opt=tx.init(params)
  )
  step, losses = jax.jit(system.step), []
  for _ in range(10):
    state, metrics = step(state, batch())
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.8 * losses[0]


def test_each_mask_has_its_share_of_the_images():
  system = greenmim.build(config(), optax.sgd(0.1))
  state = shapes()._replace(params=parameters())
  predict = jax.jit(lambda b: system.predict(state, b))
  both = batch(images=4, masks=2)
  for mask in range(2):
    half = {
      name: x[mask : mask + 1] if name != 'image' else x[2 * mask :][:2]
      for name, x in both.items()
    }
    jax.tree.map(
      lambda a, b, mask=mask: np.testing.assert_allclose(
        a, b[2 * mask :][:2], atol=1e-4
      ),
      predict(half),
      predict(both),
    )


# All patches instead.


def dense_state(**fields):
  """(system on all patches, its state with filled parameters)."""
  system = greenmim.build(config(visible_only=False, **fields), optax.sgd(0.1))
  state = jax.eval_shape(system.init, jax.random.key(0), batch())
  return system, state._replace(params=filled(state.params))


@functools.cache
def dense_predict():
  system, state = dense_state()
  return jax.jit(lambda b: system.predict(state, b))


def with_pixels(rows, values, images=4):
  """A batch with other pixels in some patches of all images."""
  given = batch(images=images, masks=1)
  hidden = np.setdiff1d(np.arange(16), given['keep'][0])
  patch = (hidden if rows == 'hidden' else given['keep'][0])[0]
  y, x = 8 * (patch // 4), 8 * (patch % 4)
  image = given['image'].copy()
  image[:, y : y + 8, x : x + 8] = values
  return {**given, 'image': image}


def test_encoder_of_all_patches_sees_a_token_for_hidden_ones():
  one, other = (dense_predict()(with_pixels('hidden', x)) for x in (0, 200))
  np.testing.assert_array_equal(one['prediction'], other['prediction'])
  assert np.abs(one['loss'] - other['loss']).max() > 1e-3
  seen = dense_predict()(with_pixels('seen', 200))['prediction']
  assert np.abs(seen - one['prediction']).max() > 1e-3
  assert one['latent'].shape == (4, 16, 16)


def test_both_kinds_start_with_the_same_parameters():
  inits = [
    greenmim.build(config(visible_only=kind), optax.sgd(0.1)).init
    for kind in (True, False)
  ]
  visible, everything = (
    jax.jit(init)(jax.random.key(0), batch()).params for init in inits
  )
  token = dict(everything['encoder']).pop('mask_token')
  assert token.shape == (8,) and float(abs(token).max()) > 0
  encoder = {
    k: x for k, x in everything['encoder'].items() if k in visible['encoder']
  }
  jax.tree.map(
    np.testing.assert_array_equal,
    {**everything, 'encoder': encoder},
    visible,
  )


@pytest.mark.parametrize('visible_only', [True, False])
def test_vector_of_whole_pictures_is_swins(visible_only):
  own = config(visible_only=visible_only)
  system = greenmim.build(own, optax.sgd(0.1))
  state = jax.eval_shape(system.init, jax.random.key(0), batch())
  state = state._replace(params=filled(state.params))
  images = batch()['image']
  got = jax.jit(lambda x: system.predict(state, {'image': x}))(images)
  encoder = {
    k: x for k, x in state.params['encoder'].items() if k != 'mask_token'
  }
  built = build_model('swin_tiny', **ENCODER, image_size=32, epsilon=1e-6)
  normal = (images / 255 - np.asarray(own.mean)) / np.asarray(own.std)
  want = jax.jit(
    lambda x: built.module.apply({'params': encoder}, x, method='features')
  )(normal.astype(np.float32))
  assert list(got) == ['vector']
  np.testing.assert_allclose(got['vector'], want.vector, atol=2e-4)


def test_encoder_of_all_patches_goes_into_swin_without_its_token():
  _, state = dense_state()
  own = config(visible_only=False)
  tensors = greenmim.export(state.params, {}, own)
  assert tensors['encoder.mask_token'].shape == (1, 1, 8)
  jax.tree.map(
    np.testing.assert_array_equal, greenmim.convert(tensors, own), state.params
  )
  built = build_model('swin_tiny', **ENCODER, image_size=32)
  got = built.convert(tensors)['params']
  encoder = dict(state.params['encoder'])
  encoder.pop('mask_token')
  jax.tree.map(np.testing.assert_array_equal, got, encoder)


def test_images_that_do_not_divide_over_masks_are_an_error():
  with pytest.raises(ValueError, match='3 images'):
    greenmim.map_masks(lambda *_: 0, batch(images=3, masks=2))


def test_image_of_broken_patches_is_an_error():
  with pytest.raises(UserError, match='multiples of 8'):
    greenmim.build(config(image_size=(32, 36)), optax.sgd(0.1))


@pytest.mark.parametrize('scan', [False, True])
def test_checkpoint_goes_both_ways(scan):
  own = config(scan=scan, encoder=DEEP)
  system = greenmim.build(own, optax.sgd(0.1))
  init = jax.eval_shape(system.init, jax.random.key(0), batch())
  params = filled(init.params)
  tensors = greenmim.export(params, {}, own)
  tensors['decoder_pos_embed'] = np.zeros((1, 16, 8))
  got = greenmim.convert(tensors, own)
  jax.tree.map(np.testing.assert_array_equal, got, params)


def test_encoder_loads_into_swin():
  tensors = greenmim.export(parameters(), {}, config())
  built = build_model('swin_tiny', **ENCODER, image_size=32)
  got = built.convert(tensors)['params']
  jax.tree.map(np.testing.assert_array_equal, got, parameters()['encoder'])


@pytest.mark.slow
def test_encoder_begins_a_classifier_through_a_file(tmp_path):
  tensors = greenmim.export(parameters(), {}, config())
  path = tmp_path / 'greenmim.safetensors'
  write_safetensors(path, tensors)
  own = catalog.get_config('classification:tiny,model=swin_tiny,size=32')
  own = own.unlock()
  own.model_options = ENCODER
  own.num_classes = 10
  own.init.weights = str(path)
  system = main.create_system(own)
  images = {
    'image': np.zeros((2, 32, 32, 3), np.uint8),
    'label': np.zeros(2, int),
  }
  state = jax.jit(system.init)(jax.random.key(0), images)
  state, report = initial.put_weights(state, initial.load_weights(own), own)
  head = state.params.pop('head')
  assert head['kernel'].shape == (16, 10)
  jax.tree.map(
    np.testing.assert_array_equal, state.params, parameters()['encoder']
  )
  assert sorted(report.fresh) == ['head/bias', 'head/kernel']


@pytest.mark.parametrize(
  'name, encoder, whole',
  [
    ('swin_base_w7', 86743224, 92022968),
    ('swin_base_w14', None, 92197688),
    ('swin_large_w14', 195257556, 200799444),
  ],
)
def test_number_of_parameters_is_the_published_one(name, encoder, whole):
  own = config(
    image_size=(224, 224),
    encoder=greenmim.PUBLISHED[name],
    decoder=dict(width=512, depth=1, num_heads=16),
    mask_ratio=0.75,
  )
  system = greenmim.build(own, optax.sgd(0.1))
  module, decoder = greenmim.make_modules(own)
  masks = window_groups.blank_masks(
    1, decoder.grid, 0.75, module.plans(decoder.grid, 12)
  )
  example = {'image': np.zeros((2, 224, 224, 3), np.uint8), **masks}
  params = jax.eval_shape(system.init, jax.random.key(0), example).params
  count = lambda tree: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))
  assert encoder in (None, count(params['encoder']))
  # The published number has the fixed positions of the decoder in it.
  assert count(params) == whole - 49 * 512
