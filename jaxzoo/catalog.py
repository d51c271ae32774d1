"""Every system, one row each: what listings, documentation and tests read.

Rows are text: reading the catalogue imports no system.
"""

import fnmatch
import importlib
import importlib.util
import pathlib
from types import ModuleType
from typing import NamedTuple

from jaxzoo.errors import UserError, nearest


class Entry(NamedTuple):
  """One system.

  Attributes:
    slug: its name everywhere: file, config, parity folder, command line.
    title: what it is, in a few words.
    paper: arXiv number or venue.
    family: the folder of `models/` it lies in.
    variants: what the config offers beside the bare demo.
    system: the slug of the system that trains it, where it has none of its
      own: a paper whose contribution is a network is trained by
      `classification`.
  """

  slug: str
  title: str
  paper: str
  family: str
  variants: tuple[str, ...] = ()
  system: str = ''

  @property
  def module(self) -> str:
    if self.system:
      return SYSTEMS[self.system].module
    return f'jaxzoo.models.{self.family}.{self.slug}'


_ENTRIES = (
  Entry(
    'automix',
    'learned mixup with a momentum pipeline',
    'arXiv 2103.13027, ECCV 2022',
    'supervised',
    ('baseline', 'tiny', 'cifar100', 'imagenet'),
  ),
  Entry(
    'cfam',
    'text-based person retrieval with ultra-fine granularity',
    'arXiv 2312.03441, CVPR 2024',
    'retrieval',
    ('baseline', 'tiny', 'ufine6926', 'cuhk_pedes', 'icfg_pedes', 'rstpreid'),
  ),
  Entry(
    'classification',
    'image classification with any backbone',
    'arXiv 1512.03385, arXiv 2012.12877',
    'supervised',
    ('baseline', 'tiny', 'digits', 'folder', 'resnet50', 'deit_small'),
  ),
  Entry(
    'clip',
    'contrastive language-image pre-training',
    'arXiv 2103.00020, ICML 2021',
    'retrieval',
    ('tiny', 'paper'),
  ),
  Entry(
    'conv_stem',
    'scaled ReLU, a convolutional stem for vision transformers',
    'arXiv 2109.03810, AAAI 2022',
    'backbones',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'irra',
    'cross-modal implicit relation reasoning and aligning',
    'arXiv 2303.12501, CVPR 2023',
    'retrieval',
    ('tiny', 'ufine6926', 'cuhk_pedes', 'icfg_pedes', 'rstpreid'),
  ),
  Entry(
    'kvt',
    'k-NN attention for vision transformers',
    'arXiv 2106.00515, ECCV 2022',
    'backbones',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'mbn',
    'memorized batch normalisation in two forward passes',
    'arXiv 2010.04947, AAAI 2018',
    'supervised',
    ('baseline', 'single', 'tiny', 'paper'),
  ),
)
SYSTEMS = {entry.slug: entry for entry in _ENTRIES}

# What a config names beside its system: where training data and evaluators
# come from. Modules are imported when they are asked for.
DATA = {
  'classification': 'jaxzoo.data.classification',
  'person_retrieval': 'jaxzoo.data.person_retrieval',
}
EVALUATORS = {
  'classification': 'jaxzoo.eval.classification',
  'knn': 'jaxzoo.eval.knn',
  'linear_probe': 'jaxzoo.eval.linear_probe',
  'person_retrieval': 'jaxzoo.eval.person_retrieval',
}


def list_systems(pattern: str = '*', family: str | None = None) -> list[str]:
  """Slugs that match a shell pattern, of one family or of all.

  >>> list_systems('c*', family='retrieval')
  ['cfam', 'clip']
  """
  return [
    entry.slug
    for entry in _ENTRIES
    if fnmatch.fnmatch(entry.slug, pattern) and family in (None, entry.family)
  ]


def get(slug: str) -> Entry:
  """The row of a system; a UserError with the nearest names where none is."""
  if slug not in SYSTEMS:
    raise UserError(f'no system {slug!r}; ' + nearest(slug, SYSTEMS))
  return SYSTEMS[slug]


def load(slug: str) -> ModuleType:
  """The module of a system: its networks, losses and `build`."""
  return importlib.import_module(get(slug).module)


def sharding(config) -> tuple:
  """The sharding rules of a config's system.

  `SHARDING` of its module; or, of a system around a network that the config
  names, what the module's function `sharding` says.
  """
  module = load(config.system)
  if hasattr(module, 'sharding'):
    return module.sharding(config)
  return module.SHARDING


def part(table: dict[str, str], name: str, field: str) -> ModuleType:
  """The module that `table` has for `name`, which the config's `field` says."""
  if name not in table:
    raise UserError(f'{field}: no {name!r}; ' + nearest(name, table))
  return importlib.import_module(table[name])


def config_path(slug: str) -> pathlib.Path:
  """The config file of a system, in a checkout or in the installed package."""
  package = pathlib.Path(__file__).parent
  for folder in (package / 'configs', package.parent / 'configs'):
    if (folder / f'{slug}.py').is_file():
      return folder / f'{slug}.py'
  raise UserError(f'the config of {slug} is not installed')


def read_config(path, variant: str = ''):
  """get_config(variant) of a config file, locked. The file is code and is run.

  Raises:
    UserError: no such file, or no `get_config` in it; the file itself raises
      one for an unknown variant.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    known = [f'configs/{slug}.py' for slug in SYSTEMS]
    raise UserError(f'no config file {path}; ' + nearest(str(path), known))
  if path.suffix != '.py':
    raise UserError(f'config file {path} is no Python file (*.py)')
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'{path} has no function get_config(variant)')
  # Locked: a misspelled field is an error, not a new one that nobody reads.
  return module.get_config(variant).lock()


def get_config(name: str):
  """The config of 'SLUG' or 'SLUG:VARIANT'.

  >>> get_config('cfam:cuhk_pedes').num_classes
  11003
  """
  slug, _, variant = name.partition(':')
  get(slug)
  return read_config(config_path(slug), variant)
