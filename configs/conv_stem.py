"""Scaled ReLU: a convolutional stem for DeiT (arXiv 2109.03810, AAAI 2022).

    python -m jaxzoo.main --config=configs/conv_stem.py

trains a small ViT on the embedded `shapes`, whose patches come from three
convolutions with batch norm and ReLU.
Top-1 after one run on one core, 1.5 minutes with compilation: 83.0 %; of
the baseline 62.0 % (docs/results.md).

    --config=configs/conv_stem.py:baseline   the same network that cuts patches
    --config=configs/conv_stem.py:paper      DeiT-Small with the stem on
                                             ImageNet; also ,model=NAME

The study of the paper varies `model_options.stem` (V0: patches, V1:
convolutions alone, V2: with norms, V3: with ReLU, V4: with both), `optim.lr`
(5e-4, 1e-3, 2e-3 for 512 images) and `optim.warmup_epochs` (0, 5, 20).
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
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model='conv_stem_deit_tiny_patch16_224', base='easy'):
  config = catalog.get_config(f'classification:{base},model={model}').unlock()
  config.system = 'conv_stem'
  config.model_options = dict(
    stem='V4',
    hidden=16,
    width=48,
    depth=6,
    num_heads=3,
    patch_size=4,
    global_pool='avg',
  )
  config.scan = True  # compiles faster
  config.optim.lr = 2e-3
  config.epochs = 5.0
  config.baseline.update(BASELINE)
  return config


def baseline(**options):
  config = demo(**options)
  config.model_options.stem = 'V0'
  config.baseline = {}
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.update(hidden=8, width=24, depth=2)
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  config.optim.lr = 1e-2
  config.epochs = 4.0
  config.baseline = {}
  return config


def paper(model='conv_stem_deit_small_patch16_224'):
  """[paper] DeiT's recipe, the middle of the grid of the study."""
  config = catalog.get_config(f'classification:deit_small,model={model}')
  config = config.unlock()
  config.system = 'conv_stem'
  return config
