"""Pruning from the command line: what a run does, reports and exports."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog, compress, compression, main
from jaxzoo.bench import command as bench_command
from jaxzoo.bench import compress as compress_bench
from jaxzoo.compress import __main__ as command
from jaxzoo.compress import export, options
from jaxzoo.compress.methods.gap_parallel import first_copy
from jaxzoo.errors import UserError
from jaxzoo.system import alternate, from_loss, with_ema
from jaxzoo.train.flops import count_flops
from jaxzoo.train.layer_flops import flops_by_parameter

FIELDS = ('epochs=2.0', 'compress.every=1', 'eval_epochs=1.0')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The folder of a finished run, 90 % sparse after 8 steps."""
  workdir = tmp_path_factory.mktemp('pruned') / 'run'
  fields = [f'--config.{field}' for field in FIELDS]
  code = main.main(['--config=rpg:tiny', f'--workdir={workdir}', *fields])
  assert code == 0
  return workdir


@pytest.fixture(scope='module')
def state(run):
  return command.read_sparse(run)[1]


def test_run_reports_sparsity_density_churn_and_rank(run):
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').open()]
  steps = [line['sparsity'] for line in lines if 'loss' in line]
  assert steps == sorted(steps) and steps[-1] > 0.7
  last = [line for line in lines if 'mask_churn' in line][-1]
  assert 0 < last['mask_churn'] < 1
  layers = [name for name in last if name.startswith('density/')]
  assert 'density/stem_conv/kernel' in layers
  assert {n.replace('density', 'rank') for n in layers} <= set(last)
  assert all(0 < last[name] <= 1 for name in layers)


def test_result_has_the_sizes_dense_and_sparse(run, state):
  result = json.loads((run / 'result.json').read_text())
  found = result['compress']
  assert found['method'] == 'rpg' and 'test/top1' in result['metrics']
  leaves = jax.tree.leaves(state.params)
  assert found['parameters'] == sum(leaf.size for leaf in leaves)
  kept = sum(m.sum() for m in jax.tree.leaves(state.opt.masks))
  size = sum(m.size for m in jax.tree.leaves(state.opt.masks))
  assert kept == round(size * 0.1), 'to the element'
  assert found['sparsity'] == pytest.approx(1 - kept / size)
  assert found['nonzero'] == found['parameters'] - size + kept
  assert 4 * found['nonzero'] < found['bytes'] < 0.3 * found['bytes_dense']
  assert 0 < found['flops'] < 0.5 * found['flops_dense']


def test_parameters_and_their_average_are_sparse(state):
  for params in (state.params, state.extra['ema']):
    compress.assert_sparsity(params, state.opt.masks)


@pytest.mark.slow
def test_copies_of_parallel_gap_become_one_sparse_network(tmp_path):
  fields = ('epochs=2.0', 'compress.parallel=True', 'compress.phases=1')
  workdir = tmp_path / 'run'
  flags = [f'--config.{field}' for field in (*fields, 'compress.end=0.5')]
  assert main.main(['--config=gap:tiny', f'--workdir={workdir}', *flags]) == 0
  _, state = command.read_sparse(workdir)
  for leaf in jax.tree.leaves((state.params, state.extra['ema'])):
    assert leaf.shape[0] == 2
    np.testing.assert_array_equal(*leaf)
  found = json.loads((workdir / 'result.json').read_text())['compress']
  one = first_copy(state)
  leaves = jax.tree.leaves(one.params)
  assert found['parameters'] == sum(leaf.size for leaf in leaves)
  assert found['sparsity'] == pytest.approx(0.5)
  assert 0 < found['flops'] < found['flops_dense']
  path = tmp_path / 'net.safetensors'
  assert command.main(['export', str(workdir), str(path)]) == 0
  loaded = compress.load(path)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, one.extra['ema'])


def test_exported_network_comes_back(run, state, tmp_path, capsys):
  path = tmp_path / 'net.safetensors'
  assert command.main(['export', str(run), str(path)]) == 0
  loaded = compress.load(path)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, state.extra['ema'])
  jax.tree.map(
    np.testing.assert_array_equal,
    [m for m in jax.tree.leaves(loaded.masks)],
    jax.tree.leaves(state.opt.masks),
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.extra,
    {'batch_stats': state.extra['ema_stats']},
  )
  assert loaded.info['step'] == 8 and loaded.info['averaged']
  capsys.readouterr()
  assert command.main(['show', str(path)]) == 0
  assert 'stage1_block0/conv1/kernel' in capsys.readouterr().out


def test_form_that_the_masks_do_not_have_is_an_error(run, tmp_path, capsys):
  path = str(tmp_path / 'net.safetensors')
  assert command.main(['export', str(run), path, '--form=n_m']) == 2
  assert 'keeps more than 2' in capsys.readouterr().err
  assert command.main(['export', str(tmp_path), path]) == 2
  assert command.main(['show', str(run / 'config.json')]) == 2


@pytest.mark.parametrize('n,m', [(2, 4), (1, 8)])
def test_n_m_values_and_indices_come_back(n, m, tmp_path):
  params = {
    'a': {'kernel': jax.random.normal(jax.random.key(0), (3, 3, 10, 5))},
    'b': jnp.arange(4.0),
  }
  params, masks = compress.one_shot(params, compress.n_m(n, m))
  path = tmp_path / 'net.safetensors'
  size = export.save(path, params, masks, form='n_m', n=n, m=m)
  loaded = export.load(path)
  jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
  np.testing.assert_array_equal(
    loaded.masks['a']['kernel'], masks['a']['kernel']
  )
  assert size < export.save(path, params, masks, form='dense')


# Mistakes.


@pytest.mark.parametrize(
  'fields,message',
  [
    (dict(method='rgp'), 'did you mean rpg'),
    (dict(method='magnitude', schedule='cubik'), 'did you mean cubic'),
    (dict(method='magnitude', sparsity=1.5), 'must be in'),
    (dict(method='magnitude', allocation='all'), 'knows uniform, erk'),
    (dict(method='magnitude', eligible=('nothing',)), 'no parameter'),
    (dict(method='rpg', every=30), 'train longer'),
    (dict(method='gap', every=30), 'train longer'),
    (dict(method='gap', parallel=True, partitions=3), 'does not divide'),
  ],
  ids=lambda x: x if isinstance(x, str) else '-'.join(map(str, x.values())),
)
def test_mistakes_are_said_before_compilation(fields, message):
  config = catalog.get_config('classification:tiny')
  for name, value in fields.items():
    config.compress[name] = value
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  with pytest.raises(UserError, match=message):
    compression.check(config, 16)
    system = main.create_system(config, 16, 4)
    jax.eval_shape(system.init, jax.random.key(0), data.example_batch(config))


def test_system_of_several_optimizers_is_refused():
  config = catalog.get_config('classification:tiny')
  config.compress.method = 'random'
  tx = compression.wrap(optax.sgd(0.1), config, 10)
  loss = lambda own, params, extra, batch, rng: (
    jnp.sum(own['kernel']), (extra, {})
  )  # fmt: skip
  net = {'kernel': jnp.ones((4, 4))}
  players = alternate(
    lambda rng, batch: ({'a': net, 'b': net}, {}),
    {'a': loss, 'b': loss},
    lambda params, extra, batch: params,
    {'a': tx, 'b': tx},
  )
  system = compression.with_masks(players, config)
  with pytest.raises(UserError, match='several optimizers'):
    jax.eval_shape(system.init, jax.random.key(0), {})


@pytest.mark.parametrize('method', options.METHODS)
def test_every_method_can_be_named_on_the_command_line(method):
  config = catalog.get_config('classification:tiny')
  config.compress.method = method
  compression.check(config, 1000)
  system = main.create_system(config, 1000, 100)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  batch = data.example_batch(config)
  state = jax.eval_shape(system.init, jax.random.key(0), batch)
  after, metrics = jax.eval_shape(system.step, state, batch)
  assert metrics['sparsity'].shape == ()
  assert jax.tree.structure(after) == jax.tree.structure(state)


# Parts.


def test_weights_that_are_loaded_are_what_is_pruned():
  params = {'kernel': jnp.arange(16.0).reshape(4, 4)}
  config = catalog.get_config('classification:tiny')
  config.compress.update(method='magnitude', schedule='constant', sparsity=0.5)
  tx = compression.wrap(optax.sgd(0.1), config, 10)
  system = with_ema(
    from_loss(
      lambda rng, batch: (jax.tree.map(jnp.zeros_like, params), {}),
      lambda params, extra, batch, rng: (
        jnp.sum(params['kernel']),
        (extra, {}),
      ),
      lambda params, extra, batch: params,
      tx,
    ),
    0.9,
  )
  state = compression.with_masks(system, config).init(jax.random.key(0), {})
  loaded = state._replace(params=params, extra={'ema': params})
  shardings = jax.tree.map(lambda x: x.sharding, state)
  got = compression.restart(config, tx, loaded, shardings)
  for tree in (got.params, got.extra['ema']):
    assert np.flatnonzero(tree['kernel']).tolist() == list(range(8, 16))


def test_rate_begins_anew_in_each_part_of_a_run():
  config = catalog.get_config('gap:tiny')
  parts = compression.periods(config, 40)
  assert sum(parts) == 40 and parts[:-1] == [parts[0]] * config.compress.phases
  assert compression.periods(catalog.get_config('rpg:tiny'), 40) == [40]


def test_flops_are_those_of_the_layers_they_belong_to():
  params = {'a': jnp.ones((3, 3, 2, 4)), 'b': jnp.ones((4, 5)),
            'c': jnp.ones((6, 4, 4))}  # fmt: skip

  def network(params, x):
    x = jax.lax.conv_general_dilated(
      x, params['a'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    body = lambda x, kernel: (jax.jit(lambda k: x @ k.T)(kernel), None)
    x, _ = jax.lax.scan(body, x.mean((1, 2)), params['c'])
    return (x @ params['b'].astype(jnp.bfloat16)) @ jnp.ones((5, 1))

  x = jnp.ones((1, 8, 8, 2))
  flops = flops_by_parameter(network, params, x)
  assert flops == {'a': 2 * 64 * 4 * 18, 'c': 6 * 2 * 16, 'b': 40, '': 10}
  assert sum(flops.values()) == count_flops(lambda p: network(p, x), params)


def test_sparse_matrices_of_jax_multiply_like_the_masked_ones():
  params = {'kernel': jax.random.normal(jax.random.key(0), (8, 6)),
            'bias': jnp.ones(6)}  # fmt: skip
  params, masks = compress.one_shot(params, compress.magnitude(0.75))
  matrices = compress.to_sparse(params, masks)
  assert matrices['kernel'].nse == 12
  x = jnp.ones((2, 8))
  np.testing.assert_allclose(
    x @ matrices['kernel'], x @ params['kernel'], rtol=1e-5
  )
  assert matrices['bias'] is params['bias']


def test_benchmark_compares_selections_that_agree(tmp_path, capsys):
  path = tmp_path / 'numbers.json'
  arguments = ['--parts', 'selection', '--scores=1000', f'--json={path}']
  assert bench_command.run(compress_bench.compress, arguments) == 0
  assert json.loads(path.read_text())['selection']['agree']
  assert 'by bits' in capsys.readouterr().out
