"""What is compiled how, by the devices that a program is for."""

import jax
import numpy as np
import pytest

from jaxzoo import platform
from jaxzoo.models.create import create_model


@pytest.mark.parametrize(
  'kind, flags, expected',
  [
    ('cpu', '', {'xla_backend_optimization_level': 1}),
    ('cpu', '--xla_backend_optimization_level=0', None),
    ('tpu', '', None),
    ('cuda', '', None),
  ],
)
def test_what_runs_once_is_compiled_quickly_on_cpus(
  kind, flags, expected, monkeypatch
):
  monkeypatch.setenv('XLA_FLAGS', flags)
  assert platform.options_for_once(kind) == expected


def test_initial_parameters_do_not_depend_on_it(monkeypatch):
  make = lambda: create_model('resnet18', depths=(1,), width=4)[1]
  own = make()
  monkeypatch.setenv('XLA_FLAGS', '')
  for ours, plain in zip(*map(jax.tree.leaves, (make(), own)), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-6)
