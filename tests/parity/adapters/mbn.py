"""MBN's parity cases on this project's norm and training step.

The network of the cases is built here, from its description in the config.
"""

import functools
import re

import flax.linen as nn
import jax
import numpy as np
import optax
from thinned import named

from jaxzoo.models.layers.convolution import conv, global_pool
from jaxzoo.models.layers.memorized_norm import MemorizedNorm, mixture_moments
from jaxzoo.models.supervised import mbn
from jaxzoo.weights import rows as to

# 'conv3x3/2(8,16)': kind, kernel size, stride, channels.
LAYER = re.compile(
  r'(?P<kind>conv|MBN|softplus|mean|linear)(?P<size>\d+)?(x\d+)?'
  r'(/(?P<stride>\d+))?(\(\d+,(?P<features>\d+)\))?'
)


class Described(nn.Module):
  """'conv3x3(3,8)-MBN-softplus-...-mean-linear(16,5)'."""

  layers: tuple[dict, ...]
  norm: functools.partial

  @nn.compact
  def __call__(self, x, train=False):
    count = {}
    for layer in self.layers:
      kind = layer['kind']
      number = count[kind] = count.get(kind, 0) + 1
      integer = lambda field, layer=layer: int(layer[field] or 1)
      if kind == 'conv':
        x = conv(
          integer('features'),
          integer('size'),
          integer('stride'),
          name=f'conv{number}',
        )(x)
      elif kind == 'MBN':
        x = self.norm(name=f'bn{number}')(x, train)
      elif kind == 'linear':
        x = nn.Dense(integer('features'), name='fc')(x)
      else:
        x = {'softplus': nn.softplus, 'mean': global_pool}[kind](x)
    return x


def run(case):
  config = case.config
  # A description ends at its first comma between spaces.
  described = config['net'].split(', ')[0].split('-')
  layers = tuple(LAYER.fullmatch(text).groupdict() for text in described)
  norm = functools.partial(
    MemorizedNorm,
    memory_size=config['memory_size'],
    decay=config['decay'],
    epsilon=config['eps'],
  )
  module = Described(layers, norm)
  system = mbn.make_system(
    module,
    optax.sgd(config['lr']),
    double_forward=config['double_forward'],
    decay=config['decay'],
  )
  nhwc = lambda x: np.moveaxis(x, -3, -1)
  batches = [
    {'image': image, 'label': label}
    for image, label in zip(
      nhwc(case.inputs['x']), case.inputs['labels'], strict=True
    )
  ]
  state = system.init(jax.random.key(0), batches[0])
  norms = [name for name in state.params if name.startswith('bn')]
  rows = [
    *[row for name in state.params if name.startswith('conv')
      for row in to.conv(name, name)],
    *[row for name in norms for row in to.norm(name, name)],
    *to.linear('fc', 'fc'),
  ]  # fmt: skip
  state = state._replace(params=to.load(case.params, rows)['params'])
  step, losses = jax.jit(system.step), []
  for batch in batches:
    state, metrics = step(state, batch)
    losses.append(metrics['loss'])
  logits = jax.jit(system.predict)(
    state, {'image': nhwc(case.inputs['x_eval'])}
  )
  outputs = {'losses': np.stack(losses), 'eval_logits': logits['logits']}
  for name in norms:
    memory = state.extra['batch_stats'][name]
    entries = int(memory['count'])
    outputs[f'{name}.memory_mean'] = memory['memory_mean'][:entries]
    outputs[f'{name}.memory_var'] = memory['memory_var'][:entries]
    mean, var = mixture_moments(
      memory['memory_mean'],
      memory['memory_var'],
      memory['count'],
      config['decay'],
    )
    outputs |= {f'{name}.memorized_mean': mean, f'{name}.memorized_var': var}
  after = to.save({'params': state.params}, rows)
  outputs |= {f'{name}_after': x for name, x in after.items()}
  return named(outputs, case.outputs)
