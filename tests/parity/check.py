"""Compares the project with the parity cases: one line a case, exit 1 on a miss.

    python tests/parity/check.py                 # every case of every system
    python tests/parity/check.py lightvit        # one system
    python tests/parity/check.py --root DIR cfam # cases of another folder
"""

import argparse
import importlib.util
import pathlib
import sys
import time

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import parity  # noqa: E402


def compare(case: parity.Case, outputs: dict) -> tuple[bool, str]:
  """Whether every stored output is met, and the worst of them in words."""
  missing = sorted(set(case.outputs) - set(outputs))
  if missing:
    return False, f'missing outputs: {", ".join(missing)}'
  worst, text = -1.0, 'no outputs stored'
  for name, want in case.outputs.items():
    got = np.asarray(outputs[name])
    if got.shape != want.shape:
      return False, f'{name}: shape {got.shape}, want {want.shape}'
    if want.dtype.kind in 'US':
      excess = 0.0 if np.array_equal(got.astype(want.dtype), want) else np.inf
    else:
      got64, want64 = got.astype(np.float64), want.astype(np.float64)
      error = np.abs(got64 - want64)
      error = np.where(np.isnan(got64) & np.isnan(want64), 0, error)
      error = np.where(got64 == want64, 0, error)  # equal infinities
      bound = case.atol + case.rtol * np.abs(want64)
      with np.errstate(divide='ignore', invalid='ignore'):
        # No error needs no tolerance: 0 / 0 is met, x / 0 is not.
        ratio = np.where(error == 0, 0, error / bound)
      excess = float(np.max(ratio)) if error.size else 0.0
      excess = np.inf if np.isnan(excess) else excess
    if excess > worst:
      worst, text = excess, f'{name}: {excess:.3g} of the tolerance'
  return worst <= 1, text


def adapter(system: str, folder):
  """The module `folder/SYSTEM.py`, loaded by path so that no package shadows it."""
  path = pathlib.Path(folder) / f'{system}.py'
  if not path.exists():
    raise FileNotFoundError(f'no adapter {path.name}')
  spec = importlib.util.spec_from_file_location(f'parity_{system}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('which', nargs='*', help='SYSTEM or SYSTEM/CASE')
  default = HERE / 'cases'
  parser.add_argument('--root', default=default if default.is_dir() else HERE)
  parser.add_argument('--adapters', default=HERE / 'adapters')
  args = parser.parse_args()
  sys.path.append(str(args.adapters))  # what adapters share
  names = [n for n in parity.names(args.root)
           if not args.which or n in args.which or n.split('/')[0] in args.which]
  failed = 0
  for name in names:
    start = time.time()
    try:
      case = parity.load(name, args.root)
      run = adapter(name.split('/')[0], args.adapters).run
      met, text = compare(case, run(case))
    except Exception as error:  # a case that raises is a miss, not the end
      met, text = False, f'{type(error).__name__}: {error}'.splitlines()[0]
    failed += not met
    print(f'{"met   " if met else "MISSED"} {name}  {text}'
          f'  ({time.time() - start:.1f} s)', flush=True)
  print(f'{len(names) - failed} passed, {failed} failed')
  return int(bool(failed))


if __name__ == '__main__':
  sys.exit(main())
