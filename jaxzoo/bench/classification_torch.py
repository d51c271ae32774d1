"""Trains PyTorch's counterpart of a classification config, by its recipe.

    python -m jaxzoo.bench.classification_torch \\
        --config=configs/classification.py:folder --config.data.root=DIR \\
        --workdir=runs/torch

begins with the weights that ours begins with for the same seed, exported to the
published names, and sees the same augmented batches in the same order; forward
pass, loss, gradients and AdamW are PyTorch's. What a run of `jaxzoo.main`
reaches with the same arguments can so be held against it:

    python -m jaxzoo.bench.compare ours=runs/ours torch=runs/torch

Needs `pip install "jaxzoo[reference]"`. The networks are those of
`networks_torch.py`: small residual networks, and LightViT.
"""

import contextlib
import itertools
import json
import math
import pathlib
import sys
import time

import jax
import numpy as np

from jaxzoo import assembly, catalog, main
from jaxzoo.bench import command, torch_process
from jaxzoo.data import pipeline
from jaxzoo.data.classification import train_data
from jaxzoo.errors import UserError
from jaxzoo.eval.evaluator import Predictions
from jaxzoo.models.cards import model_card
from jaxzoo.models.supervised import classification
from jaxzoo.train import optim


def check(config) -> None:
  """Raises a UserError for a config that has no counterpart here."""
  if not torch_process.is_installed('torch', 'torchvision'):
    raise UserError(
      'PyTorch and torchvision are not installed here: '
      'pip install "jaxzoo[reference]"'
    )
  if catalog.load(config.system) is not classification:
    raise UserError(
      f'system={config.system}: the counterpart in PyTorch is written for '
      'classification'
    )
  loss = config.loss
  plain = (
    ('dtype', config.dtype, 'float32'),
    ('ema', config.ema, 0),
    ('microbatches', config.microbatches, 1),
    ('in_chans', config.in_chans, 3),
    ('optim.name', config.optim.name, 'adamw'),
    ('optim.clip_norm', config.optim.clip_norm, 0),
    ('optim.layer_decay', config.optim.layer_decay, 1),
    ('loss.kind', loss.kind, 'softmax'),
    ('loss.smoothed', loss.smoothed, 'all'),
    ('loss.mixup', loss.mixup, 0),
    ('loss.cutmix', loss.cutmix, 0),
  )
  for field, value, expected in plain:
    if value != expected:
      raise UserError(
        f'{field}={value}: the counterpart in PyTorch is written for '
        f'{field}={expected}'
      )


def initial_tensors(config) -> tuple[dict, dict]:
  """The weights that ours begins with, by the published names.

  Returns:
    The state dict, and for each of its parameters the factor of the weight
    decay that `config.optim.groups` gives it.
  """
  system = main.create_system(config)
  batch = {
    'image': np.zeros((1, *config.image_size, config.in_chans), np.uint8),
    'label': np.zeros(1, np.int32),
  }
  state = jax.jit(system.init)(jax.random.key(config.seed), batch)
  groups = optim.group_tree(state.params, config.optim.groups)
  decays = jax.tree.map(
    lambda x, group: np.full(x.shape, group.decay, np.float32),
    state.params,
    groups,
  )
  tensors = classification.export(state.params, state.extra, config)
  named = classification.export(decays, state.extra, config)
  factors = {
    name: float(x.flat[0])
    for name, x in named.items()
    if 'running_' not in name
  }
  return tensors, factors


def make_model(config):
  """(network, optimizer), from the weights of `initial_tensors`."""
  import torch

  from jaxzoo.bench.networks_torch import make_network

  module = classification.make_backbone(config).module
  model = make_network(model_card(config.model).family, module)
  tensors, factors = initial_tensors(config)
  # Strict: all tensors have their places. Counts of batches, which nothing
  # reads, are added by PyTorch.
  model.load_state_dict({k: torch.tensor(x) for k, x in tensors.items()})
  fields = config.optim
  optimizer = torch.optim.AdamW(
    [
      {'params': [x], 'weight_decay': fields.weight_decay * factors[name]}
      for name, x in model.named_parameters()
    ],
    fields.lr,
    betas=(fields.b1, fields.b2),
    eps=fields.eps,
    foreach=True,
  )
  return model, optimizer


def normalized(config, image):
  """uint8 [b, h, w, 3] -> float32 [b, 3, h, w]."""
  import torch

  x = torch.from_numpy(np.ascontiguousarray(image)).permute(0, 3, 1, 2)
  of_channels = lambda values: torch.tensor(values).reshape(1, -1, 1, 1)
  return (x / 255 - of_channels(config.mean)) / of_channels(config.std)


def train(config, steps: int, schedule, batches, log) -> dict:
  """Trains, and evaluates as `config.evals` says."""
  import torch
  from torch.nn import functional as F

  model, optimizer = make_model(config)
  started = time.perf_counter()
  for i, batch in enumerate(itertools.islice(batches, steps)):
    for group in optimizer.param_groups:
      group['lr'] = float(schedule(i))
    logits = model.train()(normalized(config, batch['image']))
    label = torch.from_numpy(np.asarray(batch['label'])).long()
    loss = F.cross_entropy(
      logits, label, label_smoothing=config.loss.label_smoothing
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (i + 1) % config.log_steps == 0 or i + 1 == steps:
      rate = (i + 1) / (time.perf_counter() - started)
      accuracy = (logits.argmax(1) == label).float().mean().item()
      log(
        {'step': i + 1, 'loss': loss.item(), 'accuracy': accuracy,
         'steps_per_second': rate}
      )  # fmt: skip
  metrics = {}
  for name, evaluate in main.make_evaluators(config).items():
    found = evaluate(make_predict(config, model.eval())).metrics
    metrics |= {f'{name}/{key}': value for key, value in found.items()}
  return metrics


def make_predict(config, model):
  """The `predict` that evaluators take."""
  import torch

  @torch.inference_mode()
  def predict(source, transforms) -> Predictions:
    logits = np.zeros((len(source), config.num_classes), np.float32)
    found = np.zeros(len(source), bool)
    for batch in pipeline.eval_batches(
      source, transforms, batch_size=config.eval_batch_size
    ):
      rows = batch['index'][batch['mask']]
      output = model(normalized(config, batch['image'])).numpy()
      logits[rows], found[rows] = output[batch['mask']], True
    return Predictions({'logits': logits}, found)

  return predict


def run(config, workdir: pathlib.Path) -> dict:
  """Writes config.json, metrics.jsonl and result.json, as `jaxzoo.main`."""
  check(config)
  if (workdir / 'result.json').exists():
    raise UserError(f'{workdir} holds a finished run: use another --workdir')
  data = train_data(config)
  plan, epoch = main.make_plan(config, len(data.source))
  schedule = assembly.make_schedule(config.optim, plan.total, epoch)
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps(main.as_json(config)))

  def log(scalars):
    print('  '.join(f'{name} {x:.4g}' for name, x in scalars.items()))
    with (workdir / 'metrics.jsonl').open('a') as file:
      file.write(json.dumps(scalars) + '\n')

  iterator = pipeline.train_iterator(
    main.make_dataset(config, data),
    workers=config.data.workers,
    threads=config.data.threads,
  )
  batches = pipeline.Prefetch(
    iterator,
    lambda batch: batch,
    max_corrupt=math.ceil(config.data.max_corrupt * len(data.source)),
  )
  with contextlib.closing(batches):
    metrics = train(config, plan.total, schedule, batches, log)
  result = {'system': 'torch', 'step': plan.total, 'metrics': metrics}
  (workdir / 'result.json').write_text(json.dumps(result, indent=1))
  print('  '.join(f'{name} {x:.4g}' for name, x in metrics.items()))
  return result


def classification_torch(argv) -> None:
  """The command."""
  parser = command.make_parser(
    'classification_torch', 'Trains a classification config in PyTorch.'
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  arguments, config = command.parse(parser, argv)
  run(config, pathlib.Path(arguments.workdir).expanduser())


if __name__ == '__main__':
  sys.exit(command.run(classification_torch))
