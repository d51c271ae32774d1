"""DiffKD: knowledge diffusion (arXiv 2305.15712, NeurIPS 2023).

    python -m jaxzoo.main --config=configs/diffkd.py

trains a teacher on the embedded `shapes` first, then a student of a quarter of
its size, whose last map and logits are denoised towards the teacher's.

    --config=configs/diffkd.py:baseline   vanilla distillation, as
                                           configs/distillation.py has it
    --config=configs/diffkd.py:folder \\
        --config.data.root=DIR             your pictures; also ,size=PIXELS and
                                           ,model=NAME,teacher=NAME
    --config=configs/diffkd.py:resnet18   ImageNet: ResNet-34 to ResNet-18;
                                           also ,model=NAME,teacher=NAME
    --config=configs/diffkd.py:strong     ImageNet, 450 epochs, from a strong
                                           ResNet-50
    --config=configs/diffkd.py:swin_tiny  ImageNet: Swin-L to Swin-T

A trained teacher is taken with --config.stages.teacher.run=DIR, a published one
with --config.teacher.weights=resnet34.pth.
"""

from jaxzoo import catalog


def get_config(variant=''):
  config = catalog.get_config(f'dist:{variant}').unlock()
  config.system = 'diffkd'
  name = variant.partition(',')[0]
  if name == 'baseline':
    return config
  # [code] All weights 1; the last map, encoded where it is published, and the
  # logits. ResNet-34 to ResNet-18: 72.20 %.
  channels = {'': 0, 'folder': 0, 'tiny': 16}.get(name, 1024)
  config.distill = dict(diffkd=dict(weight=1.0, code_channels=channels))
  return config
