"""Windows a second of the online protocol, here and, with --torch, in PyTorch.

    python -m jaxzoo.bench.online --config=configs/onenet.py:etth2 --torch

Random windows of the config's sizes are forecast, scored and learned one by one
from random weights: here in compiled scans, in PyTorch in a loop. Both compute
the same, see `onenet_torch.py`, and take turns; PyTorch's process is stopped
while ours runs.
"""

import importlib.util
import multiprocessing
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxzoo import main
from jaxzoo.bench import command
from jaxzoo.data import forecasting as data
from jaxzoo.data.windows import CALENDAR, Windows
from jaxzoo.errors import UserError
from jaxzoo.eval import stream
from jaxzoo.train import compiler


def measure(argv) -> None:
  """The command."""
  parser = command.make_parser('online', __doc__.splitlines()[0])
  add = parser.add_argument
  add('--windows', type=int, default=200, help='of a turn here')
  add('--torch_windows', type=int, default=50, help='of a turn in PyTorch')
  add('--rounds', type=int, default=3, help='turns of each')
  add('--torch', action='store_true', help='compare with PyTorch')
  arguments, config = command.parse(parser, argv)
  if arguments.torch:
    require(config)
  source = make_source(config, arguments.windows)
  start, compiled = prepare(config, source, arguments.windows)
  print(f'compiled in {compiled:.0f} s')
  other = Torch(config, arguments.torch_windows) if arguments.torch else None
  rates, theirs = [], []
  for _ in range(arguments.rounds):
    started = time.perf_counter()
    start()
    rates.append(arguments.windows / (time.perf_counter() - started))
    if other:
      theirs.append(arguments.torch_windows / other.run())
  result = {'windows_per_second': rates}
  print('windows/s:', ', '.join(f'{rate:.1f}' for rate in rates))
  if other:
    ratios = [a / b for a, b in zip(rates, theirs, strict=True)]
    result |= {'torch_windows_per_second': theirs, 'ratios': ratios}
    print('PyTorch:  ', ', '.join(f'{rate:.1f}' for rate in theirs))
    print('ratios:   ', ', '.join(f'{ratio:.1f}' for ratio in ratios))
    other.close()
  if arguments.json:
    command.write_json(arguments.json, result)


def require(config) -> None:
  """Raises a UserError where there is nothing to compare `config` with."""
  if importlib.util.find_spec('torch') is None:
    raise UserError(
      'torch: PyTorch is not installed here: pip install "jaxzoo[torch]", or '
      'leave --torch out'
    )
  if (
    config.system != 'onenet'
    or config.model.branches != 'both'
    or config.model.convs not in ('fsnet', 'tcn')
    or not config.ensemble.bias
  ):
    raise UserError(
      'torch: the comparison is written for method=onenet and onenet_tcn: '
      'leave --torch out to measure another'
    )


def make_source(config, windows: int) -> Windows:
  """Random rows for so many windows."""
  rows = config.history + config.horizon + windows - 1
  rng = np.random.default_rng(0)
  values = rng.normal(size=(rows, data.channels(config)))
  marks = rng.normal(size=(rows, len(CALENDAR)))
  return Windows(
    'random',
    values.astype(np.float32),
    config.history,
    config.horizon,
    marks=marks.astype(np.float32),
  )


def prepare(config, source: Windows, windows: int):
  """(() -> runs a turn to its end, seconds of compilation)."""
  system = main.create_system(config)
  online = stream.make_stream(source)
  state = jax.jit(system.init)(jax.random.key(0), online.batch(0, True))
  scan = jax.jit(
    lambda state: stream.learn(system, online, state, jnp.int32(0), windows),
    donate_argnums=0,
    compiler_options=compiler.options(config.compiler, jax.devices()),
  )
  started = time.perf_counter()
  scan = scan.lower(state).compile()
  compiled = time.perf_counter() - started
  carry = [jax.block_until_ready(scan(state)[0])]  # before the clock runs

  def turn():
    carry[0], record = scan(carry[0])
    jax.block_until_ready((carry[0], record))

  return turn, compiled


class Torch:
  """A process with PyTorch that runs turns when it is asked to.

  Between turns it is stopped: its idle threads wait actively.
  """

  def __init__(self, config, windows: int):
    context = multiprocessing.get_context('spawn')
    self._connection, there = context.Pipe()
    sizes = dict(
      convs=config.model.convs,
      history=config.history,
      horizon=config.horizon,
      variables=data.channels(config),
      width=config.model.width,
      features=config.model.features,
      depth=config.model.depth,
      lr=config.optim.lr,
    )
    self._process = context.Process(
      target=_serve, args=(there, sizes, windows), daemon=True
    )
    self._process.start()
    there.close()
    self._receive()  # it is ready

  def run(self) -> float:
    """Seconds of a turn."""
    os.kill(self._process.pid, signal.SIGCONT)
    self._connection.send(True)
    return self._receive()

  def _receive(self):
    try:
      received = self._connection.recv()
    except EOFError as error:
      raise UserError(
        'torch: its process ended, for the reason above'
      ) from error
    os.kill(self._process.pid, signal.SIGSTOP)
    return received

  def close(self):
    """Ends the process."""
    self._process.kill()
    self._process.join()
    self._connection.close()


def _serve(connection, sizes, windows):
  import torch

  from jaxzoo.bench import onenet_torch

  torch.manual_seed(0)
  model = onenet_torch.OneNet(**sizes)
  draw = lambda rows, columns: torch.randn(1, rows, columns)
  history, variables = sizes['history'], sizes['variables']
  batches = [
    (
      draw(history, variables),
      draw(history, len(CALENDAR)),
      draw(sizes['horizon'], variables),
    )
    for _ in range(windows)
  ]
  for batch in batches[:5]:
    model.online_step(*batch)
  connection.send(True)
  while True:
    try:
      connection.recv()
    except EOFError:
      return
    started = time.perf_counter()
    for batch in batches:
      model.online_step(*batch)
    connection.send(time.perf_counter() - started)


if __name__ == '__main__':
  sys.exit(command.run(measure))
