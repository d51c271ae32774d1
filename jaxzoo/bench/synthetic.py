"""Batches for measurements: the form of real ones, without any data set."""

import numpy as np

from jaxzoo import catalog
from jaxzoo.data.transforms import MASK_ID, mask_tokens
from jaxzoo.models.backbones.clip import END_TOKEN, START_TOKEN


def synthetic_batch(config, seed: int = 0) -> dict[str, np.ndarray]:
  """A training batch as `example_batch` of the config's data gives it, filled.

  Pictures are noise; captions have a start, some words, an end and padding, of
  which `mlm_text` and `mlm_labels` are masked as the config says; identities
  and labels are below `num_classes`; other numbers are normal, other integers
  0.
  """
  rng = np.random.default_rng(seed)
  data = catalog.part(catalog.DATA, config.data.kind, 'data.kind')
  batch = {
    name: _fill(name, x, config, rng)
    for name, x in data.example_batch(config).items()
  }
  if 'mlm_text' in batch:
    batch['mlm_text'], batch['mlm_labels'] = mask_tokens(
      batch['text'],
      rng.random(batch['text'].shape),
      rng.integers(1, MASK_ID, batch['text'].shape),
      p=config.data.mask_words,
    )
  return batch


def _fill(name, x, config, rng):
  if x.dtype == np.uint8:
    return rng.integers(0, 256, x.shape, np.uint8)
  if np.issubdtype(x.dtype, np.floating):
    return rng.standard_normal(x.shape).astype(x.dtype)
  if name == 'text':
    return _captions(x.shape, rng).astype(x.dtype)
  if name in ('label', 'pid'):
    return rng.integers(0, max(1, config.num_classes), x.shape).astype(x.dtype)
  return np.zeros_like(x)


def _captions(shape, rng):
  """Token ids with a third of the length to all of it."""
  rows, length = shape
  ends = rng.integers(length // 3, length, (rows, 1))
  places = np.arange(length)
  ids = np.where(places < ends, rng.integers(1, MASK_ID, shape), 0)
  return np.where(
    places == 0, START_TOKEN, np.where(places == ends, END_TOKEN, ids)
  )
