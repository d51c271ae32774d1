"""KVT's parity cases on this project's network, layer and name map."""

import functools

import jax
import jax.numpy as jnp
from plain_transformer import build, outputs
from thinned import named

from jaxzoo.models.backbones.vit import attention_rows
from jaxzoo.models.layers.knn_attention import knn_attention
from jaxzoo.models.layers.transformer import Attention
from jaxzoo.weights.rows import load


def run(case):
  if 'image_size' not in case.config:
    return _layer(case)
  # Any card: all sizes are the case's.
  built = build('kvt_deit_tiny_patch16_224', case.config)
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  found = jax.jit(
    lambda variables: built.module.apply(variables, image, method=outputs)
  )(built.convert(case.params))
  return named(found, case.outputs)


def _layer(case):
  config = case.config
  heads = config['num_heads']
  layer = Attention(
    heads, attention=functools.partial(knn_attention, k=config['topk'])
  )
  tensors = {f'layer.{name}': x for name, x in case.params.items()}
  params = load(tensors, attention_rows('layer', 'layer', heads))['params']

  @jax.jit
  def value_and_grad(x):
    def loss(x):
      y = layer.apply({'params': params['layer']}, x)
      return jnp.sum(y * case.inputs['g']), y

    return jax.grad(loss, has_aux=True)(x)

  grad, y = value_and_grad(case.inputs['x'])
  return named({'y': y, 'grad_x': grad}, case.outputs)
