"""CLIP's parity cases on this project's networks, losses and tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.data.tokenizers.clip import ClipTokenizer
from jaxzoo.models.backbones import clip
from jaxzoo.models.losses.contrastive import (
  cosine_similarity,
  info_nce,
  l2_normalize,
)
from jaxzoo.weights import clip as clip_weights
from jaxzoo.weights import layout


def run(case):
  config = case.config
  if 'strings' in config:
    outputs = _tokenizer(config, case.outputs)
  elif 'new_grid' in config:
    outputs = _positions(config, case.inputs, case.outputs)
  elif case.params:
    outputs = _towers(case)
  else:
    outputs = _loss(case.inputs)
  return _named(outputs, case.outputs)


def _named(outputs, wanted):
  """Adds NAME_x1eK (times a power of ten) and NAME_strideN (flat, thinned)."""
  named = dict(outputs)
  for name in wanted:
    base, stride = name, None
    if '_stride' in base:
      base, stride = base.rsplit('_stride', 1)
    factor = 1.0
    if '_x1e' in base:
      base, power = base.rsplit('_x1e', 1)
      factor = 10.0 ** int(power)
    if base in outputs:
      value = outputs[base]
      value = value if factor == 1 else np.asarray(value) * factor
      named[name] = (
        value if stride is None else np.reshape(value, -1)[:: int(stride)]
      )
  return named


def _tokenizer(config, wanted):
  length = config['context_length']
  plain, masked = ClipTokenizer(), ClipTokenizer(mask_token=True)
  many = lambda encode, strings, n: np.stack([encode(s, n) for s in strings])
  outputs = {
    'ids': many(plain, config['strings'], length),
    'variant_ids': many(masked, config['strings'], length),
  }
  for name in wanted:
    kind, is_long, size = name.rpartition('long_ids_')
    if is_long:
      encode = masked if kind == 'variant_' else plain
      outputs[name] = many(encode, [config['long_string']], int(size))
  return outputs


def _positions(config, inputs, wanted):
  outputs = {}
  for name in wanted:
    kind = name.rsplit('_stride', 1)[0]
    outputs[kind] = layout.resize_positions(
      inputs['positional_embedding'],
      tuple(config['old_grid']),
      tuple(config['new_grid']),
      kind.removesuffix('_antialias'),
      antialias=kind.endswith('_antialias'),
    )
  return outputs


def _loss(inputs):
  def loss(image, text, log_scale):
    return info_nce(cosine_similarity(image, text), jnp.exp(log_scale))

  value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
    *(inputs[k] for k in ('image_features', 'text_features', 'log_scale'))
  )
  return {
    'loss': value,
    'grad_image_features': grads[0],
    'grad_text_features': grads[1],
    'grad_log_scale': grads[2],
  }


def _towers(case):
  inputs = case.inputs
  is_hub = 'pixel_values' in inputs
  image = inputs['pixel_values' if is_hub else 'image'].transpose(0, 2, 3, 1)
  text = inputs['input_ids' if is_hub else 'text']
  towers = clip.Towers(**clip_weights.towers_of(case.params))
  activation = case.config.get('hidden_act' if is_hub else 'activation')
  model = clip.Clip(
    towers,
    activation=activation or 'quick_gelu',
    scan=towers.image == 'vit',
  )
  params = clip_weights.convert_clip(
    case.params,
    image_size=image.shape[1:3],
    text_length=text.shape[1],
    scan=model.scan,
    method='bicubic' if is_hub else 'bilinear',
  )
  stats = clip_weights.convert_batch_stats(case.params)
  variables = {'params': params, 'batch_stats': stats}
  (image, text), inner = jax.jit(
    lambda *args: model.apply(
      *args,
      capture_intermediates=lambda module, _: len(module.path) <= 2,
      mutable=['intermediates'],
    )
  )(variables, image, text)
  inner = layout.flatten(inner['intermediates'])
  inner = {
    path.removesuffix('/__call__'): value[0] for path, value in inner.items()
  }
  cosine = cosine_similarity(image, text)
  outputs = {
    'image_features': image,
    'text_features': text,
    'logits_per_image': jnp.exp(params['logit_scale']) * cosine,
  }
  if is_hub:
    return outputs | _hub_outputs(image, text, inner)
  if towers.image == 'vit':
    outputs['visual_after_ln_pre'] = inner['image/ln_pre']
    outputs['visual_transformer_out'] = inner['image/transformer']
  else:
    channels_first = lambda x: x.transpose(0, 3, 1, 2)
    outputs['visual_stem'] = channels_first(inner['image/stem'])
    for stage, depth in enumerate(towers.image_depth, 1):
      block = inner[f'image/stage{stage}_block{depth - 1}']
      outputs[f'visual_layer{stage}'] = channels_first(block)
  outputs['text_after_ln_final'] = inner['text/ln_final']
  return outputs


def _hub_outputs(image, text, inner):
  """What Hugging Face's model returns besides.

  The stored pooler outputs are the vectors after the projection, not before it
  as the cases' notes have it: that of the image is as wide as the projection.
  """
  return {
    'image_embeds': l2_normalize(image),
    'text_embeds': l2_normalize(text),
    'vision_pooler_output': image,
    'text_pooler_output': text,
    'vision_last_hidden_state': inner['image/transformer'],
    'text_last_hidden_state': inner['text/ln_final'],
  }
