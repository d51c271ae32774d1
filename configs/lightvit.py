"""LightViT: a transformer of few FLOPs without convolutions (arXiv 2207.05557).

    python -m jaxzoo.main --config=configs/lightvit.py

trains a small LightViT on the embedded `shapes`: windows of 2x2 on a map of
4x4 positions, then one of 2x2, with four global tokens.
Top-1 after one run on one core, 4 minutes with compilation: 88.7 %; of
the baseline 62.0 % (docs/results.md).

    --config=configs/lightvit.py:baseline   a DeiT of as many multiply-adds
    --config=configs/lightvit.py:folder     the demo's network on your pictures,
                                            see configs/classification.py
    --config=configs/lightvit.py:paper      LightViT-T on ImageNet; also
                                            ,model=NAME
"""

from jaxzoo import catalog, configuration

# Seed 0, docs/results.md.
BASELINE = {
  'test/top1': 62.0,
  'test/top5': 94.4,
  'test/nll': 1.18,
  'test/ece': 14.0,
}


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'folder': folder,
    'paper': paper,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(**options):
  config = network('easy', **options)
  config.scan = True  # compiles faster
  config.optim.lr = 2e-3
  config.epochs = 5.0
  config.baseline.update(BASELINE)
  return config


def network(base, model='lightvit_tiny', size=32):
  """Of our own size, with the data and the recipe of `base`."""
  config = catalog.get_config(
    f'classification:{base},model={model},size={size}'
  ).unlock()
  config.system = 'lightvit'
  config.model_options = dict(
    dims=(48, 64),
    depths=(3, 2),
    heads=(3, 4),
    num_tokens=4,
    mlp_ratios=(4, 4),
    window=2,
    neck_dim=160,
  )
  return config


def baseline():
  config = catalog.get_config(
    'classification:easy,model=deit_tiny_patch16_224'
  ).unlock()
  config.system = 'lightvit'
  config.model_options = dict(
    width=48, depth=6, num_heads=3, patch_size=4, global_pool='avg'
  )
  config.scan = True  # compiles faster
  config.optim.lr = 2e-3
  config.epochs = 5.0
  return config


def tiny(**options):
  config = network('tiny', **options)
  config.model_options.update(
    dims=(16, 24), depths=(1, 1), heads=(2, 2), neck_dim=32
  )
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  return config


def folder():
  return network('folder')


def paper(model='lightvit_tiny'):
  """DeiT's recipe with other numbers; that it changes the rate at every step
  is chosen."""
  config = catalog.get_config(f'classification:deit_small,model={model}')
  config = config.unlock()
  config.system = 'lightvit'
  config.model_options.drop_path = 0.3 if model == 'lightvit_base' else 0.1
  config.loss.mixup = 0.2
  config.ema = 0.0
  config.data.repeats = 1
  config.data.randaugment = 'rand-m9-mstd0.5'
  config.optim.weight_decay = 0.04
  config.optim.end = 1e-6
  config.optim.by_epoch = False
  config.optim.warmup_epochs = 20.0
  config.optim.warmup_factor = 1e-4
  return config
