"""Baguan: weather forecasts after Siamese pre-training (arXiv 2505.13873).

    python -m jaxzoo.main --config=configs/baguan.py

pre-trains a small network on an embedded barotropic atmosphere (into WORKDIR/
pretrain), and fine-tunes it to forecast 24 hours at a time. The decoder of the
forecast is that of the released code, without effect: the paper's, whose mask
tokens know nothing at first, is still at the climate after the few hundred steps
of a demo (--config.decoder.kind=paper).

    --config=configs/baguan.py:baseline   the same fine-tuning from scratch
    --config=configs/baguan.py:pretrain   the pre-training alone
    --config=configs/baguan.py:paper      5.625 degrees, 69 variables: fine-tuning
                                          for 6 hours; also ,size=1.4 or ,size=0.25
                                          and ,lead=HOURS
    --config=configs/baguan.py:paper_pretrain   and its pre-training
    --config=configs/baguan.py:rollout    and its last stage, fed back

ERA5 is read from --config.data.root=DIR (see jaxzoo/data/sources/era5.py); with
--config.data.dataset=weatherbench from Zarr or NetCDF. The stages of one paper:

    python -m jaxzoo.main --config=configs/baguan.py:paper_pretrain --workdir=A
    python -m jaxzoo.main --config=configs/baguan.py:paper \\
        --config.stages.pretrain.run=A --workdir=B
    python -m jaxzoo.main --config=configs/baguan.py:rollout \\
        --config.stages.forecast.run=B
"""

from jaxzoo import configuration
from jaxzoo.models.forecasting.baguan_codes import CONSTANTS, DYNAMIC
from jaxzoo.stages import stage

# Degrees: grid, rows to add, patch, widths, depth of the encoder, and of the
# stages: rates, warm-up and steps in thousands, batches (table 7).
SIZES = {
  '5.625': dict(
    grid=(32, 64), pad=0, patch=2, width=512, depth=8, decoder=256,
    rates=(2e-4, 1e-5, 2e-7), warmup=(10, 10), steps=(100, 40, 1),
    batches=(64, 64),
  ),
  '1.4': dict(
    grid=(128, 256), pad=0, patch=4, width=1024, depth=16, decoder=512,
    rates=(4e-4, 1e-5, 2e-7), warmup=(20, 10), steps=(200, 60, 2),
    batches=(32, 32),
  ),
  '0.25': dict(
    grid=(721, 1440), pad=7, patch=8, width=2048, depth=16, decoder=1024,
    rates=(5e-4, 2e-5, 2e-6), warmup=(40, 10), steps=(250, 70, 2),
    batches=(24, 8),
  ),
}  # fmt: skip
HOURS = 37 * 8766  # of the training span, an example each
ROLLOUT = {24: 7, 6: 3, 1: 5}  # the most that forecasts of a lead are fed back


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'pretrain': pretrain,
    'tiny': tiny,
    'paper': paper,
    'paper_pretrain': paper_pretrain,
    'rollout': rollout,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['size', 'lead']
  )
  return make(**options)


def common():
  config = configuration.defaults()
  config.system = 'baguan'
  config.task = 'forecast'
  config.variables = DYNAMIC
  config.constants = CONSTANTS
  config.encoder = dict(
    width=512, depth=8, num_heads=16, dropout=0.1, drop_path=0.1
  )
  config.decoder = dict(
    width=256, depth=4, num_heads=8, dropout=0.1, drop_path=0.1, kind='paper'
  )
  config.pretrain = dict(mask_ratio=0.75, siamese=True, masked_only=False)
  # Targets of a window; how many count first; updates until one more does.
  config.rollout = dict(steps=1, first=1, every=0)
  config.data.update(
    kind='weather',
    unit='fields',
    dataset='folders',
    root='',
    train=('1979-01-01', '2016-01-01'),
    val=('2016-01-01', '2018-01-01'),
    test=('2018-01-01', '2019-01-01'),
    eval_hours=(0, 12),
    lead=6,
    embedded={},
  )
  config.optim.b2 = 0.99
  return config


def paper(size='5.625', lead='6'):
  """Stage 2. Steps count from scratch where `stages.pretrain` is taken out."""
  config, own = sized(size, int(lead))
  config.stages = dict(pretrain=stage(f'baguan:paper_pretrain,size={size}'))
  recipe(config, own, 1)
  config.optim.weight_decay = 1e-5
  return config


def paper_pretrain(size='5.625', lead='6'):
  """Stage 1."""
  config, own = sized(size, int(lead))
  config.task = 'pretrain'
  config.forecast_steps = 1
  recipe(config, own, 0)
  config.optim.b2 = 0.95
  config.optim.weight_decay = 0.05
  return config


def rollout(size='5.625', lead='6'):
  """Stage 3: one more step every 1000 or 2000 updates, from 2 on."""
  config, own = sized(size, int(lead))
  config.stages = dict(forecast=stage(f'baguan:paper,size={size},lead={lead}'))
  most = ROLLOUT.get(int(lead), 3)
  every = 1000 * own['steps'][2]
  recipe(config, own, 1)
  config.rollout.update(steps=most, first=2, every=every)
  config.epochs = every * (most - 1) * config.batch_size / HOURS
  config.optim.lr = own['rates'][2]
  config.optim.schedule = 'constant'
  config.optim.warmup_epochs = 0.0
  config.optim.weight_decay = 1e-5
  return config


def sized(size, lead):
  config = common()
  own = SIZES[size] if size in SIZES else configuration.choose_variant(
    size, SIZES
  )[0]  # fmt: skip
  config.grid, config.pad, config.patch = own['grid'], own['pad'], own['patch']
  config.encoder.update(width=own['width'], depth=own['depth'])
  config.decoder.width = own['decoder']
  config.data.lead = lead
  config.forecast_steps = 7 * 24 // lead
  config.evals.test = dict(
    kind='weather',
    split='test',
    report=('z_500', 't_850', 't2m', 'u10', 'msl'),
    hours=(6, 24, 72, 120, 168),
  )
  config.remat = 'full' if size == '0.25' else 'none'
  config.dtype = 'bfloat16'
  config.eval_batch_size = 8
  config.eval_epochs = config.save_epochs = 0.5
  return config, own


def recipe(config, own, stage_number):
  """Steps and rates of a stage; an epoch has an example an hour."""
  config.batch_size = own['batches'][stage_number]
  config.optim.lr = own['rates'][stage_number]
  epochs = lambda thousands: 1000 * thousands * config.batch_size / HOURS
  config.epochs = epochs(own['steps'][stage_number])
  config.optim.warmup_epochs = epochs(own['warmup'][stage_number])


def demo(size='', lead='24'):
  del size
  config = baseline(lead=lead)
  config.stages = dict(pretrain=stage('baguan:pretrain'))
  return config


def baseline(size='', lead='24'):
  config = small(size, lead)
  config.optim.weight_decay = 1e-5
  return config


def pretrain(size='', lead='24'):
  config = small(size, lead)
  config.epochs = 12.0
  config.task = 'pretrain'
  config.forecast_steps = 1
  config.evals.test.hours = ()
  config.optim.b2 = 0.95
  config.optim.weight_decay = 0.05
  return config


def small(size, lead):
  """The embedded atmosphere: few variables, a small network."""
  del size
  config = common()
  config.variables = ('z_500', 'u_500', 'v_500', 't_850')
  config.constants = ('land_sea_mask', 'geopotential_at_surface')
  config.grid, config.pad, config.patch = (16, 32), 0, 4
  config.encoder.update(
    width=64, depth=2, num_heads=4, dropout=0.0, drop_path=0.0
  )
  config.decoder.update(
    width=64,
    depth=1,
    num_heads=4,
    dropout=0.0,
    drop_path=0.0,
    kind='identity',
  )
  config.data.update(
    dataset='atmosphere',
    train=('2001-01-01', '2002-01-01'),
    val=('2002-01-01', '2002-04-01'),
    test=('2002-04-01', '2002-10-01'),
    lead=int(lead),
    embedded=dict(seed=0, grid=(16, 32), years=1.75, waves=6),
  )
  config.forecast_steps = 120 // int(lead)
  config.evals.test = dict(
    kind='weather', split='test', report=(), hours=(24, 72, 120)
  )
  config.batch_size = 32
  config.eval_batch_size = 64
  config.epochs = 16.0
  config.eval_epochs = config.save_epochs = 4.0
  config.optim.lr = 3e-3
  config.optim.clip_norm = 1.0
  config.optim.warmup_epochs = 1.0
  return config


def tiny(size='', lead='24'):
  config = small(size, lead)
  config.grid = (8, 16)
  config.encoder.update(width=16, depth=1, num_heads=2)
  config.decoder.update(width=16, num_heads=2, kind='paper')
  config.forecast_steps = 2
  config.data.update(
    train=('2001-01-01', '2001-01-12'),
    val=('2001-01-12', '2001-01-20'),
    test=('2001-01-12', '2001-01-20'),
    embedded=dict(seed=0, grid=(8, 16), years=0.06, waves=4),
  )
  config.batch_size = 8
  config.eval_batch_size = 8
  config.epochs = 1.0
  config.optim.lr = 3e-2
  config.optim.warmup_epochs = 0.0
  return config
