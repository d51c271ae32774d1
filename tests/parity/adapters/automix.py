"""AutoMix's parity cases on this project's mix block, step and name map."""

import re

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.models.layers.mix_block import MixBlock, mask_loss
from jaxzoo.models.losses.classification import soft_targets
from jaxzoo.models.supervised import automix
from jaxzoo.weights import automix as names
from jaxzoo.weights import rows as to


def run(case):
  outputs = _block(case) if 'feature' in case.inputs else _step(case)
  return named(outputs, case.outputs)


def _gradients(state_dict):
  """By the cases' names: in units of the root mean square, and its log."""
  outputs = {}
  for name, x in state_dict.items():
    rms = np.sqrt(np.mean(np.square(x, dtype=np.float64)))
    outputs[f'grad_unit/{name}'] = x / rms
    outputs[f'grad_logrms/{name}'] = np.log(rms)
  return outputs


def _block(case):
  config = case.config
  module = MixBlock(
    config['reduction'], config['lam_concat'], config['upsampling']
  )
  loaded = to.load(
    {f'mix_block.{name}': x for name, x in case.params.items()}, names.MIX_BLOCK
  )
  feature = case.inputs['feature'].transpose(0, 2, 3, 1)
  index, weight = case.inputs['index'], case.inputs['g']

  @jax.jit
  def compute(params, feature):
    def masked(params, feature):
      mask = module.apply(
        {'params': params},
        feature,
        feature[index],
        config['lam'],
        config['scale_factor'],
      )
      return jnp.sum(jnp.stack([1 - mask, mask], 1) * weight), mask

    grads, mask = jax.grad(masked, (0, 1), has_aux=True)(params, feature)
    off = mask_loss(mask, config['lam'], config['mask_loss_margin'])
    return grads, mask, off

  (grads, of_feature), mask, off = compute(
    loaded['params']['mix_block'], feature
  )
  theirs = to.save({'params': {'mix_block': grads}}, names.MIX_BLOCK)
  theirs = {name.removeprefix('mix_block.'): x for name, x in theirs.items()}
  theirs['feature'] = np.asarray(of_feature).transpose(0, 3, 1, 2)
  outputs = {
    'mask_second': mask,
    'mask_mean': mask.mean(),
    'mask_loss': off,
  }
  return outputs | _gradients(theirs)


def _config(case):
  """The system's config of a training step."""
  config = case.config
  arch, weights = config['arch'], config['weights']
  return ml_collections.ConfigDict(
    dict(
      model=f'resnet{re.search(r"ResNet-([0-9]+)", arch)[1]}',
      model_options=dict(small_stem='3x3 stride-1 stem' in arch),
      num_classes=int(re.search(r'([0-9]+) classes', arch)[1]),
      image_size=case.inputs['x'].shape[2:],
      in_chans=case.inputs['x'].shape[1],
      dtype='float32',
      scan=False,
      remat='none',
      mix_block=dict(
        layer='stage3',
        reduction=config['reduction'],
        lam_concat=config['lam_concat'],
        upsampling='nearest',
      ),
      loss=dict(weights, mask=config['mask_loss_weight']),
    )
  )


def _step(case):
  config = _config(case)
  networks, built = automix.make_networks(config)
  params = automix.convert(case.params, config)
  extra = automix.convert_extra(case.params, config)
  weights = automix.Weights(**config.loss)
  image = case.inputs['x'].transpose(0, 2, 3, 1)
  targets = soft_targets(case.inputs['labels'], config.num_classes)
  mixing = lambda which: automix.Mixing(
    jnp.float32(case.config[f'lam_{which}']),
    jnp.asarray(case.inputs[f'index_{which}'])[None],
  )

  @jax.jit
  def step(params, extra):
    def loss(params):
      losses, new, seen = automix.automix_losses(
        networks,
        params,
        extra,
        image,
        targets,
        mixing('mb'),
        mixing('bb'),
        jax.random.key(0),
        automix.Margins(
          case.config['mask_loss_margin'], case.config['lam_margin']
        ),
      )
      value = sum(getattr(weights, name) * x for name, x in losses.items())
      return value, (losses, new, seen[0])

    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
    losses, new, mixtures = aux
    new = automix.follow(new, params, case.config['momentum'])
    return value, losses, grads, new, mixtures

  value, losses, grads, new, mixtures = step(params, extra)
  outputs = {f'loss_{name}': losses[name] for name in case.config['weights']}
  outputs |= {
    'loss': value,
    'mask_loss': weights.mask * losses['mask'],
    'img_mix_mb': mixtures.mb.transpose(0, 3, 1, 2),
    'img_mix_bb': mixtures.bb.transpose(0, 3, 1, 2),
  }
  theirs = names.save(
    (grads, new['batch_stats']),
    ({name: new[f'{name}_k'] for name in automix.TWICE}, new['batch_stats_k']),
    built.export,
  )
  buffer = lambda name: name.endswith(('running_mean', 'running_var'))
  following = lambda name: name.partition('.')[0].endswith('_k')
  outputs |= {f'new/{n}': x for n, x in theirs.items() if buffer(n)}
  outputs |= {f'ema/{n}': x for n, x in theirs.items() if following(n)}
  return outputs | _gradients(
    {n: x for n, x in theirs.items() if not buffer(n) and not following(n)}
  )
