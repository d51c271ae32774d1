"""ELSA's operator against its definition, and the network around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from tiny_retrieval import filled

from jaxzoo.models.backbones import elsa
from jaxzoo.models.create import build_model
from jaxzoo.models.layers import windows
from jaxzoo.models.layers.elsa import local_filter
from jaxzoo.weights import layout, rows

TINY = dict(
  image_size=32,
  width=12,
  depths=(4, 2),
  num_heads=(1, 2),
  kernel_size=3,
  group_width=4,
  window=4,
  num_classes=3,
)


def normal(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


def inputs(kernel=3, heads=2, channels=4, size=(4, 5)):
  attention = jax.nn.softmax(normal(2, *size, heads, kernel**2, seed=1))
  ghost = lambda seed: normal(channels, kernel**2, seed=seed)
  return normal(2, *size, channels), attention, ghost(2), ghost(3)


def direct(value, attention, multiply, add, dilation):
  """The definition, place by place."""
  b, h, w, c = value.shape
  kernel, heads = round(attention.shape[-1] ** 0.5), attention.shape[3]
  result = np.zeros(value.shape)
  for y, x, ch, j in np.ndindex(h, w, c, kernel**2):
    down, right = (np.array(divmod(j, kernel)) - kernel // 2) * dilation
    if 0 <= y + down < h and 0 <= x + right < w:
      weight = attention[:, y, x, ch // (c // heads), j]
      weight = multiply[ch, j] * weight + add[ch, j]
      result[:, y, x, ch] += weight * value[:, y + down, x + right, ch]
  return result


@pytest.mark.parametrize('dilation', [1, 2])
def test_operator_is_its_definition(dilation):
  v, a, multiply, add = inputs()
  got = jax.jit(local_filter, static_argnums=4)(v, a, multiply, add, dilation)
  want = direct(v, np.asarray(a), multiply, add, dilation)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_without_ghosts_filters_are_the_attention():
  v, a, multiply, add = inputs()
  np.testing.assert_allclose(
    local_filter(v, a),
    direct(v, np.asarray(a), np.ones_like(multiply), 0 * add, 1),
    atol=1e-5,
  )


@pytest.mark.parametrize('dilation', [1, 2])
@pytest.mark.parametrize('ghosts', [(), ('add',), ('multiply', 'add')])
def test_gradients_are_those_of_finite_differences(ghosts, dilation):
  v, a, *both = inputs()
  matrices = dict(zip(('multiply', 'add'), both, strict=True))

  def operator(v, a, *given):
    chosen = dict(zip(ghosts, given, strict=True))
    return local_filter(v, a, **chosen, dilation=dilation)

  arguments = (v, a, *(matrices[name] for name in ghosts))
  check_grads(jax.jit(operator), arguments, 1, ['rev'], 1e-2, 1e-2)


def test_added_ghosts_are_a_depth_wise_convolution():
  v, a, _, add = inputs()
  kernel = add.T.reshape(3, 3, 1, -1)
  convolved = jax.lax.conv_general_dilated(
    v,
    kernel,
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=v.shape[-1],
  )
  np.testing.assert_allclose(
    local_filter(v, a, None, add), local_filter(v, a) + convolved, atol=1e-5
  )


def test_taps_that_are_no_square_are_an_error():
  v, a, *_ = inputs()
  with pytest.raises(ValueError, match='square'):
    local_filter(v, a[..., :8])


# The network.


def tiny(**options):
  built = build_model('elsa_swin_tiny', **{**TINY, **options})
  image = jnp.zeros(built.inputs[0].shape)
  return built, jax.eval_shape(built.module.init, jax.random.key(0), image)


@pytest.mark.parametrize('lam, gamma', [(1, 1), (1, 0), (0, 1), (0, 0)])
def test_ghost_heads_go_both_ways(lam, gamma):
  built, shapes = tiny(lam=lam, gamma=gamma)
  tree = filled(shapes)
  tensors = built.export(tree)
  ghost = 'layers.0.blocks.0.attn.ghost_head'
  want = {0: None, 1: (1, 12, 3, 3), 2: (2, 1, 12, 3, 3)}[lam + gamma]
  assert want == (tensors[ghost].shape if ghost in tensors else None)
  tensors['layers.1.blocks.0.attn.relative_id'] = np.zeros((16, 16))
  jax.tree.map(np.testing.assert_array_equal, built.convert(tensors), tree)


def test_table_by_key_minus_query_gives_the_same_bias():
  built, _ = tiny()
  name = 'layers.1.blocks.0.attn.rb'
  rb = normal(2, 49)
  (row,) = [row for row in elsa.rows(built.module) if row.theirs == name]
  table = rows.load({name: rb}, [row])
  table = layout.flatten(table)[row.ours]
  got = table[windows.relative_position_index(4)].transpose(2, 0, 1)
  index = windows.relative_position_index(4, key_minus_query=True)
  np.testing.assert_array_equal(got, rb[:, index])


@functools.cache
def logits():
  built, shapes = tiny(drop_path=0.0)
  return run(built, filled(shapes))


def run(built, tree):
  """Logits while training."""
  image, keys = normal(2, 32, 32, 3), {'dropout': jax.random.key(0)}
  apply = lambda tree: built.module.apply(tree, image, True, rngs=keys)
  return jax.jit(apply)(tree)


@pytest.mark.parametrize('options', [{'scan': True}, {'remat': 'full'}])
def test_layouts_of_the_stack_give_the_same(options):
  _, shapes = tiny(drop_path=0.0)
  built, like = tiny(drop_path=0.0, **options)
  got = run(built, layout.to_layout(filled(shapes), like))
  np.testing.assert_allclose(got, logits(), rtol=1e-4, atol=1e-4)


def test_paths_drop_in_scanned_blocks():
  _, shapes = tiny()
  built, like = tiny(drop_path=0.9, scan=True)
  got = run(built, layout.to_layout(filled(shapes), like))
  assert np.isfinite(got).all()
  assert np.abs(got - logits()).max() > 1e-2
