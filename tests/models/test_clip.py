"""Properties of CLIP's towers and of the system that trains them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_retrieval as tiny

from jaxzoo.configuration import REMATS
from jaxzoo.errors import UserError
from jaxzoo.models.backbones import clip, clip_resnet
from jaxzoo.models.layers.attention import causal_mask
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.layers.transformer import Transformer
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce
from jaxzoo.models.retrieval import clip as system
from jaxzoo.models.retrieval.towers import encode_image
from jaxzoo.weights import layout
from jaxzoo.weights.clip import export_clip

VIT = clip.Towers('vit', 16, 2, 2, 8, 24, 3, 3, 60, 12)
RESNET = clip.Towers('resnet', 8, (1, 1, 1, 1), 4, 32, 24, 1, 3, 60, 12)
TOWERS = pytest.mark.parametrize('towers', [VIT, RESNET], ids=['vit', 'resnet'])
IMAGE = np.random.default_rng(0).normal(size=(3, 64, 40, 3)).astype(np.float32)
TEXT = np.array(
  [[58, 3, 59, 0, 0, 0], [58, 7, 8, 9, 59, 0], [58, 1, 2, 3, 4, 59]]
)
KEY = jax.random.key(0)


def shapes(model, image=IMAGE, text=TEXT):
  return jax.eval_shape(model.init, KEY, image, text)


def filled(model):
  variables = dict(shapes(model))
  stats = variables.pop('batch_stats', None)
  variables = tiny.filled(variables)
  if stats:
    variables['batch_stats'] = jax.tree.map(
      lambda x: np.ones(x.shape, x.dtype), stats
    )
  return variables


# Published: the paper's models, with the logit scale.
@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('ViT-B/32', 151_277_313),
    ('ViT-B/16', 149_620_737),
    ('ViT-L/14', 427_616_513),
    ('RN50', 102_007_137),
    ('RN101', 119_688_033),
  ],
)
def test_published_sizes_have_the_published_number_of_parameters(name, count):
  model = clip.Clip(clip.PUBLISHED[name], scan=True)
  side = clip.RESOLUTION[name]
  params = shapes(
    model, jnp.zeros((1, side, side, 3)), jnp.zeros((1, 77), jnp.int32)
  )['params']
  assert sum(math.prod(x.shape) for x in jax.tree.leaves(params)) == count


def test_every_published_size_has_a_resolution_and_heads_of_64():
  assert clip.RESOLUTION.keys() == clip.PUBLISHED.keys()
  for towers in clip.PUBLISHED.values():
    pooled = 1 if towers.image == 'vit' else 32
    assert towers.image_width * pooled == 64 * towers.image_heads
    assert towers.text_width == 64 * towers.text_heads


@pytest.fixture(scope='module')
def blocks():
  """Unrolled blocks: parameters, inputs, and the gradient of a loss."""
  x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
  model = Transformer(2, 2, clip.torch_init())
  params = tiny.filled(jax.eval_shape(model.init, KEY, x))
  return params, x, jax.device_get(block_gradient(model, params, x))


def block_gradient(model, params, x):
  mask = causal_mask(x.shape[1])
  loss = lambda params: jnp.sum(model.apply(params, x, mask) ** 2)
  return jax.jit(jax.value_and_grad(loss))(params)


@pytest.mark.parametrize('remat', REMATS)
def test_scanned_and_rematerialised_blocks_compute_the_same(remat, blocks):
  params, x, (value, grads) = blocks
  model = Transformer(2, 2, clip.torch_init(), scan=True, remat=remat)
  scanned = block_gradient(model, layout.stack_blocks(params), x)
  scanned_value, scanned_grads = jax.device_get(scanned)
  np.testing.assert_allclose(scanned_value, value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    layout.unstack_blocks(scanned_grads),
    grads,
  )


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_resnet_rematerialises_when_told_to(remat):
  model = clip.Clip(RESNET, remat=remat)
  variables = shapes(model)

  def loss(params, stats):
    (_, vector), _ = model.apply(
      {'params': params, 'batch_stats': stats},
      IMAGE,
      train=True,
      mutable=['batch_stats'],
      method='encode_image',
    )
    return vector.sum()

  traced = jax.make_jaxpr(jax.grad(loss))(
    variables['params'], variables['batch_stats']
  )
  assert (' remat' in str(traced)) == (remat == 'full')


def test_end_is_the_first_end_token_or_else_the_largest_id():
  end = clip.END_TOKEN
  text = jnp.array(
    [[1, end, end, 0], [end + 5, 1, end, 0], [1, 3, 9, 0], [9, 3, 9, 0]]
  )
  assert clip.end_positions(text).tolist() == [1, 2, 2, 0]
  assert clip.text_padding_mask(text).astype(int).tolist() == [
    [1, 1, 0, 0],
    [1, 1, 1, 0],
    [1, 1, 1, 0],
    [1, 0, 0, 0],
  ]


def test_no_token_sees_a_later_one():
  model = clip.Clip(VIT)
  variables = filled(model)
  encode = jax.jit(
    lambda text: model.apply(variables, text, method='encode_text')[0]
  )
  before = encode(TEXT)
  for i in range(1, TEXT.shape[1]):
    changed = TEXT.copy()
    changed[:, i] = (changed[:, i] + 11) % 57
    after = encode(changed)
    np.testing.assert_allclose(after[:, :i], before[:, :i], atol=1e-5)
    assert np.abs(after[:, i] - before[:, i]).max() > 1e-2


def test_padding_does_not_change_the_text_vector():
  model = clip.Clip(VIT)
  variables = filled(model)
  encode = jax.jit(
    lambda text: model.apply(variables, text, method='encode_text')
  )
  tokens, pooled = encode(TEXT)
  np.testing.assert_array_equal(pooled, tokens[np.arange(3), [2, 4, 5]])
  padded = np.where(clip.text_padding_mask(TEXT), TEXT, 5)
  np.testing.assert_allclose(encode(padded)[1], pooled, atol=1e-5)


@pytest.mark.parametrize(
  ('stride', 'tokens'), [(None, 8 * 5), (4, 15 * 9), (7, 9 * 5), (16, 4 * 3)]
)
def test_image_tokens_are_the_class_and_the_grid(stride, tokens):
  model = clip.Clip(VIT, stride=stride)
  got, pooled = jax.eval_shape(
    lambda x: model.apply(x, IMAGE, method='encode_image'), shapes(model)
  )
  assert got.shape == (3, 1 + tokens, 12)
  assert pooled.shape == (3, 12)


def test_image_vector_is_the_class_token():
  model = clip.Clip(VIT)
  variables = filled(model)
  tokens, pooled = jax.jit(
    lambda image: model.apply(variables, image, method='encode_image')
  )(IMAGE)
  np.testing.assert_array_equal(pooled, tokens[:, 0])


def test_activation_is_that_of_both_towers():
  variables = filled(clip.Clip(VIT))
  vectors = [
    jax.jit(clip.Clip(VIT, activation=name).apply)(variables, IMAGE, TEXT)
    for name in ('quick_gelu', 'gelu')
  ]
  for quick, exact in zip(*vectors, strict=True):
    assert 1e-4 < np.abs(quick - exact).max() < 0.2


def test_patches_are_ordered_row_by_row():
  model = clip.VisionTransformer(16, 0, 2, 8, 12)
  variables = tiny.filled(jax.eval_shape(model.init, KEY, IMAGE))
  variables['params']['position_embedding'] *= 0
  encode = jax.jit(lambda image: model.apply(variables, image))
  before = encode(IMAGE)
  changed = IMAGE.copy()
  changed[:, 8:16, 16:24] += 1  # row 1, column 2 of 8 x 5
  moved = np.abs(encode(changed) - before).max((0, 2)) > 1e-3
  assert np.flatnonzero(moved).tolist() == [1 + 1 * 5 + 2]


@pytest.mark.parametrize('size', [(64, 32), (70, 33), (95, 64)])
def test_resnet_drops_odd_rows_and_columns(size):
  model = clip.Clip(RESNET)
  image = jnp.zeros((1, *size, 3))
  flat = layout.flatten(shapes(model, image)['params'])
  rows = 1 + ((size[0] + 1) // 32) * ((size[1] + 1) // 32)
  assert flat['image/attention_pool/position_embedding'].shape == (rows, 256)


@TOWERS
def test_image_without_a_token_is_an_error(towers):
  with pytest.raises(ValueError, match='pixels'):
    shapes(clip.Clip(towers), jnp.zeros((1, 64, 6, 3)))


def test_fresh_bottleneck_is_its_shortcut():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 32)))
  block = clip_resnet.Bottleneck(8)
  got, _ = jax.jit(block.init_with_output)(KEY, x)
  np.testing.assert_allclose(got, np.maximum(x, 0), atol=1e-6)


def test_batch_norm_moves_a_tenth_of_the_way_to_the_batch():
  stem = clip_resnet.Stem(8)
  variables = tiny.filled(jax.eval_shape(stem.init, KEY, IMAGE))
  stats = jax.tree.map(np.ones_like, variables['batch_stats'])
  variables = {**variables, 'batch_stats': stats}
  _, updates = jax.jit(
    lambda x: stem.apply(variables, x, train=True, mutable=['batch_stats'])
  )(IMAGE)
  x = jax.lax.conv_general_dilated(
    IMAGE,
    variables['params']['conv1']['kernel'],
    (2, 2),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  got = updates['batch_stats']['bn1']
  np.testing.assert_allclose(
    got['mean'], 0.9 + 0.1 * x.mean((0, 1, 2)), rtol=1e-3, atol=1e-5
  )
  np.testing.assert_allclose(
    got['var'], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-4
  )


@TOWERS
def test_bfloat16_is_of_the_computation_and_not_of_parameters(towers):
  model = clip.Clip(towers, dtype=jnp.bfloat16)
  variables = shapes(model)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  vectors = jax.eval_shape(lambda x: model.apply(x, IMAGE, TEXT), variables)
  assert {x.dtype for x in vectors} == {jnp.dtype('bfloat16')}


def test_bfloat16_computes_near_float32():
  variables = filled(clip.Clip(VIT))
  vectors = [
    jax.jit(clip.Clip(VIT, dtype=dtype).apply)(variables, IMAGE, TEXT)
    for dtype in (jnp.float32, jnp.bfloat16)
  ]
  for exact, half in zip(*vectors, strict=True):
    assert jnp.diagonal(cosine_similarity(exact, half)).min() > 0.99


def test_initialisation_has_the_published_deviations():
  width, depth, dim = 128, 3, 64
  towers = clip.Towers(
    'vit', width, depth, 2, 16, width, depth, 2, 300, dim
  )  # fmt: skip
  text = jnp.zeros((1, 20), jnp.int32)
  params = jax.jit(clip.Clip(towers, scan=True).init)(
    KEY, jnp.zeros((1, 64, 64, 3)), text
  )['params']
  flat = layout.flatten(params)
  block = 'transformer/blocks'
  residual = (2 * width * depth) ** -0.5
  expected = {
    'text/token_embedding/embedding': 0.02,
    'text/position_embedding': 0.01,
    'text/projection/kernel': width**-0.5,
    f'text/{block}/attn/query/kernel': width**-0.5,
    f'text/{block}/attn/out/kernel': residual,
    f'text/{block}/mlp/fc1/kernel': (2 * width) ** -0.5,
    f'text/{block}/mlp/fc2/kernel': residual,
    'image/position_embedding': width**-0.5,
    'image/projection/kernel': width**-0.5,
    f'image/{block}/attn/key/kernel': (2 * width) ** -0.5,
    f'image/{block}/attn/out/kernel': (3 * width) ** -0.5,
    f'image/{block}/mlp/fc1/kernel': (3 * width) ** -0.5,
    f'image/{block}/mlp/fc2/kernel': (12 * width) ** -0.5,
  }
  for path, deviation in expected.items():
    assert flat[path].std() == pytest.approx(deviation, rel=0.06), path
  assert math.exp(flat['logit_scale']) == pytest.approx(1 / 0.07)
  # Layers of a stack are drawn apart.
  query = flat[f'text/{block}/attn/query/kernel']
  assert np.abs(query[0] - query[1]).max() > 0.01


@TOWERS
@pytest.mark.parametrize('scan', [False, True])
def test_sharding_rules_name_heads_hidden_and_vocabulary(towers, scan):
  flat = layout.flatten(shapes(clip.Clip(towers, scan=scan))['params'])
  sharded = {}
  for path, leaf in flat.items():
    specs = [spec for regex, spec in clip.SHARDING if re.search(regex, path)]
    assert len(specs) <= 1, path
    if specs:
      size = dict(zip(reversed(specs[0]), reversed(leaf.shape), strict=False))
      sharded[path.split('/', 1)[0], '/'.join(path.split('/')[-2:])] = size[
        'tensor'
      ]
  text_heads, hidden = towers.text_heads, 4 * towers.text_width
  assert sharded['text', 'query/kernel'] == text_heads
  assert sharded['text', 'query/bias'] == text_heads
  assert sharded['text', 'out/kernel'] == text_heads
  assert sharded['text', 'fc1/kernel'] == hidden
  assert sharded['text', 'fc1/bias'] == hidden
  assert sharded['text', 'fc2/kernel'] == hidden
  assert sharded['text', 'token_embedding/embedding'] == towers.vocab_size
  assert sharded['image', 'value/kernel'] == towers.image_heads
  assert ('text', 'fc2/bias') not in sharded


def test_logit_scale_is_optional():
  assert 'logit_scale' in shapes(clip.Clip(VIT))['params']
  bare = shapes(clip.Clip(VIT, use_logit_scale=False))['params']
  assert sorted(bare) == ['image', 'text']


def test_unknown_image_tower_is_named():
  with pytest.raises(ValueError, match="'vgg'"):
    shapes(clip.Clip(VIT._replace(image='vgg')))


def config(**sizes):
  """Of the tiny system, with other towers."""
  made = tiny.config()
  return tiny.config(towers={**made.towers.to_dict(), **sizes})


def resnet_config():
  return config(
    image='resnet', image_width=4, image_depth=(1, 1, 1, 1), patch_size=32
  )


@pytest.fixture(scope='module')
def running():
  """The tiny system: (system, first state, compiled step)."""
  tx = optax.adam(1e-2)
  built = system.build(config(), tx)
  state, step, _ = tiny.trained(built, tx, 0)
  return built._replace(predict=jax.jit(built.predict)), state, step


def test_training_lowers_the_loss_and_finds_the_pairs(running):
  _, state, step = running
  for _ in range(150):
    state, metrics = step(state, tiny.batch())
  assert metrics['loss'] < 0.3
  assert metrics['accuracy'] == 1


def test_scale_grows_no_further_than_a_hundred(running):
  _, state, step = running
  for start, end in ((9.0, 100.0), (2.0, math.e**2)):
    params = dict(state.params, logit_scale=jnp.float32(start))
    after, metrics = step(state._replace(params=params), tiny.batch())
    scale = math.exp(after.params['logit_scale'])
    assert scale == pytest.approx(end, rel=0.02) and scale < 100.001
    assert metrics['scale'] == pytest.approx(math.exp(start), rel=1e-5)


def test_loss_is_the_contrastive_loss_of_the_embeddings_it_predicts(running):
  built, state, step = running
  batch = tiny.batch()
  _, metrics = step(state, batch)
  outputs = built.predict(state, batch)
  similarity = outputs['image'] @ outputs['text'].T
  value = info_nce(similarity, jnp.exp(state.params['logit_scale']))
  assert metrics['loss'] == pytest.approx(float(value), rel=1e-4)
  accuracy = system.pair_accuracy(similarity)
  assert metrics['accuracy'] == pytest.approx(float(accuracy), abs=1e-6)


def gradient(fields, **sizes):
  """(loss, gradient) of the tiny system whose loss has these fields."""
  made = config(**sizes)
  made.unlock()
  made.loss = dict(fields)
  built = system.build(made, optax.sgd(1.0))
  batch = tiny.batch()
  state = jax.jit(built.init)(KEY, batch)
  after, metrics = jax.jit(built.step)(state, batch)
  moved = jax.tree.map(jnp.subtract, state.params, after.params)
  return float(metrics['loss']), moved


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_parts_in_memory_change_neither_loss_nor_gradient(kind):
  whole, want = gradient(dict(kind=kind))
  parts, got = gradient(dict(kind=kind, chunk=2, tower_microbatches=3))
  assert parts == pytest.approx(whole, rel=1e-5)
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want))
  for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.slow
def test_towers_in_microbatches_keep_less_in_memory():
  def needed(parts):
    made = config(image_depth=4, text_depth=4)
    made.unlock()
    made.batch_size = 64
    made.loss = dict(tower_microbatches=parts)
    built = system.build(made, optax.sgd(1.0))
    batch = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct((64, *x.shape[1:]), x.dtype), tiny.batch()
    )
    state = jax.eval_shape(built.init, KEY, batch)
    compiled = jax.jit(built.step).lower(state, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert needed(8) < 0.4 * needed(1)


@pytest.mark.parametrize(
  'fields, words',
  [
    (dict(kind='sigmiod'), 'sigmoid'),
    (dict(chunk=5), 'loss.chunk=5'),
    (dict(tower_microbatches=0), 'loss.tower_microbatches=0'),
  ],
)
def test_losses_that_cannot_be_are_refused(fields, words):
  with pytest.raises(UserError, match=words):
    gradient(fields)


def test_pair_accuracy_counts_rows_and_columns_and_no_ties():
  similarity = jnp.array([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 5.0]])
  assert float(system.pair_accuracy(similarity)) == pytest.approx(5 / 6)


@pytest.mark.parametrize('keys', [('image',), ('text',), ('image', 'text')])
def test_predict_gives_unit_vectors_for_what_is_there(keys, running):
  built, state, _ = running
  batch = {key: tiny.batch()[key] for key in keys}
  outputs = built.predict(state, batch)
  assert sorted(outputs) == sorted(keys)
  for value in outputs.values():
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(value, axis=-1), 1, rtol=1e-5)


def test_resnet_system_keeps_statistics_of_its_batches():
  built = system.build(resnet_config(), optax.sgd(0.01))
  batch = {
    'image': np.zeros((4, 64, 32, 3), np.uint8),
    'text': tiny.batch()['text'][:4],
  }
  state = jax.eval_shape(built.init, KEY, batch)
  after, _ = jax.eval_shape(built.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert list(state.extra) == ['batch_stats']


def test_statistics_move_in_training_and_not_in_prediction():
  model = clip.Clip(RESNET)
  variables = filled(model)
  stats = {'batch_stats': variables['batch_stats']}
  encode = lambda extra: encode_image(
    model, variables['params'], extra, np.full((2, 64, 32, 3), 9, np.uint8)
  )
  _, moved = jax.jit(encode)(stats)
  assert jax.tree.structure(moved) == jax.tree.structure(stats)
  for old, new in zip(*map(jax.tree.leaves, (stats, moved)), strict=True):
    assert np.abs(new - old).max() > 0


def test_published_weights_give_the_vectors_of_the_towers():
  made = config()
  built = system.build(made, optax.sgd(0.0))
  built = built._replace(predict=jax.jit(built.predict))
  model = clip.Clip(clip.Towers(**made.towers))
  batch = tiny.batch()
  params = tiny.filled(shapes(model, normalize(batch['image']), batch['text']))[
    'params'
  ]
  state_dict = export_clip(params)
  state = jax.eval_shape(built.init, KEY, batch)
  state = state._replace(params=system.convert(state_dict, made))
  assert system.convert_extra(state_dict, made) == {}
  outputs = built.predict(state, batch)
  vectors = jax.jit(model.apply)(
    {'params': params}, normalize(batch['image']), batch['text']
  )
  for name, vector in zip(('image', 'text'), vectors, strict=True):
    cosine = jnp.diagonal(cosine_similarity(outputs[name], vector))
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


def test_statistics_of_published_resnets_go_into_extra():
  made = resnet_config()
  model = clip.Clip(clip.Towers(**made.towers))
  image = jnp.zeros((1, 64, 32, 3))
  variables = tiny.filled(dict(shapes(model, image)))
  state_dict = export_clip(variables['params'], variables['batch_stats'])
  extra = system.convert_extra(state_dict, made)
  jax.tree.map(
    np.testing.assert_array_equal,
    extra['batch_stats'],
    variables['batch_stats'],
  )
