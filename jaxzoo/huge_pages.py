"""Memory in pages of 2 MB instead of 4 KB, for a command's process.

A training step on a CPU allocates some hundred megabytes and gives them back.
In small pages that is 250 interrupts a megabyte to clear them, a fifth of the
time of a step (docs/performance.md). Where Linux gives large ones to those who
ask, glibc asks if its environment says so when a process begins, and not later:
hence the process begins again, in its place, before it has loaded anything.
"""

import os
import pathlib
import re
import sys

TUNABLE = 'glibc.malloc.hugetlb'
NEWEST_WITHOUT = (2, 34)  # glibc has it since 2.35
POLICY = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def restart() -> None:
  """Runs this command again with large pages, where that changes something.

  Call it first, from what is run as a command. It returns where the kernel
  gives large pages to everybody or to nobody, where the C library cannot ask,
  and where GLIBC_TUNABLES says something of it already (`=0` keeps them off).
  """
  environment = with_huge_pages(os.environ)
  if environment is not None and sys.executable and on_request():
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def with_huge_pages(environment) -> dict[str, str] | None:
  """The environment that asks for them; None where it says yes or no."""
  tunables = environment.get('GLIBC_TUNABLES', '')
  if TUNABLE in tunables:
    return None
  asked = ':'.join(filter(None, (tunables, f'{TUNABLE}=1')))
  return {**environment, 'GLIBC_TUNABLES': asked}


def on_request() -> bool:
  """Whether kernel and C library give them to those who ask."""
  try:
    libc = os.confstr('CS_GNU_LIBC_VERSION') or ''
    policy = POLICY.read_text()
  except (AttributeError, OSError, ValueError):  # not Linux, not glibc
    return False
  version = re.match(r'glibc (\d+)\.(\d+)', libc)
  return (
    version is not None
    and tuple(map(int, version.groups())) > NEWEST_WITHOUT
    and '[madvise]' in policy
  )
