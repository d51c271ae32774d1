"""What the cases of plain vision transformers look at, by their names."""

from jaxzoo.models.create import build_model


def sizes(config: dict) -> dict:
  """Fields of `ViT` that a case's config has under other names."""
  names = {
    'embed_dim': 'width',
    'depth': 'depth',
    'num_heads': 'num_heads',
    'mlp_ratio': 'mlp_ratio',
    'patch_size': 'patch_size',
    'layer_norm_eps': 'epsilon',
    'topk': 'knn',
  }
  fields = {
    ours: config[name] for name, ours in names.items() if name in config
  }
  if 'num_prefix_tokens' in config:
    fields['distilled'] = config['num_prefix_tokens'] == 2
  return fields


def build(name: str, config: dict, **options):
  """The network of a case, from a card and the sizes of its config."""
  return build_model(
    name,
    num_classes=config['num_classes'],
    image_size=config['image_size'],
    **sizes(config),
    **options,
  )


def outputs(module, image) -> dict:
  """All that cases store, from within `module.apply(..., method=outputs)`."""
  patches = module.patches(image)
  tokens = module.embed(patches)
  found = {
    'patch_tokens': patches.reshape(patches.shape[0], -1, patches.shape[-1]),
    'tokens_after_pos_embed': tokens,
  }
  every = module.encode(tokens, every=True)
  for i, tokens in enumerate(every):
    found[f'block{i}'], found[f'block{i}_cls'] = tokens, tokens[:, 0]
  tokens = module.normalize(tokens)
  vector = module.pool(tokens)
  found |= {
    'features_after_norm': tokens,
    'cls_after_norm': tokens[:, 0],
    'logits': module.classify(vector),
  }
  if module.distilled:
    pair = module.classify(vector, True)
    found |= {'logits_cls': pair[0], 'logits_dist': pair[1]}
  return found
