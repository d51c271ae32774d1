"""ZenNet: what its dialect means, and its networks without some parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzoo.errors import UserError
from jaxzoo.models.backbones import structure, zennet
from jaxzoo.models.create import build_model
from jaxzoo.weights import layout

ALL = (
  'SuperConvK3BNRELU(3,8,1,2)SuperResK3K3(8,8,1,4,3)'
  'SuperResK1K5K1(8,12,2,4,3)SuperResIDWE2K3(12,8,2,6,2)'
  'SuperConvK1BNRELU(8,16,1,1)'
)


def tiny(string=ALL, **fields):
  return build_model(
    'zennet_cifar10_model_size1M_res32',
    structure=string,
    image_size=16,
    **fields,
  )


def normal(shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes(built):
  (image,) = built.inputs
  return jax.eval_shape(
    built.module.init, jax.random.key(0), jnp.zeros(image.shape)
  )


def positive(built, seed=0):
  """Random variables; variances are positive."""
  return jax.tree.map(
    lambda x: np.abs(normal(x.shape, seed)) / 2 + 0.1, shapes(built)
  )


def assert_same(a, b, **tolerance):
  a, b = layout.flatten(a), layout.flatten(b)
  assert set(a) == set(b)
  for path in a:
    np.testing.assert_allclose(a[path], b[path], err_msg=path, **tolerance)


def projected(string):
  """Which units of the first super block project: layer, unit."""
  paths = layout.flatten(shapes(tiny(string))['params'])
  return {tuple(path.split('/')[1:3]) for path in paths if '/shortcut/' in path}


def test_first_unit_projects_even_where_shapes_agree():
  assert projected('SuperResK3K3(3,3,1,4,3)') == {('first', 'unit0')}
  assert projected('SuperResK1K3K1(3,3,1,4,2)') == {('first', 'unit0')}


def test_inverted_units_project_where_the_width_between_them_differs():
  assert projected('SuperResIDWE1K3(3,8,1,8,2)') == {('first', 'unit0')}
  assert projected('SuperResIDWE1K3(3,8,1,4,2)') == {
    (layer, unit)
    for layer in ('first', 'block_0')
    for unit in ('unit0', 'unit1')
  }


def test_inverted_units_pass_the_width_of_their_bottleneck():
  (block,) = zennet.blocks_of('SuperResIDWE2K7(3,20,2,10,1)')
  ((first, second),) = zennet.layers_of(block)
  # Multiples of 8, of two equally near ones that of 16: 20 -> 16, 40.
  assert [c.features for c in first.convs] == [16, 16, 10]
  assert [c.features for c in second.convs] == [40, 40, 20]
  assert [c.stride for c in first.convs + second.convs] == [1, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
  'x, rounded', [(1, 8), (4, 8), (12, 16), (20, 16), (28, 32), (29, 32)]
)
def test_round8(x, rounded):
  assert zennet.round8(x) == rounded


def test_units_that_need_no_projection_start_silent():
  image = normal((2, 16, 16, 3))
  results = []
  for repeats in (1, 3):
    built = tiny(f'SuperConvK3BNRELU(3,8,1,1)SuperResK3K3(8,8,1,4,{repeats})')
    variables = jax.jit(built.module.init)(jax.random.key(0), image)
    forward = jax.jit(
      lambda v, x, m=built.module: m.apply(v, x, method='features').vector
    )
    results.append(forward(variables, image))
  # The random first layers have the same names, and so the same numbers.
  np.testing.assert_allclose(*results, rtol=1e-6)


@pytest.mark.parametrize(
  'name, parameters', [('flops400M', 5698208), ('flops600M', 7125944)]
)
def test_published_sizes_are_those_without_excitation(name, parameters):
  built = build_model(f'zennet_imagenet1k_{name}_SE_res224', use_se=False)
  leaves = jax.tree.leaves(shapes(built)['params'])
  assert sum(int(np.prod(x.shape)) for x in leaves) == parameters


@pytest.mark.parametrize(
  'fields',
  [
    dict(use_se=True),
    dict(residual=False),
    dict(batch_norm=False, use_se=True),
    dict(folded=True, use_se=True),
  ],
)
def test_names_of_every_form_go_both_ways(fields):
  built = tiny(**fields)
  variables = positive(built)
  assert_same(built.convert(built.export(variables)), variables)
  paths = list(layout.flatten(variables))
  bare = not fields.get('batch_norm', True) or fields.get('folded')
  assert any('/bn/' in path for path in paths) is not bare
  assert any('/shortcut/' in path for path in paths) is fields.get(
    'residual', True
  )


@pytest.mark.parametrize('scan', [False, True])
def test_folding_changes_nothing(scan):
  string = 'SuperConvK3BNRELU(3,4,2,1)SuperResK3K3(4,6,1,4,3)'
  built = tiny(string, use_se=True, scan=scan)
  variables, image = positive(built), normal((2, 16, 16, 3))
  module, folded = structure.fold(built.module, variables)
  assert set(folded) == {'params'}
  want = jax.jit(built.module.apply)(variables, image)
  got = jax.jit(module.apply)(folded, image)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_dialects_do_not_mix():
  with pytest.raises(UserError, match="no block 'SuperResKXKX'"):
    tiny('SuperResKXKX(3,8,3,1,1.0,1)')


def test_excitation_squeezes_to_a_quarter_of_what_it_sees():
  params = shapes(tiny('SuperResK3K3(3,9,1,6,1)', use_se=True))['params']
  excite = params['super0']['first']['unit0']['se']
  assert excite['fc1']['kernel'].shape == (6, 2)  # round(1.5)
