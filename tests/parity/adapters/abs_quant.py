"""ABS's parity cases on this project's quantisers, gates and cost."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo.compress import superbit


def run(case):
  config, inputs = case.config, case.inputs
  bits = tuple(config['bits'])
  filters = config['shape'][0]
  spread = 0.4 * (0.4 + 1.2 * np.arange(filters) / filters)
  # Their filters lie on the first axis, ours on the last.
  ours = lambda w: np.float32(np.moveaxis(w, 0, -1))
  theirs = lambda w: np.moveaxis(np.asarray(w), -1, 0)
  shape = (-1, *(1,) * (inputs['w'].ndim - 1))
  arguments = {
    'w': ours(inputs['w'] * spread.reshape(shape)),
    'x': np.abs(inputs['x']),
    **{
      name: np.float32(config[name])
      for name in ('v_w', 'v_x', 'alpha_w', 'alpha_x', 'alpha_p')
    },
  }

  def objective(a):
    weight = superbit.quantize(
      a['w'], a['v_w'], a['alpha_w'], signed=True, bits=bits
    )
    gates = superbit.filter_gates(
      a['w'], a['alpha_p'], config['filters_per_group']
    )
    pruned = superbit.prune_filters(weight.value, gates)
    activation = superbit.quantize(
      a['x'], a['v_x'], a['alpha_x'], signed=False, bits=bits
    )
    bops = superbit.bit_operations(
      config['macs'], weight.width, activation.width, gates.mean()
    )
    value = (
      jnp.mean(pruned * ours(inputs['ct']))
      + jnp.mean(activation.value * inputs['ctx'])
      + config['cost_weight'] * jnp.log(bops)
    )
    z = superbit.normalized(a['w'], a['v_w'], True)
    sums, _ = superbit.decompose(z, bits)
    levels = [
      jnp.round(s * (2**b - 1)) for s, b in zip(sums, bits, strict=True)
    ]
    return value, {
      'z_levels': jnp.stack(levels),
      'weight_quantized': pruned,
      'activation_quantized': activation.value,
      'weight_gates': weight.gates,
      'activation_gates': activation.gates,
      'prune_gates': gates,
      'bits_weight': weight.width,
      'bits_activation': activation.width,
      'bops': bops,
      'objective': value,
    }

  grads, outputs = jax.jit(jax.grad(objective, has_aux=True))(arguments)
  outputs['z_levels'] = np.stack([theirs(x) for x in outputs['z_levels']])
  outputs['weight_quantized'] = theirs(outputs['weight_quantized'])
  outputs['grad_w_scaled'] = theirs(grads['w']) * grads['w'].size
  outputs['grad_x_scaled'] = grads['x'] * grads['x'].size
  for name in ('v_w', 'v_x', 'alpha_w', 'alpha_x', 'alpha_p'):
    outputs[f'grad_{name}'] = grads[name]
  return outputs
