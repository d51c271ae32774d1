"""CHEX: channel exploration (arXiv 2203.15794, CVPR 2022).

    python -m jaxzoo.main --config=configs/chex.py

trains a small residual network on the embedded `shapes`, from scratch to half
of its multiply-adds: channels are pruned and regrown every epoch, and
layers share what is left by the scales of their norms. The baseline has as many
multiply-adds, the same share of every layer. `result.json` has the speed of the
network without its dead channels;

    python -m jaxzoo.bench.compact runs/chex

measures it again.

    --config=configs/chex.py:baseline   uniform channel pruning
    --config=configs/chex.py:paper      ResNet-50 on ImageNet to 0.3 of its
                                        channels, 250 epochs; also ,model=NAME

ImageNet is read through TFDS (extra `tfds`).
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = config.compress.method = 'chex'
  return config


def small(config):
  """Fewer, smaller and less cluttered pictures than those of its base."""
  config.data.embedded.update(
    train=2000, size=24, turn=30.0, clutter=0.5, hidden=0.2, bright=True
  )
  config.image_size = (24, 24)
  config.data.pad = 3
  config.data.flip = 0.0
  config.batch_size = 32
  config.epochs = 12.0
  config.eval_epochs = config.save_epochs = 6.0


def demo():
  config = common('')
  small(config)
  config.compress.sparsity = 0.5
  config.compress.budget = 'macs'
  config.compress.regrow = 0.3
  config.compress.every = 62  # an epoch
  config.epochs = 24.0
  return config


def baseline():
  config = demo()
  config.compress.allocation = 'uniform'
  config.compress.score = 'l1'
  config.compress.regrow = 0.0
  return config


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = common('tiny')
  config.compress.sparsity = 0.5
  config.compress.every = 4
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  return config


def paper(model='resnet50'):
  """[code] 250 epochs, explored every 2 of the first 180.

  [code] also starts the norms' scales at 0.5, here they start at 1. [chosen]
  The shortcuts stay, so that the compact network is a plain one.
  """
  config = catalog.get_config(f'classification:resnet50,model={model}')
  config = config.unlock()
  config.system = config.compress.method = 'chex'
  config.compress.sparsity = 0.7
  config.compress.regrow = 0.3
  config.compress.end = 180 / 250
  config.compress.every = 2 * (1281167 // 1024)
  config.loss.update(label_smoothing=0.1, mixup=0.2)
  config.batch_size = 1024
  config.epochs = 250.0
  config.optim.lr = 1.024
  config.optim.momentum = 0.875
  config.optim.weight_decay = 3.0517578125e-5
  config.optim.groups = ((r'bn\d*/(scale|bias)$', {'decay': 0.0}),)
  config.optim.schedule = 'cosine'
  config.optim.milestones = ()
  config.optim.by_epoch = True
  config.optim.warmup_epochs = 8.0
  return config
