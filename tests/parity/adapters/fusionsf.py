"""FusionSF's parity cases on this project's network, quantisers and loss."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from thinned import named

from jaxzoo.models.forecasting import fusionsf
from jaxzoo.weights import rows as to


def config_of(config, tensors):
  """The project's config of a network that a case describes."""
  weather = 'guide_channels' in config and any(
    name.startswith('guide_') for name in tensors
  )
  switches = {'satellite': 'ctx', 'power': 'ts', 'weather': 'guide'}
  quantized = [
    ours for ours, theirs in switches.items()
    if config.get(f'vq_in_{theirs}') and (ours != 'weather' or weather)
  ]  # fmt: skip
  return ml_collections.ConfigDict(
    dict(
      network=dict(
        patch_size=tuple(config['patch_size']),
        width=config['dim'],
        depth=config['depth'],
        num_heads=config['heads'],
        head_width=config['dim_head'],
        mlp_ratio=float(config['mlp_ratio']),
        decoder_width=config['decoder_dim'],
        decoder_depth=config['decoder_depth'],
        decoder_heads=config['decoder_heads'],
        decoder_head_width=config['decoder_dim_head'],
        outputs=config['out_dim'],
        mlp_heads=config['num_mlp_heads'],
        dropout=config['dropout'],
        weather=weather,
        max_frequency=float(config['max_freq']),
        periods=tuple(config['time_frequencies']),
      ),
      quantizer=dict(
        modalities=tuple(quantized),
        size=config.get('codebook_size', 1024),
        stages=config.get('num_quantizers', 8),
      ),
      scan=True,
      remat='none',
      dtype='float32',
    )
  )


def batch_of(case):
  """The inputs in this project's layout: channels last."""
  config, inputs = case.config, case.inputs
  height, width = config['image_size']
  frames = np.moveaxis(inputs['ctx'], -3, -1)
  repeats = (1, 1, height // frames.shape[2], width // frames.shape[3], 1)
  x = np.linspace(config['x0'], config['x1'], width, dtype=np.float32)
  y = np.linspace(config['y0'], config['y1'], height, dtype=np.float32)
  coordinates = np.stack(np.meshgrid(x, y), -1)
  batch = {
    'satellite': np.tile(frames, repeats),
    'coordinates': np.broadcast_to(
      coordinates, (len(frames), *coordinates.shape)
    ),
    'site': inputs['site'].reshape(len(frames), 2),
    'time': inputs['time'],
    'power': inputs['ts'],
    'target': inputs['y'],
  }
  if 'guide' in inputs:
    batch['weather'] = inputs['guide']
  return batch


def run(case):
  config = config_of(case.config, case.params)
  network, batch = fusionsf.make_network(config), batch_of(case)
  tensors = {
    name: x * (case.config['codebook_scale'] if 'codebook' in name else 1)
    for name, x in case.params.items()
  }
  params = fusionsf.convert(tensors, config)
  codebooks = fusionsf.convert_extra(tensors, config)
  codebooks = codebooks.get('codebooks', {})
  train, stages = case.config['train'], config.quantizer.stages

  def loss(params, satellite, power):
    inputs = {**batch, 'satellite': satellite, 'power': power}
    forecast, quantized, after = fusionsf.forward(
      network, params, codebooks, inputs, stages=stages,
      rng=jax.random.key(0) if train else None, dropout=False,
    )  # fmt: skip
    value, parts = fusionsf.forecast_loss(forecast, batch['target'], quantized)
    tokens = network.apply({'params': params}, inputs, method='embed')
    return value, (forecast, quantized, after, parts, tokens)

  operands = (
    params,
    jnp.asarray(batch['satellite']),
    jnp.asarray(batch['power']),
  )
  if train:
    function = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)
    (value, found), grads = jax.jit(function)(*operands)
  else:
    (value, found), grads = jax.jit(loss)(*operands), None
  forecast, quantized, after, parts, tokens = found
  outputs = {
    'forecast': forecast,
    'loss': value,
    'mae': parts['error'],
    'vq_loss': parts['commitment'],
    'ctx_tokens': tokens['satellite'],
  }
  for name, theirs in (('satellite', 'ctx'), ('power', 'ts')):
    if name in quantized:
      outputs[f'{theirs}_quantised'] = quantized[name].vectors
      outputs[f'{theirs}_indices'] = quantized[name].indices
      outputs[f'{theirs}_codebook_after'] = after[name]['codes']
      outputs[f'{theirs}_cluster_size_after'] = after[name]['sizes']
  if grads:
    of_params, satellite, power = grads
    unrolled = fusionsf.layout.unstack_blocks({'params': of_params})
    named_grads = to.save(unrolled, fusionsf.rows(network))
    outputs |= {
      'grad_ctx': np.moveaxis(np.asarray(satellite), -1, -3),
      'grad_ts': power,
      'grad_patch_weight': named_grads['to_patch_embedding.1.weight'],
    }
    if config.network.weather:
      outputs['grad_guide_weight'] = named_grads['guide_embedding.weight']
  return named(outputs, case.outputs)
