"""The names under which cases store a part or a multiple of an array."""

import re

import numpy as np

_NAME = re.compile(
  r'(?P<base>.*?)(_x1e(?P<power>-?\d+))?(_stride(?P<stride>\d+))?'
)


def named(outputs: dict, wanted) -> dict:
  """`outputs` under the names of `wanted`, those that can be made of them.

  NAME_x1eK is NAME times 10^K, NAME_strideN the flat NAME, every N-th value;
  both may come together, in that order. A name that is there already is taken
  as it is.
  """
  result = {name: outputs[name] for name in wanted if name in outputs}
  for name in set(wanted) - set(result):
    match = _NAME.fullmatch(name)
    if match['base'] in outputs:
      value = np.asarray(outputs[match['base']])
      if match['power']:
        value = value * 10.0 ** int(match['power'])
      if match['stride']:
        value = value.reshape(-1)[:: int(match['stride'])]
      result[name] = value
  return result
