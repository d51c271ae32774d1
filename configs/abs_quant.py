"""ABS: automatic bit sharing (arXiv 2101.04935).

    python -m jaxzoo.main --config=configs/abs_quant.py

trains a small residual network on the embedded `shapes` at full precision, then
searches bits (2, 4 or 8) of weights and activations and filters for the bit
operations that 4 bits everywhere would take, then fine-tunes what was found;
the baseline has 4 bits everywhere, and quantises from the same step on.

    --config=configs/abs_quant.py:baseline   4 bits everywhere
    --config=configs/abs_quant.py:cifar100   ResNet-20 on CIFAR-100
    --config=configs/abs_quant.py:paper      ResNet-18 on ImageNet
    --config=configs/abs_quant.py:mobilenet  MobileNetV2 on ImageNet

The published recipes begin with trained weights: --config.init.weights=FILE.
CIFAR-100 is read from --config.data.root=DIR/cifar-100-binary, ImageNet through
TFDS.
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'cifar100': cifar100,
    'paper': paper,
    'mobilenet': mobilenet,
  }
  make, _ = configuration.choose_variant(variant, variants)
  return make()


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = 'abs_quant'
  config.quant = dict(
    bits=(2, 4, 8),
    pretrain_epochs=0.0,  # at full precision
    search_epochs=0.0,
    pruned='conv1$',  # channel groups whose filters have gates; '': none
    filters_per_group=4,
    cost_weight=0.05,  # lambda
    target_bits=0.0,  # whose uniform network's cost is aimed at; 0: none
    gain=0.0,  # of the controller of lambda
    weight_bits=8,  # before a search, or without one
    activation_bits=8,
    search_rate=1.0,  # of the learning rate while searching
  )
  # Thresholds and scales are not decayed.
  config.optim.groups = (
    *config.optim.groups,
    ('^quantizers/', {'decay': 0.0}),
  )
  config.scan = False  # every layer has bits of its own
  config.ema = 0.0
  config.evals = dict(test=dict(kind='classification', split='test'))
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
  config.quant.pretrain_epochs, config.quant.search_epochs = 5.0, 3.0
  config.quant.target_bits = 4.0
  config.quant.gain = 0.02
  config.log_steps = 25
  return config


def baseline():
  config = demo()
  config.quant.search_epochs = 0.0
  config.quant.weight_bits = config.quant.activation_bits = 4
  return config


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = common('tiny')
  config.quant.search_epochs = 2.0
  config.quant.target_bits = 4.0
  config.quant.gain = 0.1
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  return config


def sgd(config, lr):
  config.optim.name = 'sgd'
  config.optim.nesterov = True
  config.optim.lr = lr
  config.optim.weight_decay = 1e-4
  config.optim.groups = (('^quantizers/', {'decay': 0.0}),)
  config.optim.warmup_epochs = 0.0


def cifar100():
  """30 epochs of search at 0.001, 200 of fine-tuning from 0.1."""
  config = common('folder')
  config.model_options = dict(depths=(3, 3, 3), width=16, small_stem=True)
  config.data.dataset = 'cifar100'
  config.data.padding = 'zero'
  config.num_classes = 100
  config.mean, config.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
  config.loss.label_smoothing = 0.0
  config.quant.search_epochs = 30.0
  config.quant.search_rate = 0.01
  config.batch_size = 128
  config.epochs = 230.0
  config.eval_epochs = config.save_epochs = 10.0
  sgd(config, 0.1)
  config.optim.schedule = 'step'
  config.optim.milestones = (110, 150)
  return config


def paper():
  """10 epochs of search at 0.001, 90 of fine-tuning, cosine from 0.01."""
  config = common('resnet50,model=resnet18')
  config.quant.filters_per_group = 16
  config.quant.search_epochs = 10.0
  config.quant.search_rate = 0.1
  config.epochs = 100.0
  sgd(config, 0.01)
  config.optim.schedule = 'cosine'
  config.optim.milestones = ()
  return config


def mobilenet():
  """10 epochs of search, 150 of fine-tuning; the expansions are pruned."""
  config = common('resnet50,model=mobilenet_v2')
  config.quant.pruned = 'expand$'
  config.quant.filters_per_group = 8
  config.quant.search_epochs = 10.0
  config.quant.search_rate = 0.1
  config.epochs = 160.0
  sgd(config, 0.01)
  config.optim.schedule = 'cosine'
  config.optim.milestones = ()
  return config
