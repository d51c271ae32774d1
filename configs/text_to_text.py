"""Text to text: T5 fine-tuned to answer (arXiv 1910.10683).

    python -m jaxzoo.main --config=configs/text_to_text.py

trains a small T5 from scratch on the embedded `reviews`, to say whether one
praises; 85 % of them do, so that Matthews correlation tells more than accuracy.
It is the teacher of configs/dfkd_t3.py.

    --config=configs/text_to_text.py:denoise    fills in the words that are
                                                missing in general sentences:
                                                the generator of dfkd_t3
    --config=configs/text_to_text.py:entities   lists who and where: answers that
                                                are texts
    --config=configs/text_to_text.py:sst2 \\
        --config.data.root=DIR --config.data.tokenizer=FILE \\
        --config.init.weights=FILE              T5-base on DIR/SST-2/train.tsv;
                                                also ,model=NAME
    --config=configs/text_to_text.py:cola       likewise, DIR/CoLA/train.tsv
    --config=configs/text_to_text.py:conll2003  likewise, DIR/eng.train

The tokenizer is the tokenizer.json or the spiece.model of the checkpoint; its
weights are a file, or a name on the Hugging Face hub such as google-t5/t5-base.
"""

import ml_collections

from jaxzoo import configuration
from jaxzoo.data import reviews, text

NO_DECAY = ((r'(scale|position_bias)$', {'decay': 0.0}),)
# The first pieces of labels in the vocabulary of T5. A run says at its start
# what those of other labels are (--config.label_tokens).
PIECES = {'negative': 2841, 'positive': 1465}


def get_config(variant=''):
  variants = {
    '': demo,
    'tiny': tiny,
    'denoise': denoise,
    'entities': entities,
    'sst2': sst2,
    'cola': cola,
    'conll2003': conll2003,
  }
  make, options = configuration.choose_variant(variant, variants, ['model'])
  return make(**options)


def common(task, model='t5_small'):
  config = configuration.defaults()
  config.system = 'text_to_text'
  config.model = model
  config.model_options = ml_collections.ConfigDict()  # fields of `T5`
  config.vocab_size = 32128
  config.labels = text.TASKS[task].labels
  config.label_tokens = ()
  config.prefix_length = 8  # ids, padding included, as all lengths
  config.sentence_length = 64
  config.target_length = 4

  config.data.kind = 'text'
  config.data.unit = 'sentences'
  config.data.task = task
  config.data.text = 'task'  # or 'general'
  config.data.records = 'answers'  # 'denoise', 'rewrite'
  config.data.train_split = 'train'
  config.data.root = ''
  config.data.general = ''  # a file of sentences; '': embedded
  config.data.tokenizer = ''  # of a published T5; '': embedded
  config.data.prefix = 'sentiment :'
  config.data.rewrite_prefix = 'rewrite :'
  config.data.mask = 0.0  # share of the words left out for a generator
  config.data.embedded = ml_collections.ConfigDict()

  config.evals.test = dict(kind='answers', split='test')
  config.optim.groups = NO_DECAY
  config.optim.clip_norm = 1.0
  return config


def small(task):
  """The embedded texts, and a network that learns them in a minute."""
  config = common(task)
  config.vocab_size = 384
  config.model_options = dict(
    width=64, depth=2, num_heads=4, head_width=16, hidden=128
  )
  encode = reviews.tokenizer()
  config.label_tokens = text.label_tokens(encode, config.labels)
  config.prefix_length, config.sentence_length = 4, 16
  config.target_length = 2
  config.data.embedded = reviews.Settings(train=12000)._asdict()
  config.scan = False  # few blocks: unrolled is faster
  config.batch_size = 32
  config.epochs = 3.0
  config.eval_epochs = config.save_epochs = 0.0  # at the end alone
  config.optim.lr = 3e-3
  config.optim.weight_decay = 0.01
  config.optim.warmup_epochs = 0.5
  # Of deviation 1 at first, as published, where Adafactor's steps are relative.
  config.optim.groups = (*NO_DECAY, (r'token_embedding$', {'lr': 10.0}))
  return config


def demo():
  return small('reviews')


def restore(config):
  """`config` for a model that fills in what is missing in general sentences."""
  config.labels = config.label_tokens = ()
  config.target_length = config.sentence_length
  config.data.text, config.data.records = 'general', 'denoise'
  config.data.mask = 0.4
  return config


def denoise():
  config = restore(small('reviews'))
  config.epochs = 16.0  # until it keeps the words that are there
  return config


def entities():
  config = small('entities')
  config.data.prefix = 'entities :'
  config.target_length = 14
  return config


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = small('reviews')
  config.data.embedded.update(general=64, train=64, test=20, positive=0.7)
  config.model_options = dict(
    width=16, depth=1, num_heads=2, head_width=8, hidden=32
  )
  config.sentence_length = 12
  config.batch_size = 16
  config.epochs = 4.0
  config.eval_epochs = config.save_epochs = 2.0
  config.optim.lr = 1e-2
  config.optim.warmup_epochs = 0.0
  config.log_steps = 2
  return config


def published(task, model):
  """[chosen] The rate and the constant schedule of T5's fine-tuning, AdamW."""
  config = common(task, model)
  config.label_tokens = tuple(PIECES.get(label, -1) for label in config.labels)
  config.dtype = 'bfloat16'
  config.evals.test.split = 'dev'
  config.batch_size = 64
  config.epochs = 3.0
  config.optim.lr = 1e-4
  config.optim.weight_decay = 0.01
  config.optim.warmup_epochs = 0.1
  config.optim.schedule = 'linear'
  return config


def sst2(model='t5_base'):
  config = published('sst2', model)
  config.data.prefix = 'sst2 sentence:'
  return config


def cola(model='t5_base'):
  config = published('cola', model)
  config.data.prefix = 'cola sentence:'
  config.epochs = 10.0
  return config


def conll2003(model='t5_base'):
  config = published('conll2003', model)
  config.data.prefix = 'entities:'
  config.evals.test.split = 'test'
  config.sentence_length = 128
  config.target_length = 96
  config.batch_size = 32
  config.epochs = 10.0
  return config
