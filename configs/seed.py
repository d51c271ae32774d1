"""SEED: self-supervised distillation (arXiv 2101.04731, ICLR 2021).

    python -m jaxzoo.main --config=configs/seed.py

pre-trains a teacher by contrast on the embedded `shapes` first, without labels,
then a student of a quarter of its size that reproduces its similarities; k-NN
and a linear probe judge the vectors.

    --config=configs/seed.py:baseline       the student by contrast alone
                                            (MoCo v2)
    --config=configs/seed.py:teacher        the teacher's own run
    --config=configs/seed.py:paper \\
        --config.teacher.weights=FILE       ImageNet: ResNet-18 from MoCo v2's
                                            ResNet-50; also ,model=NAME
    --config=configs/seed.py:small_patches \\
        --config.teacher.weights=FILE       with small crops, from SwAV's
                                            ResNet-50; 400 epochs

A trained teacher is taken with --config.stages.teacher.run=DIR.
"""

from jaxzoo import catalog, configuration
from jaxzoo.models.cards import model_card
from jaxzoo.stages import stage


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'teacher': teacher,
    'tiny': tiny,
    'paper': paper,
    'small_patches': small_patches,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(base):
  config = catalog.get_config(f'classification:{base}').unlock()
  config.system = 'seed'
  config.mean, config.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  config.head = dict(hidden=0, dim=128, head_norm=False)
  config.queue_size = 65536
  config.teacher = dict(
    kind='frozen',  # or 'momentum': MoCo v2
    momentum=0.999,
    model=config.model,
    model_options=config.model_options.to_dict(),  # its own copy
    mean=config.mean,
    std=config.std,
    dtype=config.dtype,
    head=dict(hidden=0, dim=128, head_norm=False),
    weights='',  # a published checkpoint
  )
  config.loss = dict(student_temperature=0.2, teacher_temperature=0.01)
  config.ema = 0.0

  config.data.kind = 'views'
  config.data.views = 1  # 2 for MoCo
  config.data.crop_scale = (0.2, 1.0)
  config.data.color_jitter = 0.4
  config.data.hue = 0.1
  config.data.blur = 0.5
  config.data.flip = 0.5
  config.data.small_crops = 0
  config.data.small_size = 96
  config.data.small_scale = (0.05, 0.14)

  config.evals = dict(
    knn=dict(kind='knn', split='test'),
    linear=dict(kind='linear_probe', split='test'),
  )
  config.checkpoint.best = ''
  config.baseline = {}
  return config


def contrast(config):
  """MoCo v2 with the config's own network."""
  config.teacher.kind = 'momentum'
  config.data.views = 2
  return config


def small(base):
  config = common(base)
  config.queue_size = 1024
  config.teacher.momentum = 0.99
  # Kinds are told apart by form, not by colour: as little blur as they bear.
  config.data.blur = 0.0
  config.data.crop_scale = (0.5, 1.0)
  config.optim.lr = 2e-3
  return config


def easy():
  config = small('easy')
  config.batch_size = 64
  config.epochs = 20.0
  config.eval_epochs = config.save_epochs = 10.0
  return config


def teacher():
  return contrast(easy())


def demo():
  config = easy()
  config.model_options.width //= 2
  config.stages.teacher = stage('seed:teacher')
  return config


def baseline():
  config = easy()
  config.model_options.width //= 2
  return contrast(config)


def tiny():
  config = small('tiny')
  config.queue_size = 16
  config.optim.lr = 1e-2
  # Vectors of an untrained teacher are close to each other.
  config.loss.update(student_temperature=0.05, teacher_temperature=1e-3)
  config.data.small_crops, config.data.small_size = 2, 12
  config.data.small_scale = (0.2, 0.5)
  config.head.dim = config.teacher.head.dim = 16
  config.evals = dict(knn=dict(kind='knn', split='test'))
  return config


def paper(model='resnet18', base_teacher='resnet50'):
  """[code] 200 epochs; the rate is 0.03 for 256 images."""
  config = common(f'resnet50,model={model}')
  config.dtype = 'bfloat16'
  config.teacher.model = base_teacher
  config.teacher.model_options = {}
  config.teacher.dtype = 'bfloat16'
  config.image_size = model_card(model).image_size
  config.batch_size = 256
  config.epochs = 200.0
  config.optim.name = 'sgd'
  config.optim.lr = 0.03
  config.optim.weight_decay = 1e-4
  config.optim.schedule = 'cosine_whole'
  config.optim.by_epoch = True
  config.optim.warmup_epochs = 5.0
  config.optim.warmup_factor = 1.0  # from 0.03, whatever the batch's rate
  for fields in config.evals.values():
    fields.split = 'validation'
  config.eval_epochs = 50.0
  return config


def small_patches(model='resnet18'):
  """[code] SwAV's augmentation, and six crops of 96 pixels."""
  config = paper(model)
  config.epochs = 400.0
  config.data.crop_scale = (0.14, 1.0)
  config.data.small_crops = 6
  config.teacher.head = dict(hidden=2048, dim=128, head_norm=True)
  return config
