"""The names of OneNet's and FSNet's released code, into our stacks.

Taps that never see anything (see `tcn.py`) are left out: which these are, the
lengths tell over which the branches convolve.
"""

import re
from collections.abc import Mapping

import numpy as np

from jaxzoo.errors import UserError
from jaxzoo.models.forecasting.tcn import KERNEL, taps_of
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
# The axis of the taps, of those that have one.
TAPS_AXIS = {'kernel': 1, 'slow': 1, 'fast': 1, 'controller_kernel': 2}
STATE = ('memory', 'slow', 'fast')
CONV = re.compile(r'feature_extractor\.net\.(\d+)\.conv(\d)\.(.+)')
DENSE = {'weight': ('kernel', lambda x: x.T), 'bias': ('bias', lambda x: x)}
DECISION = {'input': 'input', 'hiddens.0': 'hidden', 'output': 'output'}


Lengths = Mapping[str, int]  # 'time' and 'variable' -> positions


def convert(
  state_dict: Mapping[str, np.ndarray],
  config=None,
  lengths: Lengths | None = None,
) -> dict:
  """Parameters: {'network': ..., 'decision': ...}; what no name is known of
  stays under its own, to be reported.

  Args:
    state_dict: names -> tensors.
    config: `history`, and `data.columns` for the branch across time alone.
    lengths: those of a checkpoint of both branches are read off its tensors.

  Raises:
    UserError: the lengths cannot be known.
  """
  return _convert(state_dict, _lengths(state_dict, config, lengths))[0]


def convert_extra(
  state_dict: Mapping[str, np.ndarray],
  config=None,
  lengths: Lengths | None = None,
) -> dict:
  """FSNet's memories and averages: {'fsnet': ...}, or {}; see `convert`."""
  return _convert(state_dict, _lengths(state_dict, config, lengths))[1]


def _lengths(state_dict, config, lengths) -> Lengths:
  """Of the branches that a checkpoint has."""
  if lengths is not None:
    return lengths
  sizes = {}
  for name, value in state_dict.items():
    branch, tail = _branch(name)
    if tail in ('input_fc.weight', 'weight'):
      sizes[branch] = np.shape(value)
  found = {}
  if 'variable' in sizes:
    if 'time' in sizes:
      found['variable'] = sizes['time'][1]
    elif config is not None:
      found['variable'] = config.history
  if 'time' in sizes:
    if {'time_head', 'variable_head'} <= sizes.keys():
      found['time'] = sizes['variable_head'][0] // sizes['time_head'][0]
    elif config is not None and config.data.columns:
      found['time'] = len(config.data.columns)
  missing = {'time', 'variable'} & (sizes.keys() - found.keys())
  if missing:
    raise UserError(
      f'onenet: a checkpoint of the branch {missing.pop()} alone does not tell '
      'over how many positions it convolves: give a config with history and '
      "data.columns, or lengths={'time': channels, 'variable': rows}"
    )
  return found


def _convert(state_dict, lengths):
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
  for (branch, block, number), tensors in sorted(layers.items()):
    stack = ('widen', 'final')[number - 1] if block == depth else 'inner'
    taps = taps_of(block, lengths[branch])
    for ours, value in _layer(tensors, taps).items():
      stacks.setdefault(f'{stack}_{taps}/{ours}', []).append(value)
  state = {}
  for path, values in stacks.items():
    if path.rpartition('/')[2] in STATE:
      state[path] = np.stack(values)
    else:
      params[f'network/{path}'] = np.stack(values)
  extra = {'fsnet': layout.unflatten(state)} if state else {}
  return {**layout.unflatten(params), **rest}, extra


def _layer(tensors: Mapping[str, np.ndarray], taps: int):
  """One convolution under our names, with its middle taps."""
  layer, cut = {}, (KERNEL - taps) // 2
  for name, value in tensors.items():
    if name in LEAVES:
      ours, form = LEAVES[name]
      kernel = tensors['conv.weight']
      value = form(value) if form else _kernel_like(name, value, kernel)
      axis = TAPS_AXIS.get(ours)
      if axis is not None:
        value = np.take(value, range(cut, cut + taps), axis)
      layer[ours] = value
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
    return value.reshape(-1, o // i, i, k).transpose(0, 2, 3, 1)
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
