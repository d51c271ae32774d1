"""A command begins again with large pages, once, where the kernel gives them."""

import os
import subprocess
import sys

import pytest

from jaxzoo import huge_pages

ON_REQUEST = 'always [madvise] never\n'


@pytest.fixture
def kernel(tmp_path, monkeypatch):
  """Sets the kernel's policy, and the C library's version."""

  def set_to(policy, libc='glibc 2.36'):
    path = tmp_path / 'enabled'
    path.write_text(policy)
    monkeypatch.setattr(huge_pages, 'POLICY', path)
    monkeypatch.setattr(os, 'confstr', lambda name: libc)

  return set_to


def test_on_request(kernel, monkeypatch, tmp_path):
  kernel(ON_REQUEST)
  assert huge_pages.on_request()
  for policy in ('[always] madvise never', 'always madvise [never]'):
    kernel(policy)
    assert not huge_pages.on_request()
  for libc in ('glibc 2.34', None, 'musl'):
    kernel(ON_REQUEST, libc)
    assert not huge_pages.on_request()
  kernel(ON_REQUEST, 'glibc 2.35')
  assert huge_pages.on_request()
  monkeypatch.setattr(huge_pages, 'POLICY', tmp_path / 'none')
  assert not huge_pages.on_request()


def test_what_the_environment_says_holds():
  add = huge_pages.with_huge_pages
  ours = 'glibc.malloc.hugetlb=1'
  assert add({'A': 'b'}) == {'A': 'b', 'GLIBC_TUNABLES': ours}
  other = {'GLIBC_TUNABLES': 'glibc.malloc.check=3'}
  assert add(other) == {'GLIBC_TUNABLES': f'glibc.malloc.check=3:{ours}'}
  assert add({'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}) is None
  assert add(add({})) is None  # so that it begins again once


SCRIPT = """
import os, pathlib, sys
from jaxzoo import huge_pages
huge_pages.on_request = lambda: True
print('begun', os.getpid(), flush=True)
huge_pages.restart()
print(os.environ['GLIBC_TUNABLES'], sys.flags.no_user_site, sys.argv[1:])
"""


def test_the_same_command_in_the_same_process():
  environment = dict(os.environ)
  environment.pop('GLIBC_TUNABLES', None)
  found = subprocess.run(
    [sys.executable, '-s', '-c', SCRIPT, '--config=a b'],
    env=environment,
    capture_output=True,
    text=True,
    check=True,
  )
  first, second, last = found.stdout.splitlines()
  assert first == second and first.startswith('begun ')
  assert last == "glibc.malloc.hugetlb=1 1 ['--config=a b']"
