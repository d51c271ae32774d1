"""MasKD: distillation inside learned masks (arXiv 2205.14589, ICLR 2023).

    python -m jaxzoo.main --config=configs/maskd.py

trains a teacher for segmentation on the embedded `scenes`, then receptive
tokens that learn which of its pixels matter, then a student of a quarter of its
size that copies the features of its pyramid there.

    --config=configs/maskd.py:baseline   the same features, copied everywhere
    --config=configs/maskd.py:alone      the student without a teacher
    --config=configs/maskd.py:logits     masks of the logits, as the paper has
                                         them for segmentation
    --config=configs/maskd.py:folder \\
        --config.data.root=DIR --config.num_classes=N
                                         ResNet-101 to ResNet-18 on your
                                         pictures, see configs/segmentation.py
    --config=configs/maskd.py:paper \\
        --config.data.root=DIR           the same by the recipe for Cityscapes,
                                         masks of the logits

Runs that are there already are taken with --config.stages.teacher.run=DIR and
--config.stages.tokens.run=DIR.
"""

import ml_collections

from jaxzoo import catalog, configuration
from jaxzoo.stages import stage

# [paper] For segmentation: eight tokens on the logits, without heads.
LOGITS = dict(
  weight=1.0, num_tokens=8, weighted=False, custom=False, on='logits'
)


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'alone': alone,
    'tiny': tiny,
    'logits': logits,
    'folder': folder,
    'paper': paper,
  }
  make, _ = configuration.choose_variant(variant, variants)
  return make()


def common(base, tokens):
  config = catalog.get_config(f'segmentation:{base}').unlock()
  config.system = 'maskd'
  config.task = 'segmentation'
  config.loss = dict(base_weight=1.0)
  config.teacher = dict(
    model=config.model,
    model_options=config.model_options.copy_and_resolve_references(),
    mean=config.mean,
    std=config.std,
    dtype=config.dtype,
    param_dtype='float32',
    weights='',
  )
  config.distill = dict(
    maskd=dict(
      weight=1.0, num_tokens=6, weighted=True, custom=True, warmup=5000
    )
  )
  config.stages.teacher = stage(
    f'segmentation:{base}' if base else 'segmentation'
  )
  config.stages.tokens = stage(tokens)
  return config


def halved(config):
  config.model_options.width //= 2
  return config


def demo():
  config = halved(common('', 'maskd_tokens'))
  config.distill.maskd.warmup = 625  # half of the run, as published
  return config


def baseline():
  config = demo()
  del config.stages['tokens']
  config.distill = dict(features=dict(weight=1.0, stage='all'))
  return config


def alone():
  config = demo()
  config.distill = ml_collections.ConfigDict()
  config.stages = ml_collections.ConfigDict()
  return config


def logits():
  config = halved(common('', 'maskd_tokens:logits'))
  config.distill.maskd = dict(LOGITS)
  return config


def tiny():
  config = common('tiny', 'maskd_tokens:tiny')
  config.distill.maskd.warmup = 2
  return config


def folder():
  """[chosen] Networks and schedule; weights and tokens as published."""
  config = common('folder', 'maskd_tokens:folder')
  config.model = 'resnet18'
  config.teacher.model = 'resnet101'
  # Stages read the pictures of the run that stands on them.
  own = ('data.root', 'num_classes')
  config.stages.teacher = stage(
    'segmentation:folder,model=resnet101', inherit=own
  )
  config.stages.tokens = stage('maskd_tokens:folder', inherit=own)
  return config


def paper():
  """[paper] Parts of 512 x 1024, 16 of them a step, 40,000 steps, SGD with 0.02.

  [chosen] A feature pyramid where the paper has DeepLabV3: 77.0 mIoU with it.
  """
  config = folder()
  config.num_classes = 19
  config.image_size = (512, 1024)
  config.distill.maskd = dict(LOGITS)
  config.epochs = 215.1  # of 2,975 pictures
  own = ('data.root', 'num_classes', 'image_size')
  config.stages.teacher = stage(
    'segmentation:folder,model=resnet101', inherit=(*own, 'epochs')
  )
  config.stages.tokens = stage('maskd_tokens:paper', inherit=own)
  return config
