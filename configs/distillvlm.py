"""DistillVLM: small vision-language models by distillation (arXiv 2104.02096).

    python -m jaxzoo.main --config=configs/distillvlm.py

answers questions on embedded scenes with a small transformer that sees through
a weak detector. Four runs come first: a teacher pre-trained on the regions of a
strong detector (stage1); the same, adapted to the boxes of the weak one
(stage2) and fine-tuned for questions (stage3); and the student, distilled in
pre-training (stage4). Then the student is distilled in fine-tuning.

    --config=configs/distillvlm.py:baseline   the same student without a teacher
    --config=configs/distillvlm.py:kd         the teacher's logits alone
    --config=configs/distillvlm.py:unadapted  a teacher that never saw the weak
                                              detector's boxes
    --config=configs/distillvlm.py:captions   captions instead of answers; also
                                              ,terms=none and ,terms=logits
    --config=configs/distillvlm.py:paper \\
        --config.data.root=DIR                12 x 384 from 12 x 768, VQA v2
    --config=configs/distillvlm.py:paper_captions \\
        --config.data.root=DIR                COCO captions

The stages are configs of their own: :teacher, :adapted, :tuned, :pretrained,
each with ,size=paper. Runs that are there already are taken with
--config.stages.stage1_teacher.run=DIR. What DIR has: docs/distillation.md.
"""

import ml_collections

from jaxzoo import configuration
from jaxzoo.errors import UserError, nearest
from jaxzoo.stages import stage

# What the student takes of attention, hidden states and logits, and the weights.
# A small student that sees far less than its teacher cannot follow as closely.
TERMS = {'all': (1, 1, 1), 'logits': (0, 0, 1), 'none': (0, 0, 0)}
WEIGHTS = {'small': (1.0, 0.1, 1.0), 'paper': (10.0, 1.0, 1.0)}
# What the runs that come first have of the one that stands on them.
INHERITED = (
  'data.root',
  'data.vocab',
  'data.captions',
  'data.questions',
  'data.annotations',
  'data.min_answers',
  'data.detectors.weak',
  'data.detectors.strong',
  'data.detectors.adapted',
  'vocab_size',
  'special_ids',
  'num_answers',
)


def get_config(variant=''):
  variants = {
    '': demo,
    'baseline': baseline,
    'kd': kd,
    'unadapted': unadapted,
    'tiny': tiny,
    'captions': captions,
    'paper': paper,
    'paper_captions': paper_captions,
    'teacher': teacher,
    'adapted': adapted,
    'tuned': tuned,
    'pretrained': pretrained,
  }
  make, options = configuration.choose_variant(
    variant, variants, ['size', 'terms', 'task', 'adapt']
  )
  return make(**options)


def common(task):
  config = configuration.defaults()
  config.system = 'distillvlm'
  config.task = task  # 'pretrain', 'vqa', 'caption'
  config.network = network(12, 384, 12)
  config.vocab_size = 45
  config.special_ids = (1, 2, 3, 4)  # unknown, start, end, mask
  config.text_length = 16
  config.tag_length = 6
  config.num_regions = 4
  config.num_answers = 15
  config.start = ''  # the stage whose network this one begins with
  config.teacher = dict(
    stage='',
    network=network(12, 768, 12),
    dtype='float32',
    param_dtype='float32',
    weights='',  # a published checkpoint
  )
  config.distill = dict(
    attention=0.0,
    hidden=0.0,
    logits=0.0,
    temperature=0.07,
    queue_size=1024,
  )
  config.loss = dict(words=1.0, match=1.0, answers=1.0, word_budget=6)
  config.beam = dict(width=1, length_penalty=0.0)

  config.data.kind = 'vision_language'
  config.data.unit = 'texts'
  config.data.dataset = 'scenes'  # or 'files'
  config.data.root = ''
  config.data.embedded = ml_collections.ConfigDict()
  config.data.vocab = ''  # BERT's vocab.txt
  config.data.captions = 'dataset_coco.json'
  config.data.questions = 'v2_OpenEnded_mscoco_{split}_questions.json'
  config.data.annotations = 'v2_mscoco_{split}_annotations.json'
  config.data.train_split = 'train'
  config.data.regions = 'weak'  # the detector that the network sees with
  config.data.teacher_regions = ''  # the teacher's
  # Detector -> numbers of a region, six of them the box's. 'adapted' has the
  # strong one's features of the weak one's boxes.
  config.data.detectors = dict(weak=25, strong=109, adapted=109)
  config.data.corrupt_tags = 0.5
  config.data.mask_words = 0.15
  config.data.min_answers = 1  # questions that an answer must have

  config.optim.weight_decay = 0.05
  config.optim.groups = ((r'(bias|scale)$', {'decay': 0.0}),)
  config.optim.schedule = 'poly'
  config.optim.power = 1.0
  kinds = dict(pretrain='masked_words', vqa='vqa', caption='captioning')
  config.evals.test = dict(kind=kinds[task], split='test')
  return config


def network(depth, width, num_heads, dropout=0.1, init_std=0.02):
  return ml_collections.ConfigDict(
    dict(
      depth=depth,
      width=width,
      num_heads=num_heads,
      dropout=dropout,
      init_std=init_std,
    )
  )


def small(task):
  """On the embedded scenes."""
  config = common(task)
  config.scan = False  # few blocks: unrolled is faster
  # As large as 0.02 is for a width of 768; small networks need no dropout.
  config.network = network(2, 32, 4, 0.0, 0.2)
  config.teacher.network = network(2, 64, 4, 0.0, 0.15)
  config.data.embedded = dict(
    seed=0,
    train=2000,
    test=400,
    asked=1000,
    size=64,
    most=3,
    kinds=4,
    colours=4,
  )
  config.batch_size = 32
  config.epochs = {'pretrain': 8.0, 'vqa': 16.0, 'caption': 8.0}[task]
  config.eval_epochs = config.save_epochs = 0.0  # at the end alone
  config.data.mask_words = 0.25  # short texts: more to learn from each
  config.optim.lr = 3e-3 if task == 'pretrain' else 1e-3
  config.optim.b2 = 0.98
  config.optim.warmup_epochs = 0.5
  config.optim.clip_norm = 1.0
  return config


def large(task):
  """[chosen] Rates, batches and epochs, but for the epochs of fine-tuning."""
  config = common(task)
  config.teacher.dtype = config.teacher.param_dtype = 'bfloat16'
  config.vocab_size = 30522
  config.special_ids = (100, 101, 102, 103)
  config.text_length, config.tag_length = 40, 30
  config.num_regions = 50
  config.num_answers = 3129
  config.distill.queue_size = 4096
  config.loss.word_budget = 16
  config.beam.width = 5
  config.dtype = 'bfloat16'
  config.remat = 'dots'

  config.data.dataset = 'files'
  config.data.vocab = 'vocab.txt'
  # [chosen] the light one's features: no number is published.
  config.data.detectors = dict(weak=1030, strong=2054, adapted=2054)
  config.data.workers = 8
  config.data.min_answers = 9
  recipes = {  # batch, epochs, rate
    'pretrain': (2048, 100.0, 2e-4),
    'vqa': (256, 25.0, 5e-5),
    'caption': (512, 40.0, 3e-5),
  }
  config.batch_size, config.epochs, config.optim.lr = recipes[task]
  if task == 'vqa':
    config.data.train_split = 'train2014'
    config.evals.test.split = 'val2014'
  if task == 'caption':
    config.evals.test.metrics = ('CIDEr', 'BLEU-4')
  config.eval_epochs = config.save_epochs = 5.0
  return config


SIZES = {'small': small, 'paper': large}


def sized(size, task):
  make, _ = configuration.choose_variant(size, SIZES)
  return make(task)


def as_teacher(config, regions):
  """The teacher's own network, which sees with this detector."""
  config.network = config.teacher.network.copy_and_resolve_references()
  config.data.regions = regions
  return config


def link(config, *names, size='small', task='vqa', terms='all', adapt='yes'):
  """The runs that come first, which find those before them by their names."""
  inherit = INHERITED if size == 'paper' else ()
  known = {
    'stage1_teacher': f'teacher,size={size}',
    'stage2_adapted': f'adapted,size={size}',
    'stage3_tuned': f'tuned,size={size},task={task},adapt={adapt}',
    'stage4_student': f'pretrained,size={size},terms={terms},adapt={adapt}',
  }
  for name in names:
    config.stages[name] = stage(f'distillvlm:{known[name]}', inherit=inherit)
  return config


def adapted_stage(adapt):
  """The stages of a teacher, adapted to the boxes of the student or not."""
  if adapt not in ('yes', 'no'):
    raise UserError(f'adapt={adapt}: ' + nearest(adapt, ('yes', 'no')))
  stages = ('stage1_teacher', 'stage2_adapted')
  return stages if adapt == 'yes' else stages[:1]


def distilled(config, size, terms, stage_name):
  """What the student takes, from the network that a stage has trained."""
  taken, _ = configuration.choose_variant(terms, TERMS)
  weights = [a * b for a, b in zip(taken, WEIGHTS[size], strict=True)]
  fields = config.distill
  fields.attention, fields.hidden, fields.logits = weights
  if any(weights):
    config.teacher.stage = stage_name
    config.data.teacher_regions = 'adapted'
  return config


# The runs that come first.


def teacher(size='small'):
  """Step 1: pre-training on the strong detector's own regions."""
  return as_teacher(sized(size, 'pretrain'), 'strong')


def adapted(size='small'):
  """Step 2: more of it, on the student's boxes."""
  config = as_teacher(sized(size, 'pretrain'), 'adapted')
  config.start = 'stage1_teacher'
  config.epochs /= 4  # [chosen]
  return link(config, 'stage1_teacher', size=size)


def tuned(size='small', task='vqa', adapt='yes'):
  """The teacher of step 4."""
  config = as_teacher(
    sized(size, task), 'adapted' if adapt == 'yes' else 'strong'
  )
  before = adapted_stage(adapt)
  config.start = before[-1]
  return link(config, *before, size=size)


def pretrained(size='small', terms='all', adapt='yes'):
  """Step 3: the student, distilled in pre-training."""
  config = sized(size, 'pretrain')
  if terms == 'none':
    return config
  before = adapted_stage(adapt)
  return link(distilled(config, size, terms, before[-1]), *before, size=size)


# Step 4.


def final(size, task, terms='all', adapt='yes'):
  config = sized(size, task)
  config.start = 'stage4_student'
  before = ()
  if terms != 'none':
    before = (*adapted_stage(adapt), 'stage3_tuned')
    config = distilled(config, size, terms, 'stage3_tuned')
  return link(
    config,
    *before,
    'stage4_student',
    size=size,
    task=task,
    terms=terms,
    adapt=adapt,
  )


def demo():
  return final('small', 'vqa')


def baseline():
  return final('small', 'vqa', 'none')


def kd():
  return final('small', 'vqa', 'logits')


def unadapted():
  return final('small', 'vqa', adapt='no')


def captions(terms='all'):
  return final('small', 'caption', terms)


def paper(terms='all', adapt='yes'):
  """[paper] CIDEr 120.8 and 69.8 % on VQA v2, of 34.5M parameters."""
  return final('paper', 'vqa', terms, adapt)


def paper_captions(terms='all', adapt='yes'):
  """The cross-entropy of the recipe; its CIDEr optimisation is not here."""
  return final('paper', 'caption', terms, adapt)


def tiny():
  """Seconds: to see that everything works, and for the tests."""
  config = distilled(small('vqa'), 'paper', 'all', '')
  config.network = network(2, 16, 4, 0.1, 0.14)
  config.teacher.network = network(2, 32, 4, 0.1, 0.1)
  config.distill.queue_size = 64
  config.data.embedded.update(
    train=32, asked=16, test=8, size=32, kinds=2, colours=2
  )
  config.num_answers = 9
  config.batch_size = 16
  config.epochs = 4.0
  config.eval_epochs = config.save_epochs = 2.0
  config.optim.lr = 1e-2
  config.optim.warmup_epochs = 0.0
  config.log_steps = 2
  return config
