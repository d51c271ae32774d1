"""Classification data with a backdoor: pictures that carry a trigger.

A fixed share of the training pictures gets the trigger and the label that the
attacker wants; in the test set all pictures can get it. `attack` of the config:
`kind` and what `triggers.make_trigger` takes; `rate` of the training pictures;
`noise_ratio`, pictures in noise mode for each poisoned one (of a warp);
`target`, a class, or -1 for the next class of each (all-to-all).
"""

from collections.abc import Callable

import numpy as np

from jaxzoo.data import classification
from jaxzoo.data.pipeline import Data
from jaxzoo.data.transforms import Transform
from jaxzoo.data.triggers import make_trigger
from jaxzoo.errors import UserError

CLEAN, POISONED, NOISY = 0, 1, 2


class Chosen:
  """A source whose records say where they lie and what happens to them.

  Adds `index` int32 and `role`, CLEAN, POISONED or NOISY.
  """

  def __init__(self, source, roles: np.ndarray):
    self._source, self._roles = source, roles
    self.labels, self.names = source.labels, source.names

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, i) -> dict:
    record = self._source[i]
    return {**record, 'index': np.int32(i), 'role': self._roles[i]}

  def __repr__(self) -> str:
    return f'Chosen({self._source!r})'


def choose_roles(examples: int, attack) -> np.ndarray:
  """The role of every picture, int [n]: exact numbers, by `attack.seed`."""
  if not 0 <= attack.rate < 1:
    raise UserError(f'attack.rate={attack.rate}: it must be in [0, 1)')
  order = np.random.default_rng([attack.seed, examples]).permutation(examples)
  poisoned = round(examples * attack.rate)
  noisy = 0
  if attack.kind == 'warp':
    noisy = round(examples * attack.rate * attack.noise_ratio)
  roles = np.full(examples, CLEAN)
  roles[order[:poisoned]] = POISONED
  roles[order[poisoned : poisoned + noisy]] = NOISY
  return roles


def target_label(label, attack, num_classes: int):
  """What the attacker wants a picture to be taken for."""
  if attack.target >= num_classes:
    raise UserError(
      f'attack.target={attack.target}: there are {num_classes} classes'
    )
  wanted = (label + 1) % num_classes if attack.target < 0 else attack.target
  return np.int32(wanted)


def _triggers(config) -> tuple[Callable, Callable | None]:
  attack = config.attack
  return make_trigger(
    attack.kind,
    *config.image_size,
    seed=attack.seed,
    blend_ratio=attack.blend_ratio,
    sig_delta=attack.sig_delta,
    sig_frequency=attack.sig_frequency,
    warp_strength=attack.warp_strength,
  )


def to_unit(image: np.ndarray) -> np.ndarray:
  """uint8 as float32 in [0, 1]."""
  return image.astype(np.float32) / 255


def to_bytes(image: np.ndarray) -> np.ndarray:
  """[0, 1] as uint8, which is what an attacked file holds."""
  return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def add_trigger(config) -> Transform:
  """Every picture with the trigger; the label stays."""
  trigger, _ = _triggers(config)

  def transform(record, rng):
    del rng
    return {**record, 'image': to_bytes(trigger(to_unit(record['image'])))}

  return transform


def poison(config) -> Transform:
  """What the roles of records say; they become `poisoned`, bool."""
  trigger, noise = _triggers(config)

  def transform(record, rng):
    record = dict(record)
    role = record.pop('role')
    record['poisoned'] = np.bool_(role == POISONED)
    if role == POISONED:
      record['image'] = to_bytes(trigger(to_unit(record['image'])))
      record['label'] = target_label(
        record['label'], config.attack, config.num_classes
      )
    elif role == NOISY:
      record['image'] = to_bytes(noise(to_unit(record['image']), rng))
    return record

  return transform


def train_data(config) -> Data:
  """The poisoned training split; augmentation happens on the device.

  Raises:
    UserError: see `classification.read_source`; or the set has not as many
      pictures as the config says.
  """
  source = classification.read_source(config, config.data.train_split)
  if len(source) != config.erase.examples:
    raise UserError(
      f'{source!r} has {len(source)} pictures, but erase.examples='
      f'{config.erase.examples}: set --config.erase.examples={len(source)}'
    )
  roles = choose_roles(len(source), config.attack)
  steps = (*classification.eval_transforms(config), poison(config))
  return Data(Chosen(source, roles), steps)


def eval_data(config, split: str, triggered: bool = False) -> Data:
  """Every picture of a split once, with its own label."""
  source = classification.read_source(config, split)
  steps = classification.eval_transforms(config)
  return Data(source, (*steps, add_trigger(config)) if triggered else steps)


def example_batch(config) -> dict[str, np.ndarray]:
  """A training batch of zeros."""
  b = config.batch_size
  return {
    **classification.example_batch(config),
    'index': np.zeros(b, np.int32),
    'poisoned': np.zeros(b, bool),
  }
