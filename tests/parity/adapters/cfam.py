"""CFAM's parity cases on this project's network, losses, metrics and data."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.data import transforms
from jaxzoo.eval import retrieval
from jaxzoo.models.backbones.clip import text_padding_mask
from jaxzoo.models.layers.image import normalize
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce
from jaxzoo.models.retrieval import cfam, towers
from jaxzoo.weights import layout
from jaxzoo.weights.clip import towers_of


def run(case):
  config, inputs = case.config, case.inputs
  if 'new_grid' in config:
    outputs = _positions(config, inputs)
  elif 'person_size' in config:
    outputs = _preprocess(config, inputs)
  elif 'max_rank' in config:
    outputs = _metrics(inputs)
  elif 'images' in inputs:
    outputs = _whole(case)
  elif 'pids' in inputs:
    outputs = _match(case)
  else:
    outputs = _decoder(case)
  return named(outputs, case.outputs)


def _positions(config, inputs):
  image = layout.resize_positions(
    inputs['visual_positional_embedding'],
    tuple(config['old_grid']),
    tuple(config['new_grid']),
  )
  text = layout.resize_text_positions(
    inputs['positional_embedding'], config['new_length']
  )
  return {
    'visual': image,
    'visual_shape': image.shape,
    'text': text,
    'text_shape': text.shape,
  }


def _preprocess(config, inputs):
  size = config['clip_size']
  prepare = {
    'person': transforms.resize(*config['person_size']),
    'clip': transforms.compose(
      transforms.resize_shorter(size), transforms.center_crop(size)
    ),
  }
  outputs = {}
  for name, image in inputs.items():
    for kind, transform in prepare.items():
      record = transform({'image': image.astype(np.uint8)}, None)
      pixels = normalize(record['image']).transpose(2, 0, 1)
      outputs[kind + name.removeprefix('image')] = pixels
  return outputs


def _metrics(inputs):
  arguments = (
    inputs['text_features'],
    inputs['image_features'],
    inputs['text_pids'],
    inputs['image_pids'],
  )
  metrics = retrieval.retrieval_metrics(*arguments)
  each = retrieval.per_query(*arguments)
  return {
    **{name.replace('R@', 'rank'): x for name, x in metrics.items()},
    'SD_per_query': 100 * each.similarity_distribution,
  }


def _head(config, params):
  """(name, *inputs) -> output of the head of that name."""
  heads = {
    'decoder': cfam.GranularityDecoder(
      config.get('granularity_queries', config.get('queries')),
      config.get('decoder_layers', config.get('layers')),
    ),
    'matcher': cfam.Matcher(config.get('matcher_layers', config.get('layers'))),
    'classifier': towers.make_classifier(config.get('num_classes')),
  }
  return towers.apply_heads(heads, params)


def _decoder(case):
  config, inputs = case.config, case.inputs
  image, text = inputs['image_tokens'], inputs['text_tokens']
  words = jnp.arange(text.shape[1]) < inputs['text_lengths'][:, None]

  def loss(params, image, text):
    head = _head(config, params)
    image, text = head('decoder', image), head('decoder', text, words)
    similarity = cfam.local_similarity(image, text)
    return info_nce(similarity, 1 / config['temperature']), {
      'image_granules': image,
      'text_granules': text,
      'local_similarity': similarity,
    }

  (value, outputs), (grads, *grad_tokens) = jax.jit(
    jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
  )(cfam.convert_heads(case.params), image, text)
  return outputs | {
    'loss_ls': value,
    'grad_queries': grads['decoder']['queries'],
    'grad_image_tokens': grad_tokens[0],
    'grad_text_tokens': grad_tokens[1],
  }


def _match(case):
  inputs = case.inputs
  head = _head(case.config, cfam.convert_heads(case.params))
  similarity = cosine_similarity(
    inputs['image_features'], inputs['text_features']
  )
  negatives = cfam.hard_negatives(similarity, inputs['pids'])

  def loss(image, text):
    logits = head('matcher', *cfam.match_pairs(image, text, negatives))
    return cfam.match_loss(logits, negatives.exist)[0], logits

  (value, logits), grads = jax.jit(
    jax.value_and_grad(loss, (0, 1), has_aux=True)
  )(inputs['image_granules'], inputs['text_granules'])
  return {
    'global_similarity': similarity,
    'hard_text_for_image': negatives.text_of_image,
    'hard_image_for_text': negatives.image_of_text,
    'match_logits': logits,
    'loss_m': value,
    'grad_image_granules': grads[0],
    'grad_text_granules': grads[1],
  }


def _whole(case):
  config = ml_collections.ConfigDict(
    dict(
      towers=towers_of(case.params, prefix='base_model.'),
      image_size=tuple(case.config['image_size']),
      text_length=case.config['text_length'],
      num_classes=case.config['num_classes'],
      granularity=dict(
        queries=case.config['granularity_queries'],
        decoder_depth=case.config['decoder_layers'],
        matcher_depth=case.config['matcher_layers'],
      ),
      loss=case.config['loss_weights'],
      dtype='float32',
      scan=True,
      remat='none',
    )
  )
  params = cfam.convert(case.params, config)
  outputs = jax.jit(
    lambda params, inputs: _forward(config, case.config, params, inputs)
  )(params, case.inputs)
  return outputs


def _forward(config, sizes, params, inputs):
  clip, head = towers.make_clip(config), _head(sizes, params)
  image, text, pid = (inputs[k] for k in ('images', 'caption_ids', 'pids'))
  variables = {'params': params}
  words = text_padding_mask(text)
  image = towers.Encoded(
    *clip.apply(variables, image.transpose(0, 2, 3, 1), method='encode_image')
  )
  text = towers.encode_text(clip, params, text)
  weights = cfam.Weights(**sizes['loss_weights'])
  losses, _ = cfam.cfam_losses(
    head,
    image,
    text,
    words,
    pid,
    weights=weights,
    compare=cfam.SIMILARITY_LOSSES['infonce'],
    scale=1 / sizes['temperature'],
  )
  total, named_losses = towers.weigh(losses, weights)
  image_granules = head('decoder', image.tokens)
  text_granules = head('decoder', text.tokens, words)
  similarity = cosine_similarity(image.vector, text.vector)
  negatives = cfam.hard_negatives(similarity, pid)
  return named_losses | {
    'loss': total,
    'image_tokens': image.tokens,
    'text_tokens': text.tokens,
    'image_feature': image.vector,
    'text_feature': text.vector,
    'image_granules': image_granules,
    'text_granules': text_granules,
    'global_similarity': similarity,
    'local_similarity': cfam.local_similarity(image_granules, text_granules),
    'hard_text_for_image': negatives.text_of_image,
    'hard_image_for_text': negatives.image_of_text,
    'match_logits': head(
      'matcher', *cfam.match_pairs(image_granules, text_granules, negatives)
    ),
  }
