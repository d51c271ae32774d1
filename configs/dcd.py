"""DCD: dynamic convolution by matrix decomposition (arXiv 2103.08756, ICLR 2021).

    python -m jaxzoo.main --config=configs/dcd.py

trains a small residual network of dynamic convolutions, kernels that fit
themselves to the picture, on the embedded `shapes`: top-1 97.0 % (mean of five
seeds), of the baseline 96.7 % (docs/results.md). A minute on one CPU core.

    --config=configs/dcd.py:baseline    the same network of static convolutions
    --config=configs/dcd.py:paper       ResNet-50 on ImageNet; also ,model=NAME
    --config=configs/dcd.py:mobilenet   MobileNetV2 on ImageNet; also
                                        ,model=NAME
"""

from jaxzoo import catalog, configuration

# Mean of `:baseline` over five seeds (docs/results.md).
BASELINE = {'test/top1': 96.7, 'test/nll': 0.106}


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


def dynamic(base, model):
  config = catalog.get_config(f'classification:{base},model={model}').unlock()
  config.system = 'dcd'
  config.model_options = dict(depths=(1, 1, 1), width=8, small_stem=True)
  return config


def demo(model='resnet18_dcd'):
  config = schedule(dynamic('easy', model))
  config.baseline = BASELINE
  return config


def baseline():
  config = catalog.get_config('classification:easy').unlock()
  config.system = 'dcd'
  config.model_options.width = 8
  return schedule(config)


def schedule(config):
  """Many pictures, seen thrice: with few ones seeds differ more than kernels."""
  config.data.embedded.train = 20_000
  config.batch_size = 64
  config.optim.lr = 1e-2
  return config


def tiny(model='resnet18_dcd'):
  config = dynamic('tiny', model)
  config.model_options.depths = (1, 1)
  targets(config)
  config.loss.mixup_ramp = 4.0
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
