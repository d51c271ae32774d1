"""T5: masks, soft tokens, cached decoding, layouts, published names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import t5
from jaxzoo.models.backbones.t5_block import relative_buckets
from jaxzoo.weights import layout
from jaxzoo.weights import t5 as names

KEY = jax.random.key(0)
VOCAB = 30
RNG = np.random.default_rng(0)
SOURCE = RNG.integers(2, VOCAB, (3, 9)).astype(np.int32)
TARGET = RNG.integers(2, VOCAB, (3, 5)).astype(np.int32)
MASK = np.arange(9) < np.array([[9], [4], [1]])


def make(gated=True, **options):
  return t5.T5(
    VOCAB, 8, 2, 2, 12, head_width=4, gated=gated, tied=not gated, **options
  )


@functools.cache
def variables():
  """Of `make()`, all leaves away from their initialisation."""
  found = jax.eval_shape(lambda: make().init(KEY, SOURCE, TARGET))
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(0.1, 0.7, x.shape), x.dtype)
  return jax.tree.map(draw, found)


# The network as one compiled function of ids or of soft tokens.
apply = jax.jit(make().apply)


def test_decoder_sees_nothing_that_comes_later():
  other = np.where(np.arange(5) < 3, TARGET, 7)
  want = apply(variables(), SOURCE, TARGET, MASK)
  got = apply(variables(), SOURCE, other, MASK)
  np.testing.assert_allclose(got[:, :3], want[:, :3], atol=1e-5)
  assert np.abs(got[:, 3:] - want[:, 3:]).max() > 1e-3


def test_padding_of_the_source_says_nothing():
  want = apply(variables(), SOURCE, TARGET, MASK)
  got = apply(variables(), np.where(MASK, SOURCE, 3), TARGET, MASK)
  np.testing.assert_allclose(got, want, atol=1e-5)
  seen = apply(variables(), SOURCE, TARGET, MASK | True)
  assert np.abs(seen[1:] - want[1:]).max() > 1e-3


def test_soft_tokens_are_ids_where_they_are_one_hot():
  soft = jax.nn.one_hot(SOURCE, VOCAB)
  np.testing.assert_allclose(
    apply(variables(), soft, TARGET, MASK),
    apply(variables(), SOURCE, TARGET, MASK),
    atol=1e-4,
  )


def test_cached_decoding_gives_the_logits_of_all_positions_at_once():
  module = make()

  @jax.jit
  def one_by_one(variables):
    memory = module.apply(
      variables, module.apply(variables, SOURCE, method='embed'), MASK,
      method='encode',
    )  # fmt: skip
    cache = module.apply(variables, memory, 5, method='start')
    step = lambda cache, token: module.apply(
      variables, token, cache, MASK, method='extend'
    )[::-1]
    return jax.lax.scan(step, cache, jnp.asarray(TARGET.T))[1]

  np.testing.assert_allclose(
    one_by_one(variables()).swapaxes(0, 1),
    apply(variables(), SOURCE, TARGET, MASK),
    rtol=1e-4,
    atol=1e-4,
  )


def test_generated_text_is_the_likeliest_and_has_padding_behind_its_end():
  module = make()

  @jax.jit
  def write(variables, bonus):
    memory = module.apply(
      variables, module.apply(variables, SOURCE, method='embed'), MASK,
      method='encode',
    )  # fmt: skip
    wanted = lambda z, i: (z + bonus[i]).argmax(-1)
    return t5.generate(module, variables, memory, MASK, 5, wanted)

  free = write(variables(), np.zeros((5, VOCAB), np.float32))
  logits = apply(variables(), SOURCE, t5.shift_right(free), MASK)
  valid = np.asarray(free) != t5.PAD
  np.testing.assert_array_equal(logits.argmax(-1)[valid], free[valid])
  stop = np.zeros((5, VOCAB), np.float32)
  stop[:, t5.END] = -1e4
  stop[2, t5.END] = 1e4
  text = write(variables(), stop)
  assert (text[:, 2] == t5.END).all() and (text[:, 3:] == t5.PAD).all()
  assert (text[:, :2] != t5.END).all()


def test_scanned_blocks_are_the_same_network():
  scanned = make(scan=True, remat='full')
  stacked = layout.stack_deep(variables())
  shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
  assert shapes(stacked) == shapes(
    jax.eval_shape(lambda: scanned.init(KEY, SOURCE, TARGET))
  )
  np.testing.assert_allclose(
    jax.jit(scanned.apply)(stacked, SOURCE, TARGET, MASK),
    apply(variables(), SOURCE, TARGET, MASK),
    atol=1e-4,
  )


def test_nothing_is_dropped_unless_training():
  module = make(dropout=0.5)
  got = jax.jit(
    lambda v: [
      module.apply(v, SOURCE, TARGET, MASK, True, rngs={'dropout': key})
      for key in jax.random.split(KEY)
    ]
  )(variables())
  assert np.abs(got[0] - got[1]).max() > 1e-3
  again = jax.jit(module.apply)(variables(), SOURCE, TARGET, MASK)
  np.testing.assert_allclose(
    again, apply(variables(), SOURCE, TARGET, MASK), atol=1e-4
  )


# Distances.


@pytest.mark.parametrize('bidirectional, half', [(True, 16), (False, 32)])
def test_near_distances_have_buckets_of_their_own(bidirectional, half):
  behind = relative_buckets(-np.arange(400), bidirectional)
  np.testing.assert_array_equal(behind[: half // 2], np.arange(half // 2))
  assert (np.diff(behind) >= 0).all() and behind.max() == half - 1
  assert behind[127] == half - 1 and behind[100] < half
  ahead = relative_buckets(np.arange(1, 400), bidirectional)
  want = behind[1:] + 16 if bidirectional else 0
  np.testing.assert_array_equal(ahead, want)


# Names and sizes.


@pytest.mark.parametrize('gated', [False, True])
@pytest.mark.parametrize('scan', [False, True])
def test_published_names_come_back(gated, scan):
  module = make(gated, scan=scan)
  shapes = jax.eval_shape(lambda: module.init(KEY, SOURCE, TARGET))
  rng = np.random.default_rng(0)
  ours = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
  )
  theirs = names.export(ours, module)
  theirs['encoder.embed_tokens.weight'] = theirs['shared.weight']
  unused = 'decoder.block.0.layer.1.EncDecAttention.relative_attention_bias'
  theirs[f'{unused}.weight'] = np.zeros((32, 2))
  jax.tree.map(
    np.testing.assert_array_equal, names.convert(theirs, module), ours
  )


@pytest.mark.parametrize(
  'model, parameters',
  [
    ('t5_small', 60_506_624),
    ('t5_base', 222_903_552),
    ('t5_v1_1_small', 76_961_152),
    ('t5_v1_1_base', 247_577_856),
  ],
)
def test_published_sizes_have_their_parameters(model, parameters):
  module = t5.make_t5(
    model, {}, vocab_size=32128, scan=True, remat='none', dtype='float32'
  )
  shapes = jax.eval_shape(lambda: module.init(KEY, SOURCE, TARGET))
  assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize('gated', [False, True])
def test_logits_and_greedy_decoding_are_those_of_transformers(gated):
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  config = transformers.T5Config(
    vocab_size=VOCAB,
    d_model=8,
    d_kv=4,
    d_ff=12,
    num_layers=2,
    num_decoder_layers=2,
    num_heads=2,
    feed_forward_proj='gated-gelu' if gated else 'relu',
    tie_word_embeddings=not gated,
    decoder_start_token_id=t5.PAD,
    eos_token_id=t5.END,
    pad_token_id=t5.PAD,
  )
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for x in theirs.parameters():
      noise = torch.randn(x.shape, generator=generator)
      x.copy_(0.5 * noise if x.ndim > 1 else 1 + 0.3 * noise)
    theirs.tie_weights()
    given = dict(
      input_ids=torch.tensor(SOURCE).long(),
      attention_mask=torch.tensor(MASK).long(),
    )
    want = theirs(**given, decoder_input_ids=torch.tensor(TARGET).long()).logits
    text = theirs.generate(**given, max_length=13, do_sample=False, num_beams=1)
  module = make(gated)
  tensors = {name: x.numpy() for name, x in theirs.state_dict().items()}
  found = names.convert(tensors, module)

  @jax.jit
  def both(found):
    memory = module.apply(
      found, module.apply(found, SOURCE, method='embed'), MASK, method='encode'
    )
    logits = module.apply(found, TARGET, memory, MASK, method='decode')
    return logits, t5.generate(module, found, memory, MASK, 12)

  logits, ours = both(found)
  np.testing.assert_allclose(logits, want.numpy(), rtol=1e-4, atol=1e-4)
  length = text.shape[1] - 1
  np.testing.assert_array_equal(ours[:, :length], text[:, 1:].numpy())


def test_unknown_model_and_field_are_errors_with_the_nearest():
  rest = dict(vocab_size=9, scan=False, remat='none', dtype='float32')
  with pytest.raises(UserError, match='t5_small'):
    t5.make_t5('t5_smal', {}, **rest)
  with pytest.raises(UserError, match='hidden'):
    t5.make_t5('t5_small', {'hiden': 3}, **rest)
