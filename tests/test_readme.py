"""README and docs say what the code says."""

import pathlib
import re

import pytest

from jaxzoo import catalog
from jaxzoo.models.cards.__main__ import table

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
PAGES = [README, *(p.read_text() for p in sorted(ROOT.glob('docs/*.md')))]


@pytest.mark.parametrize(
  'entry', catalog.SYSTEMS.values(), ids=lambda e: e.slug
)
def test_every_system_has_its_row(entry):
  row = (
    f'| [{entry.slug}](configs/{entry.slug}.py) | {entry.title} | '
    f'{entry.paper} | ' + ' '.join(f'`:{v}`' for v in entry.variants) + ' |'
  )
  assert row in README


def test_table_of_backbones_is_the_printed_one():
  page = (ROOT / 'docs/backbones.md').read_text()
  assert page.endswith(f'\n{table()}\n'), 'python -m jaxzoo.models.cards'


def test_every_link_leads_to_a_file():
  for link in re.findall(r'\]\(([^)#:]+)\)', README):
    assert (ROOT / link).exists(), link
  for page in ROOT.glob('docs/*.md'):
    for link in re.findall(r'\]\(([^)#:]+)\)', page.read_text()):
      assert (page.parent / link).exists(), f'{page.name}: {link}'


def test_every_config_that_is_named_can_be_read():
  named = set()
  for page in PAGES:
    named |= set(re.findall(r'--config=configs/([\w.:,=+/-]+)', page))
  assert named
  for name in named:
    path, _, variant = name.partition(':')
    catalog.read_config(ROOT / 'configs' / path, variant)


def test_every_module_command_exists():
  for page in PAGES:
    for module in re.findall(r'python -m (jaxzoo[\w.]*)', page):
      path = ROOT / module.replace('.', '/')
      assert (
        path.with_suffix('.py').exists() or (path / '__main__.py').exists()
      ), module
