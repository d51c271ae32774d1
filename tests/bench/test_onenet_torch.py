"""PyTorch's OneNet computes what ours does: otherwise no time would compare."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxzoo import catalog
from jaxzoo.bench import online
from jaxzoo.data.windows import Windows
from jaxzoo.errors import UserError
from jaxzoo.eval import stream
from jaxzoo.models.forecasting import convert, ensemble, onenet

HISTORY, HORIZON, VARIABLES, STEPS = 6, 2, 3, 12


@pytest.mark.slow
@pytest.mark.parametrize('convs', ['fsnet', 'tcn'])
def test_online_steps_are_the_same(convs):
  torch = pytest.importorskip('torch')
  from jaxzoo.bench import onenet_torch

  torch.manual_seed(0)
  sizes = dict(width=4, features=8, depth=2)
  theirs = onenet_torch.OneNet(convs, HISTORY, HORIZON, VARIABLES, **sizes)
  rng = np.random.default_rng(0)
  rows = HISTORY + HORIZON + STEPS - 1
  values = rng.normal(size=(rows, VARIABLES)).astype(np.float32)
  marks = rng.normal(size=(rows, 7)).astype(np.float32)
  source = Windows('w', values, HISTORY, HORIZON, marks=marks)

  learner = onenet.Learner(
    onenet.Forecasters(HORIZON, convs, **sizes),
    ensemble.Decision(),
    'gradient',
    None,
  )
  system = onenet.make_system(learner, optax.adamw(1e-3, weight_decay=0.01))
  online_rows = stream.make_stream(source)
  state = system.init(jax.random.key(0), online_rows.batch(0, True))
  tensors = onenet_torch.tensors(theirs)
  params = convert.convert(tensors)
  params.pop('beta')  # has no released name, as `weight`
  params['weight'] = jnp.zeros(VARIABLES)
  extra = dict(state.extra)
  loaded = convert.convert_extra(tensors)
  if loaded:
    extra['fsnet'] = {
      stack: {**state.extra['fsnet'][stack], **loaded['fsnet'][stack]}
      for stack in loaded['fsnet']
    }
  found, _ = stream.run(
    system, online_rows, state._replace(params=params, extra=extra)
  )
  last = []
  for i in range(STEPS):
    batch = source[i]
    y = theirs.online_step(
      *(
        torch.from_numpy(batch[name][None])
        for name in ('history', 'history_marks', 'target')
      )
    )
    last.append(y[0, -1].numpy())
  np.testing.assert_allclose(found.record.last, last, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(
    found.state.params['weight'], theirs.weight.detach(), rtol=1e-2, atol=2e-5
  )


def test_comparison_of_other_methods_is_refused():
  pytest.importorskip('torch')
  with pytest.raises(UserError, match='onenet_tcn'):
    online.require(catalog.get_config('onenet:etth2,method=fsnet'))
