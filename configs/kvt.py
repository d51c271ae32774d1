"""KVT: DeiT with k-NN attention (arXiv 2106.00515, ECCV 2022).

    python -m jaxzoo.main --config=configs/kvt.py

trains a small ViT on the embedded `shapes`, each of whose queries keeps the 32
most similar of 65 keys.

    --config=configs/kvt.py:baseline   the same network with dense attention
    --config=configs/kvt.py:paper      DeiT-Small with k = 100 on ImageNet by
                                       DeiT's recipe; also ,model=NAME
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model='kvt_deit_tiny_patch16_224', base=''):
  config = catalog.get_config(f'classification:{base},model={model},size=32')
  config = config.unlock()
  config.system = 'kvt'
  config.model_options = dict(
    knn=32, width=96, depth=4, num_heads=3, patch_size=4
  )
  config.optim.lr = 1e-3
  config.epochs = 20.0
  return config


def baseline(**options):
  config = demo(**options)
  config.model_options.knn = 0
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.update(knn=9, width=24, depth=2)
  config.image_size = (16, 16)
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  config.optim.lr = 1e-2
  config.epochs = 4.0
  return config


def paper(model='kvt_deit_small_patch16_224'):
  """[code] Exactly the recipe of the network that it changes."""
  config = catalog.get_config(f'classification:deit_small,model={model}')
  config = config.unlock()
  config.system = 'kvt'
  return config
