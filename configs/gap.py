"""GaP: scheduled grow-and-prune (arXiv 2106.09857, ICLR 2022).

    python -m jaxzoo.main --config=configs/gap.py

trains a small residual network on the embedded `shapes` that is 90 % sparse
from its first step on, but for one partition of its layers at a time
(docs/results.md has what was measured).

    --config=configs/gap.py:baseline   sparse from the first step on, too: by
                                       magnitude before training, for good
    --config=configs/gap.py:parallel   P-GaP: every partition dense at once, in
                                       a copy of the network that learns a part
                                       of each batch
    --config=configs/gap.py:gradual    by magnitude on the way, from a dense
                                       network
    --config=configs/gap.py:paper      ResNet-50 on ImageNet, 80 %, 28 phases of
                                       30 epochs and 150 epochs of tuning; also
                                       ,sparsity=0.9 and ,model=NAME
"""

from jaxzoo import catalog, configuration
from jaxzoo.errors import UserError


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'gradual': gradual,
    'parallel': parallel,
    'tiny': tiny,
    'paper': paper,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['sparsity', 'model']
  )
  return make(**options)


def common(name, sparsity):
  config = catalog.get_config(f'classification:{name}').unlock()
  config.system = 'gap'
  config.compress.method = 'gap'
  try:
    config.compress.sparsity = float(sparsity)
  except ValueError as error:
    raise UserError(f'sparsity={sparsity}: it must be a number') from error
  return config


def demo(sparsity=0.9, base='easy', model=''):
  suffix = f',model={model}' if model else ''
  config = common(base + suffix, sparsity)
  config.epochs = 6.0
  config.compress.partitions = 3
  config.compress.phases = 6
  config.compress.end = 0.6
  config.optim.warmup_epochs = 0.5
  return config


def baseline(**options):
  """Sparse throughout as well: the smallest weights go before training."""
  config = demo(**options)
  config.compress.method = 'magnitude'
  config.compress.schedule = 'constant'
  config.optim.warmup_epochs = 1.0
  return config


def parallel(**options):
  """As many steps, each partition dense for three times as many of them."""
  config = demo(**options)
  config.compress.parallel = True
  config.compress.phases //= config.compress.partitions
  config.batch_size *= config.compress.partitions
  config.epochs *= config.compress.partitions
  return config


def gradual(**options):
  """Dense at first, which GaP does without."""
  config = baseline(**options)
  config.compress.schedule = 'cubic'
  config.compress.end = 0.75
  return config


def tiny(**options):
  config = demo(**{'sparsity': 0.5, **options}, base='tiny')
  config.epochs = 4.0
  config.compress.partitions = 2
  config.compress.phases = 2
  config.compress.end = 0.9
  config.optim.warmup_epochs = 0.0
  return config


def paper(sparsity=0.8, model='resnet50'):
  """C-GaP with uniform sparsity; the stages are the partitions."""
  config = common(f'resnet50,model={model}', sparsity)
  config.loss.update(label_smoothing=0.1, mixup=0.2)
  config.batch_size = 1024
  config.epochs = 990.0
  config.optim.lr = 1.024
  config.optim.momentum = 0.875
  config.optim.weight_decay = 3.05e-5
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 8.0
  config.compress.exclude = ('^stem_conv/', '^head/')
  config.compress.partition = ('^stage1', '^stage2', '^stage3', '^stage4')
  config.compress.phases = 28
  config.compress.end = 28 * 30 / 990
  return config
