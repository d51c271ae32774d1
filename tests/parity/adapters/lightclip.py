"""LightCLIP's parity case: both losses, both matchings, their gradients."""

import jax
from thinned import named

from jaxzoo.models.distillation import lightclip
from jaxzoo.models.losses.contrastive import cosine_similarity, info_nce


def run(case):
  config, inputs = case.config, case.inputs

  def instance(image, text):
    logits = config['scale'] * cosine_similarity(image, text)
    return lightclip.softened_info_nce(logits, config['alpha'])

  def token(patches, words, one_to_one):
    similarity = lightclip.token_similarity(
      patches, words, inputs['lengths'], one_to_one=one_to_one
    )
    return info_nce(similarity, config['scale']), similarity

  value, grads = jax.jit(jax.value_and_grad(instance, argnums=(0, 1)))(
    inputs['image_features'], inputs['text_features']
  )
  outputs = {
    'instance_loss': value,
    'grad_instance_image': grads[0],
    'grad_instance_text': grads[1],
  }
  for name, one_to_one in (('relaxed', False), ('one_to_one', True)):
    (value, similarity), grads = jax.jit(
      jax.value_and_grad(token, argnums=(0, 1), has_aux=True),
      static_argnums=2,
    )(inputs['patch_tokens'], inputs['word_tokens'], one_to_one)
    outputs |= {
      f'token_similarity_{name}': similarity,
      f'token_loss_{name}': value,
      f'grad_{name}_patches': grads[0],
      f'grad_{name}_words': grads[1],
    }
  return named(outputs, case.outputs)
