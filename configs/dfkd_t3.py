"""DFKD-T3: data-free distillation of language models (arXiv 2311.01689).

    python -m jaxzoo.main --config=configs/dfkd_t3.py

trains a teacher that knows praise from blame in the embedded `reviews`, and a
generator that writes general sentences; then, without a review, a student of a
quarter of the teacher's width, on sentences that the generator learns to rewrite
so that the teacher is sure of them, gives all answers, and the student errs.

    --config=configs/dfkd_t3.py:baseline      the student learns from the general
                                              sentences as they are
    --config=configs/dfkd_t3.py:untrained     from a generator that stays what it
                                              was
    --config=configs/dfkd_t3.py:no_diversity  without the term that spreads the
                                              answers
    --config=configs/dfkd_t3.py:real          from the reviews themselves: the
                                              most there is to gain
    --config=configs/dfkd_t3.py:entities      answers that are texts
    --config=configs/dfkd_t3.py:paper \\
        --config.data.root=DIR --config.data.general=FILE \\
        --config.data.tokenizer=FILE --config.init.weights=t5-small \\
        --config.stages.teacher.run=RUN       T5-base to T5-small on SST-2; also
                                              ,task=cola or ,task=conll2003

A teacher is a run of configs/text_to_text.py. What the generator writes is put
into a file by

    python -m jaxzoo.rewrite --workdir=runs/dfkd_t3 --out=generated.jsonl

from which another student learns with --config=configs/dfkd_t3.py:baseline
--config.data.general=generated.jsonl.
"""

import ml_collections

from jaxzoo import catalog, configuration
from jaxzoo.stages import stage


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'untrained': untrained,
    'no_diversity': no_diversity,
    'real': real,
    'entities': entities,
    'tiny': tiny,
    'paper': paper,
  }
  make, options = configuration.choose_variant(variant, variants, ['task'])
  return make(**options)


def common(base):
  config = catalog.get_config(f'text_to_text:{base}').unlock()
  config.system = 'dfkd_t3'
  config.teacher = dict(
    model=config.model,
    model_options=config.model_options.copy_and_resolve_references(),
    param_dtype='float32',
    weights='',  # a published checkpoint
  )
  config.generator = dict(
    kind='trained',  # or 'frozen', 'none'
    model=config.model,
    model_options=config.model_options.copy_and_resolve_references(),
    length=config.sentence_length,
    every=5,  # steps of the student to one of its own
    lr=0.1,  # over the student's
    temperature=(1.0, 0.5),
    specificity=1.0,
    diversity=5.0,
    adversarial=1.0,
    language=0.1,
    language_term='likelihood',  # or 'divergence'
    frequent=256,  # words over which texts as answers are spread
    replay=10000,
  )
  config.loss = dict(temperature=2.0, hard=0.5)
  config.data.text, config.data.records = 'general', 'rewrite'
  return config


def small(base=''):
  config = common(base)
  config.model_options.update(width=32, hidden=64, num_heads=2)
  config.stages.teacher = stage(
    f'text_to_text:{base}' if base else 'text_to_text'
  )
  config.stages.generator = stage('text_to_text:denoise')
  config.data.mask = 0.4
  # Small models are fooled by texts that are none, and forget rare words where
  # texts are to be likely: the generator stays near to what it was instead. At a
  # high temperature rare words have a gradient, too.
  config.generator.update(
    every=1,
    lr=0.3,
    temperature=(3.0, 3.0),
    adversarial=5.0,
    language=0.5,
    language_term='divergence',
  )
  config.epochs = 6.0  # 1,500 steps
  config.eval_epochs = config.save_epochs = 3.0
  config.optim.lr = 2e-3
  return config


def demo():
  return small()


def alone(config):
  """`config` without a generator."""
  del config.stages['generator']
  config.generator.kind = 'none'
  config.data.mask = 0.0
  return config


def baseline():
  return alone(small())


def untrained():
  config = small()
  config.generator.kind = 'frozen'
  return config


def no_diversity():
  config = small()
  config.generator.diversity = 0.0
  return config


def real():
  config = alone(small())
  config.data.text = 'task'
  config.epochs = 4.0  # as many steps, of more sentences
  config.eval_epochs = config.save_epochs = 2.0
  return config


def entities():
  return small('entities')


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = common('tiny')
  config.stages.teacher = stage('text_to_text:tiny')
  config.stages.generator = stage(
    'text_to_text:tiny',
    labels=(),
    label_tokens=(),
    target_length=config.sentence_length,
    data__text='general',
    data__records='denoise',
    data__mask=0.4,
  )
  config.data.mask = 0.4
  config.generator.length = 8
  config.generator.replay = 24
  config.generator.every = 2
  return config


def paper(task='sst2'):
  """[chosen] All of it: only the abstract is at hand. See the specification."""
  config = common(f'{task},model=t5_small')
  config.teacher.model = 't5_base'
  config.teacher.param_dtype = 'bfloat16'
  config.generator.model_options = ml_collections.ConfigDict()
  # What T5 was trained to do that comes nearest to rewriting.
  config.data.rewrite_prefix = 'summarize:'
  config.sentence_length = config.generator.length = 64
  config.batch_size = 64
  config.epochs = 1.0  # of WikiText-103's lines about 20,000 steps
  config.optim.lr = 1e-4
  config.optim.weight_decay = 0.01
  config.optim.clip_norm = 1.0
  config.optim.schedule = 'linear'
  config.optim.warmup_epochs = 0.025  # 500 steps
  config.stages.teacher = stage(
    f'text_to_text:{task}', inherit=('data.root', 'data.tokenizer')
  )
  return config
