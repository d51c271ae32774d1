"""DIST: distillation from a stronger teacher (arXiv 2205.10536, NeurIPS 2022).

    python -m jaxzoo.main --config=configs/dist.py

trains a teacher on the embedded `shapes` first, then a student of a quarter of
its size with the labels and the relations between the teacher's probabilities.

    --config=configs/dist.py:baseline   vanilla distillation, as
                                         configs/distillation.py has it
    --config=configs/dist.py:folder \\
        --config.data.root=DIR           your pictures; also ,size=PIXELS and
                                         ,model=NAME,teacher=NAME
    --config=configs/dist.py:resnet18   ImageNet: ResNet-34 to ResNet-18;
                                         also ,model=NAME,teacher=NAME: with
                                         mobilenet_v1 and resnet50 73.2 %
    --config=configs/dist.py:strong     ImageNet, 450 epochs, from a strong
                                         ResNet-50
    --config=configs/dist.py:swin_tiny  ImageNet: Swin-L to Swin-T

A trained teacher is taken with --config.stages.teacher.run=DIR, a published one
with --config.teacher.weights=resnet34.pth.
"""

from jaxzoo import catalog, configuration

PUBLISHED = ('resnet18', 'strong', 'swin_tiny')


def get_config(variant=''):
  variants = {'baseline': baseline}
  variants |= {name: ours for name in ('', 'tiny', 'folder')}
  variants |= {name: published for name in PUBLISHED}
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'teacher', 'size']
  )
  return make(**options) if make is baseline else make(variant)


def common(base, **options):
  """A config of configs/distillation.py with the terms {'dist': options}."""
  config = catalog.get_config(f'distillation:{base}').unlock()
  config.system = 'dist'
  config.loss.base_weight = 1.0
  config.distill = dict(dist=options)
  return config


def ours(variant):
  return common(variant, weight=2.0, temperature=1.0)


def baseline():
  config = catalog.get_config('distillation').unlock()
  config.system = 'dist'
  return config


def published(variant):
  """[code] Relations are those of the 32 images of a device.

  R34 to R18 72.07 %; `strong` 74.5 %; Swin-L to Swin-T 82.3 %.
  """
  return common(variant, weight=2.0, temperature=1.0, group_size=32)
