"""From a random-access source to batches, with grain.

Training: shuffle, shard, transform, batch, without end; the iterator's state
is a few numbers that go into the checkpoint. Evaluation: every record exactly
once, the last batch padded and masked.
"""

import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags, logging

from jaxzoo.data.transforms import Transform, compose
from jaxzoo.errors import CorruptRecord, UserError


class Data(NamedTuple):
  """A source and what is done to its records."""

  source: Any
  transforms: tuple[Transform, ...]


class BatchedData(NamedTuple):
  """Training data whose batches are transformed as a whole, too.

  Attributes:
    source: random access to records.
    transforms: (record, rng) -> record, one after another.
    batch_transforms: (batch, rng) -> batch, of stacked records: for what
      examples of a batch share, such as a mask.
  """

  source: Any
  transforms: tuple[Transform, ...]
  batch_transforms: tuple[Transform, ...]


class Readable:
  """A source without corrupt records: each is replaced by the next good one.

  The replacement depends on the index alone, so that a resumed run sees the
  same examples. `corrupt` of a record is the index of the damaged one that it
  stands in for, or -1.
  """

  def __init__(self, source):
    self._source = source
    self._reported = set()

  def __len__(self):
    return len(self._source)

  def __repr__(self):
    return f'Readable({self._source!r})'

  def __getitem__(self, index):
    for passed in range(len(self)):
      try:
        record = self._source[(index + passed) % len(self)]
        return dict(record, corrupt=np.int32(index if passed else -1))
      except CorruptRecord as error:
        if error.path not in self._reported:
          self._reported.add(error.path)
          logging.warning('corrupt record skipped: %s', error)
    raise UserError(f'{self._source!r}: no record can be read')


class Repeated(grain.MapDataset):
  """Each record of an epoch `times` times in a row, the epoch cut at its end.

  Repeated augmentation (Hoffer et al., arXiv 1901.09335, as in DeiT): copies
  of one picture come in one batch, and are transformed by their own places.
  """

  def __init__(self, parent: grain.MapDataset, times: int):
    super().__init__(parent)
    self._times = times

  def __len__(self):
    return len(self.parents[0])

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    epoch, place = divmod(index, len(self))
    return self.parents[0][epoch * len(self) + place // self._times]


def train_dataset(
  source,
  transforms: Sequence[Transform],
  batch_transforms: Sequence[Transform] = (),
  *,
  batch_size: int,
  seed: int,
  shard: int = 0,
  shards: int = 1,
  repeats: int = 1,
) -> grain.MapDataset:
  """Endless batches of one process, reshuffled every epoch.

  Args:
    source: random access; `CorruptRecord` is passed over.
    transforms: (record, rng) -> record; rng depends on seed and position only.
    batch_transforms: (batch, rng) -> batch, of this process's part; rng depends
      on seed, number of the batch and shard only.
    batch_size: of this process.
    seed: of order and augmentation.
    shard: this process, of `shards`; together they cover the source once.
    shards: how many processes read.
    repeats: how often a record comes in a row, see `Repeated`.
  """
  if len(source) < batch_size * shards:
    raise UserError(
      f'{source!r} has {len(source)} records, fewer than one batch of '
      f'{batch_size * shards}: lower batch_size'
    )
  # Sharded after the transforms (all is lazy), so that an example's randomness
  # comes from its place in the whole stream: processes differ, and any number
  # of them makes the same global batches.
  order = grain.MapDataset.source(Readable(source)).seed(seed).shuffle()
  if repeats > 1:
    order = Repeated(order, repeats)
  stream = order.repeat()
  if transforms:  # a generator for each record costs more than a small record
    stream = stream.random_map(compose(*transforms))
  batches = stream[shard::shards].batch(batch_size, drop_remainder=True)
  if not batch_transforms:
    return batches
  apply = compose(*batch_transforms)
  # The place of a batch in its shard's stream is the same on all shards, which
  # `random_map` would therefore give the same numbers.
  return batches.map_with_index(
    lambda index, batch: apply(
      batch, np.random.default_rng((seed, shard, index))
    )
  )


def train_iterator(dataset: grain.MapDataset, *, workers: int, threads: int):
  """Reads ahead with `threads` threads or, for heavy decoding, in `workers`
  processes; the order of examples is the same either way."""
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=4 * max(threads, 1)
  )
  iterable = dataset.to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # notebooks and tests
      flags.FLAGS.mark_as_parsed()
    iterable = iterable.mp_prefetch(
      grain.MultiprocessingOptions(num_workers=workers)
    )
  return iter(iterable)


class Prefetch:
  """Puts batches on the devices ahead of their use, in a thread of its own.

  Iterating gives batches on the devices; `state` is the iterator's state after
  the batch last given out, not after the one last read ahead. The indices of
  corrupt records are gathered in `corrupt`; more than `max_corrupt` of them
  stop the run. An error in the thread is raised where the batch would have
  been given out, and again by every further call.
  """

  def __init__(
    self,
    iterator,
    put: Callable[[dict], Any],
    *,
    depth: int = 2,
    max_corrupt: int = 0,
  ):
    self._iterator = iterator
    self._put = put
    self._max_corrupt = max_corrupt
    self._queue = queue.Queue(depth)
    self._stop = threading.Event()
    self.state = iterator.get_state()
    self.corrupt = set()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self):
    try:
      while not self._stop.is_set():
        batch = dict(next(self._iterator))
        corrupt = {i for i in batch.pop('corrupt', []) if i >= 0}
        self._offer((self._put(batch), self._iterator.get_state(), corrupt))
    except BaseException as error:  # given to the consumer, whatever it is
      self._offer(error)

  def _offer(self, item):
    while not self._stop.is_set():
      try:
        return self._queue.put(item, timeout=0.1)
      except queue.Full:
        continue

  def __iter__(self) -> Iterator:
    return self

  def __next__(self):
    item = self._queue.get()
    if isinstance(item, BaseException):
      self._queue.put(item)  # the thread has ended: nothing else would come
      raise item
    batch, self.state, corrupt = item
    self.corrupt |= corrupt
    if len(self.corrupt) > self._max_corrupt:
      raise UserError(
        f'{len(self.corrupt)} corrupt records were met, more than the '
        f'{self._max_corrupt} allowed; their paths are logged above. Repair or '
        'remove them, or raise data.max_corrupt'
      )
    return batch

  def close(self):
    """Ends the thread; the iterator may be a few batches ahead of `state`."""
    self._stop.set()
    self._thread.join(timeout=10)


def eval_batches(
  source,
  transforms: Sequence[Transform],
  *,
  batch_size: int,
  shard: int = 0,
  shards: int = 1,
  threads: int = 4,
) -> Iterator[dict]:
  """Batches that cover the source exactly once.

  Every batch has `batch_size` rows and, beside the record's own keys, `index`
  int32 [b] (the record's position in the source) and `mask` bool [b]: False
  for padding and for records that cannot be read (a warning names them).
  Transforms get a generator seeded by the position. All shards give the same
  number of batches.
  """
  apply = compose(*transforms)

  def read(index):
    if index >= len(source):
      return None
    try:
      return apply(source[index], np.random.default_rng(index))
    except CorruptRecord as error:
      _report_missing(str(error))
      return None

  blank = _blank_record(source, apply)
  rows = -(-len(source) // (batch_size * shards)) * batch_size
  indices = [shard + shards * i for i in range(rows)]
  records = (
    grain.MapDataset.source(indices)
    .map(lambda index: (index, read(index)))
    .to_iter_dataset(grain.ReadOptions(threads, 4 * max(threads, 1)))
  )
  pending = []
  for row in records:
    pending.append(row)
    if len(pending) == batch_size:
      yield _padded(pending, blank)
      pending = []


@functools.cache  # evaluations come again and again: once is enough
def _report_missing(what: str) -> None:
  logging.warning('corrupt record left out of the evaluation: %s', what)


def _blank_record(source, apply: Transform) -> dict:
  """Zeros in the form of the first record that can be read."""
  for index in range(len(source)):
    try:
      record = apply(source[index], np.random.default_rng(index))
    except CorruptRecord:
      continue
    return {key: np.zeros_like(value) for key, value in record.items()}
  raise UserError(f'{source!r}: no record can be read')


def _padded(pending: list, blank: dict) -> dict:
  """Stacks (index, record or None) rows, zeros where there is no record."""
  rows = [blank if record is None else record for _, record in pending]
  batch = {key: np.stack([row[key] for row in rows]) for key in blank}
  batch['index'] = np.array([index for index, _ in pending], np.int32)
  batch['mask'] = np.array([record is not None for _, record in pending])
  return batch
