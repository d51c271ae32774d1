"""PyTorch beside JAX, in a process of its own.

So each has the memory allocator and the threads that it comes with, and while
one is timed the other sleeps. This module does not import PyTorch; its process
does.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import resource
import time
from typing import NamedTuple

import jax

from jaxzoo.errors import UserError


class Sizes(NamedTuple):
  """What `build` reads of a config; plain values, to be sent to a process."""

  towers: dict  # fields of backbones.clip.Towers, image='vit'
  image_size: tuple[int, int]
  text_length: int
  num_classes: int
  cross_modal_depth: int
  mlm_budget: int
  mask_retrieval_text: bool
  scale: float  # of the cosines
  lr: float
  betas: tuple[float, float]
  eps: float
  weight_decay: float


def sizes_of(config) -> Sizes:
  """The sizes and the recipe of a config of IRRA."""
  return Sizes(
    towers=config.towers.to_dict(),
    image_size=tuple(config.image_size),
    text_length=config.text_length,
    num_classes=config.num_classes,
    cross_modal_depth=config.cross_modal_depth,
    mlm_budget=config.loss.mlm_budget,
    mask_retrieval_text=config.loss.mask_retrieval_text,
    scale=1 / config.loss.temperature,
    lr=config.optim.lr,
    betas=(config.optim.b1, config.optim.b2),
    eps=config.optim.eps,
    weight_decay=config.optim.weight_decay,
  )


def require(config) -> None:
  """Raises a UserError where there is nothing to compare `config` with."""
  if not is_installed('torch'):
    raise UserError(
      'torch: PyTorch is not installed here: pip install "jaxzoo[torch]", or '
      'leave --torch out'
    )
  if config.system != 'irra' or config.towers.image != 'vit':
    raise UserError(
      'torch: the comparison is written for irra with a vit as image tower; '
      f'leave --torch out to measure {config.system}'
    )
  weights = {name: config.loss[name] for name in ('sdm', 'id', 'mlm')}
  if config.dtype != 'float32' or set(weights.values()) != {1.0}:
    raise UserError(
      'torch: the comparison is in float32 and with all losses, here are '
      f'dtype={config.dtype} and {weights}: set --dtype=float32'
    )
  if config.optim.name != 'adam':
    raise UserError(
      f'torch: the comparison is of published recipes, with adam; here is '
      f'optim.name={config.optim.name}: take irra:cuhk_pedes'
    )
  devices = jax.devices()
  if len(devices) > 1 or jax.default_backend() not in ('cpu', 'gpu'):
    raise UserError(
      'torch: the comparison is on one CPU or GPU, here are '
      f'{len(devices)} x {devices[0].device_kind}'
    )


class Timing(NamedTuple):
  """One step, in seconds: of the clock, and of all cores of the process."""

  wall: float
  cpu: float


def clock() -> Timing:
  """Now; two of them differ by what `since` gives."""
  return Timing(time.perf_counter(), time.process_time())


def since(started: Timing) -> Timing:
  """What has passed."""
  now = clock()
  return Timing(now.wall - started.wall, now.cpu - started.cpu)


def is_installed(*packages: str) -> bool:
  """Whether all of them can be imported; none is."""
  return all(importlib.util.find_spec(name) is not None for name in packages)


class TorchProcess:
  """A process that runs steps when it is asked to.

  Args:
    make: 'MODULE:FUNCTION', to be called there with 'cpu' or 'cuda' and
      `arguments`. It returns a step, a function without arguments that gives
      its loss or None, and a dict of what is to be told.
    *arguments: plain values and arrays.

  Attributes:
    told: what it said last: PyTorch's `version` and what `make` told; once it
      has run, also `memory_gib` at the most, and the last `loss`, if any.

  Raises:
    UserError: the process ended by itself, here as in `run`.
  """

  def __init__(self, make: str, *arguments):
    context = multiprocessing.get_context('spawn')
    self._connection, there = context.Pipe()
    device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
    self._process = context.Process(
      target=_serve, args=(there, make, device, arguments), daemon=True
    )
    self._process.start()
    there.close()  # only its process holds it now: its end is noticed here
    self.told = {}
    self._receive()

  def run(self, steps: int) -> list[Timing]:
    """Runs steps; the time of each."""
    self._connection.send(steps)
    return self._receive()

  def close(self):
    """Ends the process."""
    self._process.kill()
    self._process.join()
    self._connection.close()

  def _receive(self):
    try:
      timings, told = self._connection.recv()
    except EOFError as error:
      raise UserError(
        'torch: its process ended, for the reason above; if there is none, '
        'memory did not suffice for both: lower --batch_size'
      ) from error
    self.told |= told
    return timings


def _serve(connection, make: str, device: str, arguments: tuple):
  """Receives numbers of steps; sends their times, and what `told` holds."""
  import torch

  torch.manual_seed(0)
  # XLA's default, too.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  place, _, name = make.partition(':')
  step, told = getattr(importlib.import_module(place), name)(device, *arguments)
  connection.send(([], {'version': torch.__version__, **told}))
  with contextlib.suppress(EOFError):
    while steps := connection.recv():
      timings = []
      for _ in range(steps):
        started = clock()
        loss = step()
        if device == 'cuda':
          torch.cuda.synchronize()
        timings.append(since(started))
      if device == 'cuda':
        memory = torch.cuda.max_memory_allocated()
      else:
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      told = {'memory_gib': memory / 2**30}
      if loss is not None:
        told['loss'] = float(loss.detach())
      connection.send((timings, told))
