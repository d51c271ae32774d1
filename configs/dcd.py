"""DCD: dynamic convolution by matrix decomposition (arXiv 2103.08756, ICLR 2021).

    python -m jaxzoo.main --config=configs/dcd.py

trains a small residual network of dynamic convolutions, kernels that fit
themselves to the picture, on the embedded `shapes`; docs/results.md has what
was measured.

    --config=configs/dcd.py:baseline    the same network of static convolutions
    --config=configs/dcd.py:paper       ResNet-50 on ImageNet; also ,model=NAME
    --config=configs/dcd.py:mobilenet   MobileNetV2 on ImageNet; also
                                        ,model=NAME
"""

from jaxzoo import catalog, configuration

# Seed 0, docs/results.md.
BASELINE = {
  'test/top1': 89.9,
  'test/top5': 98.3,
  'test/nll': 0.31,
}


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'paper': paper,
    'mobilenet': mobilenet,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model='resnet18_dcd', base='easy'):
  config = catalog.get_config(f'classification:{base},model={model}').unlock()
  config.system = 'dcd'
  config.model_options = dict(depths=(1, 1, 1), width=8, small_stem=True)
  config.optim.lr = 1e-2
  config.epochs = 10.0
  config.baseline = BASELINE
  return config


def baseline():
  config = catalog.get_config('classification:easy').unlock()
  config.system = 'dcd'
  config.model_options.width = 8
  config.optim.lr = 1e-2
  config.epochs = 10.0
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.update(depths=(1, 1), width=8)
  targets(config)
  config.loss.mixup_ramp = 4.0
  config.baseline = {}
  return config


def targets(config):
  """[code] Smoothing over the other classes, and mixup that comes in slowly."""
  config.loss.update(
    label_smoothing=0.1,
    smoothed='others',
    mixup=0.2,
    cutmix=0.0,
    mixup_prob=1.0,
    mixup_ramp=100.0,
  )


def paper(model='resnet50_dcd'):
  config = catalog.get_config(f'classification:resnet50,model={model}')
  config = config.unlock()
  config.system = 'dcd'
  targets(config)
  config.epochs = 120.0
  config.optim.milestones = (30, 60, 90)
  return config


def mobilenet(model='mobilenetv2_dcd'):
  config = paper(model)
  config.batch_size = 512
  config.epochs = 300.0
  config.optim.schedule = 'cosine'
  config.optim.weight_decay = 2e-5
  return config
