"""Knowledge distillation of classifiers (arXiv 1503.02531), and its recipes.

    python -m jaxzoo.main --config=configs/distillation.py

trains a teacher of 78,042 parameters on the embedded `shapes` first, then a
student of a quarter of its size with the labels and the teacher's softened
probabilities. What papers take from a teacher beside them are other terms of
`config.distill`: see configs/{dist,diffkd}.py.

    --config=configs/distillation.py:baseline   the student without a teacher
    --config=configs/distillation.py:folder \\
        --config.data.root=DIR                  your pictures, as of
                                                configs/classification.py; also
                                                ,size=PIXELS and
                                                ,model=NAME,teacher=NAME
    --config=configs/distillation.py:resnet18   ImageNet: ResNet-34 to
                                                ResNet-18; also
                                                ,model=NAME,teacher=NAME
    --config=configs/distillation.py:strong     ImageNet, 450 epochs, from a
                                                strong ResNet-50
    --config=configs/distillation.py:swin_tiny  ImageNet: Swin-L to Swin-T

A trained teacher is taken with --config.stages.teacher.run=runs/dist/teacher,
a published one with --config.teacher.weights=resnet34.pth.
"""

import ml_collections

from jaxzoo import catalog, configuration
from jaxzoo.errors import UserError
from jaxzoo.stages import stage


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'folder': folder,
    'resnet18': resnet18,
    'strong': strong,
    'swin_tiny': swin_tiny,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'teacher', 'size']
  )
  return make(**options)


def common(base, teacher):
  """`base`, a config of classification, taught by a network like `teacher`'s.

  Args:
    base: of the student: 'classification:...'.
    teacher: a config whose network the teacher has.
  """
  config = catalog.get_config(base).unlock()
  config.system = 'distillation'
  config.task = 'classification'
  config.loss.base_weight = 1.0  # of the loss on the labels
  config.distill = ml_collections.ConfigDict()  # term: {weight, options}
  config.teacher = dict(
    model=teacher.model,
    model_options=teacher.model_options,
    mean=teacher.mean,
    std=teacher.std,
    dtype=teacher.dtype,
    param_dtype='float32',
    weights='',  # a published checkpoint
  )
  config.data.teacher_logits = ''  # a file of python -m jaxzoo.teach
  config.baseline = ml_collections.ConfigDict()
  return config


def small(name, inherit=()):
  """A student of a quarter of the teacher's size, which is trained first."""
  config = common(name, catalog.get_config(name))
  config.model_options.width //= 2
  config.stages.teacher = stage(name, inherit=inherit)
  return config


def demo():
  return softened(small('classification'))


def softened(config):
  """[chosen] Weights and temperature of the baseline in DIST's released code."""
  config.loss.label_smoothing = 0.0
  config.loss.base_weight = 0.9
  config.distill.kd = dict(weight=1.0, temperature=4.0)
  return config


def baseline():
  config = demo()
  config.loss.base_weight = 1.0
  config.distill = ml_collections.ConfigDict()
  config.stages = ml_collections.ConfigDict()
  return config


def tiny():
  config = small('classification:tiny')
  config.model_options.width *= 2  # the teacher's: it learns in few steps
  config.loss.update(mixup=0.0, cutmix=0.0, label_smoothing=0.0)
  config.data.random_erase = 0.0
  config.optim.lr = 2e-2
  config.distill.kd = dict(weight=1.0, temperature=4.0)
  return config


def folder(model='', teacher='', size=''):
  """Networks as in the demo, or any two."""
  # The teacher sees the pictures of the run that stands on it.
  own = ('data.root', 'num_classes')
  if bool(model) != bool(teacher):
    raise UserError('folder: name both networks, model=NAME,teacher=NAME')
  if not model:
    return softened(small(pictures('', size), own))
  name = pictures(teacher, size)
  config = common(pictures(model, size), catalog.get_config(name))
  config.stages.teacher = stage(name, inherit=own)
  return softened(config)


def pictures(model, size):
  """The config of a classifier of pictures in folders."""
  options = (('model', model), ('size', size))
  given = [f',{key}={value}' for key, value in options if value]
  return 'classification:folder' + ''.join(given)


def imagenet(base, model, teacher):
  config = common(
    f'classification:{base},model={model}',
    catalog.get_config(f'classification:{base},model={teacher}'),
  )
  config.teacher.dtype = config.teacher.param_dtype = 'bfloat16'
  config.loss.base_weight = 0.9
  config.distill.kd = dict(weight=1.0, temperature=4.0)
  return config


def resnet18(model='resnet18', teacher='resnet34'):
  """[code] The recipe "B1" of DIST: 71.21 % with this loss."""
  config = imagenet('resnet50', model, teacher)
  config.epochs = 100.0
  config.optim.nesterov = True
  config.optim.milestones = (30, 60, 90)
  config.optim.groups = ((r'(bias|scale)$', {'decay': 0.0}),)
  return config


def strong(model='resnet18', teacher='resnet50'):
  """[code] "B2": 72.6 % with this loss and a ResNet-50 of 80.1 %."""
  config = imagenet('resnet50', model, teacher)
  config.loss.label_smoothing = 0.1
  config.data.randaugment = 'rand-m9-mstd0.5-inc1'
  config.data.random_erase = 0.2
  config.ema = 0.9999
  config.batch_size = 768
  config.epochs = 450.0
  config.optim.name = 'rmsprop'
  config.optim.lr = 0.048
  config.optim.b2, config.optim.eps = 0.9, 1e-3
  config.optim.weight_decay = 1e-5
  config.optim.schedule = 'step'
  config.optim.milestones = tuple(2.4 * i for i in range(1, 188))
  config.optim.gamma = 0.97
  config.optim.warmup_epochs = 3.0
  config.optim.warmup_factor = 1e-6 / 0.048
  config.optim.groups = ((r'(bias|scale)$', {'decay': 0.0}),)
  return config


def swin_tiny(model='swin_tiny', teacher='swin_large_22k'):
  """[code] "B3"; the teacher has 86.3 %."""
  config = imagenet('deit_small', model, teacher)
  config.model_options.drop_path = 0.2
  config.data.repeats = 1
  config.ema = 0.0
  config.optim.weight_decay = 0.04
  config.optim.clip_norm = 5.0
  return config
