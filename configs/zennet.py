"""ZenNet: networks found by Zen-NAS without training (arXiv 2102.01063, ICCV 2021).

    python -m jaxzoo.main --config=configs/zennet.py

trains a small network in ZenNet's dialect on the embedded `shapes`.
Top-1 94.6 % (mean of three seeds), of the baseline 94.7 %
(docs/results.md); half a minute on one CPU core.

    --config=configs/zennet.py:baseline   a ResNet of as many multiply-adds
    --config=configs/zennet.py:paper      ZenNet-400M-SE on ImageNet, without
                                          the teacher of the paper; also
                                          ,model=NAME
    --config=configs/zennet.py:cifar10    ZenNet-0.5M on CIFAR-10, likewise

CIFAR-10 is read from --config.data.root=DIR/cifar-10-batches-bin.
"""

from jaxzoo import catalog, configuration

# Mean of `:baseline` over three seeds (docs/results.md).
BASELINE = {'test/top1': 94.7, 'test/nll': 0.166}

SMALL = (
  'SuperConvK3BNRELU(3,16,1,1)SuperResK1K3K1(16,32,2,16,1)'
  'SuperResK1K5K1(32,64,1,16,1)SuperResK1K5K1(64,96,2,20,2)'
  'SuperConvK1BNRELU(96,128,1,1)'
)
LEAST = (
  'SuperConvK3BNRELU(3,8,1,1)SuperResK1K3K1(8,16,2,8,2)'
  'SuperResIDWE2K3(16,16,1,16,1)SuperConvK1BNRELU(16,32,1,1)'
)
CIFAR = 'zennet_cifar10_model_size05M_res32'


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'paper': paper,
    'cifar10': cifar10,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model=CIFAR, base='easy'):
  config = catalog.get_config(
    f'classification:{base},model={model},size=16'
  ).unlock()
  config.system = 'zennet'
  config.model_options = dict(structure=SMALL)
  # The released initialisation is 2 to 3 times as wide as the ResNet's.
  config.optim.lr = 5e-2
  config.epochs = 6.0
  config.baseline.update(BASELINE)
  return config


def baseline():
  config = catalog.get_config('classification:easy').unlock()
  config.system = 'zennet'
  config.optim.lr = 2e-2
  config.epochs = 6.0
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.update(structure=LEAST, use_se=True)
  config.loss.update(mixup=0.0, cutmix=0.0)
  config.optim.lr = 1e-2
  config.epochs = 4.0
  config.baseline = {}
  return config


def recipe(config):
  """[code] Without its noise of colours (PCA); mixup's strength is chosen."""
  config.system = 'zennet'
  config.loss.update(label_smoothing=0.1, mixup=0.2)
  config.model_options = dict(momentum=0.01)
  config.data.interpolation = 'bicubic'
  config.data.random_erase = 0.5
  config.optim.name = 'sgd'
  config.optim.lr = 0.1 * config.batch_size / 256
  config.optim.nesterov = True
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 5.0
  config.optim.groups = ()
  return config


def paper(model='zennet_imagenet1k_flops400M_SE_res224'):
  config = catalog.get_config(f'classification:resnet50,model={model}')
  config = recipe(config.unlock())
  config.data.randaugment = 'imagenet'
  config.epochs = 480.0
  config.optim.weight_decay = 4e-5
  return config


def cifar10(model=CIFAR):
  config = catalog.get_config(f'classification:folder,model={model}')
  config = recipe(config.unlock())
  config.data.dataset = 'cifar10'
  config.data.padding = 'zero'
  config.data.randaugment = 'cifar10'
  config.epochs = 1440.0
  config.optim.weight_decay = 5e-4
  config.eval_epochs = config.save_epochs = 10.0
  return config
