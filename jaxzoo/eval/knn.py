"""Representations by their neighbours: k-NN classification on frozen vectors.

Wu et al., arXiv 1805.01978, section 3.4, with the usual k = 20 and temperature
0.07 of self-supervised learning.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int

from jaxzoo.data import classification as data
from jaxzoo.errors import UserError
from jaxzoo.eval.classification import ranks
from jaxzoo.eval.evaluator import Evaluation

TILE = 1024  # rows of queries, and of the bank, that are compared at a time


def neighbours(
  query: Float[np.ndarray, 'q d'],
  bank: Float[np.ndarray, 'n d'],
  k: int,
  bank_mask: Bool[np.ndarray, ' n'] | None = None,
  tile: int = TILE,
) -> tuple[Float[np.ndarray, 'q k'], Int[np.ndarray, 'q k']]:
  """Cosines and places of the k nearest rows of a bank, best first.

  Computed by tiles of both on the device; a matrix of all similarities never
  exists. Where the bank has fewer than k rows, the rest has cosine -inf.

  Args:
    query: any vectors.
    bank: any vectors.
    k: neighbours.
    bank_mask: False for rows that are not there.
    tile: rows at a time.
  """
  count = len(bank)
  there = np.ones(count, bool) if bank_mask is None else bank_mask
  missing = -count % tile
  parts = lambda x: jnp.asarray(
    np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
  ).reshape(-1, tile, *x.shape[1:])
  stored = parts(np.asarray(bank, np.float32)), parts(there)
  rows = []
  for start in range(0, len(query), tile):
    part = np.asarray(query[start : start + tile], np.float32)
    filled = np.pad(part, [(0, tile - len(part)), (0, 0)])
    best = jax.device_get(_nearest(filled, *stored, k))
    rows.append([x[: len(part)] for x in best])
  return tuple(np.concatenate(x) for x in zip(*rows, strict=True))


@functools.partial(jax.jit, static_argnames='k')
def _nearest(query, bank, there, k):
  unit = lambda x: (
    x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
  )
  query = unit(query)

  def add(best, part):
    rows, there, first = part
    cosine = jnp.matmul(query, unit(rows).T, precision=lax.Precision.HIGHEST)
    cosine = jnp.where(there, cosine, -jnp.inf)
    places = jnp.broadcast_to(first + jnp.arange(len(rows)), cosine.shape)
    # What was found before comes first: of equal ones the earlier stays.
    joined = [
      jnp.concatenate(pair, axis=1)
      for pair in zip(best, (cosine, places), strict=True)
    ]
    values, chosen = lax.top_k(joined[0], k)
    return (values, jnp.take_along_axis(joined[1], chosen, axis=1)), None

  start = (
    jnp.full((len(query), k), -jnp.inf),
    jnp.zeros((len(query), k), jnp.int32),
  )
  firsts = jnp.arange(len(bank), dtype=jnp.int32) * bank.shape[1]
  return lax.scan(add, start, (bank, there, firsts))[0]


def votes(
  cosine: Float[np.ndarray, 'q k'],
  labels: Int[np.ndarray, 'q k'],
  classes: int,
  temperature: float,
) -> Float[np.ndarray, 'q c']:
  """score_c = sum of exp(cosine / temperature) over neighbours of class c.

  Scaled by the largest of each row, which changes no order.
  """
  weights = np.exp((cosine - cosine[:, :1]) / temperature)
  scores = np.zeros((len(cosine), classes))
  rows = np.broadcast_to(np.arange(len(cosine))[:, None], labels.shape)
  np.add.at(scores, (rows, labels), weights)
  return scores


def make_evaluator(
  config,
  *,
  split: str = 'test',
  k: int = 20,
  temperature: float = 0.07,
  limit: int = 0,
):
  """An evaluator that asks the training split for the nearest of `split`.

  Args:
    config: of the run; `data.train_split` is the bank.
    split: that is classified.
    k: neighbours.
    temperature: of their votes.
    limit: pictures of the bank, spread evenly over it; 0: all.

  Returns:
    predict -> Evaluation with top1 and top5 in percent.
  """
  if k < 1 or not temperature > 0:
    raise UserError(
      f'k-NN: k={k} must be at least 1, temperature={temperature} above 0'
    )
  bank, steps = data.eval_data(config, config.data.train_split)
  bank = subset(bank, limit)
  source = data.read_source(config, split)

  def evaluate(predict) -> Evaluation:
    stored, asked = predict(bank, steps), predict(source, steps)
    cosine, places = neighbours(
      asked.outputs['vector'],
      stored.outputs['vector'],
      min(k, int(stored.mask.sum())),
      stored.mask,
    )
    scores = votes(cosine, bank.labels[places], len(source.names), temperature)
    place = ranks(scores, source.labels)[asked.mask]
    values = {'top1': 100 * float((place < 1).mean())}
    if len(source.names) > 5:
      values['top5'] = 100 * float((place < 5).mean())
    return Evaluation(values)

  return evaluate


class Subset:
  """Some records of a source."""

  def __init__(self, source, places: Int[np.ndarray, ' n']):
    self._source, self._places = source, places
    self.names = source.names

  @property
  def labels(self):
    return self._source.labels[self._places]

  def __len__(self):
    return len(self._places)

  def __getitem__(self, i):
    return self._source[int(self._places[i])]

  def __repr__(self):
    return f'{len(self)} of {self._source!r}'


def subset(source, limit: int):
  """At most `limit` records, spread evenly; 0: the source itself."""
  if not limit or limit >= len(source):
    return source
  places = np.linspace(0, len(source) - 1, limit).astype(int)
  return Subset(source, places)
