"""The methods of docs/compression.md do what the page says."""

import pathlib
import re

import jax
import numpy as np
import optax
import pytest

from jaxzoo import compress

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / 'docs/compression.md').read_text()


@pytest.fixture(scope='module')
def page():
  """The names that the page's Python defines."""
  names = {}
  for code in re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL):
    exec(code, names)
  return names


def test_methods_of_the_page_prune(page):
  params = {'kernel': jax.random.normal(jax.random.key(0), (8, 16))}
  grads = jax.tree.map(lambda x: 1 - x, params)
  _, masks = compress.one_shot(params, page['movement'](0.75), grads)
  scores = -(params['kernel'] * grads['kernel'])
  kept = np.sort(np.asarray(scores)[np.asarray(masks['kernel'])])
  assert len(kept) == 32 and kept[0] >= np.sort(scores.ravel())[-32]

  tx = compress.sparsify(optax.sgd(0.0), page['above'](0.5, every=1))
  updates, state = tx.update(grads, tx.init(params), params)
  np.testing.assert_array_equal(
    state.masks['kernel'], np.abs(params['kernel']) > 0.5
  )


def test_example_of_the_page_is_an_optimizer(page):
  params = {'kernel': np.zeros((4, 4), np.float32)}
  state = jax.eval_shape(page['tx'].init, params)
  assert state.masks['kernel'].shape == (4, 4)


def test_every_field_of_the_table_exists():
  table = PAGE.split('## Fields')[1].split('## ')[0]
  named = {
    name
    for row in re.findall(r'^\| (`.*?) \|', table, re.MULTILINE)
    for name in re.findall(r'`(\w+)`', row)
  }
  known = set(compress.options.defaults())
  assert named <= known and len(named) > 15
  assert 'method' in known - {'seed'}
