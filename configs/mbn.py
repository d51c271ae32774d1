"""MBN: memorized batch normalisation (arXiv 2010.04947, AAAI 2018).

    python -m jaxzoo.main --config=configs/mbn.py

trains a small residual network with 4 images a batch on the embedded `shapes`,
normalised by the statistics of the last 4 batches, with a second forward pass
after every update (docs/results.md has what was measured).

    --config=configs/mbn.py:baseline   the same with batch normalisation
    --config=configs/mbn.py:single     without the second pass
    --config=configs/mbn.py:paper      ResNet-20 on CIFAR-100, batches of 16

CIFAR-100 is read from --config.data.root=DIR/cifar-100-binary.
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'single': single,
    'tiny': tiny,
    'paper': paper,
  }
  make, _ = configuration.choose_variant(variant, variants)
  return make()


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = 'mbn'
  config.norm = dict(kind='memorized', memory_size=8, decay=0.9)
  config.loss = dict(
    double_forward=True,
    label_smoothing=0.0,
    log_layers=False,  # the shift of each layer as a metric of its own
    batch_logits=False,  # predictions normalised by their own batch, too
  )
  config.ema = 0.0
  return config


def demo():
  config = common('easy')
  config.batch_size = 4
  # Parameters change fast in a run of minutes: of 8 batches the statistics of
  # the first are out of date.
  config.norm.update(memory_size=4, decay=0.5)
  config.epochs = 2.0
  config.log_steps = 250
  sgd(config)
  return config


def sgd(config):
  """[chosen] 0.1 for 128 images."""
  config.optim.name = 'sgd'
  config.optim.lr = 0.1 * config.batch_size / 128
  config.optim.weight_decay = 1e-4
  config.optim.groups = ()
  config.optim.warmup_epochs = 0.0


def baseline():
  config = demo()
  config.norm.kind = 'batch'
  config.loss.double_forward = False
  return config


def single():
  config = demo()
  config.loss.double_forward = False
  return config


def tiny():
  config = common('tiny')
  config.optim.lr = 1e-2
  return config


def paper():
  """[chosen] The published tables are not recoverable; see the spec."""
  config = common('folder')
  config.model_options = dict(depths=(3, 3, 3), width=16, small_stem=True)
  config.data.dataset = 'cifar100'
  config.num_classes = 100
  config.mean, config.std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
  config.batch_size = 16
  config.epochs = 200.0
  config.eval_epochs = config.save_epochs = 10.0
  sgd(config)
  config.optim.schedule = 'step'
  config.optim.milestones = (100, 150)
  return config
