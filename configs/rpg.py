"""RPG: higher ranks by adversarial pruning (arXiv 2311.17493, NeurIPS 2023).

    python -m jaxzoo.main --config=configs/rpg.py

trains a small residual network on the embedded `shapes` down to 98 % sparsity
in one run, regrowing what raises the rank of its kernels: top-1 38 % on 2,000
new ones, where the baseline has 34 % with as many weights (docs/results.md), in
under two minutes on one core.

    --config=configs/rpg.py:baseline   the same by magnitude alone, ranked over
                                       all layers, down the same ramp
    --config=configs/rpg.py:paper      ResNet-50 on ImageNet from scratch, 90 %;
                                       also ,sparsity=0.95 and ,model=NAME

Of a trained network: --config.init.weights=resnet50.pth with `:paper`, which is
the paper's main table.
"""

from jaxzoo import catalog, configuration
from jaxzoo.errors import UserError


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(
    variant, variants, ['sparsity', 'model']
  )
  return make(**options)


def common(name, sparsity):
  config = catalog.get_config(f'classification:{name}').unlock()
  config.system = 'rpg'
  config.compress.method = 'rpg'
  try:
    config.compress.sparsity = float(sparsity)
  except ValueError as error:
    raise UserError(f'sparsity={sparsity}: it must be a number') from error
  return config


def demo(sparsity=0.98, base='easy', model=''):
  suffix = f',model={model}' if model else ''
  return common(base + suffix, sparsity)


def baseline(**options):
  config = demo(**options)
  config.compress.method = 'magnitude'
  config.compress.allocation = 'global'
  config.compress.schedule = 'exponential'
  config.compress.end = 0.9
  return config


def tiny(**options):
  config = demo(**{'sparsity': 0.9, **options}, base='tiny')
  config.compress.every = 3
  return config


def paper(sparsity=0.9, model='resnet50'):
  """[code] The recipe of the released runs."""
  config = common(f'resnet50,model={model}', sparsity)
  config.loss.label_smoothing = 0.1
  config.batch_size = 1024
  config.epochs = 100.0
  config.optim.lr = 0.4
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 5.0
  # The norms of shortcuts, which are not called bn there, do decay.
  config.optim.groups = ((r'(^|/)(stem_)?bn\d*/', {'decay': 0.0}),)
  config.compress.end = 0.9
  config.compress.last = 0.901
  config.compress.every = 100
  return config
