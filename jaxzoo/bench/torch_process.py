"""PyTorch beside JAX, in a process of its own.

So each has the memory allocator and the threads that it comes with, and while
one is timed the other sleeps. This module does not import PyTorch; its process
does.
"""

import contextlib
import importlib
import importlib.util
import multiprocessing
import operator
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxzoo import catalog
from jaxzoo.errors import UserError


class Recipe(NamedTuple):
  """Adam's or AdamW's numbers."""

  lr: float
  betas: tuple[float, float]
  eps: float
  weight_decay: float


def shared_sizes(config) -> dict:
  """What every comparison reads of a config, by the names of its sizes."""
  optim = config.optim
  return dict(
    towers=config.towers.to_dict(),
    image_size=tuple(config.image_size),
    text_length=config.text_length,
    recipe=Recipe(
      optim.lr, (optim.b1, optim.b2), optim.eps, optim.weight_decay
    ),
  )


class IrraSizes(NamedTuple):
  """What `irra_torch.py` reads of a config."""

  towers: dict  # fields of backbones.clip.Towers, image='vit'
  image_size: tuple[int, int]
  text_length: int
  num_classes: int
  cross_modal_depth: int
  mlm_budget: int
  mask_retrieval_text: bool
  scale: float  # of the cosines
  recipe: Recipe


def irra_sizes(config) -> IrraSizes:
  """The sizes and the recipe of a config of IRRA."""
  return IrraSizes(
    **shared_sizes(config),
    num_classes=config.num_classes,
    cross_modal_depth=config.cross_modal_depth,
    mlm_budget=config.loss.mlm_budget,
    mask_retrieval_text=config.loss.mask_retrieval_text,
    scale=1 / config.loss.temperature,
  )


class ClipSizes(NamedTuple):
  """What `clip_torch.py` reads of a config."""

  towers: dict  # fields of backbones.clip.Towers, image='vit'
  image_size: tuple[int, int]
  text_length: int
  recipe: Recipe


def clip_sizes(config) -> ClipSizes:
  """The sizes and the recipe of a config of CLIP."""
  return ClipSizes(**shared_sizes(config))


class CfamSizes(NamedTuple):
  """What `cfam_torch.py` reads of a config."""

  towers: dict  # fields of backbones.clip.Towers, image='vit'
  image_size: tuple[int, int]
  text_length: int
  num_classes: int
  queries: int
  decoder_depth: int
  matcher_depth: int
  weights: dict[str, float]  # of the losses: gs, ls, m, cid
  scale: float  # of the cosines
  recipe: Recipe


def cfam_sizes(config) -> CfamSizes:
  """The sizes and the recipe of a config of CFAM."""
  return CfamSizes(
    **shared_sizes(config),
    num_classes=config.num_classes,
    **config.granularity.to_dict(),
    weights={name: config.loss[name] for name in ('gs', 'ls', 'm', 'cid')},
    scale=1 / config.loss.temperature,
  )


class Comparison(NamedTuple):
  """A training step in PyTorch beside that of one system.

  Attributes:
    makes: variant -> what makes it, see `TorchProcess`; it is called with what
      `sizes` gives, plain values, and with a batch.
    sizes: what of a config it reads.
    recipe: name of a published config, which it is written for.
    fields: of that config that must be as there, beside those of `COMMON`.
  """

  makes: dict[str, str]
  sizes: Callable[..., NamedTuple]
  recipe: str
  fields: tuple[str, ...]


# Fields of every config of which no comparison reads another value.
COMMON = (
  'towers.image',
  'microbatches',
  'ema',
  'optim.name',
  'optim.groups',
  'optim.clip_norm',
  'optim.layer_decay',
  'optim.mu_dtype',
)

COMPARISONS = {
  'irra': Comparison(
    {
      'published': 'jaxzoo.bench.irra_torch:make',
      'lean': 'jaxzoo.bench.irra_torch:make_lean',
    },
    irra_sizes,
    'irra:cuhk_pedes',
    tuple(f'loss.{name}' for name in ('sdm', 'itc', 'cmpm', 'id', 'mlm')),
  ),
  'clip': Comparison(
    {'published': 'jaxzoo.bench.clip_torch:make'},
    clip_sizes,
    'clip:paper',
    ('loss.kind',),
  ),
  'cfam': Comparison(
    {'published': 'jaxzoo.bench.cfam_torch:make'},
    cfam_sizes,
    'cfam:cuhk_pedes',
    ('loss.similarity', 'loss.hard_negatives'),
  ),
}


def require(config, variant: str = 'published') -> None:
  """Raises a UserError where there is nothing to compare `config` with."""
  if not is_installed('torch'):
    raise UserError(
      'torch: PyTorch is not installed here: pip install "jaxzoo[torch]", or '
      'leave --torch out'
    )
  comparison = COMPARISONS.get(config.system)
  if comparison is None:
    raise UserError(
      f'torch: the comparison is written for {", ".join(COMPARISONS)}; '
      f'leave --torch out to measure {config.system}'
    )
  if variant not in comparison.makes:
    raise UserError(
      f'torch: {config.system} has no --torch={variant}, for its published '
      'step does no work that ours skips: use --torch'
    )
  if config.dtype != 'float32':
    raise UserError(
      f'torch: the comparison is in float32, here is dtype={config.dtype}: '
      'set --dtype=float32'
    )
  published = catalog.get_config(comparison.recipe)
  for field in (*COMMON, *comparison.fields):
    there = operator.attrgetter(field)(published)
    try:
      here = operator.attrgetter(field)(config)
    except AttributeError:  # a config of one's own, which leaves it to defaults
      continue
    if here != there:
      raise UserError(
        f'torch: the comparison is written for {field}={there}, here is '
        f'{field}={here}: take that of {comparison.recipe}, or leave --torch '
        'out'
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


def start(config, variant: str, batch: dict) -> TorchProcess:
  """The process that runs the step of a config that `require` has accepted.

  Args:
    config: of a system in `COMPARISONS`.
    variant: 'published' or 'lean'.
    batch: arrays by name, the same in every step.
  """
  comparison = COMPARISONS[config.system]
  return TorchProcess(
    comparison.makes[variant], comparison.sizes(config), batch
  )


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
