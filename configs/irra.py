"""IRRA: cross-modal implicit relation reasoning and aligning (2303.12501).

    python -m jaxzoo.main --config=configs/irra.py

trains small towers from scratch on the embedded `pedestrians`, as CFAM's demo
does: same data, same towers, same steps.

    --config=configs/irra.py:cuhk_pedes     the published recipe, ViT-B/16;
                                            also :icfg_pedes :rstpreid
                                            :ufine6926

The published recipes start from OpenAI's weights and a data set on disk:

    --config.init.weights=ViT-B-16.pt --config.data.root=/data
"""

from jaxzoo import catalog


def get_config(variant=''):
  # CFAM takes IRRA's recipe over; what differs is the losses and their modules.
  config = catalog.get_config(f'cfam:{variant}').unlock()
  published = bool(config.init.fresh)
  config.system = 'irra'
  del config.granularity
  for name in [n for n, fields in config.evals.items() if 'vectors' in fields]:
    del config.evals[name]  # of the granules
  config.baseline = {}
  config.cross_modal_depth = 4 if published else 1
  config.loss = dict(
    sdm=1.0,  # similarity distribution matching
    itc=0.0,  # InfoNCE in its place
    cmpm=0.0,  # cross-modal projection matching in its place
    id=1.0,  # classification of the identity
    mlm=1.0,  # masked words, filled from the image
    temperature=0.02,
    mlm_budget=24,  # masked words a caption that count
    # The released code trains retrieval on the masked captions as well.
    mask_retrieval_text=True,
  )
  config.data.mask_words = 0.15
  if published:
    config.init.fresh = ('^(reasoning|mlm_head|classifier)/',)
    config.optim.groups = (
      ('cross', {'lr': 5.0}),
      ('bias$', {'lr': 2.0, 'decay': 0.0}),
      ('classifier|mlm_head', {'lr': 5.0}),
    )
  return config
