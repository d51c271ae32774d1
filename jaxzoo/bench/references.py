"""Which PyTorch model each of ours is measured beside, 'PACKAGE:NAME'.

The packages are an optional extra (`jaxzoo[reference]`). Models that are not
here have no implementation in them.
"""

from typing import NamedTuple


class Plan(NamedTuple):
  """What `backbones_torch.make` builds; plain values.

  Attributes:
    reference: 'PACKAGE:NAME', one of `REFERENCES`.
    batch_size: images a step.
    image_size: (height, width).
    dtype: 'bfloat16' for autocast, or 'float32'.
    train: a step of SGD with momentum rather than inference.
  """

  reference: str
  batch_size: int
  image_size: tuple[int, int]
  dtype: str
  train: bool


_TORCHVISION = (
  'resnet18',
  'resnet34',
  'resnet50',
  'resnet101',
  'mobilenet_v2',
  'mobilenet_v3_large',
  'mobilenet_v3_small',
  'efficientnet_b0',
  'shufflenet_v2_x0_5',
  'shufflenet_v2_x1_0',
  'shufflenet_v2_x1_5',
  'shufflenet_v2_x2_0',
)
# The same name there.
_TIMM = (
  'deit_tiny_patch16_224',
  'deit_small_patch16_224',
  'deit_base_patch16_224',
  'deit_tiny_distilled_patch16_224',
  'deit_small_distilled_patch16_224',
  'deit_base_distilled_patch16_224',
  'deit_base_patch16_384',
  'deit_base_distilled_patch16_384',
  'vit_tiny_patch16_224',
  'vit_small_patch16_224',
  'vit_base_patch16_224',
)
_TIMM_RENAMED = {
  'mobilenet_v1': 'mobilenetv1_100',
  'swin_tiny': 'swin_tiny_patch4_window7_224',
  'swin_small': 'swin_small_patch4_window7_224',
  'swin_base': 'swin_base_patch4_window7_224',
  'swin_base_22k': 'swin_base_patch4_window7_224',
  'swin_base_384': 'swin_base_patch4_window12_384',
  'swin_base_384_22k': 'swin_base_patch4_window12_384',
  'swin_large_22k': 'swin_large_patch4_window7_224',
  'swin_large_384_22k': 'swin_large_patch4_window12_384',
  'genet_small': 'gernet_s',
  'genet_normal': 'gernet_m',
  'genet_large': 'gernet_l',
}

REFERENCES: dict[str, str] = {
  **{name: f'torchvision:{name}' for name in _TORCHVISION},
  **{name: f'timm:{name}' for name in _TIMM},
  **{name: f'timm:{theirs}' for name, theirs in _TIMM_RENAMED.items()},
}
