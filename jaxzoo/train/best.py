"""The best evaluation of a run, and when to stop looking for a better one."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxzoo.errors import UserError, nearest


class Best(NamedTuple):
  """The best evaluation so far.

  Attributes:
    step: of it; -1 where there has been none.
    metrics: all of that evaluation.
    waited: evaluations since then.
  """

  step: int = -1
  metrics: Mapping[str, float] = {}
  waited: int = 0


def better(
  best: Best, step: int, metrics: Mapping[str, float], name: str, mode: str
) -> Best:
  """`best` after one more evaluation; of equals the newer one is the best.

  >>> best = better(Best(), 10, {'val/mse': 0.5}, 'val/mse', 'min')
  >>> better(best, 20, {'val/mse': 0.7}, 'val/mse', 'min')
  Best(step=10, metrics={'val/mse': 0.5}, waited=1)

  Args:
    best: so far.
    step: of the new evaluation; one that is known already changes nothing.
    metrics: its numbers.
    name: of the metric that decides.
    mode: 'max' or 'min'.

  Raises:
    UserError: there is no such metric.
  """
  if name not in metrics:
    raise UserError(
      f'checkpoint.best: no metric {name!r}; ' + nearest(name, metrics)
    )
  if step == best.step:
    return best
  sign = 1 if mode == 'max' else -1
  if best.step < 0 or sign * metrics[name] >= sign * best.metrics[name]:
    return Best(step, dict(metrics), 0)
  return best._replace(waited=best.waited + 1)
