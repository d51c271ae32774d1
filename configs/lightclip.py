"""LightCLIP: lightweight vision-language models (arXiv 2312.00674).

    python -m jaxzoo.main --config=configs/lightclip.py

trains a small residual network and a short text transformer from scratch on the
embedded `pedestrians`, with softened labels, words aligned with patches, and
masked words that the image helps to fill in.

    --config=configs/lightclip.py:baseline   CLIP with the same towers
    --config=configs/lightclip.py:paper      ResNet-18 with 8 layers of text;
                                             also ,model=mobilenet_v2; its 15
                                             million pairs are named with
                                             --config.data.{root,dataset};
                                             ,zero_shot=imagenet2012 as in
                                             configs/clip.py
"""

from jaxzoo import catalog, configuration
from jaxzoo.models.cards import model_card


def get_config(variant=''):
  variants = {'': demo, 'baseline': baseline, 'tiny': tiny, 'paper': paper}
  make, options = configuration.choose_variant(
    variant, variants, ['model', 'zero_shot']
  )
  return make(**options)


def common(base, model):
  config = catalog.get_config(f'clip:{base}').unlock()
  config.system = 'lightclip'
  card = model_card(model)
  config.model, config.model_options = model, {}
  config.mean, config.std = card.mean, card.std
  config.num_classes = 0  # no classifier; identities play no part
  config.in_chans = 3
  config.output_dim = config.towers.output_dim
  config.text = dict(
    width=config.towers.text_width,
    depth=config.towers.text_depth,
    num_heads=config.towers.text_heads,
    vocab_size=49409,  # with the mask
  )
  del config.towers
  config.data.mask_words = 0.15
  config.loss = dict(
    instance=1.0,
    token=1.0,
    mlm=1.0,
    softness=0.2,  # the largest
    ramp='linear',  # from 0; or 'cosine', 'constant'
    one_to_one=False,  # distinct patches for the words
    mlm_budget=24,  # masked words a caption that count
  )
  config.init.fresh = ()
  return config


def demo(base=''):
  config = common(base, 'resnet18')
  config.model_options = dict(depths=(1, 1, 1, 1), width=32)
  # Image and text are in the middle of what a batch of 64 can tell apart.
  config.text.depth = 2
  config.loss.mlm_budget = 12  # of 57 words, 8 are masked
  return config


def baseline():
  config = demo()
  config.loss.update(token=0.0, mlm=0.0, softness=0.0)
  config.data.mask_words = 0.0
  return config


def tiny():
  config = demo('tiny')
  config.model_options = dict(depths=(1, 1), width=8, small_stem=True)
  config.optim.lr = 5e-3
  config.loss.mlm = 0.1  # the words have 49,409 rows to choose from
  return config


def paper(model='resnet18', zero_shot=''):
  """[chosen] Most constants: neither code nor the full text is public."""
  base = f'paper,zero_shot={zero_shot}' if zero_shot else 'paper'
  config = common(base, model)
  config.image_size = (224, 224)
  config.text_length = 77
  config.output_dim = 512
  config.text.depth = 8
  config.batch_size = 4096
  config.epochs = 32.0
  config.optim.lr = 5e-4
  config.optim.b2 = 0.98
  config.optim.eps = 1e-6
  config.optim.groups = (('bias$|scale$', {'decay': 0.0}),)
  return config
