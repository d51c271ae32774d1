"""Properties of CFAM's modules, of its hard negatives, and of the system."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_retrieval as tiny

from jaxzoo.errors import UserError
from jaxzoo.models.backbones.clip import PUBLISHED
from jaxzoo.models.losses.contrastive import cosine_similarity
from jaxzoo.models.retrieval import cfam, towers
from jaxzoo.weights import layout
from jaxzoo.weights.clip import export_clip

BATCH, QUERIES, WIDTH, LENGTH = 4, 3, 8, 6
KEY = jax.random.key(0)


def config(**loss):
  default = dict(
    gs=1.0,
    ls=1.0,
    m=1.0,
    cid=1.0,
    similarity='infonce',
    temperature=0.02,
    hard_negatives='hardest',
  )
  return tiny.config(
    granularity=dict(queries=QUERIES, decoder_depth=1, matcher_depth=1),
    loss={**default, **loss},
  )


def parameters(**loss):
  system = cfam.build(config(**loss), optax.sgd(0.1))
  return jax.eval_shape(system.init, KEY, tiny.batch()).params


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def random_similarity(seed, size=8, identities=4):
  rng = np.random.default_rng(seed)
  similarity = jnp.asarray(rng.uniform(-1, 1, (size, size)), jnp.float32)
  return similarity, rng.integers(0, identities, size).astype(np.int32)


def initialised(module, *inputs):
  params = tiny.filled(jax.eval_shape(module.init, KEY, *inputs))
  return jax.jit(lambda *inputs: module.apply(params, *inputs))


@pytest.fixture(scope='module')
def decoder():
  tokens = jnp.zeros((BATCH, LENGTH, WIDTH))
  return initialised(cfam.GranularityDecoder(QUERIES), tokens)


@pytest.fixture(scope='module')
def matcher():
  granules = jnp.zeros((BATCH, QUERIES, WIDTH))
  return initialised(cfam.Matcher(depth=1), granules, granules)


@pytest.fixture(scope='module')
def trained():
  """The full system, its state after some steps, the step, all metrics."""
  tx = optax.adam(3e-3)
  system = cfam.build(config(), tx)
  return system, *tiny.trained(system, tx, steps=15)


# Granules.


def test_padding_does_not_change_granules(decoder):
  tokens = normal(BATCH, LENGTH, WIDTH)
  lengths = jnp.array([1, 3, 5, LENGTH])
  mask = jnp.arange(LENGTH) < lengths[:, None]
  other = jnp.where(mask[..., None], tokens, 100.0)
  np.testing.assert_array_equal(decoder(tokens, mask), decoder(other, mask))


def test_every_token_before_the_end_changes_granules(decoder):
  tokens = normal(1, LENGTH, WIDTH)
  mask = jnp.arange(LENGTH)[None] < 3
  for position in range(3):
    other = tokens.at[0, position].multiply(-1.0)
    assert not np.allclose(decoder(tokens, mask), decoder(other, mask))


def test_granules_of_a_sample_do_not_depend_on_the_batch(decoder):
  tokens = normal(BATCH, LENGTH, WIDTH)
  alone = jnp.concatenate([decoder(tokens[i : i + 1]) for i in range(BATCH)])
  np.testing.assert_allclose(decoder(tokens), alone, atol=1e-5)


def test_granules_do_not_depend_on_the_order_of_tokens(decoder):
  tokens = normal(BATCH, LENGTH, WIDTH)
  order = np.random.default_rng(0).permutation(LENGTH)
  np.testing.assert_allclose(
    decoder(tokens), decoder(tokens[:, order]), atol=1e-5
  )


def test_local_similarity_is_the_mean_cosine_of_equal_queries():
  image = normal(2, QUERIES, WIDTH)
  text = normal(5, QUERIES, WIDTH, seed=1)
  want = np.mean(
    [cosine_similarity(image[:, k], text[:, k]) for k in range(QUERIES)], 0
  )
  np.testing.assert_allclose(
    cfam.local_similarity(image, text), want, atol=1e-6
  )


# Hard negatives and the matcher.


@pytest.mark.parametrize('sampled', [False, True])
def test_hard_negatives_are_of_another_identity(sampled):
  for seed in range(20):
    similarity, pid = random_similarity(seed)
    # Sample 1 is the second caption of the image of sample 0.
    similarity, pid[1] = similarity.at[0, 1].set(1.0), pid[0]
    found = cfam.hard_negatives(
      similarity, pid, rng=jax.random.key(seed) if sampled else None
    )
    exist = np.asarray(found.exist)
    np.testing.assert_array_equal(exist, [(pid != own).any() for own in pid])
    assert (pid[found.text_of_image] != pid)[exist].all()
    assert (pid[found.image_of_text] != pid)[exist].all()


def test_hardest_negatives_equal_a_search_by_hand():
  similarity, pid = random_similarity(0)
  found = cfam.hard_negatives(similarity, pid)
  for i in range(len(pid)):
    others = [j for j in range(len(pid)) if pid[j] != pid[i]]
    assert found.text_of_image[i] == max(others, key=lambda j: similarity[i, j])
    assert found.image_of_text[i] == max(others, key=lambda j: similarity[j, i])


def test_sampled_negatives_follow_the_masked_softmax():
  similarity, pid = random_similarity(1, size=5, identities=3)
  scale, draws = 2.0, 20_000
  found = jax.vmap(
    lambda key: cfam.hard_negatives(similarity, pid, rng=key, scale=scale)
  )(jax.random.split(KEY, draws))
  weights = np.exp(scale * similarity) * (pid[:, None] != pid[None, :])
  for index, of_row in (
    (found.text_of_image, weights),
    (found.image_of_text, weights.T),
  ):
    want = of_row / of_row.sum(1, keepdims=True)
    got = np.stack([np.bincount(i, minlength=5) for i in index.T]) / draws
    np.testing.assert_allclose(got, want, atol=0.02)
    assert (got[want == 0] == 0).all()


def test_pairs_are_matched_then_hard_text_then_hard_image():
  image, text = jnp.arange(3.0)[:, None, None], jnp.arange(3.0)[:, None, None]
  negatives = cfam.HardNegatives(
    jnp.array([1, 2, 0]), jnp.array([2, 2, 1]), jnp.ones(3, bool)
  )
  images, texts = cfam.match_pairs(image, text, negatives)
  assert images[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2, 2, 2, 1]
  assert texts[:, 0, 0].tolist() == [0, 1, 2, 1, 2, 0, 0, 1, 2]


def test_match_loss_leaves_out_negatives_that_do_not_exist():
  logits = normal(9)
  exist = jnp.array([True, False, True])
  loss, right = cfam.match_loss(logits, exist)
  kept = np.array([0, 1, 2, 3, 5, 6, 8])
  labels = np.array([1, 1, 1, 0, 0, 0, 0])
  sign = np.where(labels == 1, 1, -1)
  want = np.mean(np.logaddexp(0, -sign * np.asarray(logits)[kept]))
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  np.testing.assert_allclose(
    right, np.mean((logits[kept] > 0) == labels), rtol=1e-6
  )


def test_matcher_tells_the_modalities_only_by_their_content(matcher):
  # No position or modality embedding: order and side do not matter.
  image, text = normal(2, BATCH, QUERIES, WIDTH)
  want = matcher(image, text)
  np.testing.assert_allclose(matcher(text, image), want, atol=1e-5)
  np.testing.assert_allclose(matcher(image[:, ::-1], text), want, atol=1e-5)


def test_no_gradient_flows_through_the_choice_of_negatives():
  # The matching loss alone must not move the vectors that choose.
  def head(name, x, y=None):
    return x if name == 'decoder' else (x * y).sum((1, 2))

  @jax.jit
  def gradients(vectors, tokens):
    def loss(vectors, tokens):
      losses, _ = cfam.cfam_losses(
        head,
        towers.Encoded(tokens[0], vectors[0]),
        towers.Encoded(tokens[1], vectors[1]),
        None,
        jnp.arange(BATCH),
        weights=cfam.Weights(gs=0.0, ls=0.0, cid=0.0),
        compare=None,
        scale=50.0,
      )
      return losses['m']

    return jax.grad(loss, (0, 1))(vectors, tokens)

  of_vectors, of_tokens = gradients(
    normal(2, BATCH, WIDTH), normal(2, BATCH, LENGTH, WIDTH)
  )
  assert (of_vectors == 0).all()
  assert (of_tokens != 0).any()


# The system.


def test_loss_falls_and_is_the_sum_of_its_parts(trained):
  *_, history = trained
  assert history[-1]['loss'] < 0.8 * history[0]['loss']
  for metrics in history:
    parts = sum(metrics[f'loss_{x}'] for x in ('gs', 'ls', 'm', 'cid'))
    np.testing.assert_allclose(metrics['loss'], parts, rtol=1e-5)


def test_batch_of_one_identity_gives_finite_losses_and_update(trained):
  _, state, step, _ = trained
  state, metrics = step(state, tiny.batch(pid=6 * [2]))
  assert all(np.isfinite(x) for x in metrics.values())
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_loss_does_not_depend_on_the_order_of_the_batch(trained):
  _, state, step, _ = trained
  batch, order = tiny.batch(), np.random.default_rng(0).permutation(6)
  _, want = step(state, batch)
  _, got = step(state, {name: x[order] for name, x in batch.items()})
  np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-4)
  np.testing.assert_allclose(got['grad_norm'], want['grad_norm'], rtol=1e-3)


def test_padding_of_texts_changes_no_loss(trained):
  _, state, step, _ = trained
  batch = tiny.batch()
  after = np.cumsum(batch['text'] == tiny.END, axis=1) > 0
  other = np.where(after & (batch['text'] != tiny.END), 5, batch['text'])
  assert (other != batch['text']).any()
  _, want = step(state, batch)
  _, got = step(state, {**batch, 'text': other})
  np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-6)


def test_predict_is_deterministic_and_normalised(trained):
  system, state, _, _ = trained
  predict = jax.jit(system.predict)
  batch = {name: tiny.batch()[name] for name in ('image', 'text')}
  first, second = predict(state, batch), predict(state, batch)
  for name in batch:
    assert first[name].dtype == jnp.float32
    np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_allclose(
      jnp.linalg.norm(first[name], axis=1), 1, rtol=1e-5
    )
    alone = predict(state, {name: batch[name]})
    assert set(alone) == {name}
    np.testing.assert_allclose(alone[name], first[name], atol=1e-6)


def test_vector_of_granules_has_the_local_similarity_as_its_cosine():
  a, b = normal(4, 3, 8), normal(5, 3, 8, seed=1)
  vectors = cfam.granule_vector(a), cfam.granule_vector(b)
  np.testing.assert_allclose(
    vectors[0] @ vectors[1].T, cfam.local_similarity(a, b), atol=1e-6
  )
  np.testing.assert_allclose(jnp.linalg.norm(vectors[0], axis=1), 1, rtol=1e-6)


@pytest.mark.slow
def test_granules_are_predicted_where_an_evaluation_compares_them(trained):
  _, state, _, _ = trained
  searched = config()
  with searched.unlocked():
    searched.evals = dict(test=dict(vectors='granules'))
  predict = cfam.build(searched, optax.identity()).predict
  batch = {name: tiny.batch()[name] for name in ('image', 'text')}
  outputs = jax.jit(predict)(state, batch)
  for name in batch:
    granules = outputs[f'{name}_granules']
    assert granules.shape == (len(batch[name]), QUERIES * WIDTH)
    alone = predict(state, {name: batch[name]})
    np.testing.assert_allclose(alone[f'{name}_granules'], granules, atol=1e-5)
  # Padding after the end is no part of a text.
  after = np.cumsum(batch['text'] == tiny.END, axis=1) > 0
  other = np.where(after & (batch['text'] != tiny.END), 5, batch['text'])
  padded = predict(state, {'text': other})['text_granules']
  np.testing.assert_allclose(padded, outputs['text_granules'], atol=1e-5)


def test_granules_that_no_loss_trains_cannot_be_searched():
  bare = config(ls=0.0, m=0.0)
  with bare.unlocked():
    bare.evals = dict(test=dict(vectors='granules'))
  with pytest.raises(UserError, match='loss.ls or loss.m'):
    cfam.build(bare, optax.identity())


@pytest.mark.parametrize(
  'off, left',
  [
    (('ls', 'm', 'cid'), set()),
    (('m', 'cid'), {'decoder'}),
    (('ls', 'cid'), {'decoder', 'matcher'}),
    (('gs', 'ls', 'm'), {'classifier'}),
    ((), {'decoder', 'matcher', 'classifier'}),
  ],
)
def test_loss_of_weight_zero_has_no_parameters_and_no_metric(off, left):
  weights = {name: 0.0 for name in off}
  system = cfam.build(config(**weights), optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, tiny.batch())
  assert set(state.params) == {'image', 'text'} | left
  _, metrics = jax.eval_shape(system.step, state, tiny.batch())
  on = {'gs', 'ls', 'm', 'cid'} - set(off)
  assert {n for n in metrics if 'loss_' in n} == {f'loss_{n}' for n in on}


@pytest.mark.parametrize(
  'field, name', [('similarity', 'infonc'), ('hard_negatives', 'hard')]
)
def test_unknown_option_is_an_error_that_names_the_known_ones(field, name):
  with pytest.raises(
    UserError, match=f'loss.{field}.*{name}.*(infonce|hardest)'
  ):
    cfam.build(config(**{field: name}), optax.sgd(0.1))


def test_residual_network_trains_without_granules_and_keeps_its_statistics():
  sizes = config(ls=0.0, m=0.0)
  with sizes.unlocked():
    sizes.towers.update(image='resnet', image_width=4, patch_size=32)
    sizes.towers.image_depth = None
    sizes.towers.image_depth = (1, 1, 1, 1)
  batch = tiny.batch()
  batch['image'] = np.zeros((6, 64, 32, 3), np.uint8)
  system = cfam.build(sizes, optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, batch)
  assert 'batch_stats' in state.extra
  after, _ = jax.eval_shape(system.step, state, batch)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  jax.eval_shape(system.predict, state, batch)
  sizes.loss.ls = 1.0
  with pytest.raises(UserError, match='tokens'):
    cfam.build(sizes, optax.sgd(0.1))


@pytest.mark.parametrize(
  'name, count', [('ViT-B/16', 167_179_583), ('ViT-L/14', 465_150_271)]
)
def test_published_sizes_have_the_published_number_of_parameters(name, count):
  sizes = config()
  with sizes.unlocked():
    sizes.towers = PUBLISHED[name]._asdict()
    sizes.granularity = dict(queries=16, decoder_depth=2, matcher_depth=2)
    sizes.num_classes, sizes.scan = 4926, True
  batch = {
    'image': jnp.zeros((1, 384, 128, 3), jnp.uint8),
    'text': jnp.zeros((1, 168), jnp.int32),
  }
  system = cfam.build(sizes, optax.identity())
  params = jax.eval_shape(system.init, KEY, batch).params
  assert sum(x.size for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('prefix', ['', 'base_model.'])
def test_converted_clip_is_the_clip_that_was_exported(prefix, scan, trained):
  _, state, _, _ = trained
  params = {name: state.params[name] for name in ('image', 'text')}
  exported = {f'{prefix}{n}': x for n, x in export_clip(params).items()}
  sizes = config()
  sizes.scan = scan
  if not prefix:
    exported['logit_scale'] = np.float32(4.6)
    # Plain CLIP has seen squares: 2x4 positions would be taken for one.
    table = exported['visual.positional_embedding']
    exported['visual.positional_embedding'] = np.repeat(table[:1], 5, axis=0)
  got = cfam.convert(exported, sizes)
  want = layout.stack_blocks(params) if scan else params
  got, want = layout.flatten(got), layout.flatten(want)
  assert set(got) == set(want)
  for path, value in want.items():
    assert got[path].shape == value.shape
    if prefix or path != 'image/position_embedding':
      np.testing.assert_array_equal(got[path], value)


def test_heads_that_no_loss_needs_stay_in_the_checkpoint(trained):
  _, state, _, _ = trained
  clip = {name: state.params[name] for name in ('image', 'text')}
  published = {f'base_model.{n}': x for n, x in export_clip(clip).items()}
  published['classifier.weight'] = np.zeros((tiny.CLASSES, WIDTH))
  published['classifier.bias'] = np.zeros(tiny.CLASSES)
  assert set(cfam.convert(published, config())) == {*clip, 'classifier'}
  assert set(cfam.convert(published, config(cid=0.0))) == set(clip)


def test_no_loss_at_all_is_an_error():
  weights = dict.fromkeys(('gs', 'ls', 'm', 'cid'), 0.0)
  with pytest.raises(UserError, match='loss.gs.*all 0'):
    cfam.build(config(**weights), optax.sgd(0.1))


def test_incomplete_head_in_a_checkpoint_is_an_error_that_names_the_tensor():
  with pytest.raises(UserError, match=r'matcher\.ln_post\.weight'):
    cfam.convert_heads({'matcher.fc1.weight': np.zeros((8, 8))})


def test_sharding_rules_match_parameters_of_their_rank():
  flat = layout.flatten(parameters())
  for pattern, spec in cfam.SHARDING:
    matched = [x for path, x in flat.items() if re.search(pattern, path)]
    assert matched, pattern
    assert all(x.ndim == len(spec) for x in matched), pattern
