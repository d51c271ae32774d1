"""Variables from Orbax: folders of arrays, and the checkpoints of our runs."""

import os

import numpy as np
from etils import epath

from jaxzoo.errors import UserError
from jaxzoo.weights import layout

_ARRAYS = '_METADATA'  # what every folder of arrays has
# What a step of a checkpoint manager keeps its arrays under.
_ITEMS = ('state', 'default', 'params')


def find(path: str | os.PathLike) -> epath.Path | None:
  """The folder of arrays that `path` means; None where it means none.

  Args:
    path: such a folder, a step of a checkpoint manager, a folder of steps, of
      which the newest is taken, or the work directory of a run.
  """
  if os.fspath(path).startswith('hf://'):  # hub.find knows those
    return None
  place = epath.Path(path).expanduser()
  if '://' not in os.fspath(path) and not place.is_dir():
    return None
  for folder in (place / 'checkpoints', place):
    if (folder / _ARRAYS).exists():
      return folder
    for item in _ITEMS:
      if (folder / item / _ARRAYS).exists():
        return folder / item
    steps = folder.glob('[0-9]*') if folder.exists() else ()
    steps = sorted(int(step.name) for step in steps if step.name.isdigit())
    for step in reversed(steps):
      for item in _ITEMS:
        if (folder / str(step) / item / _ARRAYS).exists():
          return folder / str(step) / item
  return None


def read(folder: epath.Path) -> dict[str, np.ndarray]:
  """The variables in a folder of `find`, by path: 'params/head/kernel'.

  Of a run's state these are the parameters, averaged ones where there are any,
  and the statistics of batch norms; the optimizer's arrays are not read. Of
  other trees it is all that is in them.

  Raises:
    UserError: the folder is damaged.
  """
  import orbax.checkpoint as ocp  # takes a second

  folder = folder.resolve()
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      tree = checkpointer.metadata(folder).item_metadata.tree
      wanted = _wanted(tree)
      how = ocp.RestoreArgs(restore_type=np.ndarray)
      restored = checkpointer.restore(
        folder,
        args=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=_mapped(lambda _: how, wanted),
          partial_restore=True,
        ),
      )
  except Exception as error:  # orbax raises bare Exceptions
    reason = str(error).splitlines()[0] if str(error) else repr(error)
    raise UserError(
      f'{folder}: cannot be read as an Orbax checkpoint: {reason[:300]}'
    ) from error
  return layout.flatten(_variables(restored))


def _wanted(tree):
  """Of a state of ours what `_variables` takes; of other trees all."""
  if not {'params', 'extra'} <= set(tree):
    return tree
  names = ('batch_stats', 'ema', 'ema_stats')
  extra = tree['extra'] or {}
  return {
    'params': tree['params'],
    'extra': {name: extra[name] for name in names if name in extra},
  }


def _variables(tree):
  if 'extra' not in tree:
    return tree
  extra = tree['extra'] or {}
  stats = extra.get('ema_stats') or extra.get('batch_stats')
  variables = {'params': extra.get('ema') or tree['params']}
  return {**variables, **({'batch_stats': stats} if stats else {})}


def _mapped(function, tree):
  if isinstance(tree, dict):
    return {name: _mapped(function, node) for name, node in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [_mapped(function, node) for node in tree]
  return function(tree)


def write(folder: str | os.PathLike, variables) -> None:
  """Writes nested dicts of arrays; the folder must not exist."""
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(epath.Path(folder).expanduser().resolve(), variables)
