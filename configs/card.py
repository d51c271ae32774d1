"""CARD: channel-aligned robust blend transformer (arXiv 2305.12095, ICLR 2024).

    python -m jaxzoo.main --config=configs/card.py

forecasts 24 hours of the embedded `coupled`, whose channels follow the first
one a day later: MSE 0.28 on the test rows, where the baseline has 0.82
(docs/results.md), in 2 minutes on a CPU core.

    --config=configs/card.py:baseline     the same network without attention
                                          over channels
    --config=configs/card.py:custom --config.data.path=my.csv
                                          your own series: a CSV file with a
                                          column `date` and one each channel;
                                          then python -m jaxzoo.forecast
    --config=configs/card.py:etth1        the published recipes; files in
    --config=configs/card.py:etth2        --config.data.root=DIR; also
    --config=configs/card.py:weather      ,horizon=96 (or 192, 336, 720) and
    --config=configs/card.py:electricity  ,history=96 (or 720)
    --config=configs/card.py:traffic

`:ettm1` and `:ettm2` are like `:etth1`.
"""

from jaxzoo import configuration
from jaxzoo.data import forecasting
from jaxzoo.errors import UserError


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
    'weather': weather,
    'electricity': electricity,
    'traffic': traffic,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['history', 'horizon']
  )
  for name, value in options.items():
    if not value.isdecimal():
      raise UserError(f'{name}={value}: write a number of rows')
  return make(**{name: int(value) for name, value in options.items()})


def common(dataset, history, horizon):
  config = configuration.defaults()
  config.system = 'card'
  config.history = history
  config.horizon = horizon
  config.network = dict(
    width=16,
    depth=2,
    heads=2,
    d_ff=32,
    patch=16,
    stride=8,
    rank=8,  # summaries of the channels
    merge=2,  # 0: heads side by side
    alpha=0.5,  # of the smoothing; 1: none
    ema_full=False,
    hidden=True,
    channel_attention=True,
    use_statistic=False,
    dropout=0.3,
  )
  config.loss = dict(kind='decayed_mae')  # or 'mae', 'mse'
  config.scan = False

  config.data.update(forecasting.defaults(dataset))
  config.data.unit = 'windows'

  config.evals.val = dict(kind='forecasting', split='val', decay=0.5)
  # Once, with the parameters that were best on the validation rows.
  config.evals.test = dict(
    kind='forecasting', split='test', decay=0.5, at_end=True
  )
  config.eval_batch_size = 512
  config.checkpoint.best = 'val/decayed_mae'
  config.checkpoint.best_mode = 'min'

  config.optim.name = 'adam'
  config.optim.lr = 1e-4
  return config


def demo(history=96, horizon=24):
  config = common('coupled', history, horizon)
  config.network.dropout = 0.0
  config.batch_size = 64
  config.epochs = 6.0
  config.optim.lr = 1e-3
  config.log_steps = 63
  # Of configs/card.py:baseline, seed 0, see docs/results.md.
  config.baseline = {'test/mse': 0.817, 'test/mae': 0.675}
  return config


def baseline(**options):
  config = demo(**options)
  config.network.channel_attention = False
  config.baseline = {}
  return config


def tiny(history=32, horizon=8):
  config = demo(history, horizon)
  config.baseline = {}
  config.data.embedded.update(rows=180, channels=3, lag=8, spread=2, memory=4)
  config.network.update(width=8, depth=1, d_ff=8, patch=8, stride=4, rank=2)
  config.batch_size = 16
  config.epochs = 2.0
  config.optim.lr = 1e-2
  config.log_steps = 2
  return config


def custom(history=96, horizon=96):
  config = published('custom', history, horizon)
  config.batch_size = 32
  config.epochs = 20.0
  config.patience = 5
  config.network.dropout = 0.1
  config.optim.lr = 3e-4
  return config


def published(dataset, history, horizon, *, warmup=0.0, patience=20):
  """[code] 100 epochs at most; the rate changes after each."""
  config = common(dataset, history, horizon)
  config.batch_size = 128
  config.epochs = 100.0
  config.patience = patience
  config.optim.schedule = 'cosine_after_first'
  config.optim.by_epoch = True
  config.optim.warmup_epochs = warmup
  config.log_steps = 200
  return config


def ett(dataset, history, horizon):
  warmup = {'etth1': 30.0}.get(dataset, 10.0) if history == 720 else 0.0
  patience = 10 if history == 720 else 20
  return published(dataset, history, horizon, warmup=warmup, patience=patience)


def etth1(history=96, horizon=96):
  return ett('etth1', history, horizon)


def etth2(history=96, horizon=96):
  return ett('etth2', history, horizon)


def ettm1(history=96, horizon=96):
  return ett('ettm1', history, horizon)


def ettm2(history=96, horizon=96):
  return ett('ettm2', history, horizon)


def weather(history=96, horizon=96):
  config = published('weather', history, horizon)
  if history == 720:
    config.network.dropout = 0.3
  else:
    config.network.update(width=128, heads=16, d_ff=256, dropout=0.2)
  return config


def electricity(history=96, horizon=96):
  config = published('electricity', history, horizon, warmup=20.0, patience=100)
  config.network.update(width=128, heads=16, d_ff=256, dropout=0.3)
  config.batch_size = 32
  if history == 720:
    # Published with merge=16, which 8 heads cannot have.
    config.network.update(depth=3, heads=8, merge=2)
  return config


def traffic(history=96, horizon=96):
  config = published('traffic', history, horizon, warmup=20.0, patience=100)
  config.network.update(width=128, heads=16, d_ff=256, dropout=0.2)
  config.batch_size = 12
  config.remat = 'full'  # 862 channels of tokens
  if history == 720:
    config.network.merge = 16
    config.batch_size = 4
    config.optim.lr = 1e-3
  return config
