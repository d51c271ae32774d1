"""ZenNets with the weights of idstcv/ZenNAS.

The accuracies on ImageNet are those of pictures cut to 320x320 pixels (380x380
for 1.2 ms), 0.875 of what they are resized to, and then resized to 224x224.
"""

from jaxzoo.models.cards.card import ModelCard

_FILES = 'https://idstcv.oss-cn-zhangjiakou.aliyuncs.com/ZenNet/'
_FILES += 'pretrained_models'


def _imagenet(budget, variant, parameters, gmacs, top1, folder='iccv2021_'):
  name = f'zennet_imagenet1k_{budget}_res224'
  return ModelCard(
    name=name,
    family='zennet',
    builder='jaxzoo.models.backbones.zennet:build',
    variant=f'ZenNet-{variant}',
    paper='arXiv 2102.01063',
    parameters=parameters,
    gmacs=gmacs,
    interpolation='bicubic',
    license='Apache-2.0',
    weights=f'{_FILES}/{folder}{name}/student_best-params_rank0.pth',
    results={'ImageNet top-1': top1},
  )


def _cifar(classes, size, variant, parameters, gmacs, top1):
  name = f'zennet_cifar{classes}_model_size{size}_res32'
  return ModelCard(
    name=name,
    family='zennet',
    builder='jaxzoo.models.backbones.zennet:build',
    variant=f'ZenNet-{variant}',
    paper='arXiv 2102.01063',
    parameters=parameters,
    image_size=(32, 32),
    num_classes=classes,
    gmacs=gmacs,
    # The code's, for both data sets.
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2023, 0.1994, 0.2010),
    crop=1.0,
    license='Apache-2.0',
    weights=f'{_FILES}/{name}/best-params_rank0.pth',
    results={f'CIFAR-{classes} top-1': top1},
  )


CARDS = (
  _imagenet('flops400M_SE', '400M-SE', 7466024, 0.402, 78.0),
  _imagenet('flops600M_SE', '600M-SE', 11311664, 0.602, 79.1),
  _imagenet('flops900M_SE', '900M-SE', 19351644, 0.915, 80.8, folder=''),
  _imagenet('latency01ms', '0.1ms', 30068776, 1.757, 77.8),
  _imagenet('latency02ms', '0.2ms', 49681944, 3.416, 80.8),
  _imagenet('latency03ms', '0.3ms', 85379160, 4.872, 81.5),
  _imagenet('latency05ms', '0.5ms', 118179592, 8.332, 82.7),
  _imagenet('latency08ms', '0.8ms', 182504488, 13.923, 83.0),
  _imagenet('latency12ms', '1.2ms', 180593736, 21.974, 83.6),
  _cifar(10, '05M', '0.5M', 500466, 0.136, 96.2),
  _cifar(10, '1M', '1.0M', 994674, 0.159, 96.2),
  _cifar(10, '2M', '2.0M', 1981810, 0.481, 97.5),
  _cifar(100, '05M', '0.5M', 546636, 0.136, 79.9),
  _cifar(100, '1M', '1.0M', 1040844, 0.159, 80.1),
  _cifar(100, '2M', '2.0M', 2027980, 0.482, 84.4),
)
