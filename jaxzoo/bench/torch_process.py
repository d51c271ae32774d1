"""PyTorch beside JAX: the step of `irra_torch.py` in a process of its own.

So each has the memory allocator and the threads that it comes with, and while
one is timed the other sleeps. This module does not import PyTorch; its process
does.
"""

import contextlib
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
  if importlib.util.find_spec('torch') is None:
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


class TorchProcess:
  """A process that trains when it is asked to.

  Attributes:
    told: what it said last: `version` and `parameters`; once it has run, also
      `memory_gib` at the most, and the last `loss`.
  """

  def __init__(self, config, batch: dict, lean: bool):
    context = multiprocessing.get_context('spawn')
    self._connection, there = context.Pipe()
    device = 'cpu' if jax.default_backend() == 'cpu' else 'cuda'
    self._process = context.Process(
      target=_serve,
      args=(there, sizes_of(config), lean, batch, device),
      daemon=True,
    )
    self._process.start()
    there.close()  # only its process holds it now: its end is noticed here
    self.told = {}
    self._receive()

  def run(self, steps: int) -> list[Timing]:
    """Trains; the time of each step."""
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


def _serve(connection, sizes: Sizes, lean: bool, batch: dict, device: str):
  """Receives numbers of steps; sends their times, and what `told` holds."""
  import torch

  from jaxzoo.bench import irra_torch

  torch.manual_seed(0)
  # XLA's default, too.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  model = irra_torch.Irra(sizes, lean).to(device)
  optimizer = irra_torch.make_optimizer(model)
  batch = irra_torch.to_device(batch, device)
  parameters = sum(p.numel() for p in model.parameters())
  connection.send(
    ([], {'version': torch.__version__, 'parameters': parameters})
  )
  with contextlib.suppress(EOFError):
    while steps := connection.recv():
      timings = []
      for _ in range(steps):
        started = clock()
        metrics = irra_torch.train_step(model, optimizer, batch)
        if device == 'cuda':
          torch.cuda.synchronize()
        timings.append(since(started))
      if device == 'cuda':
        memory = torch.cuda.max_memory_allocated()
      else:
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      loss = float(metrics['loss'].detach())
      connection.send((timings, {'memory_gib': memory / 2**30, 'loss': loss}))
