"""Semantic segmentation with any backbone and a feature pyramid.

    python -m jaxzoo.main --config=configs/segmentation.py

trains a small residual network with a pyramid on the embedded `scenes`, several
shapes with the class of every pixel.

    --config=configs/segmentation.py:baseline   the same without pictures of
                                                other scales and mirrored ones
    --config=configs/segmentation.py:folder \\
        --config.data.root=DIR --config.num_classes=N
                                                your pictures: DIR/images/train/
                                                *.jpg with DIR/classes/train/
                                                *.png; also ,model=NAME
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'folder': folder,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = 'segmentation'
  config.pyramid_width = 64
  config.loss = {}
  config.ema = 0.0
  config.data.kind = 'segmentation'
  config.data.dataset = 'scenes'
  config.data.scale = (0.75, 1.5)  # of the picture, before a part is cut out
  config.data.flip = 0.5
  config.evals = dict(test=dict(kind='segmentation', split='test'))
  config.checkpoint.best = 'test/miou'
  config.baseline = {}
  return config


def demo():
  config = common('')
  config.data.embedded = dict(
    seed=0,
    train=2000,
    test=1000,
    size=32,
    kinds=5,
    turn=15.0,
    clutter=0.5,
    bright=True,
  )
  config.num_classes = 6
  config.image_size = (32, 32)
  config.model_options = dict(depths=(1, 1, 1, 1), width=16, small_stem=True)
  config.pyramid_width = 32
  config.batch_size = 16
  config.epochs = 10.0
  config.eval_epochs = config.save_epochs = 5.0
  config.optim.lr = 2e-3
  return config


def baseline():
  config = demo()
  config.data.scale, config.data.flip = (1.0, 1.0), 0.0
  return config


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = demo()
  config.data.embedded.update(train=16, test=6, size=16, kinds=2)
  config.num_classes = 3
  config.image_size = (16, 16)
  config.model_options.update(depths=(1, 1), width=8)
  config.pyramid_width = 8
  config.batch_size = 8
  config.epochs = 4.0
  config.eval_epochs = config.save_epochs = 2.0
  config.optim.lr = 1e-2
  config.optim.warmup_epochs = 0.0
  config.log_steps = 2
  return config


def folder(model='resnet50'):
  """[chosen] The sizes and rates that DeepLab's recipes have."""
  config = common(f'folder,model={model}')
  config.data.dataset = 'folder'
  config.data.scale = (0.5, 2.0)
  config.image_size = (512, 512)
  config.pyramid_width = 256
  config.batch_size = 16
  config.epochs = 200.0
  config.optim.name = 'sgd'
  config.optim.lr = 0.02
  config.optim.end = 1e-4
  config.optim.schedule = 'poly'
  config.optim.weight_decay = 5e-4
  config.eval_epochs = config.save_epochs = 10.0
  return config
