"""What saving and ranking cost is measured; no test asserts a time."""

import json

from jaxzoo.bench import checkpoint, command, retrieval


def test_stall_of_a_checkpoint_is_measured(tmp_path):
  path = tmp_path / 'result.json'
  argv = [
    '--config=classification:tiny',
    '--steps=2',
    '--saves=2',
    f'--directory={tmp_path}',
    f'--json={path}',
  ]
  assert command.run(checkpoint.checkpoint, argv) == 0
  found = json.loads(path.read_text())
  assert 0 < found['save'] < found['write'] and found['restore'] > 0
  times = [
    found[k] for k in ('started', 'compiled', 'initialised', 'first_step')
  ]
  assert times == sorted(times) and times[0] > 0
  assert found['gib'] > 0
  assert list(tmp_path.iterdir()) == [path]  # the checkpoints are gone


def test_retrieval_is_measured_whatever_the_tile(tmp_path):
  found = [retrieval.measure(30, 20, 8, tile) for tile in (7, 64)]
  assert found[0]['R@1'] == found[1]['R@1'] > 20  # of five identities
  assert found[0]['seconds'] > 0
  assert command.run(retrieval.retrieval, ['--queries=0']) == 2
