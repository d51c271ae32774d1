"""The best evaluation, and the end of a run that gets no better."""

import json

import pytest

from jaxzoo import catalog, main
from jaxzoo.errors import UserError
from jaxzoo.train.best import Best, better


def follow(values, mode):
  best = Best()
  for i, value in enumerate(values):
    best = better(best, i, {'m': value, 'other': -value}, 'm', mode)
  return best


@pytest.mark.parametrize(
  'values, mode, step, waited',
  [
    ([3, 1, 2, 2], 'min', 1, 2),
    ([3, 1, 2, 2], 'max', 0, 3),
    ([1, 2, 3], 'max', 2, 0),
    ([2, 2], 'min', 1, 0),
    ([0.0, -1.0, -0.5], 'min', 1, 1),
  ],
)
def test_best_is_found_and_waiting_counted(values, mode, step, waited):
  best = follow(values, mode)
  assert (best.step, best.waited) == (step, waited)
  assert best.metrics == {'m': values[step], 'other': -values[step]}


def test_repeated_evaluation_of_the_best_changes_nothing():
  best = follow([3, 1, 2], 'min')
  assert better(best, best.step, {'m': 1}, 'm', 'min') == best


def test_unknown_metric_is_told():
  with pytest.raises(UserError, match='did you mean val/mse'):
    better(Best(), 1, {'val/mse': 1.0}, 'val/msee', 'min')


@pytest.fixture
def config():
  config = catalog.get_config('card:tiny').copy_and_resolve_references()
  config.unlock()
  del config.evals.test
  config.optim.lr = 0.0  # the first evaluation is as good as any
  config.epochs = 6.0
  config.patience = 2
  config.network.hidden = False  # faster to compile
  config.network.channel_attention = False
  return config


@pytest.mark.slow
def test_run_ends_when_it_gets_no_better_and_stays_ended(
  config, tmp_path, monkeypatch
):
  # Equals are better: each evaluation is made a little worse.
  worse = iter(range(100))
  make = main.make_evaluators

  def evaluators(config):
    def one(evaluate):
      def evaluated(predict):
        found = evaluate(predict)
        metrics = dict(found.metrics)
        metrics['decayed_mae'] += next(worse)
        return found._replace(metrics=metrics)

      return evaluated

    return {name: one(evaluate) for name, evaluate in make(config).items()}

  monkeypatch.setattr(main, 'make_evaluators', evaluators)
  result = main.train(config, tmp_path)
  assert result['step'] == 15, 'the best of epoch 1, and two more'
  assert result['best']['step'] == 5
  stored = json.loads((tmp_path / 'result.json').read_text())
  assert stored['best']['metrics'] == result['best']['metrics']
  again = main.train(config, tmp_path)
  assert again['step'] == 15 and again['best'] == result['best']
  assert (tmp_path / 'checkpoints' / '5').is_dir(), 'the best is kept'


def test_patience_needs_a_metric(config, tmp_path):
  config.checkpoint.best = ''
  with pytest.raises(UserError, match='checkpoint.best'):
    main.train(config, tmp_path)
