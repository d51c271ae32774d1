"""DiffKD: knowledge diffusion (arXiv 2305.15712, NeurIPS 2023).

    python -m jaxzoo.main --config=configs/diffkd.py

trains a teacher on the embedded `shapes` first, then a student of a quarter of
its size, whose last map and logits are denoised towards the teacher's.

    --config=configs/diffkd.py:baseline   vanilla distillation, as
                                           configs/distillation.py has it
    --config=configs/diffkd.py:resnet18   ImageNet: ResNet-34 to ResNet-18;
                                           also ,model=NAME,teacher=NAME
    --config=configs/diffkd.py:strong     ImageNet, 450 epochs, from a strong
                                           ResNet-50
    --config=configs/diffkd.py:swin_tiny  ImageNet: Swin-L to Swin-T

A trained teacher is taken with --config.stages.teacher.run=DIR, a published one
with --config.teacher.weights=resnet34.pth.
"""

from jaxzoo import catalog, configuration

PUBLISHED = ('resnet18', 'strong', 'swin_tiny')


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny}
  variants |= {name: published for name in PUBLISHED}
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'teacher']
  )
  return make(variant) if make is published else make(**options)


def common(base, **options):
  """A config of configs/distillation.py with the terms {'diffkd': options}."""
  config = catalog.get_config(f'distillation:{base}').unlock()
  config.system = 'diffkd'
  config.loss.base_weight = 1.0
  config.distill = dict(diffkd=options)
  return config


def demo():
  return common('', weight=1.0)


def baseline():
  config = catalog.get_config('distillation').unlock()
  config.system = 'diffkd'
  return config


def tiny():
  return common('tiny', weight=1.0, code_channels=16)


def published(variant):
  """[code] All weights 1; the last map, encoded, and the logits.

  R34 to R18 72.20 %.
  """
  return common(variant, weight=1.0, code_channels=1024)
