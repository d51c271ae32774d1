"""Parameter groups, the update equations, and schedules in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo.errors import UserError
from jaxzoo.train import optim
from jaxzoo.train.optim import make_optimizer, make_schedule

LR = 0.1


def params():
  return {
    'image': {'kernel': jnp.array([2.0, -3.0]), 'bias': jnp.array([1.0])},
    'head': {'kernel': jnp.array([4.0]), 'bias': jnp.array([-1.0])},
  }


def grads(step=0):
  rng = np.random.default_rng(step)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), params()
  )


def trajectory(tx, steps=4):
  now, state = params(), tx.init(params())
  for step in range(steps):
    updates, state = tx.update(grads(step), state, now)
    now = optax.apply_updates(now, updates)
  return now, state


def close(got, want):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    got,
    want,
  )


# Groups.


def test_later_groups_override_only_the_fields_that_they_name():
  groups = (
    ('^image/', {'lr': 5.0, 'decay': 3.0}),
    ('bias$', {'lr': 2.0}),
    ('^head/', {'frozen': True}),
  )
  got = optim.group_tree(params(), groups)
  assert got['image']['kernel'] == optim.Group(5.0, 3.0, False)
  assert got['image']['bias'] == optim.Group(2.0, 3.0, False)
  assert got['head']['bias'] == optim.Group(2.0, 1.0, True)
  swapped = optim.group_tree(params(), (groups[1], groups[0]))
  assert swapped['image']['bias'] == optim.Group(5.0, 3.0, False)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_rate_multiplier_scales_the_update(name):
  groups = (('^image/', {'lr': 5.0}),)
  plain, _ = trajectory(make_optimizer(name, LR), 1)
  faster, _ = trajectory(make_optimizer(name, LR, groups=groups), 1)
  moved = jax.tree.map(lambda new, old: new - old, plain, params())
  scaled = jax.tree.map(lambda new, old: new - old, faster, params())
  close(scaled['image'], jax.tree.map(lambda x: 5 * x, moved['image']))
  close(scaled['head'], moved['head'])


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_frozen_parameters_have_no_moments_and_no_update(name):
  groups = (('^image/', {'frozen': True}),)
  tx = make_optimizer(name, LR, weight_decay=0.1, groups=groups)
  got, state = trajectory(tx)
  for key, value in params()['image'].items():
    np.testing.assert_array_equal(got['image'][key], value)
  assert (got['head']['kernel'] != params()['head']['kernel']).all()
  paths = jax.tree_util.tree_flatten_with_path(state)[0]
  names = [optim.path_name(path) for path, _ in paths]
  assert any('head/kernel' in each for each in names)
  assert not any('image/' in each for each in names)


def test_frozen_gradients_do_not_count_in_the_clipped_norm():
  groups = (('^image/', {'frozen': True}),)
  options = dict(clip_norm=1e-3, momentum=0.0)
  got, _ = trajectory(make_optimizer('sgd', 1.0, groups=groups, **options), 1)
  moved = jax.tree.map(lambda a, b: a - b, got, params())
  np.testing.assert_allclose(optax.global_norm(moved), 1e-3, rtol=1e-2)


@pytest.mark.parametrize(
  'fields, text', [({'lrr': 2.0}, 'lrr.*lr'), ({'freeze': True}, 'frozen')]
)
def test_unknown_field_of_a_group_is_an_error_at_once(fields, text):
  with pytest.raises(UserError, match=f'(?s)bias.*{text}'):
    make_optimizer('adam', LR, groups=(('bias$', fields),))


def test_broken_pattern_of_a_group_is_an_error_at_once():
  with pytest.raises(UserError, match=r"optim\.groups.*'\(bias'"):
    make_optimizer('adam', LR, groups=(('(bias', {'lr': 2.0}),))


def test_patterns_that_match_nothing_are_found():
  groups = (('^image/', {}), ('imgae', {}), ('bias$', {}))
  assert optim.unmatched(params(), groups) == ['imgae']


# The update equations.


def by_hand(rule, steps=4):
  """Applies rule(t, g, p, memory) -> new p to every number."""
  now = params()
  memory = jax.tree.map(lambda x: {}, now)
  for step in range(steps):
    now = jax.tree.map(
      lambda g, p, m, t=step + 1: rule(t, g, p, m), grads(step), now, memory
    )
  return now


def moments(t, g, memory, b1=0.9, b2=0.999, eps=1e-8):
  memory['m'] = b1 * memory.get('m', 0.0) + (1 - b1) * g
  memory['v'] = b2 * memory.get('v', 0.0) + (1 - b2) * g * g
  mean, square = memory['m'] / (1 - b1**t), memory['v'] / (1 - b2**t)
  return mean / (jnp.sqrt(square) + eps)


def test_adam_adds_the_decay_to_the_gradient():
  decay = 0.3
  got, _ = trajectory(make_optimizer('adam', LR, weight_decay=decay))
  rule = lambda t, g, p, memory: p - LR * moments(t, g + decay * p, memory)
  close(got, by_hand(rule))


def test_adamw_adds_the_decay_to_the_update():
  decay = 0.3
  got, _ = trajectory(make_optimizer('adamw', LR, weight_decay=decay))
  rule = lambda t, g, p, memory: p - LR * (moments(t, g, memory) + decay * p)
  close(got, by_hand(rule))


def first_update(tx, path, gradient):
  """The first update of one array of zeros called `path`."""
  tree = gradient
  for name in reversed(path.split('/')):
    tree = {name: tree}
  zeros = jax.tree.map(jnp.zeros_like, tree)
  update, _ = tx.update(tree, tx.init(zeros), zeros)
  return np.asarray(jax.tree.leaves(update)[0])


def random_array(*shape):
  return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize('shape', [(24, 16), (16, 24)])
def test_muon_makes_the_update_of_a_matrix_orthogonal(shape):
  update = first_update(
    make_optimizer('muon', LR), 'mlp/fc1/kernel', random_array(*shape)
  )
  # Five Newton-Schulz steps bring singular values near 1, not to it.
  values = np.linalg.svd(update, compute_uv=False)
  size = LR * 0.2 * math.sqrt(max(shape))
  assert (values > 0.6 * size).all() and (values < 1.3 * size).all()


def test_muon_treats_a_stack_of_layers_like_each_layer():
  tx, stack = make_optimizer('muon', LR), random_array(3, 24, 16)
  got = first_update(tx, 'blocks/mlp/fc1/kernel', stack)
  for layer, gradient in zip(got, stack, strict=True):
    want = first_update(tx, 'block_0/mlp/fc1/kernel', gradient)
    np.testing.assert_allclose(layer, want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  'path, shape, matrix',
  [
    ('attn/query/kernel', (24, 4, 8), (24, 32)),  # in, heads, channels
    ('attn/out/kernel', (4, 8, 24), (32, 24)),  # heads, channels, out
  ],
)
def test_muon_joins_heads_and_channels(path, shape, matrix):
  tx, gradient = make_optimizer('muon', LR), random_array(*shape)
  got = first_update(tx, path, gradient)
  want = first_update(tx, 'mlp/fc1/kernel', gradient.reshape(matrix))
  np.testing.assert_allclose(got.reshape(matrix), want, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
  'path, shape',
  [
    ('mlp/fc1/bias', (16,)),
    ('text/token_embedding', (40, 8)),
    ('image/conv/kernel', (4, 4, 3, 8)),
    ('classifier/kernel', (8, 40)),
  ],
)
def test_muon_leaves_the_rest_to_adam(path, shape):
  gradient = random_array(*shape)
  update = first_update(make_optimizer('muon', LR), path, gradient)
  # Adam's first update is the sign of the gradient.
  ratio = update / (-LR * np.sign(gradient))
  np.testing.assert_allclose(ratio, ratio.flat[0] + 0 * ratio, rtol=1e-3)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_adds_the_decay_to_the_gradient_before_the_momentum(nesterov):
  decay, beta = 0.3, 0.8

  def rule(t, g, p, memory):
    del t
    g = g + decay * p
    memory['v'] = beta * memory.get('v', 0.0) + g
    return p - LR * (g + beta * memory['v'] if nesterov else memory['v'])

  tx = make_optimizer(
    'sgd', LR, momentum=beta, nesterov=nesterov, weight_decay=decay
  )
  close(trajectory(tx)[0], by_hand(rule))


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_group_without_decay_moves_as_if_there_were_none(name):
  groups = (('bias$', {'decay': 0.0}),)
  got, _ = trajectory(make_optimizer(name, LR, weight_decay=0.5, groups=groups))
  plain, _ = trajectory(make_optimizer(name, LR))
  decayed, _ = trajectory(make_optimizer(name, LR, weight_decay=0.5))
  for part in ('image', 'head'):
    close(got[part]['bias'], plain[part]['bias'])
    close(got[part]['kernel'], decayed[part]['kernel'])
    assert not np.allclose(got[part]['kernel'], plain[part]['kernel'])


def test_clipping_bounds_the_gradient_not_the_update():
  tx = make_optimizer('sgd', 1.0, momentum=0.0, clip_norm=0.5)
  got, _ = trajectory(tx, 1)
  moved = jax.tree.map(lambda a, b: a - b, got, params())
  np.testing.assert_allclose(optax.global_norm(moved), 0.5, rtol=1e-5)


def test_first_moment_takes_the_dtype_that_is_asked():
  state = make_optimizer('adam', LR, mu_dtype='bfloat16').init(params())
  dtypes = {
    optim.path_name(path).split('/')[1]: leaf.dtype
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    if leaf.ndim
  }
  assert dtypes == {'mu': jnp.bfloat16, 'nu': jnp.float32}


@pytest.mark.parametrize(
  'name, nearest', [('adamv', 'adamw'), ('sdg', 'sgd'), ('zz', 'known')]
)
def test_unknown_optimizer_names_the_nearest(name, nearest):
  with pytest.raises(UserError, match=f'optim.name.*{name}.*{nearest}'):
    make_optimizer(name, LR)


# Decay by layer.


def layers(depth=3, scan=False):
  """A transformer's parameters."""
  block = {'attn': {'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)}}
  blocks = {f'block_{i}': block for i in range(depth)}
  if scan:
    stacked = jax.tree.map(lambda x: jnp.stack([x] * depth), block)
    blocks = {'blocks': stacked}
  return {
    'patch_embed': {'kernel': jnp.ones((2, 4))},
    'pos_embed': jnp.ones((5, 4)),
    'transformer': blocks,
    'norm': {'scale': jnp.ones(4)},
    'head': {'kernel': jnp.ones((4, 2))},
  }


def test_rates_fall_from_the_classifier_to_the_patches():
  got = optim.layer_decay_tree(layers(), 0.5)
  assert got['head'] == {'kernel': 1.0} and got['norm'] == {'scale': 1.0}
  for i, want in enumerate([0.125, 0.25, 0.5]):
    attn = got['transformer'][f'block_{i}']['attn']
    assert attn == {'kernel': want, 'bias': want}
  assert got['pos_embed'] == got['patch_embed']['kernel'] == 0.5**4


def test_rates_of_a_scanned_stack_are_those_of_its_blocks():
  tree = layers(scan=True)
  attn = optim.layer_decay_tree(tree, 0.5)['transformer']['blocks']['attn']
  assert attn['kernel'].shape == (3, 1, 1) and attn['bias'].shape == (3, 1)
  assert attn['bias'].ravel().tolist() == [0.125, 0.25, 0.5]
  moved = {}
  for scan in (False, True):
    tree = layers(scan=scan)
    tx = make_optimizer('sgd', LR, momentum=0.0, layer_decay=0.5)
    updates, _ = tx.update(tree, tx.init(tree), tree)
    moved[scan] = updates['transformer']
  for i in range(3):
    jax.tree.map(
      lambda stack, one, i=i: np.testing.assert_allclose(stack[i], one),
      moved[True]['blocks'],
      moved[False][f'block_{i}'],
    )


def test_rates_of_stages_go_on_from_stage_to_stage():
  leaf = {'kernel': jnp.ones((3, 3))}
  tree = {
    'stem_bn': {'scale': jnp.ones(3)},
    'stage1_block0': leaf,
    'stage1_block1': leaf,
    'merge1': leaf,
    'stage2_token': leaf,
    'stage2_block0': leaf,
    'stage10': {'block_0': leaf, 'block_1': leaf},
    'head': leaf,
  }
  got = optim.layer_decay_tree(tree, 0.5)
  power = lambda x: -int(np.log2(x['kernel']))
  assert power(got['head']) == 0
  assert [power(got['stage10'][f'block_{i}']) for i in range(2)] == [2, 1]
  for name in ('merge1', 'stage2_token', 'stage2_block0'):
    assert power(got[name]) == 3
  assert [power(got[f'stage1_block{i}']) for i in range(2)] == [5, 4]
  assert got['stem_bn']['scale'] == 0.5**6


def test_layer_decay_scales_the_update_and_its_decay():
  tree = layers()
  make = lambda **options: make_optimizer(
    'adamw', LR, weight_decay=0.3, **options
  )
  moved = []
  for tx in (make(), make(layer_decay=0.5)):
    moved.append(tx.update(tree, tx.init(tree), tree)[0])
  scales = optim.layer_decay_tree(tree, 0.5)
  close(moved[1], jax.tree.map(lambda u, s: u * s, moved[0], scales))


@pytest.mark.parametrize('decay', [0.0, -1.0, 1.5, float('nan')])
def test_layer_decay_that_is_none_is_an_error(decay):
  with pytest.raises(UserError, match='optim.layer_decay'):
    make_optimizer('adamw', LR, layer_decay=decay)


# Schedules.

TOTAL, WARMUP, START = 40, 10, 0.2


def closed_form(name, step, end=0.0):
  """The rate over LR, written out from the definitions."""
  if name == 'cosine_after_first' and step < 1:
    return 1.0
  if step < WARMUP and name != 'step':
    return START + (1 - START) * step / WARMUP
  r = (step - WARMUP) / (TOTAL - WARMUP)
  if name == 'step':
    rise = START + (1 - START) * step / WARMUP if step < WARMUP else 1.0
    return rise * 0.1 ** ((step >= 5) + (step >= 20))
  full = {
    'constant': 1.0,
    'cosine': 0.5 * (1 + math.cos(math.pi * r)),
    'cosine_after_first': 0.5 * (1 + math.cos(math.pi * r)),
    'cosine_whole': 0.5 * (1 + math.cos(math.pi * step / TOTAL)),
    'linear': 1 - r,
    'poly': (1 - r) ** 0.9,
    'poly_as_released': 0.9 ** (1 - r),
    'exp': 0.9**r,
  }[name]
  return end + (1 - end) * full


def schedule(name, **options):
  settings = dict(
    total_steps=TOTAL,
    warmup_steps=WARMUP,
    warmup_factor=START,
    milestones=(5, 20),
  )
  return make_schedule(name, LR, **{**settings, **options})


@pytest.mark.parametrize('end', [0.0, 0.25])
@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedule_equals_its_closed_form(name, end):
  if end and name == 'step':
    pytest.skip('a step schedule has no end')
  rates = schedule(name, end=end * LR)
  got = [float(rates(step)) for step in range(TOTAL + 1)]
  want = [LR * closed_form(name, step, end) for step in range(TOTAL + 1)]
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)


def test_schedule_stays_at_its_end():
  rates = schedule('cosine', end=0.01)
  np.testing.assert_allclose(float(rates(TOTAL)), 0.01, rtol=1e-6)
  assert rates(TOTAL) == rates(10 * TOTAL)


def test_schedule_is_the_same_inside_compiled_code():
  rates = schedule('cosine')
  compiled = jax.jit(rates)
  for step in (0, 3, WARMUP, TOTAL):
    assert compiled(jnp.int32(step)) == rates(step)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_rate_by_epoch_is_constant_within_an_epoch(name):
  epoch = 4
  fine = schedule(name)
  rates = schedule(name, steps_per_epoch=epoch)
  got = [float(rates(step)) for step in range(TOTAL)]
  want = [float(fine(step // epoch * epoch)) for step in range(TOTAL)]
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
  'name, nearest', [('cosin', 'cosine'), ('liner', 'linear'), ('zz', 'known')]
)
def test_unknown_schedule_names_the_nearest(name, nearest):
  with pytest.raises(UserError, match=f'optim.schedule.*{name}.*{nearest}'):
    make_schedule(name, LR, total_steps=1)


def test_rate_that_is_set_after_each_epoch_is_whole_in_the_first():
  rates = make_schedule(
    'cosine_after_first',
    2.0,
    total_steps=100,
    warmup_steps=20,
    steps_per_epoch=10,
  )
  want = {0: 2.0, 9: 2.0, 10: 1.0, 20: 2.0}  # epoch e >= 1: e / 2, then cosine
  want[59] = 1 + np.cos(np.pi * 3 / 8)
  for step, rate in want.items():
    np.testing.assert_allclose(rates(step), rate, rtol=1e-6)
