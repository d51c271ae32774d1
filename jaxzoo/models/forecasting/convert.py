"""The names of OneNet's and FSNet's released code, into our stacks."""

import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.weights import layout

BRANCHES = {
  'encoder_time.encoder': 'time',
  'regressor_time': 'time_head',
  'encoder.encoder': 'variable',
  'regressor': 'variable_head',
}
# A convolution's tensors: name here, and from their layout to ours.
LEAVES = {
  'conv.weight': ('kernel', lambda x: x.transpose(1, 2, 0)),
  'bias': ('bias', lambda x: x),
  # [h, c i k], a chunk being c output channels of the kernel.
  'controller.0.weight': ('controller_kernel', None),
  'controller.0.bias': ('controller_bias', lambda x: x),
  'calib_w': ('kernel_scale', lambda x: x[..., 0].T),
  'calib_b': ('bias_scale', lambda x: x),
  'calib_f': ('output_scale', lambda x: x.reshape(-1)),
  'W': ('memory', lambda x: x),
  'grads': ('slow', None),
  'f_grads': ('fast', None),
}
STATE = ('memory', 'slow', 'fast')
CONV = re.compile(r'feature_extractor\.net\.(\d+)\.conv(\d)\.(.+)')
DENSE = {'weight': ('kernel', lambda x: x.T), 'bias': ('bias', lambda x: x)}
DECISION = {'input': 'input', 'hiddens.0': 'hidden', 'output': 'output'}


def convert(state_dict: Mapping[str, np.ndarray], config=None) -> dict:
  """Parameters: {'network': ..., 'decision': ...}; what no name is known of
  stays under its own, to be reported."""
  del config  # sizes are those of the tensors
  return _convert(state_dict)[0]


def convert_extra(state_dict: Mapping[str, np.ndarray], config=None) -> dict:
  """FSNet's memories and averages: {'fsnet': ...}, or {}."""
  del config
  return _convert(state_dict)[1]


def _convert(state_dict):
  layers, params, rest = {}, {}, {}
  for name, value in state_dict.items():
    value = np.asarray(value, np.float32)
    branch, tail = _branch(name)
    conv = CONV.fullmatch(tail)
    if conv and branch:
      # Branches in the order of the stacks: time, then variable.
      layer = (branch, int(conv[1]), int(conv[2]))
      layers.setdefault(layer, {})[conv[3]] = value
    elif path := _dense(branch, tail):
      params[path[0]] = path[1](value)
    else:
      rest[name] = value
  depth = max((block for _, block, _ in layers), default=0)
  stacks = {}
  for (_, block, number), tensors in sorted(layers.items()):
    stack = ('widen', 'final')[number - 1] if block == depth else 'inner'
    for ours, value in _layer(tensors).items():
      stacks.setdefault(f'{stack}/{ours}', []).append(value)
  state = {}
  for path, values in stacks.items():
    if path.rpartition('/')[2] in STATE:
      state[path] = np.stack(values)
    else:
      params[f'network/{path}'] = np.stack(values)
  extra = {'fsnet': layout.unflatten(state)} if state else {}
  return {**layout.unflatten(params), **rest}, extra


def _layer(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """One convolution under our names."""
  layer = {}
  for name, value in tensors.items():
    if name in LEAVES:
      ours, form = LEAVES[name]
      kernel = tensors['conv.weight']
      layer[ours] = form(value) if form else _kernel_like(name, value, kernel)
  if 'calib_w.weight' in tensors:
    together = lambda leaf: np.concatenate(
      [tensors[f'calib_{scale}.{leaf}'] for scale in 'wbf']
    )
    layer['scale_kernel'] = together('weight').T
    layer['scale_bias'] = together('bias')
  return layer


def _kernel_like(leaf, value, kernel):
  """Tensors that they keep flat, in the order of a kernel [o, i, k]."""
  o, i, k = kernel.shape
  if leaf == 'controller.0.weight':
    # A chunk: o / i output channels with their taps.
    return value.reshape(-1, o // i, i, k).transpose(2, 3, 1, 0)
  return value.reshape(o, i, k).transpose(1, 2, 0)


def _branch(name):
  """('time', the rest of the name); ('', the name) where it has none."""
  name = name.removeprefix('model.')
  for theirs, ours in BRANCHES.items():
    if name.startswith(theirs + '.'):
      return ours, name.removeprefix(theirs + '.')
  return '', name


def _dense(branch, tail):
  """(path, form) of a dense layer's tensor, or None."""
  layer, _, leaf = tail.rpartition('.')
  if leaf not in DENSE:
    return None
  ours, form = DENSE[leaf]
  if branch.endswith('_head') and not layer:
    return f'network/{branch}/{ours}', form
  if branch and layer == 'input_fc':
    return f'network/{branch}/input/{ours}', form
  if branch and re.fullmatch(r'feature_extractor\.net\.\d+\.projector', layer):
    squeezed = lambda x: form(x[..., 0] if x.ndim == 3 else x)
    return f'network/{branch}/project/{ours}', squeezed
  step, _, name = tail.partition('.')
  if step == 'decision' and name.rpartition('.')[0] in DECISION:
    return f'decision/{DECISION[name.rpartition(".")[0]]}/{ours}', form
  return None
