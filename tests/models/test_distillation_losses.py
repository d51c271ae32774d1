"""Properties of what students take from teachers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.models.distillation import (
  dfkd_t3,
  diffkd,
  distillvlm,
  lightclip,
  maskd,
  seed,
)
from jaxzoo.models.distillation.dist import correlation, dist_loss, relations
from jaxzoo.models.losses.contrastive import info_nce, l2_normalize
from jaxzoo.models.losses.distillation import (
  feature_matching,
  knowledge_distillation,
)
from jaxzoo.models.losses.queue import enqueue, random_queue
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.standard_normal(shape).astype(np.float32)


# Baselines.


def test_divergence_is_zero_for_equal_logits_and_positive_otherwise():
  z, t = normal(4, 7), normal(4, 7)
  assert knowledge_distillation(z, z + 3.0) == pytest.approx(0, abs=1e-5)
  assert knowledge_distillation(z, t) > 0.1


def test_divergence_takes_every_position_of_dense_logits_as_an_example():
  z, t = normal(2, 3, 5, 7), normal(2, 3, 5, 7)
  dense = knowledge_distillation(z, t)
  rows = knowledge_distillation(z.reshape(-1, 7), t.reshape(-1, 7))
  np.testing.assert_allclose(dense, rows, rtol=1e-6)


@pytest.mark.parametrize(
  'loss',
  [
    knowledge_distillation,
    feature_matching,
    lambda z, t: dist_loss(z, t)[0],
  ],
)
def test_teacher_gets_no_gradient(loss):
  grad = jax.grad(loss, argnums=1)(normal(4, 6), normal(4, 6))
  np.testing.assert_array_equal(grad, 0)


# DIST.


def test_relations_vanish_for_probabilities_that_are_affine_in_the_teachers():
  p = jax.nn.softmax(normal(6, 5))
  mixed = 0.7 * p + 0.3 / 5  # rows still sum to 1, and correlate fully
  found = relations(jnp.log(mixed), jnp.log(p))
  np.testing.assert_allclose([*found], 0, atol=1e-5)


def test_groups_are_the_mean_over_their_own_losses():
  z, t = normal(8, 5), normal(8, 5)
  whole = relations(z, t, group_size=4)
  halves = [relations(z[i : i + 4], t[i : i + 4]) for i in (0, 4)]
  np.testing.assert_allclose(
    [*whole], np.mean([[*half] for half in halves], axis=0), rtol=1e-5
  )
  assert abs(whole.intra - relations(z, t).intra) > 1e-3


def test_constant_classes_have_no_correlation_and_a_finite_gradient():
  constant = jnp.zeros((4, 3))
  np.testing.assert_array_equal(correlation(constant, normal(4, 3), 0), 0)
  grad = jax.grad(lambda z: dist_loss(z, normal(4, 3))[0])(constant)
  assert np.isfinite(grad).all()


def test_rows_that_make_no_whole_groups_are_refused():
  with pytest.raises(ValueError, match='groups of 3'):
    relations(normal(8, 5), normal(8, 5), group_size=3)


# DiffKD.


def test_denoising_with_the_true_noise_gives_the_clean_feature():
  x, noise = normal(2, 3, 3, 4), normal(2, 3, 3, 4)
  noisy = diffkd.add_noise(x, noise, jnp.full(2, 400))
  found = diffkd.denoise(lambda *_: noise, noisy, steps=5)
  np.testing.assert_allclose(found, x, atol=1e-4)


@pytest.fixture(scope='module')
def refined():
  """(module, its gradients by term) of a small feature with autoencoder."""
  module = diffkd.DiffKD(4, 6, code_channels=8, steps=2)
  student, teacher = normal(3, 4, 4, 4), normal(3, 4, 4, 6)
  draws = module.draws(jax.random.key(1), teacher.shape)
  variables = jax.jit(module.init)(jax.random.key(0), student, teacher, draws)

  def term(name, params, student, teacher):
    own = {**variables, 'params': params}
    return module.apply(own, student, teacher, draws, mutable=['batch_stats'])[
      0
    ].terms[name]

  grads = {
    name: jax.jit(jax.grad(term, argnums=(1, 2, 3)), static_argnums=0)(
      name, variables['params'], student, teacher
    )
    for name in ('kd', 'diffusion', 'reconstruction')
  }
  return module, variables, grads


def moved(tree):
  """Names on the first level whose gradient is not 0."""
  return {
    name
    for name, below in tree.items()
    if any(np.abs(x).max() > 1e-8 for x in jax.tree.leaves(below))
  }


def test_each_term_reaches_what_the_paper_says(refined):
  _, _, grads = refined
  assert moved(grads['reconstruction'][0]) == {'encoder', 'decoder'}
  assert moved(grads['diffusion'][0]) == {'denoiser'}
  assert moved(grads['kd'][0]) == {
    'trans',
    'noise_adapter',
    'denoiser',
    'proj',
  }
  assert np.abs(grads['kd'][1]).max() > 0
  for _, student, teacher in (grads['diffusion'], grads['reconstruction']):
    np.testing.assert_array_equal(student, 0)
    np.testing.assert_array_equal(teacher, 0)


def test_names_of_the_released_denoiser_go_both_ways(refined):
  module, variables, _ = refined
  rows = diffkd.rows(module)
  state_dict = to.save(jax.device_get(variables), rows)
  assert 'model.pred.1.block.6.weight' in state_dict
  jax.tree.map(
    np.testing.assert_array_equal,
    layout.flatten(to.load(state_dict, rows)),
    layout.flatten(jax.device_get(dict(variables))),
  )


# MasKD.


def test_masked_errors_are_those_of_the_whole_masked_difference():
  student, teacher = normal(2, 4, 5, 3), normal(2, 4, 5, 3)
  masks = RNG.uniform(size=(2, 6, 4, 5)).astype(np.float32)
  difference = (
    masks[..., None] * (student - teacher)[:, None]
  )  # [b, t, h, w, c]: what the reference materialises
  want = (difference**2).sum((2, 3)) / masks.sum((2, 3))[..., None]
  got = maskd.masked_errors(student, teacher, masks)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_dice_is_one_for_equal_masks_and_zero_for_disjoint_ones():
  mask = RNG.uniform(0.1, 1, size=(2, 1, 4, 4)).astype(np.float32)
  assert maskd.dice(np.repeat(mask, 3, 1)) == pytest.approx(1, rel=1e-5)
  disjoint = np.zeros((1, 2, 2, 2), np.float32)
  disjoint[0, 0, 0], disjoint[0, 1, 1] = 1, 1
  assert maskd.dice(disjoint) == pytest.approx(0, abs=1e-6)


def test_students_masks_wait_for_the_end_of_the_warm_up():
  student, teacher = normal(2, 4, 4, 3), normal(2, 4, 4, 3)
  found = maskd.Masks(jax.nn.sigmoid(normal(2, 6, 4, 4)), None)
  own = jax.nn.sigmoid(normal(2, 6, 4, 4))
  plain = maskd.detection_loss(student, teacher, found)
  waiting = maskd.detection_loss(student, teacher, found, own, custom=False)
  custom = maskd.detection_loss(student, teacher, found, own, custom=True)
  np.testing.assert_allclose(plain, waiting, rtol=1e-6)
  assert abs(plain - custom) > 1e-4


# SEED.


def test_loss_is_the_teachers_entropy_where_the_student_agrees():
  z, queue = l2_normalize(normal(4, 8)), l2_normalize(normal(16, 8))
  found = seed.similarities(
    z, z, queue, student_temperature=0.1, teacher_temperature=0.1
  )
  entropy = jax.scipy.special.entr(found.targets).sum(1).mean()
  np.testing.assert_allclose(seed.similarity_loss(found), entropy, rtol=1e-5)


def test_queue_overwrites_its_oldest_and_begins_again():
  queue = random_queue(jax.random.key(0), 6, 3)
  np.testing.assert_allclose(
    jnp.linalg.norm(queue.vectors, axis=1), 1, rtol=1e-6
  )
  batches = [normal(2, 3) for _ in range(4)]
  for batch in batches:
    queue = enqueue(queue, batch)
  want = [batches[3], batches[1], batches[2]]
  np.testing.assert_array_equal(queue.vectors, np.concatenate(want))
  assert queue.position == 2


def test_queue_that_batches_do_not_fill_evenly_is_refused():
  with pytest.raises(ValueError, match='no multiple'):
    enqueue(random_queue(jax.random.key(0), 5, 3), normal(2, 3))


# DistillVLM.


@pytest.mark.parametrize('size', [4, 7, 20])
def test_newest_valid_tokens_come_first_in_the_queue(size):
  tokens = l2_normalize(normal(3, 4, 2))
  valid = np.arange(4) < np.array([2, 4, 1])[:, None]
  queue = l2_normalize(normal(size, 2))
  got = jax.jit(distillvlm.enqueue_tokens)(queue, tokens, valid)
  want = np.concatenate([np.asarray(tokens)[valid], queue])[:size]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_padding_changes_neither_attention_nor_hidden_loss():
  valid = np.arange(5) < np.array([3, 5])[:, None]
  attention, other = (jax.nn.softmax(normal(2, 3, 5, 5)) for _ in range(2))
  hidden, teacher, queue = normal(2, 5, 4), normal(2, 5, 4), normal(6, 4)
  pairs = valid[:, None, :, None] & valid[:, None, None]
  spoiled = jnp.where(pairs, attention, 9.0)
  np.testing.assert_allclose(
    distillvlm.attention_loss(attention, other, valid),
    distillvlm.attention_loss(spoiled, other, valid),
  )
  spoiled = jnp.where(valid[..., None], hidden, 9.0)
  np.testing.assert_allclose(
    distillvlm.hidden_loss(hidden, teacher, valid, queue),
    distillvlm.hidden_loss(spoiled, teacher, valid, queue),
    rtol=1e-6,
  )


# DFKD-T3.


def test_sample_is_one_hot_and_its_gradient_that_of_the_soft_one():
  logits, cotangent = normal(3, 5), normal(3, 5)
  noise = dfkd_t3.gumbel(RNG.uniform(size=(3, 5)).astype(np.float32))
  sample = dfkd_t3.straight_through(logits, noise, 0.7)
  np.testing.assert_allclose(sample.max(-1), 1, rtol=1e-6)
  np.testing.assert_allclose(jnp.sort(sample)[:, :-1], 0, atol=1e-6)
  soft = lambda z: jnp.sum(jax.nn.softmax((z + noise) / 0.7) * cotangent)
  hard = lambda z: jnp.sum(dfkd_t3.straight_through(z, noise, 0.7) * cotangent)
  np.testing.assert_allclose(
    jax.grad(hard)(logits), jax.grad(soft)(logits), rtol=1e-5
  )


def test_diversity_is_zero_for_evenly_spread_answers():
  sure = 50 * jnp.eye(4)
  terms = dfkd_t3.generator_terms(sure, sure)
  np.testing.assert_allclose([*terms], 0, atol=1e-5)
  one = jnp.broadcast_to(sure[:1], (4, 4))
  collapsed = dfkd_t3.generator_terms(one, one)
  np.testing.assert_allclose(collapsed.diversity, np.log(4), rtol=1e-5)


# LightCLIP.


def test_without_softness_the_loss_is_info_nce():
  z = normal(5, 5)
  np.testing.assert_allclose(
    lightclip.softened_info_nce(z, 0.0), info_nce(z, 1.0), rtol=1e-6
  )


def assignment(cosines):
  """The best sum of distinct patches for the words, by trying all."""
  patches, words = cosines.shape
  if words > patches:
    return max(
      sum(cosines[i, w] for i, w in enumerate(order))
      for order in itertools.permutations(range(words), patches)
    )
  return max(
    sum(cosines[p, i] for i, p in enumerate(order))
    for order in itertools.permutations(range(patches), words)
  )


@pytest.mark.parametrize('patches', [3, 5])
def test_one_to_one_matching_is_the_best_of_all(patches):
  images, texts = normal(2, patches, 3), normal(3, 4, 3)
  lengths = np.array([4, 2, 3])
  got = jax.jit(lambda *x: lightclip.token_similarity(*x, one_to_one=True))(
    images, texts, lengths
  )
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  for i, j in itertools.product(range(2), range(3)):
    cosines = unit(images[i]) @ unit(texts[j, : lengths[j]]).T
    np.testing.assert_allclose(
      got[i, j], assignment(cosines) / lengths[j], rtol=1e-5, atol=1e-6
    )


def test_relaxed_matching_gives_every_word_its_best_patch():
  images, texts = normal(2, 5, 3), normal(3, 4, 3)
  lengths = np.array([4, 1, 3])
  got = lightclip.token_similarity(images, texts, lengths)
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  want = [
    [
      (unit(image) @ unit(text[:n]).T).max(0).mean()
      for text, n in zip(texts, lengths, strict=True)
    ]
    for image in images
  ]
  np.testing.assert_allclose(got, want, rtol=1e-5)
