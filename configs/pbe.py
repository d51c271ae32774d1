"""PBE: progressive backdoor erasing (arXiv 2202.06312, CVPR 2023).

    python -m jaxzoo.main --config=configs/pbe.py

trains a small residual network on scikit-learn's digits (extra `sklearn`), a
tenth of which carry a patch and the label 0, then erases the backdoor with a
twentieth of clean pictures. `asr_others` is the share of triggered test pictures
of other digits that are taken for a 0, `acc` the accuracy on clean ones; the
baseline is fine-tuning on the same pictures.

    --config=configs/pbe.py:baseline     fine-tuning on the clean pictures
    --config=configs/pbe.py:progressive  without clean pictures: four rounds on
                                         those that have changed least
    --config=configs/pbe.py:paper        CIFAR-10, the warping attack, 5 % clean
    --config=configs/pbe.py:paper_progressive
                                         CIFAR-10 without clean pictures

CIFAR-10 is read from --config.data.root=DIR/cifar-10-batches-bin. Other
attacks: --config.attack.kind=patch, blend, sig or warp; all classes to their
next: --config.attack.target=-1.
"""

from jaxzoo import catalog, configuration
from jaxzoo.models.robustness import pbe


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'progressive': progressive,
    'tiny': tiny,
    'paper': paper,
    'paper_progressive': paper_progressive,
  }
  make, _ = configuration.choose_variant(variant, variants)
  return make()


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = 'pbe'
  config.data.kind = 'backdoor'
  config.mean, config.std = (0.0,), (1.0,)  # pictures stay in [0, 1]
  config.ema = 0.0
  config.attack = dict(
    kind='patch',  # 'blend', 'sig', 'warp'
    rate=0.1,  # of the training pictures
    noise_ratio=2.0,  # pictures in noise mode for a poisoned one, of a warp
    target=0,  # -1: every class to its next
    seed=0,
    blend_ratio=0.1,
    sig_delta=10.0,
    sig_frequency=6,
    warp_strength=0.5,
  )
  config.erase = dict(
    examples=0,  # pictures of the training split
    epochs=0.0,  # that infect
    clean=True,  # the first round's pictures are known to be clean
    rounds=(),  # share, epochs, adversarial epochs, adversarial batches
    radius=6 / 255,
    step=6 / 255 / 5,
    iterations=7,
    pad=5,
    degrees=10.0,
    flip=0.0,
  )
  config.evals = dict(test=dict(kind='backdoor', split='test'))
  config.checkpoint.best = ''
  return config


def sgd(config):
  """[published] SGD; the infected network learns at ten times the rate."""
  config.optim.name = 'sgd'
  config.optim.lr = 0.01
  config.optim.momentum = 0.9
  config.optim.weight_decay = 5e-4
  config.optim.groups = ()
  config.optim.warmup_epochs = 0.0
  config.optim.schedule = 'step'
  config.optim.gamma = 0.1
  config.optim.milestones = (config.erase.epochs,)


def rounds(config, plan, epochs):
  """Infects for `epochs`, then erases by `plan`."""
  config.erase.rounds = tuple(map(tuple, plan))
  config.erase.epochs = epochs
  config.epochs = pbe.epochs_of(
    plan, config.erase.examples, config.batch_size, epochs
  )


def demo():
  config = common('digits')
  config.erase.examples = 1438
  config.erase.pad, config.erase.degrees = 1, 0.0
  config.erase.radius, config.erase.step = 0.2, 0.05
  config.batch_size = 64
  rounds(config, (pbe.Round(0.05, 100, adversarial_epochs=50),), 15.0)
  sgd(config)
  config.optim.lr = 0.05
  config.eval_epochs = config.save_epochs = 5.0
  config.log_steps = 20
  return config


def baseline():
  config = demo()
  share, epochs, *_ = config.erase.rounds[0]
  rounds(config, (pbe.Round(share, epochs),), config.erase.epochs)
  return config


def progressive():
  config = demo()
  config.erase.clean = False
  plan = (
    pbe.Round(0.05, 50, adversarial_epochs=50),
    pbe.Round(0.2, 10, adversarial_batches=31),
    pbe.Round(0.5, 10, adversarial_batches=31),
    pbe.Round(0.7, 10, adversarial_batches=31),
  )
  rounds(config, plan, config.erase.epochs)
  return config


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = common('tiny')
  config.erase.examples = 64
  config.erase.pad = 1
  config.erase.iterations = 2
  config.batch_size = 16
  rounds(config, (pbe.Round(0.5, 2, adversarial_epochs=1),), 4.0)
  sgd(config)
  config.data.random_erase = 0.0
  config.optim.lr = 0.1
  return config


def paper():
  """PreActResNet-18 with 5 % clean pictures; 20 epochs erase.

  [chosen] 100 epochs infect: the publication does not say how many.
  """
  config = common('folder')
  config.model, config.model_options = 'preact_resnet18', {}
  config.data.dataset = 'cifar10'
  config.image_size = (32, 32)
  config.batch_size = 128
  config.attack.kind = 'warp'
  config.erase.examples = 50000
  config.erase.flip = 0.5
  rounds(config, pbe.AFT, 100.0)
  sgd(config)
  config.eval_epochs = config.save_epochs = 10.0
  return config


def paper_progressive():
  config = paper()
  config.erase.clean = False
  rounds(config, pbe.PROGRESSIVE, 100.0)
  return config
