"""GreenMIM: masked pre-training of Swin on visible patches (arXiv 2205.13515,
NeurIPS 2022).

    python -m jaxzoo.main --config=configs/greenmim.py

trains a small Swin on the embedded `shapes` to fill in three quarters of each
picture, of which it sees the last quarter alone: loss 0.37 on new pictures; the
baseline comes to 0.40 in as many steps, and takes half as long again for each
(docs/results.md). A minute on one CPU core.

    --config=configs/greenmim.py:baseline  the same network on all patches, with
                                           a token in place of the masked ones
    --config=configs/greenmim.py:folder \\
        --config.data.root=DIR             the small network on your pictures,
                                           DIR/{train,test}/**/*.jpg
    --config=configs/greenmim.py:paper     Swin-B with windows of 7 on ImageNet,
                                           200 epochs; ,model=swin_base_w14 and
                                           ,model=swin_large_w14: 800 epochs

ImageNet is read through TFDS (extra `tfds`), from --config.data.root=DIR where
it is not in TFDS's own folder.

A pre-trained encoder is fine-tuned as any published Swin; with the recipe of
the paper (100 epochs, Swin-B):

    python -m jaxzoo.weights export runs/greenmim-paper swin.safetensors
    python -m jaxzoo.main \
        --config=configs/classification.py:deit_small,model=swin_base \
        --config.init.weights=swin.safetensors --config.optim.layer_decay=0.9 \
        --config.epochs=100 --config.batch_size=768 --config.optim.lr=1.875e-3 \
        --config.optim.warmup_epochs=20 --config.data.repeats=1 --config.ema=0
"""

from jaxzoo import catalog, configuration
from jaxzoo.errors import UserError, nearest
from jaxzoo.models.self_supervised.greenmim import PUBLISHED

# Mean of `:baseline` over three seeds (docs/results.md).
BASELINE = {'test/loss': 0.398}


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'folder': folder,
    'paper': paper,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  for name in ('model', 'model_options', 'loss', 'evals'):
    del config[name]
  config.system = 'greenmim'
  config.mean, config.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  config.visible_only = True  # False: all patches, with a token for the masked
  config.mask_ratio = 0.75
  config.masks = 8  # of a batch; a multiple of the number of devices
  config.norm_pix_loss = True
  config.match_reference_order = False
  config.ema = 0.0

  config.data.kind = 'masked_images'
  config.data.crop = 'random_resized'
  config.data.crop_scale = (0.2, 1.0)
  config.data.interpolation = 'bicubic'
  config.data.flip = 0.5
  config.data.randaugment = ''
  config.data.color_jitter = 0.0
  config.data.random_erase = 0.0

  config.optim.name = 'adamw'
  config.optim.b2 = 0.95
  config.optim.weight_decay = 0.05
  config.evals = dict(test=dict(kind='reconstruction', split='test'))
  config.checkpoint.best = ''
  return config


def small(base):
  config = common(base)
  config.encoder = dict(
    width=24, depths=(2, 2), num_heads=(2, 4), window=4, patch_size=4
  )
  config.decoder = dict(width=32, depth=1, num_heads=2)
  config.image_size = (64, 64)
  config.scan = False  # few blocks: unrolled is faster
  config.optim.lr = 2e-3
  config.optim.warmup_epochs = 0.1
  return config


def demo():
  config = small('')
  # One narrow block does not learn where to look in a run of a minute.
  config.decoder.update(width=64, depth=4)
  config.data.embedded = dict(seed=0, train=4000, test=256, size=64)
  config.norm_pix_loss = False  # of even patches it would leave noise alone
  config.optim.lr = 6e-3
  config.batch_size = 32
  config.epochs = 4.0
  config.eval_epochs, config.save_epochs = 0.5, 2.0
  config.log_steps = 20
  config.baseline.update(BASELINE)
  return config


def baseline():
  config = demo()
  config.visible_only = False
  config.baseline = {}
  return config


def best(config):
  """Keeps the checkpoint that fills pictures in best."""
  config.checkpoint.best = 'test/loss'
  config.checkpoint.best_mode = 'min'


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = small('tiny')
  config.encoder.update(width=8, num_heads=(1, 2), patch_size=2)
  config.decoder.update(width=16, num_heads=2)
  config.image_size = (32, 32)
  config.data.embedded.size = 32
  config.evals.knn = dict(kind='knn', split='test')
  config.norm_pix_loss = False
  config.optim.lr = 1e-2
  config.optim.warmup_epochs = 0.0
  return config


def folder():
  config = small('folder')
  best(config)
  config.batch_size = 128
  config.epochs = 100.0
  config.eval_epochs = config.save_epochs = 10.0
  config.optim.warmup_epochs = 5.0
  return config


def paper(model='swin_base_w7'):
  """Section 4.1; the batch is that of the released code's seven devices."""
  if model not in PUBLISHED:
    raise UserError(f'no model {model!r}; ' + nearest(model, PUBLISHED))
  config = common('deit_small')
  config.encoder = dict(PUBLISHED[model])
  config.decoder = dict(width=512, depth=1, num_heads=16)
  config.image_size = (224, 224)
  short = model == 'swin_base_w7'
  config.batch_size = 4096 if short else 2048
  config.epochs = 200.0 if short else 800.0
  config.eval_epochs = config.save_epochs = 10.0
  config.evals.test.split = 'validation'
  best(config)
  config.data.repeats = 1
  config.optim.lr = 1.5e-4 * config.batch_size / 256
  config.optim.end = 0.0
  config.optim.schedule = 'cosine'
  config.optim.by_epoch = False
  config.optim.warmup_epochs = 40.0
  config.optim.warmup_factor = 0.0
  return config
