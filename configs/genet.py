"""GENet: networks designed for a GPU's latency (arXiv 2006.14090).

    python -m jaxzoo.main --config=configs/genet.py

trains a small network by GENet's rule on the embedded `shapes`: full
convolutions first, then bottlenecks, then inverted depth-wise ones.
Top-1 95.0 % (mean of three seeds), of the baseline 94.7 %
(docs/results.md); half a minute on one CPU core.

    --config=configs/genet.py:baseline   a ResNet of as many multiply-adds
    --config=configs/genet.py:paper      GENet-large on ImageNet, without the
                                         teacher of the paper; also ,model=NAME
"""

from jaxzoo import catalog, configuration

# Mean of `:baseline` over three seeds (docs/results.md).
BASELINE = {'test/top1': 94.7, 'test/nll': 0.166}

SMALL = (
  'ConvKX(3,16,3,1)BN(16)RELU(16)SuperResKXKX(16,16,3,1,1.0,1)'
  'SuperResK1KXK1(16,64,3,2,0.25,2)SuperResK1DWK1(64,64,3,2,2.0,2)'
  'ConvKX(64,128,1,1)BN(128)RELU(128)'
)
LEAST = (
  'ConvKX(3,8,3,1)BN(8)RELU(8)SuperResKXKX(8,8,3,1,1.0,1)'
  'SuperResK1KXK1(8,16,3,2,0.5,1)SuperResK1DWK1(16,16,3,1,2.0,2)'
  'ConvKX(16,32,1,1)BN(32)RELU(32)'
)


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def demo(model='genet_small', base='easy'):
  config = catalog.get_config(
    f'classification:{base},model={model},size=16'
  ).unlock()
  config.system = 'genet'
  config.model_options = dict(structure=SMALL)
  config.optim.lr = 1e-2
  config.epochs = 6.0
  config.baseline.update(BASELINE)
  return config


def baseline():
  config = catalog.get_config('classification:easy').unlock()
  config.system = 'genet'
  config.optim.lr = 2e-2
  config.epochs = 6.0
  return config


def tiny(**options):
  config = demo(**options, base='tiny')
  config.model_options.structure = LEAST
  config.loss.update(mixup=0.0, cutmix=0.0)
  config.optim.lr = 1e-2
  config.epochs = 4.0
  config.baseline = {}
  return config


def paper(model='genet_large'):
  """[paper] As far as it is told; strengths of mixup and erasing are chosen."""
  config = catalog.get_config(f'classification:resnet50,model={model}')
  config = config.unlock()
  config.system = 'genet'
  config.epochs = 360.0
  config.data.eval_crop = (
    0.872  # resized to 220 and 293, rounded up as released
  )
  config.loss.update(label_smoothing=0.1, mixup=0.2)
  config.data.randaugment = 'imagenet'
  config.data.random_erase = 0.5
  config.optim.lr = 0.1 * config.batch_size / 256
  config.optim.nesterov = True
  config.optim.schedule = 'cosine'
  config.optim.weight_decay = 4e-5
  return config
