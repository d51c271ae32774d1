"""The evaluator of online learning, in a run from the command line's side."""

import pytest

from jaxzoo import catalog, main
from jaxzoo.eval import stream_state


@pytest.mark.slow
def test_stopped_stream_of_a_run_goes_on_to_the_same_result(
  tmp_path, monkeypatch
):
  config = catalog.get_config('onenet:tiny')
  whole = main.train(config, tmp_path / 'whole')['metrics']
  assert whole['online/mse'] < 4
  assert 'val/mse' in whole and 'online/variable_mse' in whole
  for name in ('pictures/online_rolling.png', 'tables/online_rolling.csv'):
    assert (tmp_path / 'whole' / name).exists()

  save, saved = stream_state.save, []

  def stop(folder, key, progress):
    save(folder, key, progress)
    saved.append(progress.position)
    raise KeyboardInterrupt

  monkeypatch.setattr(stream_state, 'save', stop)
  with pytest.raises(KeyboardInterrupt):
    main.train(config, tmp_path / 'stopped')
  assert 0 < saved[0] < 100
  monkeypatch.setattr(stream_state, 'save', save)
  rest = main.train(config, tmp_path / 'stopped')['metrics']
  for name, value in rest.items():
    if name != 'online/windows_per_second':
      assert value == whole[name], name
