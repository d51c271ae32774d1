"""A generated data set of pedestrians with long descriptions.

It has the structure of UFineBench (arXiv 2312.03441), whose pictures need a
signed licence: a training and a test split of disjoint people with coarse
and fine captions in place of UFine6926, and a cross set of other people in
other places, described in more styles, in place of UFine3C. It is written in
the real data sets' annotation format, so that one reader serves both.

    python -m jaxzoo.data.pedestrians --out DIR

    from jaxzoo.data import pedestrians
    root = pedestrians.prepare(pedestrians.Settings(train_identities=500))

The people are drawings. Numbers measured on them compare methods with each
other, never with published results.
"""

from jaxzoo.data.pedestrians.write import (
  CROSS_DOMAINS,
  Settings,
  cache_root,
  prepare,
  write,
)

__all__ = ['CROSS_DOMAINS', 'Settings', 'cache_root', 'prepare', 'write']
