"""CFAM on UFineBench: text-based person retrieval (arXiv 2312.03441).

    python -m jaxzoo.main --config=configs/cfam.py

trains small towers from scratch on the embedded `pedestrians` and searches
people it has never seen by long descriptions: R@1 of 46 % among 360 images of 120
people by the global vectors, 53 % by the granules, 42 % of the baseline
(docs/results.md), in minutes on two CPU cores.

    --config=configs/cfam.py:baseline       global similarity alone
    --config=configs/cfam.py:ufine6926      the published recipe, ViT-B/16;
                                            also :cuhk_pedes :icfg_pedes
                                            :rstpreid, each with ,model=l14

The published recipes start from OpenAI's weights and a data set on disk:

    --config=configs/cfam.py:ufine6926,cross=ufine3c \\
        --config.init.weights=ViT-B-16.pt --config.data.root=/data

where `cross` names data sets (joined by +) to be evaluated on as well.
"""

from jaxzoo import configuration
from jaxzoo.models.backbones import clip

# data set -> training identities, caption length
PUBLISHED = {
  'ufine6926': (4926, 168),
  'cuhk_pedes': (11003, 77),
  'icfg_pedes': (3102, 77),
  'rstpreid': (3701, 77),
}


# Mean of `:baseline` over seeds 0, 1 and 2 (docs/results.md).
BASELINE = {
  'cross/R@1': 38.9,
  'cross/R@5': 73.5,
  'cross/R@10': 85.6,
  'cross/mAP': 41.4,
  'cross/mINP': 29.3,
  'cross/mSD': 31.2,
  'test/R@1': 41.8,
  'test/R@5': 73.9,
  'test/R@10': 85.1,
  'test/mAP': 45.8,
  'test/mINP': 35.2,
  'test/mSD': 34.4,
}


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny}
  variants |= {name: published for name in PUBLISHED}
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'cross']
  )
  return make(variant.split(',')[0], **options)


def common():
  config = configuration.defaults()
  config.system = 'cfam'

  config.granularity = dict(queries=16, decoder_depth=2, matcher_depth=2)
  config.loss = dict(
    gs=1.0,  # global similarity
    ls=1.0,  # local similarity, granule by granule
    m=1.0,  # match with hard negatives
    cid=1.0,  # classification of the identity
    similarity='infonce',  # or 'sdm'
    hard_negatives='hardest',  # or 'sampled'
    temperature=0.02,
  )

  config.data.kind = 'person_retrieval'
  config.data.unit = 'images'
  config.data.dataset = 'ufine6926'
  config.data.root = ''
  config.data.cache_images = False
  config.data.flip = 0.5
  config.data.pad_crop = 10
  config.data.random_erase = 0.5
  config.data.mask_words = 0.0

  config.checkpoint.best = 'test/R@1'
  return config


def demo(name, model='', cross=''):
  del name, model, cross
  config = common()
  config.towers = clip.Towers(
    image='vit',
    image_width=128,
    image_depth=3,
    image_heads=2,
    patch_size=16,
    text_width=64,
    text_depth=2,
    text_heads=2,
    vocab_size=49408,
    output_dim=128,
  )._asdict()
  config.image_size = (128, 48)
  config.text_length = 120
  config.num_classes = 2500
  config.loss.temperature = 0.05
  config.granularity.update(queries=8, decoder_depth=1, matcher_depth=1)
  config.scan = False  # small and few: unrolled is faster
  config.data.embedded = dict(
    seed=0, train_identities=2500, images_per_identity=3
  )
  config.data.cache_images = True
  config.data.pad_crop = 4
  config.data.random_erase = 0.2

  config.batch_size = 64
  config.epochs = 2.5
  config.eval_epochs = config.save_epochs = 1.25
  config.optim.lr = 2e-3
  config.optim.name = 'muon'
  config.optim.b2 = 0.98
  config.optim.weight_decay = 0.05
  config.optim.warmup_epochs = 0.2
  config.optim.groups = (('bias$|scale$|embedding', {'decay': 0.0}),)

  config.evals.test = dict(
    kind='person_retrieval', dataset='ufine6926', split='test'
  )
  config.evals.cross = dict(
    kind='person_retrieval', dataset='ufine3c', split='test'
  )
  # The published search compares global vectors alone, as the two above do.
  for name in ('test', 'cross'):
    config.evals[f'{name}_granules'] = dict(
      config.evals[name], vectors='granules'
    )
  config.baseline.update(BASELINE)
  config.log_steps = 10
  return config


def baseline(name, **options):
  config = demo(name, **options)
  config.loss.update(ls=0.0, m=0.0, cid=0.0)
  for name in ('test', 'cross'):
    del config.evals[f'{name}_granules']
  config.baseline = {}
  return config


def tiny(name, **options):
  """Seconds: to see that everything works, and for the tests."""
  config = demo(name, **options)
  config.towers.update(
    image_width=32,
    image_depth=1,
    image_heads=2,
    text_width=32,
    text_depth=1,
    text_heads=2,
    output_dim=32,
  )
  config.granularity.update(queries=4, decoder_depth=1, matcher_depth=1)
  config.image_size = (32, 16)
  config.text_length = 24
  config.num_classes = 8
  config.data.embedded = dict(
    seed=0,
    train_identities=8,
    test_identities=4,
    cross_identities=4,
    images_per_identity=2,
    height=64,
    width=32,
  )
  config.baseline = {}
  config.batch_size = 8
  config.epochs = 4.0
  config.eval_epochs = config.save_epochs = 1.0
  config.log_steps = 2
  return config


def published(name, model='b16', cross=''):
  """[paper] 384x128, 60 epochs, 5 of warm-up; the rest is IRRA's recipe."""
  sizes = {'b16': ('ViT-B/16', 64), 'l14': ('ViT-L/14', 32)}
  (towers, batch_size), _ = configuration.choose_variant(model, sizes)
  config = common()
  config.towers = clip.PUBLISHED[towers]._asdict()
  config.image_size = (384, 128)
  config.num_classes, config.text_length = PUBLISHED[name]
  config.dtype = 'bfloat16'
  config.data.dataset = name
  config.data.workers = 4
  config.init.fresh = ('^(decoder|matcher|classifier)/',)

  config.batch_size = batch_size
  config.epochs = 60.0
  config.optim.name = 'adam'  # weight decay is added to the gradient
  config.optim.lr = 1e-5
  config.optim.eps = 1e-3
  config.optim.weight_decay = 4e-5
  config.optim.warmup_epochs = 5.0
  config.optim.warmup_factor = 0.1
  config.optim.by_epoch = True
  config.optim.groups = (
    ('bias$', {'lr': 2.0, 'decay': 0.0}),
    ('^(decoder|matcher|classifier)/', {'lr': 5.0}),
  )
  config.evals.test = dict(kind='person_retrieval', dataset=name, split='test')
  for other in filter(None, cross.split('+')):
    config.evals[other] = dict(
      kind='person_retrieval', dataset=other, split='test'
    )
  return config
