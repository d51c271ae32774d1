"""OneNet: online ensembling under drift (arXiv 2309.12659, NeurIPS 2023).

    python -m jaxzoo.main --config=configs/onenet.py

trains on the first fifth of the embedded `drifting`, whose channels follow now
their own past, now each other, and then forecasts the rest of it as a stream
that it learns from.

    --config=configs/onenet.py:baseline   FSNet: the forecaster across variables
                                          alone
    --config=configs/onenet.py:custom --config.data.path=my.csv
                                          your own series: a CSV file with a
                                          column `date` and one each channel
    --config=configs/onenet.py:etth2      the published recipes; files in
    --config=configs/onenet.py:etth1      --config.data.root=DIR; also
    --config=configs/onenet.py:ettm1      ,horizon=1 (or 24, 48)
    --config=configs/onenet.py:ettm2
    --config=configs/onenet.py:wth
    --config=configs/onenet.py:ecl

All take ,method=NAME: onenet, onenet_tcn;
of their mixture average (the plain mean), ocp (exponentiated gradient), rl_w
(without the bias); and the baselines fsnet, nomem (FSNet without memory), tcn
(OnlineTCN), time_tcn, er and derpp.

A run of onenet or onenet_tcn tells the error of its parts as well: `variable`
is FSNet or OnlineTCN, `time` the forecaster across time, and `average` the
plain mean. The test is by the published protocol, which learns a window as soon
as it is forecast; --config.evals.online.protocol=delayed waits for its target.
"""

from jaxzoo import configuration
from jaxzoo.data import forecasting
from jaxzoo.errors import UserError, nearest

# (model.convs, model.branches, ensemble.weight, ensemble.bias, replay.kind)
METHODS = {
  'onenet': ('fsnet', 'both', 'gradient', True, 'none'),
  'onenet_tcn': ('tcn', 'both', 'gradient', True, 'none'),
  'average': ('fsnet', 'both', 'fixed', False, 'none'),
  'ocp': ('fsnet', 'both', 'exponentiated', False, 'none'),
  'rl_w': ('fsnet', 'both', 'gradient', False, 'none'),
  'fsnet': ('fsnet', 'variable', 'fixed', False, 'none'),
  'nomem': ('fsnet_nomem', 'variable', 'fixed', False, 'none'),
  'tcn': ('tcn', 'variable', 'fixed', False, 'none'),
  'time_tcn': ('tcn', 'time', 'fixed', False, 'none'),
  'er': ('tcn', 'variable', 'fixed', False, 'er'),
  'derpp': ('tcn', 'variable', 'fixed', False, 'derpp'),
}


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'custom': custom,
    'etth1': etth1,
    'etth2': etth2,
    'ettm1': ettm1,
    'ettm2': ettm2,
    'wth': wth,
    'ecl': ecl,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['horizon', 'method']
  )
  if 'horizon' in options:
    if not options['horizon'].isdecimal():
      raise UserError(f'horizon={options["horizon"]}: write a number of rows')
    options['horizon'] = int(options['horizon'])
  return make(**options)


def common(dataset, horizon, method):
  if method not in METHODS:
    raise UserError(f'method: no {method!r}; ' + nearest(method, METHODS))
  convs, branches, weight, bias, kind = METHODS[method]
  config = configuration.defaults()
  config.system = 'onenet'
  config.history = 60
  config.horizon = horizon
  config.model = dict(
    convs=convs,
    branches=branches,
    width=64,
    features=320,
    depth=10,  # blocks before the last
    dropout=0.1,
  )
  config.ensemble = dict(
    weight=weight,
    bias=bias,
    lr_weight=1e-2 if weight == 'exponentiated' else 1e-3,
    lr_bias=1e-3,
    width=32,
    dropout=0.1,
    dropout_online=False,
  )
  config.replay = dict(kind=kind, size=500, draws=8, strength=0.2)

  config.data.update(forecasting.defaults(dataset))
  config.data.unit = 'windows'
  config.data.marks = 'standardised'
  config.data.split = (0.2, 0.05, 0.75)

  config.evals.val = dict(kind='forecasting', split='val')
  config.evals.online = dict(
    kind='online',
    split='test',
    protocol='published',  # 'delayed', 'strided'
    chunk=600,
    window=200,
    at_end=True,
  )
  config.eval_batch_size = 256
  config.checkpoint.best = 'val/mse'
  config.checkpoint.best_mode = 'min'

  config.compiler = 'small'
  config.batch_size = 32
  config.optim.name = 'adamw'
  config.optim.lr = 1e-3
  config.optim.weight_decay = 0.01
  return config


def demo(horizon=4, method='onenet'):
  config = common('drifting', horizon, method)
  config.history = 32
  config.model.update(width=32, features=64, depth=5)
  config.epochs = 6.0
  config.patience = 3
  halve_every_epoch(config)
  config.log_steps = 20
  return config


def baseline(horizon=4, method='fsnet'):
  return demo(horizon, method)


def tiny(horizon=2, method='onenet'):
  """Seconds: to see that everything works, and for the tests."""
  config = demo(horizon, method)
  config.history = 16
  config.model.update(width=8, features=16, depth=1)
  config.data.embedded.update(rows=230, channels=3, regime=40)
  config.data.split = (84, 34, 110)
  config.evals.online.update(chunk=30, window=20)
  config.batch_size = 16
  config.epochs = 2.0
  config.optim.lr = 1e-2
  config.log_steps = 2
  return config


def published(dataset, horizon, method):
  config = common(dataset, horizon, method)
  config.epochs = 15.0
  config.patience = 3
  halve_every_epoch(config)
  config.log_steps = 88
  return config


def halve_every_epoch(config):
  """The rate of epochs 1, 2, 3, 4, ... is 1, 1, 1/2, 1/4, ... of the first."""
  config.optim.schedule = 'step'
  config.optim.by_epoch = True
  config.optim.gamma = 0.5
  config.optim.milestones = tuple(range(2, int(config.epochs)))


def custom(horizon=24, method='onenet'):
  return published('custom', horizon, method)


def ett(dataset, horizon, method):
  """All four by counts of rows, so that the quarter-hourly ones are short."""
  config = published(dataset, horizon, method)
  config.data.split = (2880, 720, 10800)
  return config


def etth1(horizon=1, method='onenet'):
  return ett('etth1', horizon, method)


def etth2(horizon=1, method='onenet'):
  return ett('etth2', horizon, method)


def ettm1(horizon=1, method='onenet'):
  return ett('ettm1', horizon, method)


def ettm2(horizon=1, method='onenet'):
  return ett('ettm2', horizon, method)


def wth(horizon=1, method='onenet'):
  config = published('wth', horizon, method)
  config.data.marks = 'raw'
  return config


def ecl(horizon=1, method='onenet'):
  config = published('ecl', horizon, method)
  config.data.marks = 'raw'
  config.optim.lr = 3e-3
  return config
