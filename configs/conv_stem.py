"""Scaled ReLU: a convolutional stem for DeiT (arXiv 2109.03810, AAAI 2022).

    python -m jaxzoo.main --config=configs/conv_stem.py

trains a small ViT on the embedded `shapes`, whose patches come from three
convolutions with batch norm and ReLU.

    --config=configs/conv_stem.py:baseline   the same network that cuts patches
    --config=configs/conv_stem.py:paper      DeiT-Small with the stem on
                                             ImageNet; also ,model=NAME

The study of the paper varies `model_options.stem` (V0: patches, V1:
convolutions alone, V2: with norms, V3: with ReLU, V4: with both) and `optim.lr`.
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model='conv_stem_deit_tiny_patch16_224', base=''):
  config = catalog.get_config(f'classification:{base},model={model},size=32')
  config = config.unlock()
  config.system = 'conv_stem'
  config.model_options = dict(
    stem='V4', hidden=24, width=96, depth=4, num_heads=3, patch_size=4
  )
  config.optim.lr = 1e-3
  config.epochs = 20.0
  return config


def baseline(**options):
  config = demo(**options)
  config.model_options.stem = 'V0'
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.update(hidden=8, width=24, depth=2)
  config.image_size = (16, 16)
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  config.optim.lr = 1e-2
  config.epochs = 4.0
  return config


def paper(model='conv_stem_deit_small_patch16_224'):
  """[paper] DeiT's recipe; its grid also has other rates and no warm-up."""
  config = catalog.get_config(f'classification:deit_small,model={model}')
  config = config.unlock()
  config.system = 'conv_stem'
  return config
