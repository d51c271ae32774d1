"""Every record in its place: epochs, shards, resumption, damage, read-ahead."""

import gc
import multiprocessing
import time

import numpy as np
import pytest

from jaxzoo import catalog
from jaxzoo.data import pipeline
from jaxzoo.data.pipeline import Prefetch, eval_batches
from jaxzoo.errors import CorruptRecord, UserError


class Numbers:
  """Record i is the number i; those of `corrupt` cannot be read."""

  def __init__(self, size, corrupt=()):
    self._size, self._corrupt = size, set(corrupt)

  def __len__(self):
    return self._size

  def __repr__(self):
    return f'Numbers({self._size})'

  def __getitem__(self, i):
    if not 0 <= i < self._size:
      raise IndexError(i)
    if i in self._corrupt:
      raise CorruptRecord(f'images/{i}.jpg', 'truncated')
    return {'x': np.int32(i)}


def jitter(record, rng):
  return {**record, 'noise': np.float32(rng.random())}


def dataset(size=12, batch_size=4, corrupt=(), **options):
  source = Numbers(size, corrupt)
  settings = dict(batch_size=batch_size, seed=0, **options)
  return pipeline.train_dataset(source, [jitter], **settings)


def take(stream, count, key='x'):
  return [np.asarray(next(stream)[key]).tolist() for _ in range(count)]


def iterate(data, threads=0, workers=0):
  return pipeline.train_iterator(data, workers=workers, threads=threads)


# Epochs and shards.


def test_every_epoch_covers_all_records_once_in_another_order():
  epochs = np.reshape(take(iterate(dataset()), 9), (3, 12))
  for epoch in epochs:
    assert sorted(epoch) == list(range(12))
  assert len({tuple(epoch) for epoch in epochs}) == 3


def test_epochs_that_do_not_divide_into_batches_lose_no_record():
  stream = np.reshape(take(iterate(dataset(size=10)), 5), (2, 10))
  assert [sorted(epoch) for epoch in stream] == 2 * [list(range(10))]


def test_seed_decides_order_and_augmentation():
  same = take(iterate(dataset()), 3, 'noise')
  assert take(iterate(dataset()), 3, 'noise') == same
  other = pipeline.train_dataset(Numbers(12), [jitter], batch_size=4, seed=1)
  assert take(iterate(other), 3, 'noise') != same


@pytest.mark.parametrize('shards', [2, 4])
def test_shards_together_make_the_batches_of_one_process(shards):
  whole = [dataset(size=24, batch_size=8)[i] for i in range(6)]
  parts = [
    dataset(size=24, batch_size=8 // shards, shard=shard, shards=shards)
    for shard in range(shards)
  ]
  for i, want in enumerate(whole):
    for key in ('x', 'noise'):
      got = np.stack([part[i][key] for part in parts], axis=1).reshape(-1)
      np.testing.assert_array_equal(got, want[key])


def test_shards_draw_different_numbers():
  parts = [dataset(batch_size=2, shard=s, shards=2)[0]['noise'] for s in (0, 1)]
  assert not set(parts[0].tolist()) & set(parts[1].tolist())


def test_source_smaller_than_a_batch_is_an_error():
  with pytest.raises(UserError, match=r'Numbers\(3\) has 3.*batch of 4'):
    dataset(size=3)
  with pytest.raises(UserError, match='batch of 16'):
    dataset(size=12, batch_size=4, shards=4)


# Resumption and readers.


@pytest.mark.parametrize('threads', [0, 2])
def test_resumed_iterator_goes_on_as_if_it_had_not_stopped(threads):
  stream = iterate(dataset(), threads)
  take(stream, 4)
  state = stream.get_state()
  want = [take(stream, 1, key) for key in ('x', 'noise')]
  for reader in (0, 3):
    resumed = iterate(dataset(), reader)
    resumed.set_state(state)
    assert [take(resumed, 1, key) for key in ('x', 'noise')] == want


def test_order_does_not_depend_on_the_threads():
  want = take(iterate(dataset(), 0), 8, 'noise')
  assert take(iterate(dataset(), 2), 8, 'noise') == want
  assert take(iterate(dataset(), 7), 8, 'noise') == want


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, keys',
  [
    ('cfam:tiny', ('image', 'text', 'pid')),
    ('greenmim:tiny', ('image', 'keep', 'groups1_shifted')),  # of batches, too
  ],
)
def test_worker_processes_give_the_same_batches_and_states(
  name, keys, pedestrians_root
):
  # A real source: worker processes cannot import what a test module defines.
  config = catalog.get_config(name)
  if name.startswith('cfam'):
    config.data.root = str(pedestrians_root)
  module = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  data = module.train_data(config)
  make = lambda: pipeline.train_dataset(*data, batch_size=8, seed=0)
  want = [make()[i] for i in range(8)]
  batches = Prefetch(iterate(make(), workers=2), lambda batch: batch)
  got = [next(batches) for _ in range(5)]
  state = batches.state
  batches.close()
  resumed = iterate(make(), workers=2)
  resumed.set_state(state)
  got += [next(resumed) for _ in range(3)]
  for batch, expected in zip(got, want, strict=True):
    for key in keys:
      np.testing.assert_array_equal(batch[key], expected[key])
  del resumed, batches
  gc.collect()
  assert not multiprocessing.active_children(), 'workers must not linger'


# Transforms of batches.


def share(batch, rng):
  """One number for all, and the sum of what was batched."""
  return {**batch, 'shared': rng.random(2), 'sum': np.array([batch['x'].sum()])}


def shared_dataset(shard=0, shards=1, seed=0, **options):
  return pipeline.train_dataset(
    Numbers(24, **options),
    [jitter],
    [share, lambda batch, rng: {**batch, 'second': rng.random(1)}],
    batch_size=4,
    seed=seed,
    shard=shard,
    shards=shards,
  )


def test_transforms_of_batches_see_whole_batches():
  data, plain = shared_dataset(), dataset(size=24)
  for i in range(12):
    np.testing.assert_array_equal(data[i]['x'], plain[i]['x'])
    np.testing.assert_array_equal(data[i]['noise'], plain[i]['noise'])
    assert data[i]['sum'] == plain[i]['x'].sum()
    assert data[i]['second'] not in data[i]['shared'], 'one generator for all'


def test_batches_draw_numbers_by_seed_place_and_shard():
  draws = [
    tuple(shared_dataset(shard, shards, seed)[i]['shared'])
    for shard, shards, seed in [(0, 1, 0), (1, 2, 0), (0, 1, 1)]
    for i in range(13)  # more than two epochs
  ]
  assert len(set(draws)) == len(draws)
  again = [tuple(shared_dataset()[i]['shared']) for i in range(13)]
  assert draws[:13] == again


@pytest.mark.parametrize('threads', [0, 3])
def test_resumed_batches_draw_what_uninterrupted_ones_would(threads):
  stream = iterate(shared_dataset(), threads)
  take(stream, 5, 'shared')
  state = stream.get_state()
  want = take(stream, 4, 'shared')
  resumed = iterate(shared_dataset(), threads)
  resumed.set_state(state)
  assert take(resumed, 4, 'shared') == want


def test_damage_is_counted_beside_transforms_of_batches():
  batches = Prefetch(
    iterate(shared_dataset(corrupt=[5])), lambda batch: batch, max_corrupt=1
  )
  take(batches, 6, 'shared')
  assert batches.corrupt == {5}
  closing(batches)


# Damaged records.


def test_damaged_record_is_replaced_by_the_next_good_one():
  source = pipeline.Readable(Numbers(5, corrupt=[1, 2, 4]))
  records = [source[i] for i in range(5)]
  assert [int(record['x']) for record in records] == [0, 3, 3, 3, 0]
  assert [int(record['corrupt']) for record in records] == [-1, 1, 2, -1, 4]


def test_damage_is_reported_once_with_its_path(caplog):
  source = pipeline.Readable(Numbers(5, corrupt=[1]))
  for _ in range(3):
    source[1]
  (record,) = caplog.records
  assert 'images/1.jpg: truncated' in record.getMessage()


def test_damage_changes_only_the_records_it_hits():
  good, bad = iterate(dataset()), iterate(dataset(corrupt=[5]))
  for _ in range(6):
    want, got = next(good), next(bad)
    np.testing.assert_array_equal(
      got['x'], np.where(want['x'] == 5, 6, want['x'])
    )
    np.testing.assert_array_equal(got['noise'], want['noise'])
    assert got['corrupt'].tolist() == np.where(want['x'] == 5, 5, -1).tolist()


def test_source_of_damage_only_is_an_error():
  with pytest.raises(UserError, match='Numbers.*no record can be read'):
    pipeline.Readable(Numbers(3, corrupt=range(3)))[0]


# Read-ahead.


def closing(batches):
  batches.close()
  assert not batches._thread.is_alive()


def test_read_ahead_state_is_that_of_the_batch_given_out():
  batches = Prefetch(iterate(dataset(), 2), lambda batch: batch, depth=3)
  before = batches.state
  got = take(batches, 4)
  time.sleep(0.05)  # lets the thread run ahead
  state = batches.state
  rest = take(batches, 2)
  closing(batches)
  resumed = iterate(dataset())
  resumed.set_state(state)
  assert take(resumed, 2) == rest
  resumed.set_state(before)
  assert take(resumed, 4) == got


def test_read_ahead_hands_on_what_put_makes_without_the_corrupt_key():
  put = lambda batch: sorted(batch)
  batches = Prefetch(iterate(dataset(corrupt=[3])), put, max_corrupt=1)
  assert next(batches) == ['noise', 'x']
  closing(batches)


def test_read_ahead_is_bounded():
  seen = []

  class Endless:
    get_state = lambda self: len(seen)

    def __next__(self):
      seen.append(0)
      return {'x': np.zeros(1)}

  batches = Prefetch(Endless(), lambda batch: batch, depth=2)
  while len(seen) < 3:  # two in the queue, one in the hand
    time.sleep(0.01)
  time.sleep(0.3)
  assert len(seen) == 3
  closing(batches)


@pytest.mark.parametrize('limit', [0, 1, 2])
def test_more_damage_than_allowed_stops(limit):
  data = dataset(corrupt=[3, 7])
  batches = Prefetch(iterate(data), lambda batch: batch, max_corrupt=limit)
  if limit < 2:
    with pytest.raises(UserError, match='corrupt.*data.max_corrupt'):
      take(batches, 6)
  else:
    take(batches, 6)  # two epochs: the same two records do not count twice
    assert batches.corrupt == {3, 7}
  closing(batches)


class Broken:
  """Gives one batch, then fails."""

  def __init__(self, error):
    self._error, self._given = error, 0

  def get_state(self):
    return self._given

  def __next__(self):
    if self._given:
      raise self._error
    self._given += 1
    return {'x': np.zeros(1)}


@pytest.mark.parametrize(
  'error', [UserError('no such file'), ValueError('x'), StopIteration()]
)
def test_error_in_the_thread_reaches_the_consumer_and_stays(error):
  batches = Prefetch(Broken(error), lambda batch: batch)
  next(batches)
  for _ in range(2):  # a second call must not wait for ever
    with pytest.raises(type(error)) as raised:
      next(batches)
    assert raised.value is error
  assert batches.state == 1
  closing(batches)


def test_error_of_put_reaches_the_consumer():
  def put(batch):
    raise RuntimeError('out of memory')

  batches = Prefetch(iterate(dataset()), put)
  with pytest.raises(RuntimeError, match='out of memory'):
    next(batches)
  closing(batches)


def test_user_error_in_a_reading_thread_stays_a_user_error():
  data = pipeline.train_dataset(
    Numbers(12, corrupt=range(12)), [jitter], batch_size=4, seed=0
  )
  batches = Prefetch(iterate(data, threads=2), lambda batch: batch)
  with pytest.raises(UserError, match='no record can be read'):
    next(batches)
  closing(batches)


def test_close_ends_a_thread_that_waits_for_room():
  batches = Prefetch(iterate(dataset()), lambda batch: batch, depth=1)
  while not batches._queue.full():
    time.sleep(0.01)
  closing(batches)


# Evaluation.


def covered(source, batch_size, shards=1, threads=2):
  """(index, x) of every row that counts, and the batches of each shard."""
  rows, counts = [], []
  for shard in range(shards):
    batches = list(
      eval_batches(
        source,
        [jitter],
        batch_size=batch_size,
        shard=shard,
        shards=shards,
        threads=threads,
      )
    )
    counts.append(len(batches))
    for batch in batches:
      assert {len(value) for value in batch.values()} == {batch_size}
      assert batch['index'].dtype == np.int32 and batch['mask'].dtype == bool
      kept = batch['mask']
      rows += zip(batch['index'][kept], batch['x'][kept], strict=True)
  return rows, counts


@pytest.mark.parametrize('shards', [1, 2, 3])
@pytest.mark.parametrize('size, batch_size', [(12, 4), (10, 4), (1, 4), (7, 1)])
def test_evaluation_covers_every_record_once(size, batch_size, shards):
  rows, counts = covered(Numbers(size), batch_size, shards)
  assert sorted(rows) == [(i, i) for i in range(size)]
  assert len(set(counts)) == 1, 'all processes must take part in every batch'
  assert counts[0] == -(-size // (batch_size * shards))


@pytest.mark.parametrize('corrupt', [[0], [3, 4, 5], [9], range(9)])
@pytest.mark.parametrize('shards', [1, 2])
def test_evaluation_masks_what_cannot_be_read(corrupt, shards, caplog):
  pipeline._report_missing.cache_clear()
  rows, _ = covered(Numbers(10, corrupt), 2, shards)
  assert sorted(rows) == [(i, i) for i in range(10) if i not in set(corrupt)]
  for i in corrupt:
    assert f'images/{i}.jpg' in caplog.text


def test_evaluation_without_a_readable_record_is_an_error():
  with pytest.raises(UserError, match='no record can be read'):
    covered(Numbers(3, range(3)), 2)


def test_evaluation_is_the_same_every_time_and_for_all_threads():
  one, other = (
    list(eval_batches(Numbers(9), [jitter], batch_size=4, threads=threads))
    for threads in (0, 3)
  )
  for a, b in zip(one, other, strict=True):
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
