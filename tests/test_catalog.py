"""Every row of the catalogue leads to a system, and every mistake to an error
that names what there is."""

import json
import pathlib

import ml_collections
import pytest

import jaxzoo
from jaxzoo import catalog, configuration
from jaxzoo.errors import UserError, nearest

ENTRIES = list(catalog.SYSTEMS.values())
VARIANTS = [
  f'{entry.slug}:{variant}'.rstrip(':')
  for entry in ENTRIES
  for variant in ('', *entry.variants)
]
each_entry = pytest.mark.parametrize(
  'entry', ENTRIES, ids=[entry.slug for entry in ENTRIES]
)
each_config = pytest.mark.parametrize('name', VARIANTS)


def leaves(config, prefix=''):
  """'a.b' -> value, for every field."""
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


# Entries.


@each_entry
def test_entry_has_a_module_with_what_a_system_offers(entry):
  module = catalog.load(entry.slug)
  assert module.__name__ == entry.module
  assert (entry.system or entry.slug) == entry.module.rpartition('.')[2]
  assert callable(module.build) and callable(module.convert)
  for pattern, axes in module.SHARDING:
    # Paths of a state begin with 'params/', of its moments with 'opt/'.
    assert isinstance(pattern, str) and not pattern.startswith('^')
    assert set(axes) <= {'tensor', None}


@each_entry
def test_entry_says_what_it_is(entry):
  assert entry.title and entry.paper
  assert entry.title[0].islower() or entry.title[0].isupper()
  assert not entry.title.endswith('.')


@each_entry
def test_config_file_opens_with_its_command_and_its_variants(entry):
  text = catalog.config_path(entry.slug).read_text()
  doc = text.split('"""')[1]
  assert f'python -m jaxzoo.main --config=configs/{entry.slug}.py' in doc
  for variant in set(entry.variants) - {'tiny'}:
    assert f':{variant}' in doc, f'{variant} is not explained'


def test_slugs_are_unique_and_listed():
  slugs = [entry.slug for entry in catalog._ENTRIES]
  assert len(set(slugs)) == len(slugs) == len(catalog.SYSTEMS)
  assert catalog.list_systems() == slugs
  assert jaxzoo.list_systems('cf*') == ['cfam']
  assert catalog.list_systems(family='none') == []


def test_paper_of_a_network_is_trained_by_the_system_that_its_row_names(
  monkeypatch,
):
  row = catalog.Entry(
    'deit', 'a network', 'arXiv 0', 'backbones', ('paper',), 'classification'
  )
  monkeypatch.setitem(catalog.SYSTEMS, 'deit', row)
  module = catalog.load('deit')
  assert module is catalog.load('classification')
  assert module.__name__ == row.module
  config = catalog.get_config('classification:resnet50').unlock()
  config.system = 'deit'
  assert catalog.sharding(config) and not module.SHARDING


def test_reading_the_catalogue_imports_no_system():
  import subprocess
  import sys

  code = (
    'import sys; from jaxzoo import catalog; catalog.list_systems();'
    'loaded = [m for m in sys.modules if m in ("jax", "flax") or '
    '"jaxzoo.models" in m]; assert not loaded, loaded'
  )
  root = pathlib.Path(catalog.__file__).parents[1]
  subprocess.run([sys.executable, '-c', code], check=True, cwd=root)


# Configs.


@each_config
def test_config_is_locked_complete_and_readable(name):
  config = catalog.get_config(name)
  slug = name.partition(':')[0]
  assert config.system == slug
  configuration.check(config)
  with pytest.raises(AttributeError, match='locked'):
    config.no_such_field = 1
  with pytest.raises(AttributeError, match='locked'):
    config.optim.learning_rate = 1
  missing = set(dict(leaves(configuration.defaults()))) - set(
    dict(leaves(config))
  )
  assert not missing
  # What is written beside a run says the same when it is read back.
  text = config.to_json_best_effort()
  assert json.loads(text)['batch_size'] == config.batch_size


@each_config
def test_fields_have_plain_types(name):
  plain = (bool, int, float, str, tuple)
  for field, value in leaves(catalog.get_config(name)):
    assert type(value) in plain, f'{field} is {value!r}'


@each_config
def test_common_fields_keep_the_types_of_the_defaults(name):
  fields = dict(leaves(catalog.get_config(name)))
  for field, default in leaves(configuration.defaults()):
    assert type(fields[field]) is type(default), field


@each_config
def test_parts_that_a_config_names_exist(name):
  config = catalog.get_config(name)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  assert callable(data.train_data) and callable(data.example_batch)
  assert config.evals
  for key, fields in config.evals.items():
    module = catalog.part(catalog.EVALUATORS, fields.kind, f'evals.{key}.kind')
    assert callable(module.make_evaluator)
  best = config.checkpoint.best
  assert not best or best.partition('/')[0] in config.evals


@each_config
def test_two_readings_are_independent(name):
  one, other = catalog.get_config(name), catalog.get_config(name)
  one.optim.lr = 123.0
  assert other.optim.lr != 123.0
  assert catalog.get_config(name) == other


# Mistakes.


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda: catalog.get('cfan'), "no system 'cfan'; did you mean cfam"),
    (lambda: catalog.get_config('cfan:tiny'), 'did you mean cfam'),
    (lambda: catalog.load('zzz'), 'known: abs_quant, automix, baguan, card'),
    (
      lambda: catalog.get_config('cfam:cuhk'),
      "no variant 'cuhk'; did you mean cuhk_pedes",
    ),
    (
      lambda: catalog.get_config('cfam:cuhk_pedes,modle=l14'),
      "no option 'modle'; did you mean model",
    ),
    (
      lambda: catalog.get_config('cfam:cuhk_pedes,model=b12'),
      "no variant 'b12'; did you mean b16",
    ),
    (
      lambda: catalog.get_config('cfam:cuhk_pedes,model'),
      'write model=VALUE',
    ),
    (
      lambda: catalog.get_config('dist:resnet18,size=32'),
      "'resnet18' takes no option 'size'",
    ),
    (
      lambda: catalog.get_config('dist:folder,model=resnet18'),
      'name both networks',
    ),
    (
      lambda: catalog.part(catalog.DATA, 'person', 'data.kind'),
      "data.kind: no 'person'; did you mean person_retrieval",
    ),
    (
      lambda: catalog.read_config('configs/cfan.py'),
      'no config file configs/cfan.py; did you mean configs/cfam.py',
    ),
  ],
)
def test_unknown_name_is_an_error_with_the_nearest(call, words):
  with pytest.raises(UserError, match=words):
    call()


def test_configs_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  want = catalog.get_config('cfam:tiny')
  assert catalog.read_config('configs/cfam.py', 'tiny') == want
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/cfam.py').write_text('def get_config(variant): return 1')
  with pytest.raises(AttributeError):  # one's own comes first
    catalog.read_config('configs/cfam.py', 'tiny')


@pytest.mark.parametrize(
  'name, text, words',
  [
    ('a.py', 'x = 1', 'no function get_config'),
    ('a.txt', 'def get_config(variant): pass', 'no Python file'),
  ],
)
def test_file_that_is_no_config_is_an_error(tmp_path, name, text, words):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(UserError, match=words):
    catalog.read_config(path)


def test_nearest_names():
  assert nearest('train', ['trains', 'x']) == 'did you mean trains?'
  assert nearest('b', ['b1', 'ab', 'x']).startswith('did you mean ')
  assert nearest('q', ['b', 'a']) == 'known: a, b'
  many = nearest('b', [f'b{i}' for i in range(9)])
  assert many.count('b') == 3 and many.endswith('?')


# Overrides.


def parse(*arguments):
  return configuration.parse(['--config=cfam:tiny', *arguments])[0]


@pytest.mark.parametrize(
  'argument, value',
  [
    ('optim.lr=1e-5', 1e-5),
    ('optim.lr=1', 1.0),
    ('epochs=2', 2.0),
    ('batch_size=16', 16),
    ('scan=true', True),
    ('scan=False', False),
    ('image_size=(64, 32)', (64, 32)),
    ('image_size=64,32', (64, 32)),
    ('image_size=[64, 32]', (64, 32)),
    ('profile=5,9', (5, 9)),
    ('data.root=/a=b', '/a=b'),
    ('data.root=5', '5'),
    ('loss.similarity=sdm', 'sdm'),
    ('optim.groups=(("bias$", {"lr": 2.0}),)', (('bias$', {'lr': 2.0}),)),
    ('evals.test.split=val', 'val'),
    ('mesh.fsdp=4', 4),
  ],
)
def test_override_takes_the_type_of_the_field(argument, value):
  field = argument.partition('=')[0]
  got = dict(leaves(parse(f'--config.{argument}')))[field]
  assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
  'argument, words',
  [
    ('optim.rl=1', "optim has no field 'rl'; did you mean lr"),
    ('optm.lr=1', "the config has no field 'optm'; did you mean optim"),
    ('optim.lr.x=1', "lr has no field 'x'; it is a single value"),
    ('optim=1', 'optim is a group; set one of its fields: optim.b1'),
    ('batch_size=1.5', 'batch_size=1.5: expected int like 8'),
    ('batch_size=many', 'expected int'),
    ('batch_size=true', 'expected int'),
    ('scan=1', 'expected bool'),
    ('optim.lr=high', 'expected float'),
    ('image_size=big', 'expected tuple'),
    ('optim.lr=__import__("os")', 'expected float'),
    ('optim.lr', 'write --config.optim.lr=VALUE'),
  ],
)
def test_wrong_override_is_an_error_that_says_what_is_expected(argument, words):
  with pytest.raises(UserError) as error:
    parse(f'--config.{argument}')
  assert words in str(error.value)


def test_config_argument_is_needed_and_has_no_other_names():
  with pytest.raises(UserError, match='which system.*--list'):
    configuration.parse([])
  with pytest.raises(UserError, match='--confg.*--config.FIELD'):
    configuration.parse(['--confg=x'])


@pytest.mark.parametrize(
  'field, value, words',
  [
    ('epochs', -1.0, 'epochs=-1.0'),
    ('log_steps', 0, 'log_steps=0.*at least 1'),
    ('eval_batch_size', 0, 'eval_batch_size'),
    ('save_epochs', float('nan'), 'save_epochs=nan'),
    ('ema', 1.0, 'ema=1.0'),
    ('data.threads', -1, 'data.threads'),
    ('data.repeats', 0, 'data.repeats=0'),
    ('data.max_corrupt', -0.5, 'data.max_corrupt'),
    ('dtype', 'bf16', "dtype: no 'bf16'; did you mean bfloat16"),
    ('remat', 'zz', 'remat.*dots, full, none'),
    ('job', 'trian', "job: no 'trian'; did you mean train"),
    ('profile', (5,), 'profile=.*first and the last'),
    ('profile', (9, 5), 'profile'),
  ],
)
def test_value_that_no_run_can_have_is_an_error(field, value, words):
  config = catalog.get_config('cfam:tiny')
  config.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=words):
    configuration.check(config)


@each_config
def test_teacher_is_the_network_of_its_stage(name):
  """Otherwise the first minutes of the run are lost."""
  config = catalog.get_config(name)
  if 'teacher' not in config or 'teacher' not in config.get('stages', {}):
    return
  stage = catalog.get_config(config.stages.teacher.config)
  if 'model_options' not in stage or 'model_options' not in config.teacher:
    return
  assert config.teacher.model == stage.model
  assert config.teacher.model_options == stage.model_options


@pytest.mark.parametrize('slug', catalog.list_systems())
def test_demo_has_a_class_for_every_identity_of_its_people(slug):
  """Its data would be refused; only the tiny ones are trained here."""
  config = catalog.get_config(slug)
  if config.data.kind == 'person_retrieval':
    people = config.data.embedded.train_identities
    assert config.num_classes == 0 or config.num_classes >= people
