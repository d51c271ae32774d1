"""CLIP: contrastive language-image pre-training (arXiv 2103.00020).

    python -m jaxzoo.main --config=configs/clip.py

trains small towers from scratch on the embedded `pedestrians`: retrieval of
unseen people by description, with CLIP's own loss and learned temperature.

    --config=configs/clip.py:paper,model=ViT-L/14

is the published pre-training recipe (batch 32,768, 32 epochs) for any of the
eight published models; its 400 million pairs are not public, so
--config.data.root and --config.data.dataset must name others. Batches larger
than memory stay exact with --config.loss.tower_microbatches=N (activations of
a part at a time) and --config.loss.chunk=N (cosines with N texts at a time);
--config.loss.kind=sigmoid is SigLIP's loss.

    --config=configs/clip.py:paper,model=ViT-B/16,zero_shot=imagenet2012 \\
        --config.evals.zero_shot.names=classes.txt

also classifies a data set of TFDS (`data_dir` in --config.evals.zero_shot.root)
by sentences, its classes in words on the lines of a file.
"""

from jaxzoo import catalog, configuration
from jaxzoo.models.backbones import clip

# Peak learning rate of each model (table 19 of the paper).
RATES = {
  'RN50': 5e-4,
  'RN101': 5e-4,
  'RN50x4': 5e-4,
  'RN50x16': 4e-4,
  'RN50x64': 3.6e-4,
  'ViT-B/32': 5e-4,
  'ViT-B/16': 5e-4,
  'ViT-L/14': 4e-4,
  'ViT-L/14@336px': 2e-5,
}

# Exact for batches of any size: fewer cosines (chunk), or fewer activations of
# the towers (tower_microbatches), in memory at once.
LOSS = dict(kind='softmax', chunk=0, tower_microbatches=1)


def get_config(variant=''):
  variants = {'': demo, 'tiny': demo, 'paper': paper}
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'zero_shot']
  )
  return make(variant.split(',')[0], **options)


def demo(variant, model='', zero_shot=''):
  del model, zero_shot
  config = catalog.get_config(f'cfam:{variant}').unlock()
  config.system = 'clip'
  config.loss = dict(LOSS)
  config.num_classes = 0  # identities play no part
  del config.granularity
  for name in [n for n, fields in config.evals.items() if 'vectors' in fields]:
    del config.evals[name]  # of the granules
  config.baseline = {}
  return config


def paper(variant, model='ViT-B/32', zero_shot=''):
  del variant
  rate, _ = configuration.choose_variant(model, RATES)
  config = catalog.get_config('cfam:cuhk_pedes').unlock()
  config.system = 'clip'
  config.loss = dict(LOSS)
  config.num_classes = 0  # identities play no part
  del config.granularity
  config.init.fresh = ()
  config.towers = clip.PUBLISHED[model]._asdict()
  config.image_size = (clip.RESOLUTION[model],) * 2
  config.text_length = 77
  config.remat = 'attention'  # docs/scaling.md

  config.batch_size = 32768
  config.epochs = 32.0
  config.data.pad_crop = 0
  config.data.random_erase = 0.0
  config.optim.name = 'adamw'
  config.optim.lr = rate
  vit = model.startswith('ViT')
  config.optim.b2 = 0.98 if vit else 0.999
  config.optim.eps = 1e-6 if vit else 1e-8
  config.optim.weight_decay = 0.2
  # 2,000 steps of the paper's 390,625.
  config.optim.warmup_epochs = 0.164
  config.optim.warmup_factor = 0.0
  config.optim.by_epoch = False
  config.optim.groups = (('bias$|scale$', {'decay': 0.0}),)
  if zero_shot:
    config.evals.zero_shot = dict(
      kind='zero_shot',
      dataset='tfds',
      name=zero_shot,
      split='validation' if zero_shot.startswith('imagenet') else 'test',
      root='',
      names='',
    )
  return config
