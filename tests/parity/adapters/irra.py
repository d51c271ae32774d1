"""IRRA's parity cases on this project's network, losses, data and optimizer."""

import jax
import jax.numpy as jnp
import ml_collections
import optax
from thinned import named

from jaxzoo.data import transforms
from jaxzoo.models.losses import contrastive
from jaxzoo.models.retrieval import irra, towers
from jaxzoo.train import optim
from jaxzoo.weights.clip import towers_of


def run(case):
  config = case.config
  if 'mask_id' in config:
    outputs = _masking(config, case.inputs)
  elif 'lr' in config:
    outputs = _optimizer(config, case.params, case.inputs, case.outputs)
  elif 'images' in case.inputs:
    outputs = _whole(case)
  else:
    outputs = _losses(config, case.inputs)
  return named(outputs, case.outputs)


def _masking(config, inputs):
  masked, labels = transforms.mask_tokens(
    inputs['ids'],
    inputs['u'],
    inputs['random_ids'],
    p=config['rate'],
    mask_id=config['mask_id'],
    replace=config['replace'],
    random=config['random'],
  )
  return {'mlm_ids': masked, 'mlm_labels': labels}


def _losses(config, inputs):
  pid, scale = inputs['pids'], config['logit_scale']
  # The case numbers the images so: up to two of one identity.
  image_id = pid * 100 + inputs['image_ids'] % 2
  soft = contrastive.identity_labels(pid, image_id, config['soft_factor'])

  def sdm(image, text, labels=None):
    similarity = contrastive.cosine_similarity(image, text)
    return contrastive.sdm(
      similarity, pid, scale, epsilon=config['epsilon'], labels=labels
    )

  features = (inputs['image_features'], inputs['text_features'])
  logits = (inputs['image_logits'], inputs['text_logits'])
  losses = {
    'sdm': (sdm, features, ''),
    'sdm_soft': (lambda *x: sdm(*x, labels=soft), features, ''),
    'cmpm': (
      lambda *x: contrastive.cmpm(*x, pid, epsilon=config['epsilon']),
      features,
      '',
    ),
    'itc': (
      lambda *x: contrastive.info_nce(contrastive.cosine_similarity(*x), scale),
      features,
      '',
    ),
    'id': (
      lambda *x: contrastive.identity_loss(*x, pid),
      logits,
      '_logits',
    ),
  }
  outputs = {}
  for name, (loss, arguments, what) in losses.items():
    value, grads = jax.jit(jax.value_and_grad(loss, (0, 1)))(*arguments)
    outputs[name] = value
    outputs[f'grad_{name}_image{what}'] = grads[0]
    outputs[f'grad_{name}_text{what}'] = grads[1]
  return outputs


def _optimizer(config, params, inputs, wanted):
  schedule = lambda mode: optim.make_schedule(
    # This code's `poly` is known here as what it does.
    'poly_as_released' if mode == 'poly' else mode,
    1.0,
    total_steps=config['epochs'],
    warmup_steps=config['warmup_epochs'],
    warmup_factor=config['warmup_factor'],
    end=config['target_lr'],
    milestones=config['milestones'],
    gamma=config['gamma'],
    power=config['power'],
  )
  outputs = {}
  for name in wanted:
    if name.startswith('factor_'):
      factors = schedule(name.removeprefix('factor_'))
      outputs[name] = [factors(e) for e in range(config['epochs'])]
  rate = schedule('cosine')
  factor = config['lr_factor']
  tx = optim.make_optimizer(
    'adam',
    lambda step: config['lr'] * rate(step),
    **config['adam'],
    weight_decay=config['weight_decay'],
    groups=(
      ('cross', {'lr': factor}),
      ('bias', {'lr': config['bias_lr_factor'], 'decay': 0.0}),
      ('classifier|mlm_head', {'lr': factor}),
    ),
  )
  step = jax.jit(tx.update)
  first = jax.tree.map(jnp.asarray, params)
  new, state = first, tx.init(first)
  for i in range(config['steps']):
    grads = {name: inputs[f'grad_{name}_step{i}'] * 10.0**-i for name in params}
    updates, state = step(grads, state, new)
    new = optax.apply_updates(new, updates)
  # A difference of float32 parameters, as in the reference: its rounding, of
  # half a percent, is part of what the case holds.
  changes = jax.tree.map(jnp.subtract, new, first)
  return outputs | {f'delta_{name}': x for name, x in changes.items()}


def _whole(case):
  config = ml_collections.ConfigDict(
    dict(
      towers=towers_of(case.params, prefix='base_model.'),
      image_size=tuple(case.config['image_size']),
      text_length=case.config['text_length'],
      num_classes=case.config['num_classes'],
      cross_modal_depth=case.config['cross_modal_depth'],
      loss=irra.Weights(itc=1.0)._asdict(),
      dtype='float32',
      scan=True,
      remat='none',
    )
  )
  params = irra.convert(case.params, config)
  scale = 1 / case.config['temperature']
  return jax.jit(
    lambda params, inputs: _forward(config, scale, params, inputs)
  )(params, case.inputs)


def _forward(config, scale, params, inputs):
  weights = towers.read_weights(irra.Weights, config)
  clip, heads = towers.make_clip(config), irra.make_heads(config, weights)
  head = towers.apply_heads(heads, params)
  pixels = inputs['images'].transpose(0, 2, 3, 1)
  image = towers.Encoded(
    *clip.apply({'params': params}, pixels, method='encode_image')
  )
  text = towers.encode_text(clip, params, inputs['caption_ids'])
  masked = towers.encode_text(clip, params, inputs['mlm_ids'])
  losses, _ = irra.irra_losses(
    head,
    image,
    text,
    masked,
    inputs['mlm_labels'],
    inputs['pids'],
    weights=weights,
    scale=scale,
    mlm_budget=config.text_length,
  )
  filled, inner = heads['reasoning'].apply(
    {'params': params['reasoning']},
    masked.tokens,
    image.tokens,
    capture_intermediates=lambda module, _: module.name == 'cross_attn',
    mutable=['intermediates'],
  )
  rows, columns = jnp.nonzero(inputs['mlm_labels'], size=6)
  return {
    **{f'{name}_loss': x for name, x in losses.items()},
    'image_features': image.vector,
    'text_features': text.vector,
    'cross_attn_out': inner['intermediates']['cross_attn']['__call__'][0],
    'cross_former_out': filled,
    # Every 64th word of the vocabulary.
    'mlm_logits_first6_masked_stride64': head(
      'mlm_head', filled[rows, columns]
    )[:, ::64],
  }
