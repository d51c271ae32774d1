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
    'abs_quant',
    'bits of every layer and filters learned together, by bit sharing',
    'arXiv 2101.04935',
    'compression',
    ('baseline', 'tiny', 'cifar100', 'paper', 'mobilenet'),
  ),
  Entry(
    'automix',
    'learned mixup with a momentum pipeline',
    'arXiv 2103.13027, ECCV 2022',
    'supervised',
    ('baseline', 'tiny', 'cifar100', 'imagenet'),
  ),
  Entry(
    'baguan',
    'weather forecasting after Siamese masked pre-training',
    'arXiv 2505.13873, KDD 2025',
    'forecasting',
    (
      'baseline',
      'tiny',
      'pretrain',
      'paper',
      'paper_pretrain',
      'rollout',
    ),
  ),
  Entry(
    'card',
    'long-term forecasting with channel-aligned attention',
    'arXiv 2305.12095, ICLR 2024',
    'forecasting',
    (
      'baseline',
      'tiny',
      'custom',
      'etth1',
      'etth2',
      'ettm1',
      'ettm2',
      'weather',
      'electricity',
      'traffic',
    ),
  ),
  Entry(
    'cfam',
    'text-based person retrieval with ultra-fine granularity',
    'arXiv 2312.03441, CVPR 2024',
    'retrieval',
    ('baseline', 'tiny', 'ufine6926', 'cuhk_pedes', 'icfg_pedes', 'rstpreid'),
  ),
  Entry(
    'chex',
    'channel exploration: structured pruning with regrowing',
    'arXiv 2203.15794, CVPR 2022',
    'compression',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'classification',
    'image classification with any backbone',
    'arXiv 1512.03385, arXiv 2012.12877',
    'supervised',
    ('baseline', 'tiny', 'easy', 'digits', 'folder', 'resnet50', 'deit_small'),
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
    'dcd',
    'dynamic convolution by matrix decomposition',
    'arXiv 2103.08756, ICLR 2021',
    'backbones',
    ('baseline', 'tiny', 'paper', 'mobilenet'),
    system='classification',
  ),
  Entry(
    'dfkd_t3',
    'distillation of language models without data, on generated texts',
    'arXiv 2311.01689',
    'distillation',
    (
      'baseline',
      'untrained',
      'no_diversity',
      'real',
      'entities',
      'tiny',
      'paper',
    ),
  ),
  Entry(
    'diffkd',
    "distillation by denoising the student's features",
    'arXiv 2305.15712, NeurIPS 2023',
    'distillation',
    ('baseline', 'tiny', 'folder', 'resnet18', 'strong', 'swin_tiny'),
    system='distillation',
  ),
  Entry(
    'dist',
    'distillation from a stronger teacher by correlation',
    'arXiv 2205.10536, NeurIPS 2022',
    'distillation',
    ('baseline', 'tiny', 'folder', 'resnet18', 'strong', 'swin_tiny'),
    system='distillation',
  ),
  Entry(
    'distillation',
    'knowledge distillation with any teacher and student',
    'arXiv 1503.02531',
    'distillation',
    ('baseline', 'tiny', 'folder', 'resnet18', 'strong', 'swin_tiny'),
  ),
  Entry(
    'distillvlm',
    'vision-language models distilled by a teacher of their own regions',
    'arXiv 2104.02096, ICCV 2021',
    'distillation',
    (
      'baseline',
      'kd',
      'unadapted',
      'tiny',
      'captions',
      'paper',
      'paper_captions',
      'teacher',
      'adapted',
      'tuned',
      'pretrained',
    ),
  ),
  Entry(
    'elsa',
    'enhanced local self-attention',
    'arXiv 2112.12786',
    'backbones',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'fusionsf',
    'solar power forecasting from three modalities, vector-quantised',
    'arXiv 2402.05823, KDD 2024',
    'forecasting',
    ('baseline', 'no_vq', 'tiny', 'paper', 'zero_shot'),
  ),
  Entry(
    'gap',
    'sparse training that grows and prunes partitions in turn',
    'arXiv 2106.09857, ICLR 2022',
    'compression',
    ('baseline', 'gradual', 'parallel', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'genet',
    'networks designed for the latency of GPUs',
    'arXiv 2006.14090',
    'backbones',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'greenmim',
    'masked pre-training of hierarchical transformers on visible patches',
    'arXiv 2205.13515, NeurIPS 2022',
    'self_supervised',
    ('baseline', 'tiny', 'folder', 'paper'),
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
    'lightclip',
    'small CLIP models by softened labels, token alignment and masked words',
    'arXiv 2312.00674',
    'distillation',
    ('baseline', 'tiny', 'paper'),
  ),
  Entry(
    'lightvit',
    'light vision transformer without convolutions',
    'arXiv 2207.05557',
    'backbones',
    ('baseline', 'tiny', 'folder', 'paper'),
    system='classification',
  ),
  Entry(
    'maskd',
    'distillation of features inside learned masks',
    'arXiv 2205.14589, ICLR 2023',
    'distillation',
    ('baseline', 'tiny', 'alone', 'logits', 'folder', 'paper'),
    system='distillation',
  ),
  Entry(
    'maskd_tokens',
    'receptive tokens on a frozen teacher, the first stage of maskd',
    'arXiv 2205.14589, ICLR 2023',
    'distillation',
    ('baseline', 'tiny', 'logits', 'folder', 'paper'),
  ),
  Entry(
    'mbn',
    'memorized batch normalisation in two forward passes',
    'arXiv 2010.04947, AAAI 2018',
    'supervised',
    ('baseline', 'single', 'tiny', 'paper'),
  ),
  Entry(
    'onenet',
    'online ensembling of forecasters under drift',
    'arXiv 2309.12659, NeurIPS 2023',
    'forecasting',
    (
      'baseline',
      'tiny',
      'custom',
      'etth1',
      'etth2',
      'ettm1',
      'ettm2',
      'wth',
      'ecl',
    ),
  ),
  Entry(
    'pbe',
    'progressive backdoor erasing, with the attacks',
    'arXiv 2202.06312, CVPR 2023',
    'robustness',
    ('baseline', 'progressive', 'tiny', 'paper', 'paper_progressive'),
  ),
  Entry(
    'rpg',
    'pruning to high sparsity that keeps the rank of kernels',
    'arXiv 2311.17493, NeurIPS 2023',
    'compression',
    ('baseline', 'tiny', 'paper'),
    system='classification',
  ),
  Entry(
    'seed',
    'self-supervised distillation of similarities',
    'arXiv 2101.04731, ICLR 2021',
    'distillation',
    ('baseline', 'tiny', 'teacher', 'paper', 'small_patches'),
  ),
  Entry(
    'segmentation',
    'semantic segmentation with any backbone and a feature pyramid',
    'arXiv 1612.03144, arXiv 1901.02446',
    'supervised',
    ('baseline', 'tiny', 'folder'),
  ),
  Entry(
    'stvit',
    'semantic tokens instead of image tokens',
    'arXiv 2303.08685, CVPR 2023',
    'backbones',
    ('baseline', 'tiny', 'paper', 'deit'),
    system='classification',
  ),
  Entry(
    'text_to_text',
    'answers as texts: T5, fine-tuned or from scratch',
    'arXiv 1910.10683',
    'supervised',
    ('tiny', 'denoise', 'entities', 'sst2', 'cola', 'conll2003'),
  ),
  Entry(
    'zennet',
    'networks from the structure strings of Zen-NAS',
    'arXiv 2102.01063, ICCV 2021',
    'backbones',
    ('baseline', 'tiny', 'paper', 'cifar10'),
    system='classification',
  ),
)
SYSTEMS = {entry.slug: entry for entry in _ENTRIES}

# What a config names beside its system: where training data and evaluators
# come from. Modules are imported when they are asked for.
DATA = {
  'backdoor': 'jaxzoo.data.backdoor',
  'classification': 'jaxzoo.data.classification',
  'forecasting': 'jaxzoo.data.forecasting',
  'masked_images': 'jaxzoo.data.masked_images',
  'person_retrieval': 'jaxzoo.data.person_retrieval',
  'solar': 'jaxzoo.data.solar',
  'segmentation': 'jaxzoo.data.segmentation',
  'text': 'jaxzoo.data.text',
  'views': 'jaxzoo.data.views',
  'vision_language': 'jaxzoo.data.vision_language',
  'weather': 'jaxzoo.data.weather',
}
EVALUATORS = {
  'answers': 'jaxzoo.eval.answers',
  'backdoor': 'jaxzoo.eval.backdoor',
  'captioning': 'jaxzoo.eval.captioning',
  'classification': 'jaxzoo.eval.classification',
  'forecasting': 'jaxzoo.eval.forecasting',
  'knn': 'jaxzoo.eval.knn',
  'linear_probe': 'jaxzoo.eval.linear_probe',
  'masked_words': 'jaxzoo.eval.masked_words',
  'online': 'jaxzoo.eval.online',
  'person_retrieval': 'jaxzoo.eval.person_retrieval',
  'reconstruction': 'jaxzoo.eval.reconstruction',
  'segmentation': 'jaxzoo.eval.segmentation',
  'solar': 'jaxzoo.eval.solar',
  'vqa': 'jaxzoo.eval.vqa',
  'weather': 'jaxzoo.eval.weather',
  'zero_shot': 'jaxzoo.eval.zero_shot',
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

  `configs/SLUG.py` is the installed one where the working directory has none.

  Raises:
    UserError: no such file, or no `get_config` in it; the file itself raises
      one for an unknown variant.
  """
  path = pathlib.Path(path)
  known = {f'configs/{slug}.py': slug for slug in SYSTEMS}
  if not path.is_file() and str(path) in known:
    path = config_path(known[str(path)])
  if not path.is_file():
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
