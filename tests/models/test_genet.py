"""GENet: its grammar, and what scanning and folding promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import genet, structure
from jaxzoo.models.create import build_model
from jaxzoo.weights import layout

# Every kind of block.
ALL = (
  'ConvKX(3,4,3,2)BN(4)RELU(4)MaxPool(4,3,1)ConvDW(4,3,1)BN(4)BN(4)'
  'SuperResKXKX(4,6,3,1,1.0,3)SuperResK1KX(6,6,3,1,0.5,1)'
  'SuperResK1KXK1(6,8,3,2,0.5,3)SuperResK1DWK1(8,8,5,1,2.0,2)'
  'SuperResK1DW(8,6,3,1,1.0,1)ConvKX(6,7,1,1)AdaptiveAvgPool(7,2)'
  'Flatten(28)Linear(28,9,0)BN(9)RELU(9)'
)


def tiny(string=ALL, **fields):
  return build_model(
    'genet_small', structure=string, image_size=16, num_classes=5, **fields
  )


def normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def positive(built, seed=0):
  """Random variables; variances are positive."""
  shapes = jax.eval_shape(
    built.module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))
  )
  return jax.tree.map(lambda x: np.abs(normal(x.shape, seed)) / 2 + 0.1, shapes)


def assert_same(a, b, **tolerance):
  a, b = layout.flatten(a), layout.flatten(b)
  assert set(a) == set(b)
  for path in a:
    np.testing.assert_allclose(a[path], b[path], err_msg=path, **tolerance)


@pytest.mark.parametrize(
  'string, character, message',
  [
    ('ConvKX(3,4,3,2)BM(4)', 15, "no block 'BM'; did you mean BN"),
    ('ConvKX(3,4,3)', 7, 'ConvKX takes 4 numbers (inputs, outputs, kernel'),
    ('ConvKX(3,4,3,2)BN(5)', 15, 'BN takes 5 channels, but ConvKX'),
    ('ConvKX(3,4,k,2)', 11, "kernel of ConvKX must be a whole number from 1"),
    ('ConvKX(3,4.5,3,2)', 9, "outputs of ConvKX must be a whole number"),
    ('ConvKX(3,4,3,0)', 13, 'stride of ConvKX must be a whole number from 1'),
    ('ConvKX(3,4,3,2) BN(4', 16, 'expected a block'),
    ('ConvKX(3,4,3,2);BN(4)', 15, 'expected a block'),
    ('SuperResK1DW(3,4,3,2,2.0,1)', 0, 'expansion of SuperResK1DW must be 1'),
    ('ConvKX(3,4,3,2)Linear(4,2,1)', 15, 'Linear cannot stand here'),
    ('AdaptiveAvgPool(3,1)MaxPool(3,3,1)', 20, 'MaxPool cannot stand here'),
  ],
)  # fmt: skip
def test_error_points_at_the_place(string, character, message):
  with pytest.raises(UserError) as error:
    tiny(string)
  text = str(error.value)
  assert f'character {character}: ' in text and message in text
  shown, caret = text.splitlines()[-2:]
  assert shown[caret.index('^') :].startswith(string[character : character + 9])


def test_empty_structure_is_an_error():
  with pytest.raises(UserError, match='empty'):
    tiny(' ')


def test_place_is_shown_in_a_long_structure():
  string = genet.PUBLISHED['GENet-large']['structure']
  with pytest.raises(UserError) as error:
    tiny(string.replace('(192,', '(191,'))
  assert max(map(len, str(error.value).splitlines())) < 120


def test_tags_and_white_space_have_no_meaning():
  tagged = ' ConvKX(a1-b2|3,4,3,2)\nBN(tag|4) '
  plain = 'ConvKX(3,4,3,2)BN(4)'
  without_place = lambda text: [
    block._replace(place=0) for block in genet.blocks_of(text)
  ]
  assert without_place(tagged) == without_place(plain)


def test_channels_within_round_to_even_and_follow_the_output():
  (block,) = genet.blocks_of('SuperResK1KXK1(64,10,3,2,0.25,2)')
  first, second = genet.layers_of(block)
  assert [c.features for c in first[0].convs] == [2, 2, 10]  # round(2.5)
  assert [c.stride for c in first[0].convs] == [1, 2, 1]
  assert first[0].project and not second[0].project


def test_adaptive_pool_takes_means_of_overlapping_cells():
  x = normal((2, 5, 7, 3))
  cells = [
    x[:, i * 5 // 3 : -(-(i + 1) * 5 // 3), j * 7 // 3 : -(-(j + 1) * 7 // 3)]
    for i in range(3)
    for j in range(3)
  ]
  want = np.stack([cell.mean((1, 2)) for cell in cells], -1).reshape(2, -1)
  np.testing.assert_allclose(genet.adaptive_pool(x, 3), want, atol=1e-6)


def test_maps_are_the_last_of_each_stride():
  built = tiny(features_only=True)
  maps = jax.eval_shape(
    built.module.apply, positive(built), normal((2, 16, 16, 3))
  )
  assert [x.shape for x in maps.values()] == [(2, 8, 8, 6), (2, 4, 4, 7)]


@pytest.mark.parametrize('scan', [False, True])
def test_folding_changes_nothing_but_the_norms(scan):
  built = tiny(scan=scan)
  variables, image = positive(built), normal((2, 16, 16, 3))
  module, folded = structure.fold(built.module, variables)
  want = jax.jit(built.module.apply)(variables, image)
  got = jax.jit(module.apply)(folded, image)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  # Norms that follow no convolution stay.
  assert set(folded['batch_stats']) == {'bn6', 'bn16'}


def test_folded_network_loads_published_and_folded_checkpoints():
  built, folded = tiny(), tiny(folded=True)
  variables = positive(built)
  _, want = structure.fold(built.module, variables)
  got = folded.convert(built.export(variables))
  assert_same(got, want, rtol=1e-6)
  state_dict = folded.export(got)
  assert 'module_list.1.netblock.weight' not in state_dict
  assert_same(folded.convert(state_dict), got)


def test_scanned_layers_train_as_unrolled_ones():
  string = 'ConvKX(3,4,3,2)BN(4)RELU(4)SuperResK1KXK1(4,6,3,1,0.5,4)'
  image = normal((4, 16, 16, 3))
  results = []
  plain = positive(tiny(string))
  for scan in (False, True):
    built = tiny(string, scan=scan, remat='full' if scan else 'none')
    variables = layout.to_layout(plain, positive(built))
    assert ('blocks' in variables['params']['super3']) is scan

    @jax.jit
    def step(variables, module=built.module):
      def loss(params):
        logits, updated = module.apply(
          {**variables, 'params': params}, image, True, mutable=['batch_stats']
        )
        return (logits**2).mean(), updated

      return jax.value_and_grad(loss, has_aux=True)(variables['params'])

    (_, updated), grads = step(variables)
    results.append(layout.unstack_blocks({**updated, 'params': grads}))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(results[0]))
  assert_same(*results, atol=1e-4 * largest, rtol=1e-3)


def test_names_of_any_structure_go_both_ways():
  built = tiny()
  variables = positive(built)
  state_dict = built.export(variables)
  assert state_dict['module_list.7.conv_list.2.3.weight'].shape == (6, 6, 3, 3)
  assert 'module_list.7.shortcut_list.0.1.weight' in state_dict
  assert 'module_list.7.shortcut_list.1.1.weight' not in state_dict
  assert_same(built.convert(state_dict), variables)
