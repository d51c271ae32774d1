"""The first stage of MasKD: receptive tokens (arXiv 2205.14589, ICLR 2023).

    python -m jaxzoo.main --config=configs/maskd_tokens.py

trains a teacher for segmentation on the embedded `scenes`, then tokens whose
masks leave it what it needs. configs/maskd.py does so by itself.

    --config=configs/maskd_tokens.py:baseline tokens that do not learn
    --config=configs/maskd_tokens.py:logits   eight tokens on the logits
    --config=configs/maskd_tokens.py:folder \\
        --config.stages.teacher.run=DIR --config.data.root=DIR \\
        --config.num_classes=N                a teacher of your pictures
    --config=configs/maskd_tokens.py:paper    of Cityscapes, on the logits
"""

from jaxzoo import catalog, configuration


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'tiny': tiny,
    'logits': logits,
    'folder': folder,
    'paper': paper,
  }
  make, _ = configuration.choose_variant(variant, variants)
  return make()


def common(base):
  config = catalog.get_config(f'maskd:{base}').unlock()
  config.system = 'maskd_tokens'
  config.model_options = config.teacher.model_options
  config.model = config.teacher.model
  del config.stages['tokens']
  config.tokens = dict(
    num_tokens=config.distill.maskd.num_tokens,
    weighted=config.distill.maskd.weighted,
    on=config.distill.maskd.get('on', 'levels'),
  )
  del config['distill']
  config.checkpoint.best = ''
  return config


def demo():
  """[code] Adam with 0.01 and a decay of 1e-3."""
  config = common('')
  config.epochs = 2.0
  config.eval_epochs = config.save_epochs = 0.0
  config.optim.name = 'adam'
  config.optim.lr = 0.01
  config.optim.weight_decay = 1e-3
  config.optim.warmup_epochs = 0.0
  return config


def baseline():
  """Tokens that do not learn: masks of about one half everywhere."""
  config = demo()
  config.optim.lr = 0.0
  return config


def logits():
  """[code] SGD with 0.1 for the tokens of the logits."""
  config = common('logits')
  config.epochs = 2.0
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.weight_decay = 1e-3
  config.optim.schedule = 'poly'
  return config


def tiny():
  config = common('tiny')
  config.optim.lr = 0.1
  config.optim.name = 'adam'
  return config


def folder():
  config = common('folder')
  config.epochs = 10.0
  config.optim.name = 'adam'
  config.optim.lr = 0.01
  config.optim.weight_decay = 1e-3
  return config


def paper():
  """[paper] 10,000 steps of SGD with 0.1."""
  config = common('paper')
  config.epochs = 53.8  # of 2,975 pictures
  config.optim.name = 'sgd'
  config.optim.lr = 0.1
  config.optim.weight_decay = 1e-3
  config.optim.schedule = 'poly'
  return config
