"""Errors that a person can act on."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake outside the code: a config field, a path, a file, a mesh.

  `main` prints the message alone, without a traceback, and exits with 2. The
  message says what is wrong, where, and what to do.
  """


class CorruptRecord(Exception):
  """One record of a data set cannot be read; the rest may be fine.

  Pipelines count it, report its path and go on, up to a limit.
  """

  def __init__(self, path, reason):
    super().__init__(f'{path}: {reason}')
    self.path = str(path)
    self.reason = str(reason)

  def __reduce__(self):  # crosses process borders in data workers
    return CorruptRecord, (self.path, self.reason)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
  """'did you mean a, b or c?' from the names closest to `name`.

  >>> nearest('cfan', ['cfam', 'irra', 'clip'])
  'did you mean cfam?'
  >>> nearest('zzz', ['cfam', 'irra'])
  'known: cfam, irra'
  """
  known = sorted(known)
  close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
  if not close:
    return 'known: ' + ', '.join(known)
  if len(close) == 1:
    return f'did you mean {close[0]}?'
  return f'did you mean {", ".join(close[:-1])} or {close[-1]}?'
