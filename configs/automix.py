"""AutoMix: learned mixup with a momentum pipeline (arXiv 2103.13027, ECCV 2022).

    python -m jaxzoo.main --config=configs/automix.py

trains a small residual network on 400 of the embedded `shapes` with images that
a mix block has learned to mix: top-1 about 73 % on 2,000 new ones, where mixup
has 72 %, and the network without any mixing 60 % (docs/results.md), in a minute
and a half on two CPU cores.

    --config=configs/automix.py:baseline   the same network with mixup
    --config=configs/automix.py:cifar100   ResNet-18, 800 epochs
    --config=configs/automix.py:imagenet   ResNet-50, 100 epochs; ,model=NAME

CIFAR-100 is read from --config.data.root=DIR/cifar-100-binary, ImageNet through
TFDS.
"""

from jaxzoo import catalog, configuration

# Means of `:baseline` over seeds 0 and 1 (docs/results.md).
BASELINE = {'test/top1': 72.3, 'test/top5': 94.2}


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'cifar100': cifar100,
    'imagenet': imagenet,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(base, model=''):
  config = catalog.get_config(
    f'classification:{base}' + (f',model={model}' if model else '')
  ).unlock()
  config.system = 'automix'
  config.ema = 0.0  # the momentum networks are averages already
  config.mix_block = dict(
    layer='stage3', reduction=2, lam_concat=False, upsampling='nearest'
  )
  config.loss = dict(
    mix_q=1.0,
    one_q=1.0,
    mix_k=1.0,
    mask=0.1,
    mask_decay=False,
    mask_margin=0.1,
    lam_margin=0.08,
    alpha=2.0,
    label_smoothing=0.0,
    switch_off=0.0,
    groups=1,
  )
  config.momentum = dict(base=0.999, end=0.999999, start=0.1)
  # `test` is head_one_k; the paper reports the best of the four.
  for head in ('mix_k', 'one_q', 'mix_q'):
    config.evals[f'test_{head}'] = dict(
      config.evals.test.to_dict(), output=f'logits_{head}'
    )
  return config


def demo(model=''):
  """Few pictures, seen often: there augmentation has something to do."""
  config = common('easy', model)
  config.data.embedded = dict(
    seed=0,
    train=400,
    test=2000,
    size=16,
    turn=15.0,
    shift=0.3,
    clutter=0.5,
    hidden=0.2,
    bright=True,
  )
  config.data.crop = 'none'
  config.batch_size = 32
  config.epochs = 30.0
  # The averages of a run of minutes have to follow: no rise to 1.
  config.momentum.update(base=0.97, end=0.97)
  config.baseline.update(BASELINE)
  return config


def baseline(model=''):
  """Mixup: every mask is the constant lambda, and the mix block learns nothing.

  Network, momentum copies, data and epochs are those of the demo.
  """
  config = demo(model=model)
  config.loss.update(lam_margin=0.5, mix_k=0.0, mask=0.0)
  config.baseline = {}
  return config


def tiny(model=''):
  config = common('tiny', model)
  config.model_options.update(depths=(1, 1, 1))
  return config


def cifar100(model=''):
  """[code] One cosine from 0.1 to 0.05, so that the averages keep moving."""
  config = common('folder', model)
  config.model_options = dict(small_stem=True)
  config.data.dataset = 'cifar100'
  config.num_classes = 100
  config.mean, config.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.201)
  config.batch_size = 100
  config.epochs = 800.0
  config.eval_epochs = config.save_epochs = 10.0
  sgd(config, end=0.05)
  return config


def imagenet(model='resnet50'):
  config = common('resnet50', model)
  config.mix_block.lam_concat = True
  config.loss.mask_decay = True
  config.momentum.end = 0.99999
  config.epochs = 100.0
  config.eval_epochs = 10.0
  sgd(config, end=0.0)
  return config


def sgd(config, end):
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.end = end
  config.optim.schedule = 'cosine'
  config.optim.weight_decay = 1e-4
  config.optim.groups = ()
  config.optim.warmup_epochs = 0.0
