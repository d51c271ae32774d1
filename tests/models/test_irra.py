"""Properties of IRRA's reasoning, of its masked words, and of the system."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_retrieval as tiny

from jaxzoo.errors import UserError
from jaxzoo.models.backbones.clip import PUBLISHED
from jaxzoo.models.retrieval import irra
from jaxzoo.weights import layout
from jaxzoo.weights.clip import export_clip

KEY = jax.random.key(0)


def config(scan=False, **loss):
  default = dict(
    sdm=1.0,
    itc=0.0,
    cmpm=0.0,
    id=1.0,
    mlm=1.0,
    temperature=0.02,
    mlm_budget=3,
    mask_retrieval_text=False,
  )
  return tiny.config(cross_modal_depth=1, scan=scan, loss={**default, **loss})


@pytest.fixture(scope='module')
def trained():
  """The full system, its state after some steps, the step, all metrics."""
  tx = optax.adam(3e-3)
  system = irra.build(config(), tx)
  return system, *tiny.trained(system, tx, steps=15)


# Masked words.


def test_masked_positions_are_the_labelled_ones_from_left_to_right():
  rng = np.random.default_rng(0)
  labels = np.where(rng.random((50, 12)) < 0.3, rng.integers(1, 9, (50, 12)), 0)
  for budget in (1, 4, 12, 99):
    places, found = irra.masked_positions(jnp.asarray(labels), budget)
    assert places.shape == found.shape == (50, min(budget, 12))
    for row, at, label in zip(labels, places, found, strict=True):
      want = np.flatnonzero(row)[:budget]
      np.testing.assert_array_equal(at[: len(want)], want)
      np.testing.assert_array_equal(label[: len(want)], row[want])
      assert (label[len(want) :] == 0).all()
      assert len(set(at.tolist())) == len(at)


def test_mlm_loss_with_enough_places_equals_the_loss_of_all_positions():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.standard_normal((5, 8, 11)), jnp.float32)
  labels = np.where(rng.random((5, 8)) < 0.4, rng.integers(1, 11, (5, 8)), 0)
  budget = int((labels != 0).sum(1).max())
  places, few = irra.masked_positions(jnp.asarray(labels), budget)
  some = jnp.take_along_axis(logits, places[..., None], axis=1)
  rows, columns = np.nonzero(labels)
  log_p = np.asarray(jax.nn.log_softmax(logits))[rows, columns]
  want = -np.mean(log_p[np.arange(len(rows)), labels[rows, columns]])
  right = np.mean(log_p.argmax(1) == labels[rows, columns])
  for loss, accuracy in (
    irra.mlm_loss(some, few),
    irra.mlm_loss(logits, jnp.asarray(labels)),
  ):
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(accuracy, right, rtol=1e-6)


def test_mlm_loss_of_a_batch_without_masks_is_zero():
  loss, accuracy = irra.mlm_loss(jnp.ones((2, 3, 5)), jnp.zeros((2, 3), int))
  assert loss == 0 and accuracy == 0


def test_words_are_filled_from_the_image_of_their_own_sample():
  module = irra.CrossModalReasoning(depth=1)
  rng = np.random.default_rng(0)
  text, image = (
    jnp.asarray(rng.standard_normal((3, n, 8)), jnp.float32) for n in (5, 7)
  )
  params = tiny.filled(jax.eval_shape(module.init, KEY, text, image))
  reason = jax.jit(lambda text, image: module.apply(params, text, image))
  before = reason(text, image)
  changed = image.at[1].multiply(-1.0)
  differs = jnp.abs(reason(text, changed) - before).max((1, 2)) > 1e-3
  assert differs.tolist() == [False, True, False]
  # Image tokens have no order here.
  np.testing.assert_allclose(reason(text, image[:, ::-1]), before, atol=1e-5)


# The system.


def test_loss_falls_and_is_the_sum_of_its_parts(trained):
  *_, history = trained
  assert history[-1]['loss'] < 0.8 * history[0]['loss']
  for metrics in history:
    parts = sum(metrics[f'loss_{x}'] for x in ('sdm', 'id', 'mlm'))
    np.testing.assert_allclose(metrics['loss'], parts, rtol=1e-5)


def test_loss_does_not_depend_on_the_order_of_the_batch(trained):
  _, state, step, _ = trained
  batch, order = tiny.batch(), np.random.default_rng(0).permutation(6)
  _, want = step(state, batch)
  _, got = step(state, {name: x[order] for name, x in batch.items()})
  np.testing.assert_allclose(got['loss'], want['loss'], rtol=1e-4)
  np.testing.assert_allclose(got['grad_norm'], want['grad_norm'], rtol=1e-3)


def test_masks_beyond_the_budget_do_not_count(trained):
  _, state, step, _ = trained
  batch = tiny.batch()
  labels = np.zeros_like(batch['mlm_labels'])
  labels[:, 1:4] = 7  # the budget of 3
  more = labels.copy()
  more[:, 4:] = 9
  _, want = step(state, {**batch, 'mlm_labels': labels})
  _, got = step(state, {**batch, 'mlm_labels': more})
  assert got['loss_mlm'] == want['loss_mlm']


def test_whole_captions_are_retrieved_and_masked_ones_filled(trained):
  _, state, step, _ = trained
  batch = tiny.batch()
  other = {**batch, 'mlm_text': batch['text']}
  _, want = step(state, batch)
  _, got = step(state, other)
  np.testing.assert_allclose(got['loss_sdm'], want['loss_sdm'], rtol=1e-6)
  np.testing.assert_allclose(got['loss_id'], want['loss_id'], rtol=1e-6)
  assert got['loss_mlm'] != want['loss_mlm']


def test_mask_retrieval_text_uses_the_masked_caption_alone():
  system = irra.build(config(mask_retrieval_text=True), optax.sgd(0.1))
  batch = tiny.batch()
  state = jax.eval_shape(system.init, KEY, batch)
  del batch['text']
  jax.eval_shape(system.step, state, batch)


def test_predict_is_normalised_and_uses_the_towers_alone(trained):
  system, state, _, _ = trained
  params = {name: state.params[name] for name in ('image', 'text')}
  batch = {name: tiny.batch()[name] for name in ('image', 'text')}
  outputs = jax.jit(system.predict)(state._replace(params=params), batch)
  assert set(outputs) == set(batch)
  for vectors in outputs.values():
    assert vectors.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
  'weights, heads',
  [
    (dict(sdm=0.0, itc=1.0, id=0.0, mlm=0.0), set()),
    (dict(sdm=0.0, cmpm=1.0, mlm=0.0), {'classifier'}),
    (dict(id=0.0), {'reasoning', 'mlm_head'}),
  ],
)
def test_loss_of_weight_zero_has_no_parameters_and_no_metric(weights, heads):
  sizes = config(**weights)
  system = irra.build(sizes, optax.sgd(0.1))
  batch = tiny.batch()
  if 'mlm_head' not in heads:
    del batch['mlm_text'], batch['mlm_labels']
  state = jax.eval_shape(system.init, KEY, batch)
  assert set(state.params) == {'image', 'text'} | heads
  _, metrics = jax.eval_shape(system.step, state, batch)
  on = {f'loss_{n}' for n in irra.Weights._fields if sizes.loss[n]}
  assert {name for name in metrics if 'loss_' in name} == on


def test_words_need_the_tokens_of_a_transformer():
  sizes = config()
  sizes.towers.image = 'resnet'
  with pytest.raises(UserError, match='loss.mlm.*tokens'):
    irra.build(sizes, optax.sgd(0.1))


def published_parameters():
  sizes = config(scan=True)
  with sizes.unlocked():
    sizes.towers = PUBLISHED['ViT-B/16']._asdict()
    sizes.cross_modal_depth, sizes.num_classes = 4, 11_003
  batch = {
    'image': jnp.zeros((1, 384, 128, 3), jnp.uint8),
    'text': jnp.zeros((1, 77), jnp.int32),
  }
  system = irra.build(sizes, optax.identity())
  return layout.flatten(jax.eval_shape(system.init, KEY, batch).params)


def test_published_size_has_the_published_number_of_parameters():
  counts = [x.size for x in published_parameters().values()]
  assert sum(counts) == 194_535_419


def test_names_select_the_groups_of_the_published_optimizer():
  select = lambda pattern: {
    path for path in published_parameters() if re.search(pattern, path)
  }
  assert {path.split('/')[1] for path in select('cross')} == {
    'cross_attn',
    'cross_modal_transformer',
  }
  assert {path.split('/')[0] for path in select('classifier|mlm_head')} == {
    'classifier',
    'mlm_head',
  }
  assert select('bias') == select('bias$')


def test_sharding_rules_match_parameters_of_their_rank():
  flat = published_parameters()
  for pattern, spec in irra.SHARDING:
    matched = {n: x for n, x in flat.items() if re.search(pattern, n)}
    assert matched, pattern
    for name, x in matched.items():
      assert x.ndim == len(spec) + ('blocks/' in name), name


@pytest.mark.parametrize('scan', [False, True])
def test_converted_checkpoint_fills_the_whole_tree(scan):
  system = irra.build(config(scan=scan), optax.identity())
  shapes = jax.eval_shape(system.init, KEY, tiny.batch()).params
  want = layout.flatten(layout.unstack_blocks(tiny.filled(shapes)))
  published = published_names(want)
  got = irra.convert(published, config(scan=scan))
  assert jax.tree.map(np.shape, got) == jax.tree.map(lambda x: x.shape, shapes)
  got = layout.flatten(layout.unstack_blocks(got))
  for path, value in want.items():
    np.testing.assert_array_equal(got[path], value, err_msg=path)


def published_names(flat):
  """Our parameters under the names and in the layout of the release."""
  tree = layout.unflatten(flat)
  clip = {name: tree[name] for name in ('image', 'text')}
  tensors = {f'base_model.{n}': x for n, x in export_clip(clip).items()}

  def put(name, x):
    if 'query' in x:
      parts = [x[part] for part in ('query', 'key', 'value')]
      width = len(parts[0]['kernel'])
      tensors[f'{name}.in_proj_weight'] = np.concatenate(
        [part['kernel'].reshape(width, -1).T for part in parts]
      )
      tensors[f'{name}.in_proj_bias'] = np.concatenate(
        [part['bias'].reshape(-1) for part in parts]
      )
      kernel = x['out']['kernel'].reshape(-1, width)
      put(f'{name}.out_proj', dict(x['out'], kernel=kernel))
    elif 'bias' in x:
      kernel = x['scale'] if 'scale' in x else x['kernel'].T
      tensors[f'{name}.weight'], tensors[f'{name}.bias'] = kernel, x['bias']
    else:
      for child, value in x.items():
        put('.'.join(filter(None, (name, RELEASED.get(child, child)))), value)

  put('', {name: tree[name] for name in ('mlm_head', 'classifier')})
  put('', tree['reasoning'])
  return tensors


RELEASED = {
  'block_0': 'resblocks.0',
  'fc1': 'c_fc',
  'fc2': 'c_proj',
}
