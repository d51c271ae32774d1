"""Image classification with any backbone, by its published recipe.

    python -m jaxzoo.main --config=configs/classification.py

trains a small residual network on the embedded `shapes`, ten kinds in any pose,
texture and clutter: top-1 about 74 % on 2,000 new ones, where the baseline has
67 % and a linear model 15 % (docs/results.md), in 5 minutes on two CPU cores.

    --config=configs/classification.py:baseline  without augmentation, label
                                                 smoothing and averaging
    --config=configs/classification.py:easy      pictures that are easier to
                                                 tell, in a minute: the data of
                                                 the backbones' demos
    --config=configs/classification.py:digits    scikit-learn's digits (extra
                                                 `sklearn`), with k-NN and a
                                                 linear probe on the vectors
    --config=configs/classification.py:folder \\
        --config.data.root=DIR                   your pictures, in
                                                 DIR/{train,test}/CLASS/*.jpg
    --config=configs/classification.py:resnet50  ImageNet, 90 epochs with SGD;
                                                 also ,model=NAME
    --config=configs/classification.py:deit_small
                                                 ImageNet, 300 epochs, the
                                                 recipe of DeiT; also
                                                 ,model=NAME

ImageNet is read through TFDS (extra `tfds`), from --config.data.root=DIR where
it is not in TFDS's own folder.

The small variants take ,model=NAME as well, with pictures of the size that the
model was published with or of ,size=PIXELS. Published weights are fine-tuned by

    --config=configs/classification.py:folder,model=resnet18 \\
        --config.data.root=DIR --config.num_classes=5 \\
        --config.init.weights=resnet18.pth --config.optim.layer_decay=0.75
"""

import ml_collections

from jaxzoo import configuration
from jaxzoo.models.cards import model_card
from jaxzoo.train import compiler

# No weight decay for vectors and tables.
NO_DECAY = ((r'(bias|scale|token|table|pos_embed|positions)$', {'decay': 0.0}),)


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'easy': easy,
    'digits': digits,
    'folder': folder,
    'resnet50': resnet50,
    'deit_small': deit_small,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'size']
  )
  return make(**options)


def common(model):
  config = configuration.defaults()
  config.system = 'classification'
  card = model_card(model)
  config.model = model
  config.model_options = ml_collections.ConfigDict()  # fields of its module
  config.num_classes = 10
  config.image_size = card.image_size
  config.in_chans = 3
  config.mean, config.std = card.mean, card.std
  config.compiler = compiler.set_for(card.family)

  config.loss = dict(
    kind='softmax',  # or 'binary'
    label_smoothing=0.0,
    smoothed='all',  # classes that it is spread over; or the 'others'
    mixup=0.0,  # of Beta(a, a); 0: off
    cutmix=0.0,
    mixup_switch=0.5,  # probability of cutmix where both are on
    mixup_prob=1.0,
    mixup_ramp=0.0,  # epochs over which mixup alone comes in
  )

  config.data.kind = 'classification'
  config.data.unit = 'images'
  config.data.dataset = 'shapes'
  config.data.root = ''
  config.data.name = ''  # of TFDS
  config.data.train_split = 'train'
  config.data.embedded = ml_collections.ConfigDict()  # of `shapes`
  config.data.cache_images = False
  config.data.crop = 'random_resized'  # 'pad', 'none'
  config.data.crop_scale = (0.08, 1.0)
  config.data.crop_ratio = (3 / 4, 4 / 3)
  config.data.interpolation = card.interpolation
  config.data.pad = 4
  config.data.padding = 'reflect'  # 'zero'
  config.data.flip = 0.5
  config.data.randaugment = ''  # 'rand-m9-mstd0.5-inc1'; or AutoAugment's
  # 'imagenet', 'cifar10'
  config.data.color_jitter = 0.0
  config.data.random_erase = 0.0
  config.data.eval_crop = card.crop
  config.data.eval_interpolation = card.interpolation

  config.evals.test = dict(kind='classification', split='test')
  config.checkpoint.best = 'test/top1'
  return config


def small(model='', size=''):
  """A network of our own size on small pictures, or any model as it is."""
  config = common(model or 'resnet18')
  if not model:
    config.model_options = dict(depths=(1, 1, 1), width=16)
    size = size or '32'
  if size:
    config.image_size = (int(size), int(size))
    config.data.eval_crop = 1.0
  if model_card(config.model).family == 'resnet' and small_pictures(config):
    config.model_options.small_stem = True
  config.scan = False  # few blocks: unrolled is faster
  config.optim.lr = 2e-3
  config.optim.weight_decay = 0.05
  config.optim.warmup_epochs = 1.0
  config.optim.groups = NO_DECAY
  return config


def small_pictures(config):
  return config.image_size[0] <= 64


def demo(model='', size=''):
  config = small(model, size)
  config.data.embedded = dict(seed=0, train=4000, test=2000, size=32)
  config.data.crop = 'pad'
  config.loss.label_smoothing = 0.1
  config.ema = 0.99
  config.batch_size = 64
  config.epochs = 20.0
  config.eval_epochs = config.save_epochs = 5.0
  config.optim.lr = 3e-3
  config.log_steps = 50
  return config


def baseline(model='', size=''):
  config = demo(model, size)
  config.data.crop, config.data.flip = 'none', 0.0
  config.loss.label_smoothing = 0.0
  config.ema = 0.0
  return config


def tiny(model='', size=''):
  """Seconds: to see that everything works, and for the tests."""
  config = demo(model, size or '16')
  if not model:
    config.model_options.update(depths=(1, 1), width=8)
  config.data.embedded.update(train=64, test=40, size=16)
  config.evals.knn = dict(kind='knn', split='test')
  config.data.random_erase = 0.25
  config.loss.update(mixup=0.2, cutmix=1.0, mixup_prob=0.5)
  config.optim.lr = 1e-2
  config.optim.warmup_epochs = 0.0
  config.batch_size = 16
  config.epochs = 4.0
  config.eval_epochs = config.save_epochs = 2.0
  config.log_steps = 2
  return config


def easy(model='', size=''):
  """Small pictures of upright shapes near the middle, brighter than the ground.

  What a linear model gets 67 % of with 1,000 of them.
  """
  config = demo(model, size or '16')
  config.data.embedded.update(
    size=16, turn=15.0, shift=0.3, clutter=0.5, hidden=0.2, bright=True
  )
  config.data.crop, config.data.flip = 'none', 0.0
  config.loss.label_smoothing = 0.0
  config.batch_size = 32
  config.epochs = 3.0
  config.eval_epochs = config.save_epochs = 0.0  # at the end alone
  return config


def digits(model='', size=''):
  config = small(model, size or '16')
  config.data.dataset = 'digits'
  config.in_chans = 1
  config.mean, config.std = (0.31,), (0.38,)
  config.data.crop, config.data.pad, config.data.padding = 'pad', 2, 'zero'
  config.data.flip = 0.0  # a mirrored digit is another one or none
  config.loss.label_smoothing = 0.1
  config.evals.knn = dict(kind='knn', split='test')
  config.evals.linear = dict(kind='linear_probe', split='test')
  config.batch_size = 64
  config.epochs = 20.0
  config.eval_epochs = config.save_epochs = 10.0
  config.log_steps = 20
  return config


def folder(model='', size=''):
  """Any pictures by folders, augmented as CIFAR's usually are."""
  config = small(model, size)
  config.data.dataset = 'folder'
  if small_pictures(config):
    config.data.cache_images = True
    config.data.crop = 'pad'
  config.loss.label_smoothing = 0.1
  config.batch_size = 128
  config.epochs = 20.0
  config.eval_epochs = config.save_epochs = 5.0
  return config


def imagenet(model, size):
  config = common(model)
  if size:
    config.image_size = (int(size), int(size))
  config.num_classes = 1000
  config.dtype = 'bfloat16'
  config.data.dataset = 'tfds'
  config.data.name = 'imagenet2012'
  config.data.workers = 8
  config.evals.test.split = 'validation'
  return config


def resnet50(model='resnet50', size=''):
  """The recipe of torchvision's first weights: 76.1 % with ResNet-50."""
  config = imagenet(model, size)
  config.batch_size = 256
  config.epochs = 90.0
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.weight_decay = 1e-4  # of all parameters
  config.optim.schedule = 'step'
  config.optim.milestones = (30, 60)
  return config


def deit_small(model='deit_small_patch16_224', size=''):
  """arXiv 2012.12877, table 9; the schedule is that of the released code."""
  config = imagenet(model, size)
  config.model_options = dict(drop_path=0.1)
  config.loss.update(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
  config.ema = 0.99996
  config.data.repeats = 3
  config.data.randaugment = 'rand-m9-mstd0.5-inc1'
  config.data.random_erase = 0.25
  config.batch_size = 1024
  config.epochs = 300.0
  config.optim.lr = 1e-3  # 5e-4 a batch of 512
  config.optim.end = 1e-5
  config.optim.weight_decay = 0.05
  config.optim.groups = NO_DECAY
  config.optim.schedule = 'cosine_whole'
  config.optim.by_epoch = True
  config.optim.warmup_epochs = 5.0
  config.optim.warmup_factor = 1e-3
  return config
