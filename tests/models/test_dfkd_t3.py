"""DFKD-T3 as a system: texts with gradients, a buffer, two that take turns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.errors import UserError
from jaxzoo.models.backbones import t5
from jaxzoo.models.distillation import dfkd_t3, rewriting
from jaxzoo.models.losses import data_free
from jaxzoo.system import State

KEY = jax.random.key(0)
VOCAB, LENGTH = 16, 4


def config_of(**overrides):
  config = catalog.get_config('dfkd_t3:tiny').unlock()
  config.vocab_size, config.total_steps = VOCAB, 10
  config.label_tokens = (5, 9)
  config.generator.update(length=LENGTH, replay=6, every=3)
  for network in (config, config.teacher, config.generator):
    network.model_options.update(width=8, hidden=8)
  config.update_from_flattened_dict(overrides)
  return config


def batch_of(rows=4):
  rng = np.random.default_rng(0)
  sentence = rng.integers(4, VOCAB, (rows, 5)).astype(np.int32)
  sentence[:, 3], sentence[:, 4] = t5.END, t5.PAD
  return {
    'prefix': np.full((rows, 1), 4, np.int32),
    'sentence': sentence,
    'rewrite': np.full((rows, 1), 5, np.int32),
  }


@functools.cache
def run():
  """(states before and after each of four steps, metrics)."""
  system = dfkd_t3.build(config_of(), optax.sgd(lambda step: 0.1 + step))
  states, history = [jax.jit(system.init)(KEY, batch_of())], []
  step = jax.jit(system.step)
  for _ in range(4):
    state, metrics = step(states[-1], batch_of())
    states.append(state)
    history.append(metrics)
  return states, history


def moved(name, before, after):
  pairs = zip(
    *(jax.tree.leaves(x.params[name]) for x in (before, after)), strict=True
  )
  return any(np.abs(a - b).max() > 0 for a, b in pairs)


# Texts.


@functools.cache
def generator():
  module = dfkd_t3.make_networks(config_of()).generator
  shapes = jax.eval_shape(
    lambda: module.init(KEY, batch_of()['sentence'], batch_of()['sentence'])
  )
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(0.3, 0.5, x.shape), x.dtype)
  return module, jax.tree.map(draw, shapes)


def chained(module, variables, batch, noise, temperature):
  """The gradient through the scan, its past inputs cut, step by step."""
  memory, seen = rewriting.read_source(module, variables, batch)
  cache = module.apply(variables, memory, LENGTH, method='start')

  def one(carry, i):
    cache, token, ended = carry
    logits, cache = module.apply(variables, token, cache, seen, method='extend')
    logits = rewriting.without_pad(logits)
    y = data_free.straight_through(logits, noise.at(i), temperature)
    pad = jax.nn.one_hot(t5.PAD, VOCAB)
    y = jnp.where(ended[:, None], pad, y)
    token = jax.lax.stop_gradient(y.argmax(-1))
    return (cache, token, ended | (token == t5.END)), y

  rows = batch['sentence'].shape[0]
  start = (cache, jnp.zeros(rows, jnp.int32), jnp.zeros(rows, bool))
  _, texts = jax.lax.scan(one, start, jnp.arange(LENGTH))
  return texts.swapaxes(0, 1)


@functools.cache
def written():
  """Texts and gradients of a function of them, both ways."""
  module, variables = generator()
  batch, weights = batch_of(8), np.random.default_rng(2).normal(
    size=(8, LENGTH, VOCAB)
  )  # fmt: skip
  noise = rewriting.Noise(KEY, 8, VOCAB)

  def at_once(variables):
    texts = rewriting.rewrite(module, variables, batch, noise, LENGTH, 0.7)
    # Without the last place, where an END may have been put.
    return jnp.sum((texts.soft * weights)[:, :-1]), texts

  def by_scan(variables):
    texts = chained(module, variables, batch, noise, 0.7)
    return jnp.sum((texts * weights)[:, :-1]), texts

  @jax.jit
  def both(variables):
    return [
      jax.value_and_grad(call, has_aux=True)(variables)
      for call in (at_once, by_scan)
    ]

  return both(variables)


def test_gradient_is_that_of_the_scan_with_its_past_inputs_cut():
  ((_, texts), got), ((_, chain), want) = written()
  np.testing.assert_allclose(texts.soft[:, :-1], chain[:, :-1], atol=1e-5)
  size = 0
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    size += np.abs(b).sum()
  assert size > 1e-2


def test_soft_text_is_the_sampled_one_and_ends():
  texts = written()[0][0][1]
  np.testing.assert_array_equal(texts.soft.argmax(-1), texts.tokens)
  np.testing.assert_allclose(texts.soft.max(-1), 1, atol=1e-5)
  np.testing.assert_array_equal((texts.tokens == t5.END).sum(1), 1)
  for row, mask in zip(texts.tokens, texts.mask, strict=True):
    end = list(row).index(t5.END)
    assert (row[:end] != t5.PAD).all() and not row[end + 1 :].any()
    assert mask.sum() == end + 1


def test_text_without_an_end_gets_one_in_its_last_place():
  tokens = jnp.array([[5, 6, 7], [5, 1, 0], [5, 6, 1]])
  np.testing.assert_array_equal(
    rewriting.ended(tokens), [[5, 6, 1], [5, 1, 0], [5, 6, 1]]
  )


def test_language_loss_is_of_the_words_up_to_the_end():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(2, 3, VOCAB)).astype(np.float32)
  tokens = np.array([[5, 6, 1], [1, 0, 0]])
  texts = rewriting.Rewritten(
    tokens, jax.nn.one_hot(tokens, VOCAB), tokens != t5.PAD, logits
  )
  z = logits[..., 1:].astype(np.float64)  # PAD is no word
  log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
  want = np.mean(
    [-log_p[0, 0, 4], -log_p[0, 1, 5], -log_p[0, 2, 0], -log_p[1, 0, 0]]
  )
  np.testing.assert_allclose(
    rewriting.language_loss(logits, texts), want, rtol=1e-5
  )


def test_drift_is_the_divergence_of_the_distributions_of_words():
  rng = np.random.default_rng(0)
  own, other = rng.normal(size=(2, 2, 3, VOCAB)).astype(np.float32)
  tokens = np.array([[5, 6, 1], [1, 0, 0]])

  def found(own, other):
    own = rewriting.without_pad(own)
    texts = rewriting.Rewritten(
      tokens, jax.nn.one_hot(tokens, VOCAB), tokens != t5.PAD, own
    )
    return rewriting.drift(other, texts)

  def softmax(logits):
    weights = np.exp(logits[..., 1:].astype(np.float64))
    return weights / weights.sum(-1, keepdims=True)

  p, q = softmax(own), softmax(other)
  kl = (p * (np.log(p) - np.log(q))).sum(-1)
  want = (kl[0].sum() + kl[1, 0]) / 4
  np.testing.assert_allclose(found(own, other), want, rtol=1e-5)
  np.testing.assert_allclose(found(own, own), 0, atol=1e-6)
  assert np.abs(jax.grad(found)(own, own)).max() < 1e-6


def test_buffer_gives_back_only_what_was_put_and_forgets_the_oldest():
  replay = rewriting.Replay(
    jnp.zeros((5, 2), jnp.int32), jnp.int32(0), jnp.int32(0)
  )
  put, recall = jax.jit(rewriting.remember), jax.jit(
    rewriting.recall, static_argnums=2
  )  # fmt: skip
  for i in range(1, 5):
    replay = put(replay, jnp.full((2, 2), i, jnp.int32))
    seen = set(np.unique(recall(replay, jax.random.key(i), 200)))
    assert seen == {1: {1}, 2: {1, 2}, 3: {1, 2, 3}, 4: {2, 3, 4}}[i]
  np.testing.assert_array_equal(replay.texts[:, 0], [3, 4, 4, 2, 3])


# Losses.


def test_rows_outside_of_the_mask_do_not_count():
  rng = np.random.default_rng(0)
  t, s = rng.normal(size=(2, 6, 4)).astype(np.float32)
  mask = np.array([1, 1, 0, 1, 0, 0], bool)
  got = data_free.generator_terms(t, s, mask)
  want = data_free.generator_terms(t[mask], s[mask])
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  np.testing.assert_allclose(
    data_free.student_loss(s, t, mask),
    data_free.student_loss(s[mask], t[mask]),
    rtol=1e-5,
  )
  none = data_free.generator_terms(t, s, np.zeros(6, bool))
  assert all(np.isfinite(x) for x in none)


def test_student_loss_is_its_two_terms():
  rng = np.random.default_rng(0)
  t, s = rng.normal(size=(2, 6, 4)).astype(np.float32)
  soft = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  p, q = soft(t / 2), soft(s / 2)
  kl = np.mean(np.sum(p * np.log(p / q), axis=-1))
  hard = -np.mean(np.log(soft(s)[np.arange(6), t.argmax(-1)]))
  np.testing.assert_allclose(
    data_free.student_loss(s, t), 4 * kl + 0.5 * hard, rtol=1e-5
  )


@pytest.mark.parametrize('labels', [(5, 9), ()])
def test_nothing_behind_the_end_reaches_the_answers(labels):
  config = config_of(label_tokens=labels, labels=labels)
  networks = dfkd_t3.make_networks(config)
  ask = dfkd_t3.make_ask(networks, config)
  _, variables = generator()
  text = batch_of()['sentence']
  mask = text != t5.PAD

  @jax.jit
  def answers(text):
    return ask(variables, variables, batch_of()['prefix'], text, mask)

  want = answers(jax.nn.one_hot(text, VOCAB))
  got = answers(jax.nn.one_hot(np.where(mask, text, 7), VOCAB))
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  # Teacher and student are one network here.
  np.testing.assert_allclose(got.teacher, got.student, atol=1e-5)


# The step.


def test_generator_moves_in_its_turn_and_the_student_always():
  states, history = run()
  pairs = list(zip(states, states[1:], strict=False))
  assert [moved('generator', *pair) for pair in pairs] == [True, 0, 0, True]
  assert all(moved('student', *pair) for pair in pairs)
  # Between its turns its metrics are those of the last one.
  losses = [float(x['generator/loss']) for x in history]
  assert losses[0] == losses[1] == losses[2] != losses[3]


def test_teacher_and_first_generator_stay():
  states, _ = run()
  for name in ('teacher', 'language'):
    jax.tree.map(
      np.testing.assert_array_equal,
      states[0].extra[name],
      states[-1].extra[name],
    )
  jax.tree.map(
    np.testing.assert_array_equal,
    states[0].extra['language']['params'],
    states[0].params['generator'],
  )


def test_half_of_a_batch_is_put_into_the_buffer():
  states, _ = run()
  counts = [int(state.extra['replay'].count) for state in states]
  assert counts == [0, 2, 4, 6, 6]
  replay = states[-1].extra['replay']
  assert replay.position == 2
  assert ((replay.texts == t5.END).sum(1) == 1).all()


def test_loss_of_the_generator_is_its_weighted_terms():
  _, history = run()
  told, fields = history[0], config_of().generator
  want = sum(
    fields[name] * told[f'generator/{name}']
    for name in ('specificity', 'diversity', 'adversarial', 'language')
  )
  np.testing.assert_allclose(told['generator/loss'], want, rtol=1e-5)


def test_schedules_of_both_go_by_the_steps_of_the_run():
  states, _ = run()
  counts = lambda opt: [
    int(x.count)
    for x in jax.tree.leaves(
      opt, is_leaf=lambda x: isinstance(x, optax.ScaleByScheduleState)
    )
    if isinstance(x, optax.ScaleByScheduleState)
  ]
  assert counts(states[-1].opt['student']) == [4]
  assert counts(states[-1].opt['generator']) == [4]  # it has moved twice


@pytest.mark.parametrize('kind', ['frozen', 'none'])
def test_baselines_train_the_student_alone(kind):
  config = config_of(**{'generator.kind': kind})
  system = dfkd_t3.build(config, optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, batch_of())
  assert set(state.params) == set(state.opt) == {'student'}
  assert ('replay' in state.extra) == (kind == 'frozen')
  after, metrics = jax.eval_shape(system.step, state, batch_of())
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert 'loss' in metrics and 'generator/loss' not in metrics


def test_answers_that_are_texts_are_distilled_too():
  config = config_of(label_tokens=(), labels=(), target_length=3)
  system = dfkd_t3.build(config, optax.sgd(0.1))
  state = jax.eval_shape(system.init, KEY, batch_of())
  after, _ = jax.eval_shape(system.step, state, batch_of())
  assert jax.tree.structure(after) == jax.tree.structure(state)
  outputs = jax.eval_shape(system.predict, state, batch_of())
  assert outputs['answer'].shape == (4, 3)


# Weights and mistakes.


def stage(name, config):
  """A finished run, as `stages.read_states` gives it."""
  own = dfkd_t3.with_network(config, config[name])
  params = {'of': jnp.float32(len(name))}
  return own, State(jnp.int32(1), KEY, params, {}, {})


def test_teacher_and_generator_are_taken_from_their_runs():
  config = config_of()
  runs = {name: stage(name, config) for name in ('teacher', 'generator')}
  params, extra = dfkd_t3.from_stages(runs, config)
  assert extra['teacher'] == {'params': {'of': 7}}
  assert params['generator'] == extra['language']['params'] == {'of': 9}
  frozen = config_of(**{'generator.kind': 'frozen'})
  params, extra = dfkd_t3.from_stages(runs, frozen)
  assert not params and set(extra) == {'teacher', 'language'}


def test_teacher_of_another_size_is_an_error_that_says_which():
  config = config_of()
  runs = {'teacher': stage('teacher', config)}
  config.teacher.model_options.width = 12
  with pytest.raises(UserError, match='model_options'):
    dfkd_t3.from_stages(runs, config)


def test_published_weights_are_student_and_generator_where_they_are_alike():
  config = config_of()
  module, variables = generator()
  numpy = jax.tree.map(np.asarray, variables)
  theirs = dfkd_t3.names.export(numpy, module)
  params = dfkd_t3.convert(theirs, config)
  assert set(params) == {'student', 'generator'}
  extra = dfkd_t3.convert_extra(theirs, config)
  jax.tree.map(np.testing.assert_array_equal, extra['language'], {**numpy})
  config.generator.model_options.hidden = 12
  assert set(dfkd_t3.convert(theirs, config)) == {'student'}
  assert not dfkd_t3.convert_extra(theirs, config)
  assert dfkd_t3.fresh(config) == ('^student/',)
  config.init.weights = 'x'
  assert dfkd_t3.fresh(config) == ()


def test_odd_batch_and_unknown_kind_are_errors():
  with pytest.raises(UserError, match='did you mean trained'):
    dfkd_t3.build(config_of(**{'generator.kind': 'traind'}), optax.sgd(0.1))
  system = dfkd_t3.build(
    config_of(**{'generator.kind': 'frozen'}), optax.sgd(0.1)
  )
  state = jax.eval_shape(system.init, KEY, batch_of(3))
  with pytest.raises(UserError, match='make it even'):
    jax.eval_shape(system.step, state, batch_of(3))
