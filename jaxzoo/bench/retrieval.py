"""Time and memory of the retrieval metrics, on random vectors.

    python -m jaxzoo.bench.retrieval
    python -m jaxzoo.bench.retrieval --queries=40000 --gallery=8000 --dim=512

ranks the gallery for every query and computes all that an evaluation reports:
R@k, mAP, mINP and mSD, compilation included, and again without. `rank` are the
ten best images of each query.
"""

import resource
import sys
import time

import numpy as np

from jaxzoo.bench import command
from jaxzoo.eval.retrieval import rank, retrieval_metrics


def draw(rng, identities: int, count: int, dim: int):
  """(vectors [count, dim], identities [count]): noisy ones of identities."""
  pids = np.arange(count) % identities
  centres = np.random.default_rng(0).standard_normal((identities, dim))
  vectors = centres[pids] + 2 * rng.standard_normal((count, dim))
  return vectors.astype(np.float32), pids.astype(np.int32)


def measure(queries: int, gallery: int, dim: int, tile: int) -> dict:
  """Seconds of the metrics, first and again, and of the ranked lists.

  Returns:
    `first_seconds`, with compilation; `seconds`, `queries_per_second`;
    `rank_seconds`; `peak_gib`, the most that the process has held; `R@1` and
    `mAP`, so that there is something to compare.
  """
  rng, identities = np.random.default_rng(1), max(1, gallery // 4)
  asked, asked_pids = draw(rng, identities, queries, dim)
  shown, shown_pids = draw(rng, identities, gallery, dim)
  times = []
  for _ in range(2):
    started = time.perf_counter()
    found = retrieval_metrics(asked, shown, asked_pids, shown_pids, tile=tile)
    times.append(time.perf_counter() - started)
  started = time.perf_counter()
  rank(asked, shown, k=10, tile=tile)
  return {
    'queries': queries,
    'gallery': gallery,
    'dim': dim,
    'first_seconds': times[0],
    'seconds': times[1],
    'queries_per_second': queries / times[1],
    'rank_seconds': time.perf_counter() - started,
    'peak_gib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    'R@1': found['R@1'],
    'mAP': found['mAP'],
  }


def retrieval(argv) -> None:
  """The command."""
  parser = command.bare_parser('retrieval', 'What retrieval metrics cost.')
  add = parser.add_argument
  add('--queries', type=int, default=40_000, help='(%(default)s)')
  add('--gallery', type=int, default=8_000, help='(%(default)s)')
  add('--dim', type=int, default=512, help='(%(default)s)')
  add('--tile', type=int, default=256, help='queries at a time (%(default)s)')
  add('--json', metavar='FILE', help='write the numbers')
  arguments = parser.parse_args(argv)
  command.require_positive(arguments, 'queries', 'gallery', 'dim', 'tile')
  found = measure(
    arguments.queries, arguments.gallery, arguments.dim, arguments.tile
  )
  print(
    '{queries:,} queries, {gallery:,} images, {dim} numbers: {seconds:.1f} s '
    '({queries_per_second:,.0f} queries/s; {first_seconds:.1f} s the first '
    'time), the ten best {rank_seconds:.1f} s, {peak_gib:.2f} GiB'.format(
      **found
    )
  )
  if arguments.json:
    command.write_json(arguments.json, found)


if __name__ == '__main__':
  sys.exit(command.run(retrieval))
