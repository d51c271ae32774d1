"""The network over words and regions, and its distillation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from rich.console import Console

from jaxzoo import catalog, main
from jaxzoo.errors import UserError
from jaxzoo.models.distillation import distillvlm, region_transformer
from jaxzoo.models.distillation.region_transformer import (
  RegionTransformer,
  write_captions,
)
from jaxzoo.models.layers.beam_search import beam_search
from jaxzoo.models.layers.post_norm import PostNormEncoder
from jaxzoo.runs import read_run
from jaxzoo.train import mesh as meshes
from jaxzoo.weights import layout
from jaxzoo.weights import rows as to

RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
TEXT, TAGS, REGIONS, DIM, TEACHER_DIM = 6, 4, 3, 5, 7
MODULE = RegionTransformer(
  20, 8, 2, 2, TEXT, TAGS, ('words', 'match', 'answers'), 4, init_std=0.3
)


def make_words(b):
  words = RNG.integers(5, 20, (b, TEXT + TAGS)).astype(np.int32)
  words[:, 0] = 2
  words[0, 4:TEXT] = 0
  words[0, -1] = 0
  return words


WORDS = make_words(3)
SEEN = normal(3, REGIONS, DIM)
COUNT = np.array([2, 3, 3], np.int32)


@pytest.fixture(scope='module')
def variables():
  return jax.jit(MODULE.init)(jax.random.key(0), WORDS, SEEN, COUNT)


@jax.jit
def logits_of(variables, words, regions, count):
  return MODULE.apply(variables, words, regions, count)


@jax.jit
def written(variables, words):
  encode = lambda module: module.encode(words, SEEN, COUNT, causal=True).hidden
  return MODULE.apply(variables, method=encode)


# The network.


def test_padding_changes_nothing(variables):
  want = logits_of(variables, WORDS, SEEN, COUNT)
  other = SEEN.copy()
  other[0, 2] = 100
  got = logits_of(variables, WORDS, other, COUNT)
  np.testing.assert_allclose(got['answers'], want['answers'], atol=1e-6)
  other[0, 1] = 100
  moved = logits_of(variables, WORDS, other, COUNT)
  assert np.abs(moved['answers'][0] - want['answers'][0]).max() > 1e-3
  np.testing.assert_allclose(
    moved['answers'][1:], want['answers'][1:], atol=1e-6
  )


def test_regions_are_a_set_and_words_are_not(variables):
  want = logits_of(variables, WORDS, SEEN, COUNT)['answers'][1:]
  turned = logits_of(variables, WORDS, SEEN[:, ::-1], COUNT)['answers'][1:]
  np.testing.assert_allclose(turned, want, atol=1e-5)
  words = WORDS.copy()
  words[:, 1], words[:, 2] = WORDS[:, 2], WORDS[:, 1]
  swapped = logits_of(variables, words, SEEN, COUNT)['answers'][1:]
  assert np.abs(swapped - want).max() > 1e-3


def test_captions_see_only_what_is_written(variables):
  later = WORDS.copy()
  later[:, 3] = 19 - (WORDS[:, 3] == 19)
  before, after = (np.asarray(written(variables, x)) for x in (WORDS, later))
  np.testing.assert_allclose(before[:, :3], after[:, :3], atol=1e-6)
  np.testing.assert_allclose(before[:, TEXT:], after[:, TEXT:], atol=1e-6)
  assert np.abs(before[1, 4] - after[1, 4]).max() > 1e-3


def test_attention_is_of_the_last_block_and_scanned_blocks_agree(variables):
  look = lambda module: module.encode(WORDS, SEEN, COUNT)
  plain = jax.jit(lambda v: MODULE.apply(v, method=look))(variables)
  scanned = MODULE.clone(scan=True, remat='full')
  stacked = {'params': layout.stack_blocks(variables['params'])}
  again = jax.jit(lambda v: scanned.apply(v, method=look))(stacked)
  np.testing.assert_allclose(plain.hidden, again.hidden, atol=1e-5)
  np.testing.assert_allclose(plain.attention, again.attention, atol=1e-5)
  np.testing.assert_allclose(plain.attention.sum(-1), 1, atol=1e-5)
  hidden = np.broadcast_to(
    ~np.asarray(plain.valid)[:, None, None], plain.attention.shape
  )
  np.testing.assert_array_equal(np.asarray(plain.attention)[hidden], 0)
  shorter = MODULE.clone(depth=1)
  first = jax.jit(lambda v: shorter.apply(v, method=look))(variables).attention
  assert np.abs(first - plain.attention).max() > 1e-3


def test_encoder_is_the_post_norm_one_of_torch():
  torch = pytest.importorskip('torch')
  layer = torch.nn.TransformerEncoderLayer(
    8, 2, 32, 0.0, 'gelu', 1e-12, batch_first=True
  ).eval()
  state = {k: v.detach().numpy() for k, v in layer.state_dict().items()}
  names = ['query', 'key', 'value']
  state['qkv.weight'] = state.pop('self_attn.in_proj_weight')
  state['qkv.bias'] = state.pop('self_attn.in_proj_bias')
  block = 'block_0'
  params = to.load(
    state,
    [
      *to.projections('qkv', f'{block}/attn', names, 2),
      *to.from_heads('self_attn.out_proj', f'{block}/attn/out', 2),
      *to.norm('norm1', f'{block}/ln_1'),
      *to.linear('linear1', f'{block}/mlp/fc1'),
      *to.linear('linear2', f'{block}/mlp/fc2'),
      *to.norm('norm2', f'{block}/ln_2'),
    ],
  )
  x = normal(2, 5, 8)
  valid = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
  got, _ = jax.jit(PostNormEncoder(1, 2).apply)(params, x, valid[:, None, None])
  want = layer(torch.tensor(x), src_key_padding_mask=torch.tensor(~valid))
  np.testing.assert_allclose(
    np.asarray(got)[valid], want.detach().numpy()[valid], atol=2e-5
  )


# Captions.


def test_a_wide_beam_finds_the_best_sequence():
  size, length, end = 3, 4, 2  # words: padding, one, end
  table = jax.nn.log_softmax(jnp.asarray(2 * normal(length, size, size)))

  def log_probs(words, position):
    rows = jnp.take(table, position, axis=0)
    before = jnp.take_along_axis(
      words, jnp.full((len(words), 1), position - 1), 1
    )[:, 0]
    return rows[before].at[:, 0].set(-1e9)

  start = jnp.array([[1, 0, 0, 0]], jnp.int32)
  search = jax.jit(
    lambda width: beam_search(log_probs, start, end_id=end, width=width),
    static_argnums=0,
  )
  words, score = search(9)
  best, known = -np.inf, np.asarray(table)
  for rest in itertools.product(range(size), repeat=length - 1):
    chain, total, over, fine = [1, *rest], 0.0, False, True
    for i in range(1, length):
      if over or chain[i] == 0:
        fine &= over == (chain[i] == 0)
        continue
      total += float(known[i, chain[i - 1], chain[i]])
      over = chain[i] == end
    if fine and total > best:
      best, wanted = total, chain
  assert words[0].tolist() == wanted
  assert score[0] == pytest.approx(best, abs=1e-5)
  greedy, low = search(1)
  assert low[0] <= score[0] + 1e-6
  assert greedy[0, 1] == 1 + int(known[1, 1, 2] > known[1, 1, 1])


def test_captions_begin_with_start_and_have_no_other_special_word(variables):
  batch = {'words': WORDS, 'regions': SEEN, 'region_count': COUNT}
  write = lambda width: jax.jit(
    lambda variables: write_captions(
      MODULE, variables, batch, (1, 2, 3, 4), width=width, length_penalty=0.0
    )
  )(variables)
  (words, score), (wide, better) = write(1), write(3)
  assert (words[:, 0] == 2).all() and words.shape == (3, TEXT)
  assert not np.isin(words[:, 1:], [1, 2, 4]).any()
  for row in np.asarray(words):
    ends = np.flatnonzero(row == 3)
    assert not len(ends) or not row[ends[0] + 1 :].any()
  assert (better >= score - 1e-4).all() and wide.shape == words.shape


# The system.


def config_of(task, **distill):
  config = catalog.get_config('distillvlm:tiny').unlock()
  config.task, config.scan = task, False
  config.vocab_size, config.num_answers = 20, 4
  config.text_length, config.tag_length = TEXT, TAGS
  config.network.update(depth=1, width=8, num_heads=2, dropout=0.0)
  config.teacher.network.update(depth=1, width=12, num_heads=2)
  config.distill.update(dict(attention=0.0, hidden=0.0, logits=0.0) | distill)
  return config


def batch_of(task, b=4):
  batch = {
    'words': make_words(b),
    'regions': normal(b, REGIONS, DIM),
    'teacher_regions': normal(b, REGIONS, TEACHER_DIM),
    'region_count': np.full(b, REGIONS, np.int32),
  }
  labels = np.where(RNG.random((b, TEXT + TAGS)) < 0.3, batch['words'], 0)
  return (
    batch
    | {
      'pretrain': {'labels': labels, 'match': np.arange(b, dtype=np.int32) % 2},
      'caption': {'labels': labels},
      'vqa': {'answers': RNG.random((b, 4)).astype(np.float32)},
    }[task]
  )


def look_at(module, params, regions, batch):
  return jax.jit(
    lambda params: module.apply(
      {'params': params}, regions, batch, 1, method=distillvlm.look
    )
  )(params)


def step_of(config, batch):
  system = distillvlm.build(config, optax.sgd(0.1))
  state = jax.jit(system.init)(jax.random.key(0), batch)
  return system, state, *jax.jit(system.step)(state, batch)


@pytest.fixture(scope='module')
def answered():
  config = config_of('vqa', attention=10.0, hidden=2.0, logits=0.5)
  batch = batch_of('vqa')
  return config, batch, *step_of(config, batch)


def test_loss_is_the_weighted_sum_of_its_terms(answered):
  *_, metrics = answered
  total = (
    metrics['answers_loss']
    + 10 * metrics['attention_distance']
    + 2 * metrics['hidden_distance']
    + 0.5 * metrics['logits_distance']
  )
  np.testing.assert_allclose(metrics['loss'], total, rtol=1e-5)


def test_student_moves_the_teacher_does_not_and_the_queue_has_its_tokens(
  answered,
):
  config, batch, _, first, after, _ = answered
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(first.extra['teacher'], after.extra['teacher'])
  for name, old in layout.flatten(first.params).items():
    if not name.endswith('attn/key/bias'):  # the softmax does not see it
      assert np.abs(old - layout.flatten(after.params)[name]).max() > 0, name
  teacher = distillvlm.make_teacher(config)
  encoded, _ = look_at(
    teacher, first.extra['teacher'], batch['teacher_regions'], batch
  )
  tokens = np.asarray(encoded.hidden)[np.asarray(encoded.valid)]
  tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
  queue = np.asarray(after.extra['queue'])
  np.testing.assert_allclose(queue[: len(tokens)], tokens, atol=1e-5)
  np.testing.assert_array_equal(
    queue[len(tokens) :], first.extra['queue'][: len(queue) - len(tokens)]
  )


@pytest.mark.parametrize('task', ['pretrain', 'caption'])
def test_other_tasks_train_and_predict_rows(task):
  config = config_of(task, hidden=1.0, logits=1.0)
  batch = batch_of(task)
  system, first, after, metrics = step_of(config, batch)
  assert np.isfinite(metrics['loss'])
  heads = {'pretrain': ('words', 'match'), 'caption': ('words',)}[task]
  parts = sum(metrics[f'{name}_loss'] for name in heads)
  parts += metrics['hidden_distance'] + metrics['logits_distance']
  np.testing.assert_allclose(metrics['loss'], parts, rtol=1e-5)
  rows = jax.jit(system.predict)(after, batch)
  assert {len(x) for x in rows.values()} == {4}
  assert jax.tree.structure(first.params) == jax.tree.structure(after.params)


def test_same_teacher_as_student_has_no_distance():
  config = config_of('vqa', attention=1.0, logits=1.0)
  config.teacher.network = config.network
  batch = batch_of('vqa')
  batch['teacher_regions'] = batch['regions']
  system = distillvlm.build(config, optax.sgd(0.1))
  state = jax.jit(system.init)(jax.random.key(0), batch)
  own = jax.tree.map(jnp.copy, state.params['student'])
  state = state._replace(extra=dict(state.extra, teacher=own))
  _, metrics = jax.jit(system.step)(state, batch)
  assert metrics['attention_distance'] == pytest.approx(0, abs=1e-10)
  module = distillvlm.make_network(config, config.network)
  _, heads = look_at(module, own, batch['regions'], batch)
  p = np.asarray(jax.nn.softmax(heads['answers'].logits))
  entropy = -np.mean(np.sum(p * np.log(p), axis=-1))
  assert metrics['logits_distance'] == pytest.approx(entropy, rel=1e-5)


def test_without_terms_there_is_no_teacher():
  batch = batch_of('vqa')
  del batch['teacher_regions']
  _, state, _, metrics = step_of(config_of('vqa'), batch)
  assert not state.extra and set(state.params) == {'student'}
  np.testing.assert_allclose(metrics['loss'], metrics['answers_loss'])


def test_heads_of_attention_must_be_as_many():
  config = config_of('vqa', attention=1.0)
  config.teacher.network.num_heads = 3
  with pytest.raises(UserError, match='make them equal'):
    distillvlm.build(config, optax.sgd(0.1))


# Weights.


def test_stages_give_start_and_teacher(answered):
  config, batch, _, _, after, _ = answered
  before = config_of('pretrain')
  system = distillvlm.build(before, optax.sgd(0.1))
  pretrained = jax.jit(system.init)(jax.random.key(0), batch_of('pretrain'))
  own = config.copy_and_resolve_references()
  own.start, own.teacher.stage = 'one', 'two'
  own.teacher.network = own.network
  params, extra = distillvlm.from_stages(
    {'one': (before, pretrained), 'two': (config, after)}, own
  )
  assert set(params['student']) == set(pretrained.params['student']) - {
    'word_head',
    'match_head',
  }
  np.testing.assert_array_equal(
    extra['teacher']['answer_head']['bias'],
    after.params['student']['answer_head']['bias'],
  )
  own.teacher.stage = 'one'
  with pytest.raises(UserError, match="trained for 'pretrain'"):
    distillvlm.from_stages({'one': (before, pretrained)}, own)
  own.start = 'three'
  with pytest.raises(UserError, match='no stage'):
    distillvlm.from_stages({'one': (before, pretrained)}, own)


@pytest.mark.parametrize('scan', [False, True])
def test_published_names_load_every_parameter(variables, scan):
  state_dict = to.save(variables, region_transformer.rows(MODULE))
  table = 'bert.embeddings.position_embeddings.weight'
  longer = np.concatenate([state_dict[table], normal(3, 8)])
  state_dict |= {table: longer, 'cls.predictions.decoder.weight': longer}
  found = region_transformer.convert(state_dict, MODULE.clone(scan=scan))
  want = variables['params']
  want = layout.stack_blocks(want) if scan else want
  jax.tree.map(np.testing.assert_array_equal, found, dict(want))


SMALL = {
  'data.embedded.train': 40,
  'data.embedded.asked': 40,
  'data.embedded.test': 8,
  'batch_size': 8,
  'epochs': 0.3,
  'network.depth': 1,
  'teacher.network.depth': 1,
}


@pytest.mark.slow
def test_runs_stand_on_each_other(tmp_path):
  config = catalog.get_config('distillvlm').unlock()
  for fields in config.stages.values():
    fields.fields = tuple(SMALL.items())
  config.update_from_flattened_dict(SMALL)
  result = main.train(config, tmp_path, console=Console(quiet=True))
  assert 0 <= result['metrics']['test/accuracy'] <= 100
  folders = {path.parent.name for path in tmp_path.glob('*/result.json')}
  assert folders == set(config.stages)  # none is trained within another
  assert not [*tmp_path.glob('*/*/result.json')]
  mesh = meshes.make_mesh({'data': 1}, jax.devices()[:1])
  read = lambda name: read_run(tmp_path / name, 'newest', mesh)[1]
  student, taught = read(''), read('stage3_tuned')
  jax.tree.map(
    np.testing.assert_array_equal,
    student.extra['teacher'],
    taught.params['student'],
  )
  before = read('stage4_student')
  jax.tree.map(
    np.testing.assert_array_equal,
    before.extra['teacher'],
    read('stage2_adapted').params['student'],
  )
